"""Run a detector over a data set through Ultralytics' own validator, and keep what it finds."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from ultralytics.models.rtdetr.val import RTDETRValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator

from yolo_os.errors import UserError
from yolo_os.heads import find_head
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.data import class_names_of, describe
from yolo_os.integration.runtime import quiet, unhurried

_VALIDATORS = {"detect": DetectionValidator, "segment": SegmentationValidator, "pose": PoseValidator}


@dataclass(frozen=True)
class Detected:
    """What a detector found in a data set.

    Attributes:
        boxes: by image stem, (k, 6): x1, y1, x2, y2 in continuous pixels of the original image (left edge 0, right
            edge its width), score, class index; highest score first.
        names: class names by index, as the model has them.
        ultralytics_map50: what `yolo val` prints as mAP50 for the same detections.
    """

    boxes: dict[str, NDArray[np.float64]]
    names: dict[int, str]
    ultralytics_map50: float


def detect(
    model: str | Path | nn.Module,
    data: str | Path,
    *,
    split: str = "test",
    imgsz: int | None = None,
    batch: int = 16,
    device: str | None = None,
    workers: int = 0,
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
    trust: bool = False,
) -> Detected:
    """Detect on every image of a split, as `yolo val` does: its images, letterboxing, NMS and thresholds.

    Args:
        model: path of a checkpoint, or a loaded model (unfused; it is left as it was).
        data: as Ultralytics takes it, or a VOCdevkit folder.
        split: train, val or test.
        imgsz: in pixels; that of the model's training if None.
        batch: images per batch.
        device: as Ultralytics takes it; a GPU where there is one if None.
        workers: loader processes.
        conf: lowest score kept.
        iou: threshold of the non-maximum suppression.
        max_det: most detections per image.
        trust: see `load_checkpoint`.

    Raises:
        UserError: for a model or data that can't be used.
    """
    if isinstance(model, nn.Module):
        module: Any = model
    else:
        checkpoint = load_checkpoint(model, trust)
        module, imgsz = checkpoint.model, imgsz or checkpoint.imgsz
    task = module.task
    if task not in _VALIDATORS:
        raise UserError(f"a model of the task '{task}' gives no upright boxes, which VOC mAP is of")
    described = describe(data, split, class_names_of(module))
    transformer = find_head(module).kind == "RTDETRDecoder"
    base: Any = RTDETRValidator if transformer else _VALIDATORS[task]

    found: dict[str, NDArray[np.float64]] = {}

    class Collecting(base):  # type: ignore[misc]
        """The validator, which also notes its detections in pixels of the original images."""

        def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
            for index, prediction in enumerate(preds):
                prepared = self._prepare_batch(index, batch)
                scaled = self.scale_preds(prediction, prepared)
                columns = (scaled["bboxes"], scaled["conf"][:, None], scaled["cls"][:, None])
                found[Path(batch["im_file"][index]).stem] = torch.cat(columns, 1).double().cpu().numpy()
            super().update_metrics(preds, batch)

    settings = {
        "task": task,
        "mode": "val",
        "data": str(described["yaml_file"]),
        "split": split,
        "imgsz": imgsz or 640,
        "batch": batch,
        "device": device,
        "workers": workers,
        "conf": conf,
        "iou": iou,
        "max_det": max_det,
        "rect": not transformer,
        "plots": False,
        "verbose": False,
    }
    with tempfile.TemporaryDirectory() as scratch, quiet(), unhurried():
        try:
            validator = Collecting(save_dir=Path(scratch), args=settings)
            validator(model=copy.deepcopy(module))  # it fuses what it is given
        except (RuntimeError, ValueError, FileNotFoundError, AssertionError, TypeError) as error:
            raise UserError(f"data={data}: {' '.join(str(error).split())}") from None
    names = {int(index): str(name) for index, name in dict(module.names).items()}
    return Detected(found, names, float(validator.metrics.box.map50))
