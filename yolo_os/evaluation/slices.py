"""Parts of an image set, since an average hides the part that got worse: objects by size, images by any grouping."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.arrays import Flags
from yolo_os.evaluation.coco import CocoResult, coco_result
from yolo_os.evaluation.detections import Detections, evaluate_detections, image_numbers
from yolo_os.evaluation.names import some
from yolo_os.evaluation.text import read_text
from yolo_os.evaluation.voc import VOCResult

_MOST_GROUPS = 100


@dataclass(frozen=True, eq=False)
class Slice:
    """A part of an image set.

    Attributes:
        name: of the group, or small, medium, large.
        images: how many there are.
        boxes: how many objects are to be found.
        coco: COCO's AP of each detector.
        voc: VOC AP of each detector; none for a size, of which VOC's rules know nothing.
    """

    name: str
    images: int
    boxes: int
    coco: tuple[CocoResult, ...]
    voc: tuple[VOCResult, ...] = ()


def by_size(annotations: Annotations, found: Sequence[Detections], pixel_offset: float = 1.0) -> list[Slice]:
    """Small, medium and large objects as COCO tells them apart: by areas of 32 x 32 and 96 x 96 pixels."""
    slices = []
    for name in ("small", "medium", "large"):
        results = tuple(coco_result(annotations, each, pixel_offset, name) for each in found)
        boxes = sum(len(ranking.boxes) for ranking in results[0].rankings)
        slices.append(Slice(name, len(annotations.images), boxes, results))
    return slices


def by_group(
    annotations: Annotations,
    found: Sequence[Detections],
    groups: dict[str, Flags],
    iou_threshold: float = 0.5,
    pixel_offset: float = 1.0,
    recall_points: str = "numpy",
) -> list[Slice]:
    """Each group of images on its own; `groups` as `read_groups` gives them."""
    slices = []
    for name, kept in groups.items():
        truth, parts = annotations.only(kept), [of_images(each, kept) for each in found]
        voc = tuple(evaluate_detections(truth, each, iou_threshold, pixel_offset, recall_points) for each in parts)
        coco = tuple(coco_result(truth, each, pixel_offset) for each in parts)
        slices.append(Slice(name, int(kept.sum()), int(voc[0].npos.sum()), coco, voc))
    return slices


def of_images(detections: Detections, kept: Flags) -> Detections:
    """The detections on some of the images: `kept` has shape (n,), as for `Annotations.only`."""
    number, rows = np.cumsum(kept) - 1, kept[detections.image]
    return replace(
        detections,
        images=tuple(np.array(detections.images, dtype=object)[kept].tolist()),
        image=number[detections.image[rows]],
        class_index=detections.class_index[rows],
        box=detections.box[rows],
        score=detections.score[rows],
    )


def read_groups(file: Path, annotations: Annotations) -> tuple[dict[str, Flags], list[str]]:
    """Groups of images by name, in the file's order, and what is to be said of them.

    Args:
        file: lines of `image,group`; an image is meant by its id, file name or path, and may be in several groups. A
            first line whose image is called `image`, `file`, `filename`, `name`, `id` or `path` is a heading.
        annotations: of the images.

    Raises:
        UserError: for a line without two entries, an image that is not in the set, or too many groups.
    """
    text = read_text(
        file, lambda text: bool(image_numbers([line.split(",")[0] for line in text.splitlines()], annotations))
    )
    rows = list(csv.reader(text.splitlines()))
    lines = [(number, [each.strip() for each in row]) for number, row in enumerate(rows, 1) if any(map(str.strip, row))]
    if lines and lines[0][1][0].lower() in ("image", "file", "filename", "file_name", "name", "id", "path"):
        lines = lines[1:]
    for number, row in lines:
        if len(row) != 2 or not all(row):
            raise UserError(f"{file}:{number}: a line has to be image,group, such as 000001.jpg,night")
    place = image_numbers([row[0] for _, row in lines], annotations)
    unknown = [(number, row[0]) for number, row in lines if row[0] not in place]
    if not lines or len(unknown) == len(lines):
        raise UserError(f"{file}: none of its {len(lines)} lines names an image of the set")
    groups: dict[str, Flags] = {}
    for _, (image, group) in lines:
        if image in place:
            groups.setdefault(group, np.zeros(len(annotations.images), dtype=bool))[place[image]] = True
    if len(groups) > _MOST_GROUPS:
        raise UserError(f"{file}: {len(groups)} groups; at most {_MOST_GROUPS} are looked at")
    notes = []
    if unknown:
        shown = some(f"{image} (line {number})" for number, image in unknown)
        notes.append(f"{file}: {len(unknown)} of its images are not in the set: {shown}")
    alone = len(annotations.images) - int(np.any(list(groups.values()), axis=0).sum())
    if alone:
        notes.append(f"{file}: {alone} of the {len(annotations.images)} images are in no group")
    return {name: kept for name, kept in groups.items() if kept.any()}, notes
