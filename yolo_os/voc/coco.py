"""COCO's twelve numbers of the same detections, for those who compare with COCO tables."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

import numpy as np

from yolo_os.voc.annotations import Annotations
from yolo_os.voc.detections import Detections

COCO_NAMES = (
    "AP", "AP50", "AP75", "AP small", "AP medium", "AP large",
    "AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large",
)  # fmt: skip


def coco_numbers(annotations: Annotations, detections: Detections, pixel_offset: float = 1.0) -> dict[str, float]:
    """The twelve numbers of COCOeval (nan where it has none), with the difficult objects left out of the ground truth.

    COCO has no such objects; a detection that hits one is a false positive here, as in Ultralytics' figures. Computed
    by faster-coco-eval where it is installed, which gives the same numbers, else by pycocotools.
    """
    kept = ~annotations.difficult
    corner = annotations.box[kept, :2] - pixel_offset
    boxes = np.concatenate([corner, annotations.box[kept, 2:] - corner], axis=1)
    columns = zip(annotations.image[kept].tolist(), annotations.class_index[kept].tolist(), boxes.tolist())
    ground_truth = {
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
    found_corner = detections.box[:, :2] - pixel_offset
    rows = np.column_stack(
        [
            detections.image + 1,
            found_corner,
            detections.box[:, 2:] - found_corner,
            detections.score,
            detections.class_index + 1,
        ]
    )
    if not len(rows) or not len(boxes):
        return dict.fromkeys(COCO_NAMES, float("nan") if not len(boxes) else 0.0)
    coco, evaluator = _tools()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        truth = coco()
        truth.dataset = ground_truth
        truth.createIndex()
        evaluation = evaluator(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [float(value) for value in evaluation.stats[:12]]
    return {name: value if value >= 0 else float("nan") for name, value in zip(COCO_NAMES, stats)}


def _tools() -> tuple[Any, Any]:
    try:
        fast = importlib.import_module("faster_coco_eval")
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    return fast.COCO, fast.COCOeval_faster
