"""Detections: what a detector found on an image set, and their score against its annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations, unusable_image
from yolo_os.evaluation.names import match_names, some, written_otherwise
from yolo_os.evaluation.readers.data_yaml import folder_names
from yolo_os.evaluation.readers.devkit import VOC_CLASSES
from yolo_os.evaluation.text import find_id, nfc
from yolo_os.evaluation.voc import VOCResult, evaluate_voc
from yolo_os.terminal import counted

_MOST_INVERTED = 0.3  # of the boxes, before they are of another form for sure
_MOST_OF_FRACTIONS, _LEAST_OF_PIXELS = 1.05, 10.0  # where all boxes together end


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found on the images of an image set: k detections.

    Attributes:
        classes: names of the classes, those of the annotations.
        images: ids of all images of the set, those of the annotations.
        image: shape (k,); which image.
        class_index: shape (k,); which class.
        box: shape (k, 4); x1, y1, x2, y2 in pixels, 1-based and inclusive as in the annotations.
        score: shape (k,).
        dropped: how many detections were left out, by reason.
        notes: what the reader should know about how the file was understood.
        warnings: what may make every figure wrong.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    box: NDArray[np.float64]
    score: NDArray[np.float64]
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line: how many, and what was left out."""
        images = f"{len(np.unique(self.image))} of {counted(len(self.images), 'image')}"
        parts = [f"{counted(len(self.score), 'detection')} on {images}"]
        return "; ".join([*parts, *(f"{count} {reason} left out" for reason, count in self.dropped.items())])


def evaluate_detections(
    annotations: Annotations,
    detections: Detections,
    iou_threshold: float = 0.5,
    pixel_offset: float = 1.0,
    recall_points: str = "numpy",
) -> VOCResult:
    """VOC AP of detections on the image set they were read for; see `evaluate_voc`.

    COCO's crowds are taken as difficult: a detection that falls on one counts neither way.
    """
    return evaluate_voc(
        annotations.image,
        annotations.class_index,
        annotations.box,
        annotations.difficult | annotations.crowd,
        detections.image,
        detections.class_index,
        detections.box,
        detections.score,
        num_classes=len(annotations.classes),
        iou_threshold=iou_threshold,
        pixel_offset=pixel_offset,
        recall_points=recall_points,
        images=np.arange(len(annotations.images)),
        classes=annotations.classes,
        warn=False,  # `suspect_offset` looks at both sides, with the images' sizes
    )


def evaluate_boxes(
    boxes: Mapping[str, NDArray[np.float64]],
    truth: Mapping[str, NDArray[np.float64]],
    classes: Sequence[str],
    images: Sequence[str] | None = None,
    iou_threshold: float = 0.5,
) -> VOCResult:
    """VOC AP of boxes against labels of any data set, in continuous pixels and without difficult objects.

    Args:
        boxes: by image, (k, 6): x1, y1, x2, y2, score, class index.
        truth: by image, (k, 5): x1, y1, x2, y2, class index; an image without labels has an empty entry.
        classes: names of the classes.
        images: those that count; None: all of `truth`.
        iou_threshold: as for `evaluate_voc`.
    """
    order = list(truth) if images is None else list(images)
    found = [boxes.get(name, np.zeros((0, 6))) for name in order]
    wanted = [truth[name] for name in order]
    places = np.arange(len(order))
    det, gt = np.concatenate([np.zeros((0, 6)), *found]), np.concatenate([np.zeros((0, 5)), *wanted])
    return evaluate_voc(
        np.repeat(places, [len(each) for each in wanted]),
        gt[:, 4],
        gt[:, :4],
        np.zeros(len(gt), dtype=bool),
        np.repeat(places, [len(each) for each in found]),
        det[:, 5],
        det[:, :4],
        det[:, 4],
        num_classes=len(classes),
        iou_threshold=iou_threshold,
        pixel_offset=0.0,
        images=places,
        classes=tuple(classes),
    )


