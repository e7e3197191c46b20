"""A COCO result file: a JSON list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.

As `yolo val save_json=True` writes it. Boxes are continuous pixels with the image's left top corner at 0, 0; they
become x + 1, y + 1, x + width, y + height, the pixels they cover.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.detection_files.gather import Gather, Reading
from yolo_os.evaluation.detections import Detections
from yolo_os.evaluation.json_file import identity, name_of, read_json
from yolo_os.evaluation.names import match_names, some, written_otherwise
from yolo_os.files import is_file, written_whole

_ENOUGH = 10  # boxes that show in what form they are


def recognises(path: Path) -> bool:
    """Whether it is a JSON file."""
    return is_file(path) and path.suffix.lower() == ".json"


def read(file: Path, annotations: Annotations, how: Reading) -> Detections:
    """The detections of a file, which holds those of one split.

    The image of an entry is its `file_name`, or that which the file's list of `images` has for its `image_id`; where
    neither is there, the `image_id` itself: that of COCO's annotation file, or the image's name as text, or a number
    that equals it (7 for 000007). `category_id` is that of the file's list of `categories`, else that of COCO's
    annotation file; for other ground truth see `_classes_of`.
    """
    content = read_json(file)
    lists = content if isinstance(content, dict) else {"annotations": content}
    entries = lists.get("annotations")
    if not isinstance(entries, list):
        raise UserError(f"{file}: holds no list of detections, but {some(map(repr, lists), 3) or 'nothing'}")
    numbers = np.zeros((len(entries), 5))
    ids: list[Any] = []
    categories: list[Any] = []
    different: set[Any] = set()
    try:
        files = {identity(image["id"]): name_of(image["file_name"]) for image in lists.get("images") or []}
        names = {identity(each["id"]): name_of(each["name"]) for each in lists.get("categories") or []}
    except (TypeError, KeyError) as error:
        raise UserError(f"{file}: its images and categories are not as they should be ({error!r})") from None
    for row, entry in enumerate(entries):
        try:
            numbers[row] = (*entry["bbox"], entry["score"])
            categories.append(identity(entry["category_id"]))
            different.add(categories[-1])
            image = name_of(entry["file_name"]) if "file_name" in entry else identity(entry["image_id"])
            ids.append(files[image] if files and "file_name" not in entry else image)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            detail = f"lacks {error}" if isinstance(error, KeyError) else f"is not as it should be ({error})"
            raise UserError(
                f"{file}: entry {row} {detail}; needs image_id (of its list of images, if it has one), category_id,"
                f" bbox (4 numbers), score{_what_else(entry)}"
            ) from None

    notes: list[str] = []
    gather = Gather(annotations, how.strict)
    by_number: dict[int | str, int]
    if names:
        by_number = match_names(names, annotations.classes)
        notes = written_otherwise(names, by_number, annotations.classes)
    elif annotations.category_ids and how.first_category is None:
        by_number = {given: label for label, given in enumerate(annotations.category_ids)}
    else:
        by_number, first = _classes_of(file, different, annotations.classes, how.first_category)
        labels = {by_number[each] for each in different if each in by_number}
        if first is not None and not gather.counted_from(first, file, labels) and how.first_category is None:
            notes = [f"category_id is counted from {first}: {first} is {annotations.classes[0]}"]
    label = np.array([by_number.get(category, -1) for category in categories], dtype=np.int64)
    offset = how.pixel_offset
    box = np.concatenate([numbers[:, :2] + offset, numbers[:, :2] + numbers[:, 2:4]], axis=1)
    known = label >= 0
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        category = names.get(categories[row], categories[row])
        ids_of = f" (ids {some(map(str, annotations.category_ids))})" if annotations.category_ids else ""
        classes = f"{some(annotations.classes)}{ids_of}"
        what = f"{file}: entry {row} has category_id {category}, which is no class of {classes}"
        gather.refuse("of unknown classes", what, int((~known).sum()))
    rows = np.flatnonzero(known)
    plain: dict[int | str, str] = {int(name): name for name in annotations.images if name.isdecimal()}
    plain |= dict(zip(annotations.image_ids, annotations.images))
    places = np.array([gather.place_of(plain.get(given, str(given))) for given in ids], dtype=np.int64)
    _refuse_other_boxes(file, numbers[places >= 0], annotations.size[places[places >= 0]])
    as_text = [plain.get(ids[row], str(ids[row])) for row in rows.tolist()]
    gather.add(as_text, label[rows], box[rows], numbers[rows, 4], lambda row: f"{file}: entry {rows[row]}")
    return gather.result(notes)


def write(detections: Detections, file: Path, pixel_offset: float = 1.0) -> None:
    """Write a COCO result file: classes counted from 1, boxes x, y, width, height in continuous pixels.

    Raises:
        UserError: if the file cannot be written.
    """
    corner = detections.box[:, :2] - pixel_offset
    boxes = np.concatenate([corner, detections.box[:, 2:] - corner], axis=1).tolist()
    columns = zip(detections.image.tolist(), detections.class_index.tolist(), boxes, detections.score.tolist())
    entries = [
        {"image_id": detections.images[image], "category_id": label + 1, "bbox": box, "score": score}
        for image, label, box, score in columns
    ]
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(entries))


def _what_else(entry: Any) -> str:
    """What an entry is that lacks something, where that is known."""
    keys = set(entry) if isinstance(entry, dict) else set()
    if {"boxes", "scores"} <= keys:
        return ": these are boxes by image, which as_detections takes in Python"
    kinds = {"rbox": "rotated boxes", "poly": "rotated boxes", "segmentation": "masks", "keypoints": "keypoints"}
    found = next((what for key, what in kinds.items() if key in keys and "bbox" not in keys), None)
    if found:
        return f": it holds {found}, and boxes are what is scored"
    return ": it has no score: are these annotations (data=)?" if "bbox" in keys and "score" not in keys else ""


def _refuse_other_boxes(file: Path, numbers: NDArray[np.float64], size: NDArray[np.float64]) -> None:
    """Refuse boxes that are evidently not x, y, width, height in pixels, rather than score them as misses.

    Args:
        file: to name.
        numbers: shape (k, 5); bbox and score.
        size: shape (k, 2); of the image of each, 0 where it is not known.

    Raises:
        UserError: if most boxes make sense in another way only.
    """
    known = (size > 0).all(axis=1)
    box, size = numbers[known, :4], size[known]
    if len(box) < _ENOUGH:
        return
    if (box <= 1.5).all() and (size > 10).all():
        raise UserError(f"{file}: its boxes are fractions of the image; COCO's bbox is x, y, width, height in pixels")
    beyond = (box[:, :2] + box[:, 2:] > 1.1 * size + 2).any(axis=1)
    corners = (box[:, 2:] <= size + 2).all(axis=1) & (box[:, 2:] >= box[:, :2]).all(axis=1)
    if beyond.mean() > 0.3 and corners.all():
        raise UserError(
            f"{file}: {beyond.sum()} of {len(box)} boxes reach beyond their images, and none would if bbox were x1, y1,"
            " x2, y2: COCO's bbox is x, y, width, height"
        )


def _classes_of(
    file: Path, ids: set[Any], classes: tuple[str, ...], first: int | None
) -> tuple[dict[Any, int], int | None]:
    """Which class each category id of a file without `categories` stands for, and that of the first if it is a number.

    Ids are numbers in the order of the classes (names are understood as well), counted from 1 as COCO and Ultralytics
    do, or from 0 as others and Ultralytics before 8.3.49 did. An id 0 shows the one, an id as large as the number of
    classes the other.

    Raises:
        UserError: if the ids show neither, or both, and `first` does not say.
    """
    by_name: dict[Any, int] = {name: index for index, name in enumerate(classes)}
    if ids <= by_name.keys():
        return by_name, None
    shown = [start for start, sign in ((0, 0), (1, len(classes))) if sign in ids]
    if first is None:
        if len(shown) != 1 and all(isinstance(each, int) and each <= len(classes) for each in ids):
            reason = f"both 0 and {len(classes)} occur" if shown else f"neither 0 nor {len(classes)} occurs"
            raise UserError(
                f"{file}: it can't be told whether its category_id is counted from 0 or from 1, since {reason}:"
                " say it with first_category=0 or first_category=1"
            )
        first = shown[0] if shown else 1
    return {**by_name, **{first + index: index for index in range(len(classes))}}, first
