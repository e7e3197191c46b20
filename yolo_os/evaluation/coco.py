"""COCO's twelve numbers of the same detections, for those who compare with COCO tables."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.detections import Detections

COCO_NAMES = (
    "AP", "AP50", "AP75", "AP small", "AP medium", "AP large",
    "AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large",
)  # fmt: skip


def coco_numbers(annotations: Annotations, detections: Detections, pixel_offset: float = 1.0) -> dict[str, float]:
    """The twelve numbers of COCOeval (nan where it has none), with the difficult objects left out of the ground truth.

    COCO has no such objects; a detection that hits one is a false positive here, as in Ultralytics' figures. Computed
    by faster-coco-eval where it is installed, which gives the same numbers, else by pycocotools.
    """
    if not len(detections.score) or annotations.difficult.all():
        return dict.fromkeys(COCO_NAMES, float("nan") if annotations.difficult.all() else 0.0)
    try:
        tools = importlib.import_module("faster_coco_eval")
        pair = tools.COCO, tools.COCOeval_faster
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        pair = COCO, COCOeval
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        evaluation = coco_evaluation(annotations, detections, pixel_offset, *pair)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [float(value) for value in evaluation.stats[:12]]
    return {name: value if value >= 0 else float("nan") for name, value in zip(COCO_NAMES, stats)}


def coco_evaluation(
    annotations: Annotations, detections: Detections, pixel_offset: float, coco: Any, evaluator: Any
) -> Any:
    """A loaded `evaluator`, pycocotools' `COCOeval` or one like it; `coco` is the `COCO` that belongs to it."""
    kept = ~annotations.difficult
    boxes = _sides(annotations.box[kept], pixel_offset)
    columns = zip(annotations.image[kept].tolist(), annotations.class_index[kept].tolist(), boxes.tolist())
    truth = coco()
    truth.dataset = {
        "images": [{"id": index + 1} for index in range(len(annotations.images))],
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(annotations.classes)],
        "annotations": [
            {
                "id": number,
                "image_id": image + 1,
                "category_id": label + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, (image, label, box) in enumerate(columns, 1)
        ],
    }
    truth.createIndex()
    sides = _sides(detections.box, pixel_offset)
    rows = np.column_stack([detections.image + 1, sides, detections.score, detections.class_index + 1])
    return evaluator(truth, truth.loadRes(rows), "bbox")


def _sides(box: NDArray[np.float64], pixel_offset: float) -> NDArray[np.float64]:
    """x, y, width, height in continuous pixels."""
    corner = box[:, :2] - pixel_offset
    return np.concatenate([corner, box[:, 2:] - corner], axis=1)
