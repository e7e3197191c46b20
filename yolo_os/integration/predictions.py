"""Run a model over a split, and keep masks, keypoints or rotated boxes as Ultralytics writes them into COCO's JSON."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator

from yolo_os.errors import UserError
from yolo_os.forward import eval_mode
from yolo_os.integration.data import check_channels, class_names_of, describe, task_of
from yolo_os.integration.detect import validating

_VALIDATORS = {"segment": SegmentationValidator, "pose": PoseValidator, "obb": OBBValidator}


def predictions(model: nn.Module, data: str | Path, task: str, **settings: Any) -> list[dict[str, Any]]:
    """What a bare model finds: entries with `file`, `label`, `score` and `segmentation`, `keypoints` or `rbox`.

    Args:
        model: not fused; it is left as it was.
        data: as Ultralytics takes it.
        task: segment, pose or obb.
        settings: of the validator: split, imgsz, batch, device, workers, conf, iou, max_det.

    Raises:
        UserError: for a model of another task, or data that can't be used.
    """
    if task_of(model) != task:
        raise UserError(f"task={task}: the model is of the task '{task_of(model)}'")
    described = describe(data, settings["split"], class_names_of(model))
    check_channels(model, data, described)
    entries: list[dict[str, Any]] = []
    base: Any = _VALIDATORS[task]

    class Collecting(base):  # type: ignore[misc]
        """The validator, which hands on what it would write into `predictions.json`."""

        def pred_to_json(validator, predn: dict[str, Any], pbatch: dict[str, Any]) -> None:
            start = len(validator.jdict)
            super().pred_to_json(predn, pbatch)
            for entry, label in zip(validator.jdict[start:], predn["cls"].tolist()):
                entries.append({**entry, "file": str(pbatch["im_file"]), "label": int(label)})

    args = {"task": task, "mode": "val", "data": str(described["yaml_file"]), "save_json": True, "plots": False}
    with eval_mode(model), validating(data) as scratch:
        validator = Collecting(save_dir=scratch, args={**args, "verbose": False, "rect": True, **settings})
        validator(model=copy.deepcopy(model))  # which it fuses
    return entries