def from_boxes(
    boxes: Mapping[str, NDArray[np.float64]],
    names: Mapping[int, str],
    annotations: Annotations,
    pixel_offset: float = 1.0,
) -> Detections:
    """Detections of a model as devkit detections.

    Args:
        boxes: by path of the image file, or its id, shape (k, 6): x1, y1, x2, y2 in continuous pixels (the
            image's left edge 0, its right edge the width), score, class index of the model.
        names: the model's classes, matched to the annotations' by name; those that match none are left out and
            counted. Names may differ as COCO's and VOC's do: `tv` and `tvmonitor`, `dining table` and `diningtable`.
        annotations: of the images.
        pixel_offset: as for `read_detections`.

    Raises:
        UserError: if no class matches, or an image of the set is not among `boxes`.
    """
    of = _by_image(boxes, annotations)
    absent = [image for index, image in enumerate(annotations.images) if index not in of]
    if absent:
        raise UserError(f"the model saw no image {some(absent)} ({len(absent)} of {len(annotations.images)})")
    label_of = match_names(names, annotations.classes)
    if not label_of:
        raise UserError(f"the model knows none of the classes {some(annotations.classes)}, but {some(names.values())}")
    table = np.full(max(names) + 1, -1, dtype=np.int64)
    table[list(label_of)] = list(label_of.values())
    each = [np.asarray(of[index], dtype=np.float64).reshape(-1, 6) for index in range(len(annotations.images))]
    found, image = np.concatenate(each), np.repeat(np.arange(len(each)), [len(rows) for rows in each])
    label = table[found[:, 5].astype(np.int64)]
    keep = label >= 0
    box = found[keep, :4] + np.array([pixel_offset, pixel_offset, 0.0, 0.0])
    dropped = Counter({"of classes that the annotations lack": int((~keep).sum())})
    unmatched = [name for index, name in enumerate(annotations.classes) if index not in label_of.values()]
    notes = [f"the model has no class for {', '.join(unmatched)}: taken as no detections"] if unmatched else []
    notes += written_otherwise(names, label_of, annotations.classes)
    return Detections(
        annotations.classes,
        annotations.images,
        image[keep],
        label[keep],
        box,
        found[keep, 4],
        dict(+dropped),
        tuple(notes),
    )


def seen_only(annotations: Annotations, found: Iterable[Mapping[str, NDArray[np.float64]]]) -> Annotations:
    """The annotations of the images that all models saw, with a problem for each other one.

    Args:
        annotations: of an image set.
        found: what each model found, as `from_boxes` takes it.

    Raises:
        UserError: if no image is left.
    """
    sets = [_by_image(boxes, annotations).keys() for boxes in found]
    seen = np.array([all(index in each for each in sets) for index in range(len(annotations.images))])
    problems = [unusable_image(file) for file, kept in zip(annotations.image_files, seen) if not kept]
    if not seen.any():
        raise UserError(f"no image of the set can be read; first problem: {problems[0]}")
    return replace(annotations.only(seen), problems=(*annotations.problems, *problems))


def image_numbers(files: Iterable[str], annotations: Annotations) -> dict[str, int]:
    """By path or id the image's place in the annotations; those that mean none of them are missing.

    A path ends in the stem of its image; where several images have one, the folder of the data set before it tells.
    """
    count = Counter(annotations.stems)
    known = {stem: index for index, stem in enumerate(annotations.stems) if count[stem] == 1}
    if len(set(annotations.sets)) == 1:
        folders = folder_names(annotations.sets[0], annotations.roots)
        for index, (root, stem) in enumerate(zip(annotations.root.tolist(), annotations.stems)):
            known[f"{folders[root]}/{stem}"] = index
    whole = {str(file): index for index, file in enumerate(annotations.image_files)}
    numbers = {}
    for file in files:
        name = None if file in whole else find_id(nfc(file), known)
        if file in whole or name is not None:
            numbers[file] = whole[file] if name is None else known[name]
    return numbers


