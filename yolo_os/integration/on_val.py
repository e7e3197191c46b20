"""What val says of the final shift of a training: mAP before and after, and the interval of the difference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from yolo_os.evaluation.bootstrap import Difference, bootstrap
from yolo_os.evaluation.detections import evaluate_boxes
from yolo_os.evaluation.voc import none_if_nan
from yolo_os.integration.detect import Validation
from yolo_os.terminal import counted


@dataclass(frozen=True)
class OnVal:
    """VOC mAP of boxes (area under the curve, IoU 0.5) on the val split of a training.

    Attributes:
        before, after: the shift.
        difference: with its paired interval.
        images: how many were judged on.
    """

    before: float
    after: float
    difference: Difference
    images: int

    @property
    def worse(self) -> bool:
        """Whether val says that the shift does harm, beyond the interval."""
        return self.difference.high < 0

    def __str__(self) -> str:
        """The figures and what they mean, in one line."""
        found = f"mAP50 on {counted(self.images, 'val image')} {self.before:.4f} before, {self.after:.4f} after"
        if self.difference.value != self.difference.value:
            return f"{found}: no labelled object says more"
        word = "worse" if self.worse else "better" if self.difference.low > 0 else "within noise"
        low, high = f"{self.difference.low:+.4f}", f"{self.difference.high:+.4f}"
        return f"{found}, {self.difference.value:+.4f} [{low}, {high}]: {word}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        named = {name: none_if_nan(getattr(self.difference, name)) for name in ("value", "low", "high")}
        found = {"before": none_if_nan(self.before), "after": none_if_nan(self.after)}
        return {**found, "difference": named, "images": self.images, "worse": self.worse}


def judge_on_val(
    before: nn.Module, after: nn.Module, data: str | Path, imgsz: int, batch: int, workers: int, device: Any
) -> OnVal:
    """Run two models over the val split.

    Raises:
        UserError: for a task without upright boxes, or data that can't be used.
    """
    validation = Validation(data, before, split="val", imgsz=imgsz, batch=batch, device=device, workers=workers)
    found = [validation.run(model) for model in (before, after)]
    first, second = (evaluate_boxes(each.boxes, each.truth, list(each.names.values())) for each in found)
    difference = bootstrap(first, second).map
    assert isinstance(difference, Difference)  # as of every pair
    return OnVal(first.map, second.map, difference, len(found[0].truth))
