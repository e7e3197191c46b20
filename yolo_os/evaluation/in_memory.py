"""Detections and ground truth that a program holds, in continuous pixels.

Arrays, dictionaries as torchmetrics takes them, and the objects of `supervision` and Ultralytics, told by what they
have.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.detections import (
    Detections,
    from_boxes,
    image_numbers,
    refuse_fractions,
    refuse_inverted,
    said_of_order,
)
from yolo_os.evaluation.names import some
from yolo_os.evaluation.readers.listed import Item, ListedImage, annotations_of

Array = NDArray[np.float64]
_AS_XYXY = "xyxy is x1, y1, x2, y2; for x, y, width, height say box_format='xywh', or 'cxcywh'"
_FORMATS = ("xyxy", "xywh", "cxcywh")


def as_detections(
    found: Mapping[str, Any] | Sequence[Any],
    annotations: Annotations,
    *,
    names: Mapping[int, str] | Sequence[str] | None = None,
    images: Sequence[str] | None = None,
    box_format: str = "xyxy",
) -> Detections:
    """What a detector found, as a program holds it, as `Detections`.

    Args:
        found: for each image, by its id or path, or in a list in the order of `images`, one of

            - an array (k, 6): x1, y1, x2, y2, score, class number;
            - a dictionary with `boxes`, `scores` and `labels`, as torchmetrics takes it;
            - a `supervision.Detections` (`xyxy`, `confidence`, `class_id`);
            - a result of Ultralytics (`boxes` with `xyxy`, `conf`, `cls`).

            An image on which nothing was found has an empty one.
        annotations: of the images.
        names: what the class numbers are called, matched to the classes of the annotations by name; by default as
            results of Ultralytics (`names`) and supervision (`data["class_name"]`) say, else they count these classes.
        images: ids or paths, for a list; all images of the annotations by default.
        box_format: of arrays and dictionaries: xyxy, xywh (corner) or cxcywh (centre).

    Warns:
        UserWarning: if the numbers count classes whose order nobody gave, as those of XML files.

    Raises:
        UserError: if an image is missing, unknown or given twice, what stands for one is none of these, or boxes are
            evidently of another form.
    """
    by_image = _by_image(found, annotations.images if images is None else images, "found")
    numbers = image_numbers(by_image, annotations)
    unknown = [image for image in by_image if image not in numbers]
    if unknown:
        raise UserError(f"found: {some(unknown)} is no image of the ground truth ({some(annotations.images)})")
    there = set(numbers.values())
    without = [image for number, image in enumerate(annotations.images) if number not in there]
    if without:
        raise UserError(f"found: has nothing for {some(without)} ({len(without)} of {len(annotations.images)} images)")
    said = _names_said(by_image.values()) if names is None else dict(_numbered(names))
    known = said or dict(enumerate(annotations.classes))
    boxes = {image: _scored(item, f"found[{image!r}]", box_format) for image, item in by_image.items()}
    labels = {int(label) for rows in boxes.values() for label in np.unique(rows[:, 5])}
    strange = sorted(label for label in labels if label not in known)
    if strange:
        raise UserError(f"found: class {strange[0]} has no name; names= has {some(map(str, known))}")
    warning = None if said else said_of_order("found", annotations, 0, labels)
    detections = from_boxes(boxes, known, annotations)
    refuse_inverted(detections.box, "found", _AS_XYXY)
    refuse_fractions(detections.box, annotations.box, "found")
    if not warning:
        return detections
    warnings.warn(warning, stacklevel=2)
    return replace(detections, warnings=(warning,))


def as_annotations(
    truth: Mapping[str, Any] | Sequence[Any],
    classes: Sequence[str],
    *,
    images: Sequence[str] | None = None,
    sizes: Mapping[str, tuple[float, float]] | None = None,
    box_format: str = "xyxy",
) -> Annotations:
    """Ground truth that a program holds, as `Annotations`.

    Args:
        truth: for each image, by its id, or in a list in the order of `images`, one of

            - an array (k, 5): x1, y1, x2, y2, class number;
            - a dictionary with `boxes` and `labels`, and if there are such `iscrowd`, `area` and `difficult`;
            - a `supervision.Detections` (`xyxy`, `class_id`).
        classes: what the class numbers are called, in order.
        images: ids, for a list; "0", "1", ... by default.
        sizes: width and height by image, where they are known.
        box_format: as for `as_detections`.

    Raises:
        UserError: if a class has no name, what stands for an image is none of these, or boxes are evidently of
            another form.
    """
    ids = [str(number) for number in range(len(truth))] if images is None else images
    by_image = _by_image(truth, ids, "truth")
    items: list[Item] = []
    for number, (image, item) in enumerate(by_image.items()):
        where = f"truth[{image!r}]"
        box, label, facts = _labelled(item, where, box_format)
        if len(label) and not (label.min() >= 0 and label.max() < len(classes)):
            raise UserError(f"{where}: class {label.min() if label.min() < 0 else label.max()} has no name in classes=")
        area = facts.get("area", (box[:, 2:] - box[:, :2]).prod(axis=1))
        crowd, difficult = (facts.get(name, np.zeros(len(box))) for name in ("iscrowd", "difficult"))
        for row, (x1, y1, x2, y2) in enumerate(box.tolist()):
            corners = (x1 + 1, y1 + 1, x2, y2)  # the pixels that they cover, counted from 1
            flags = bool(crowd[row]), bool(difficult[row])
            items.append(Item(number, int(label[row]), corners, float(area[row]), *flags))
    refuse_inverted(np.array([item.box for item in items]).reshape(-1, 4), "truth", _AS_XYXY)
    known = sizes or {}
    listed = [ListedImage(Path(image), known.get(image, (0.0, 0.0)), False) for image in by_image]
    annotations = annotations_of(classes, listed, items, (Path(), "truth"), (), ())
    return replace(annotations, images=tuple(by_image), stems=tuple(by_image))


def _by_image(given: Mapping[str, Any] | Sequence[Any], images: Sequence[str], name: str) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return {str(image): item for image, item in given.items()}
    if not isinstance(given, Sequence):
        raise UserError(f"{name}: is {_kind(given)}; give a dictionary by image, or a list in the order of images=")
    if len(given) != len(images):
        raise UserError(f"{name}: is of {len(given)} images, and {len(images)} are named")
    twice = [image for image, count in Counter(images).items() if count > 1]
    if twice:
        raise UserError(f"images: {twice[0]} is named twice")
    return dict(zip(map(str, images), given))


def _names_said(items: Iterable[Any]) -> dict[int, str]:
    """What class numbers are called, as results of Ultralytics and supervision have it beside them; else nothing."""
    said: dict[int, str] = {}
    for item in items:
        data, numbers = getattr(item, "data", None), getattr(item, "class_id", None)
        if isinstance(getattr(item, "names", None), Mapping):
            said |= item.names
        elif isinstance(data, Mapping) and "class_name" in data and numbers is not None:
            said |= zip(map(int, numbers), map(str, data["class_name"]))
    return said


def _numbered(names: Mapping[int, str] | Sequence[str]) -> Mapping[int, str]:
    return names if isinstance(names, Mapping) else dict(enumerate(names))


def _scored(item: Any, where: str, box_format: str) -> Array:
    """An array (k, 6) of what stands for one image."""
    if isinstance(item, Mapping):
        parts = [_part(item, name, where) for name in ("boxes", "scores", "labels")]
        parts[0] = _corners(parts[0], where, box_format)
    elif hasattr(item, "xyxy") and hasattr(item, "class_id"):  # supervision
        parts = [_field(item, name, where) for name in ("xyxy", "confidence", "class_id")]
    elif hasattr(getattr(item, "boxes", None), "xyxy"):  # a result of Ultralytics
        parts = [_field(item.boxes, name, where) for name in ("xyxy", "conf", "cls")]
    else:
        rows = _columns(_array(item, where), 6, "(k, 6): box, score, class", where)
        parts = [_corners(rows[:, :4], where, box_format), rows[:, 4], rows[:, 5]]
    box, score, label = _columns(parts[0], 4, "boxes (k, 4)", where), parts[1].ravel(), parts[2].ravel()
    if not len(box) == len(score) == len(label):
        raise UserError(f"{where}: {len(box)} boxes, {len(score)} scores and {len(label)} classes")
    rows = np.column_stack([box, score, label]).reshape(-1, 6)
    _refuse_odd(rows, rows[:, 5], where)
    return rows


def _labelled(item: Any, where: str, box_format: str) -> tuple[Array, NDArray[np.int64], dict[str, Array]]:
    """Boxes, classes, and what else is said of objects, of what stands for one image."""
    facts: dict[str, Array] = {}
    if isinstance(item, Mapping):
        box, label = _corners(_part(item, "boxes", where), where, box_format), _part(item, "labels", where)
        optional = ("iscrowd", "area", "difficult")
        facts = {name: _array(item[name], where).ravel() for name in optional if item.get(name) is not None}
    elif hasattr(item, "xyxy") and hasattr(item, "class_id"):
        box, label = _field(item, "xyxy", where), _field(item, "class_id", where)
    else:
        rows = _columns(_array(item, where), 5, "(k, 5): box, class", where)
        box, label = _corners(rows[:, :4], where, box_format), rows[:, 4]
    box, label = _columns(box, 4, "boxes (k, 4)", where), label.ravel()
    lengths = {name: len(values) for name, values in {"labels": label, **facts}.items()}
    wrong = next((name for name, length in lengths.items() if length != len(box)), None)
    if wrong:
        raise UserError(f"{where}: {len(box)} boxes and {lengths[wrong]} {wrong}")
    _refuse_odd(box, label, where)
    return box, label.astype(np.int64), facts


def _part(item: Mapping[str, Any], name: str, where: str) -> Array:
    if name not in item:
        raise UserError(f"{where}: has no '{name}', but {some(map(str, item)) or 'nothing'}")
    return _array(item[name], where)


def _field(item: Any, name: str, where: str) -> Array:
    value = getattr(item, name, None)
    if value is None:
        raise UserError(f"{where}: its {name} is None, which AP can't do without")
    return _array(value, where)


def _array(value: Any, where: str) -> Array:
    """Anything that holds numbers, a tensor on any device included, in float64."""
    if hasattr(value, "detach"):
        value = value.detach().double().cpu().numpy()
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: is {_kind(value)}; an array, a dictionary with boxes, scores and labels, or a"
            " supervision.Detections is needed"
        ) from None


def _columns(array: Array, count: int, wanted: str, where: str) -> Array:
    if not array.size:
        return np.zeros((0, count))
    if array.ndim != 2 or array.shape[1] != count:
        raise UserError(f"{where}: has the shape {array.shape}, and {wanted} is needed")
    return array


def _corners(box: Array, where: str, box_format: str) -> Array:
    if box_format not in _FORMATS:
        raise UserError(f"box_format={box_format}: use one of {', '.join(_FORMATS)}")
    box = _columns(box, 4, "boxes (k, 4)", where)
    if box_format == "xyxy":
        return box
    near = box[:, :2] - (box[:, 2:] / 2 if box_format == "cxcywh" else 0)
    return np.concatenate([near, near + box[:, 2:]], axis=1)


def _refuse_odd(rows: Array, label: Array, where: str) -> None:
    if not np.isfinite(rows).all():
        raise UserError(f"{where}: a number is not finite")
    if (label != np.floor(label)).any():
        raise UserError(f"{where}: class {label[label != np.floor(label)][0]:g} is no whole number")


def _kind(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__name__}".replace("builtins.", "")