def suspect_offset(annotations: Annotations, detections: Detections) -> str | None:
    """A warning, with the evidence, if detections look 0-based and annotations 1-based or the other way about.

    Detectors clip boxes at the image's border, so many boxes that start at exactly 0 and none at 1 were counted from
    0. The mean distance from the ground truth is too small a thing to tell one pixel on its own.
    """
    zero, one = _starts(detections.box)
    gt_zero, gt_one = _starts(annotations.box)
    wide = annotations.size[detections.image]
    beyond = int(((detections.box[:, 2:] == wide) & (wide > 0)).sum())
    last = int(((detections.box[:, 2:] == wide - 1) & (wide > 0)).sum())
    if zero >= 5 and zero > 4 * one and gt_one > gt_zero:
        return (
            f"these detections look 0-based, and the annotations are 1-based: {zero} boxes start at exactly 0 and {one}"
            f" at 1, {last} end at the last pixel counted from 0 and {beyond} counted from 1, while {gt_one} boxes of"
            f" the ground truth start at 1 and {gt_zero} at 0; add 1 to all four numbers of each box"
        )
    if one >= 5 and one > 4 * zero and gt_zero > 4 * gt_one:
        return (
            f"these detections look 1-based, and the annotations are 0-based: {one} boxes start at exactly 1 and {zero}"
            f" at 0, while {gt_zero} boxes of the ground truth start at 0 and {gt_one} at 1; subtract 1 from all"
            " four numbers of each box"
        )
    return None


def refuse_inverted(box: NDArray[np.float64], name: str, wanted: str) -> None:
    """Refuse boxes many of which end before they begin, rather than score them as misses.

    Args:
        box: shape (k, 4); x1, y1, x2, y2, inclusive.
        name: of what holds them.
        wanted: says what form is read.
    """
    inverted = (box[:, 2:] < box[:, :2] - 1).any(axis=1)
    if inverted.size and inverted.mean() > _MOST_INVERTED:
        raise UserError(
            f"{name}: {inverted.sum()} of {counted(len(box), 'box', 'es')} would end before the beginning: {wanted}"
        )


def refuse_fractions(found: NDArray[np.float64], truth: NDArray[np.float64], name: str) -> None:
    """Refuse boxes of which one side has fractions of the image, and the other pixels; each of shape (k, 4)."""
    if not found.size or not truth.size:
        return
    ends = {name: found[:, 2:].max(), "the ground truth": truth[:, 2:].max()}
    for each, other in ((name, "the ground truth"), ("the ground truth", name)):
        if ends[each] <= _MOST_OF_FRACTIONS and ends[other] > _LEAST_OF_PIXELS:
            raise UserError(f"{each}: its boxes are fractions of the image, and those of {other} pixels: make them so")


def said_of_order(source: object, annotations: Annotations, first: int, labels: Iterable[int]) -> str | None:
    """A warning where class numbers of detections are taken in an order of classes that nobody gave.

    Args:
        source: what has the numbers, to name it.
        annotations: whose classes they count.
        first: the number of the first class.
        labels: which classes occur, from 0.

    Returns:
        None where no number occurs, the order is known, there is one class, or all of VOC's 20, which everyone sorts.

    Raises:
        UserError: if no object is of any class that occurs, so that it can't be the order.
    """
    classes, used = annotations.classes, sorted(set(labels))
    there = set(annotations.class_index.tolist())
    if not used or annotations.ordered or len(classes) == 1:
        return None
    if classes == VOC_CLASSES and len(there) == len(classes):
        return None
    taken = some((f"{first + label} is {classes[label]}" for label in used), 10)
    ask = "say the detector's order with classes=NAME,NAME,..."
    if not there & set(used):
        raise UserError(
            f"{source}: what its class numbers mean can't be told: XML files name classes without numbers, and in the"
            f" order of the alphabet {taken}, of which there is no object: {ask}"
        )
    return (
        f"{source} has classes by number, and XML files name theirs without: numbers are taken in the order of the"
        f" alphabet ({taken}); where that is wrong so is every figure, and then {ask}"
    )


def _starts(box: NDArray[np.float64]) -> tuple[int, int]:
    """How many boxes start at exactly 0, and at exactly 1, to the left or at the top."""
    return int((box[:, :2] == 0).any(axis=1).sum()), int((box[:, :2] == 1).any(axis=1).sum())


def _by_image(boxes: Mapping[str, NDArray[np.float64]], annotations: Annotations) -> dict[int, NDArray[np.float64]]:
    """The boxes by the image's place in the annotations."""
    return {number: boxes[file] for file, number in image_numbers(boxes, annotations).items()}
