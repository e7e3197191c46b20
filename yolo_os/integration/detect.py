"""Run detectors over a data set through Ultralytics' own validator, and keep what they find and what is there."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from ultralytics.models.rtdetr.val import RTDETRValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator
from ultralytics.utils.ops import scale_boxes

from yolo_os.errors import UserError
from yolo_os.forward import eval_mode
from yolo_os.heads import find_head
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.data import check_channels, class_names_of, describe, task_of
from yolo_os.integration.guard import guarded
from yolo_os.integration.runtime import as_one_process, choose_device, quiet, unhurried
from yolo_os.integration.users_paths import in_users_paths
from yolo_os.loss import LossMean, training_loss
from yolo_os.terminal import shown

_VALIDATORS = {"detect": DetectionValidator, "segment": SegmentationValidator, "pose": PoseValidator}
_MOST = 500  # letters of an error of Ultralytics, which names every image
Boxes = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Detected:
    """What a detector found in a data set, and what the data set says is there.

    Attributes:
        boxes: by path of the image in the data set, (k, 6): x1, y1, x2, y2 in continuous pixels of the original image
            (left edge 0, right edge its width), score, class index; highest score first.
        names: class names by index, as the model has them.
        ultralytics_map50: what `yolo val` prints as mAP50 for the same detections; None where that is of other classes.
        truth: by image, (k, 5): x1, y1, x2, y2 as above and class index, of the labels that the validator compares
            with (a label file has no difficult objects).
        loss: the model's own training loss per image, `total` first; empty if it was not asked for or can't be taken.
    """

    boxes: Boxes
    names: dict[int, str]
    ultralytics_map50: float | None
    truth: Boxes = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)


@contextmanager
def validating(data: str | Path) -> Iterator[Path]:
    """Run one of Ultralytics' validators under guard and by this process alone; a folder for what it writes.

    Args:
        data: what an error calls the data.

    Raises:
        UserError: for what the validator raises of images or labels that it can't use.
    """
    with tempfile.TemporaryDirectory() as scratch, quiet(), unhurried(), as_one_process(), guarded():
        try:
            yield Path(scratch)
        except (RuntimeError, ValueError, FileNotFoundError, AssertionError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            text = in_users_paths(" ".join(str(error).split()))
            raise UserError(f"data={data}: {shown(text, _MOST)}") from None


class Validation:
    """A split of a data set, opened once, that models of one kind are run over as `yolo val` does.

    Its images, letterboxing, NMS and thresholds are Ultralytics' own. Batches are kept in memory from the first run on
    where they fit into LIMIT bytes, so that a second run costs forward passes only.

    Args:
        data: as Ultralytics takes it, or a VOCdevkit folder.
        model: a bare model of the task and classes in question.
        split: train, val or test.
        imgsz: in pixels.
        batch: images per batch.
        device: as Ultralytics takes it; a GPU where there is one if None.
        workers: loader processes.
        conf: lowest score kept.
        iou: threshold of the non-maximum suppression.
        max_det: most detections per image.
        called: what the user called the data, where they were made of that.

    Raises:
        UserError: for a model or data that can't be used.
    """

    def __init__(
        self,
        data: str | Path,
        model: nn.Module,
        *,
        split: str,
        imgsz: int,
        batch: int = 16,
        device: str | torch.device | None = None,
        workers: int = 0,
        conf: float = 0.001,
        iou: float = 0.7,
        max_det: int = 300,
        called: str | Path | None = None,
    ) -> None:
        task = task_of(model)
        if task not in _VALIDATORS:
            remedy = f": yolo-os val task={task} judges what it gives" if task == "obb" else ""
            raise UserError(f"a model of the task '{task}' gives no upright boxes, which VOC mAP is of{remedy}")
        if isinstance(device, str):
            choose_device(device)  # else a bad name is found while the data are read, and taken for their fault
        self.data = data if called is None else called
        self.described = describe(data, split, class_names_of(model), called)
        check_channels(model, self.data, self.described)
        transformer = find_head(model).kind == "RTDETRDecoder"
        self._base: Any = RTDETRValidator if transformer else _VALIDATORS[task]
        self._batches: _Kept | None = None
        self._settings = {
            "task": task,
            "mode": "val",
            "data": str(self.described["yaml_file"]),
            "split": split,
            "imgsz": imgsz,
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

    def run(self, model: nn.Module, loss: bool = False) -> Detected:
        """Run a bare model, not fused, over the split; it is left as it was. Keys of the result are image paths.

        Args:
            model: of the kind that the split was opened for.
            loss: also take the training loss, in eval mode and without augmentation; the model has to be on the
                device that the validator runs on.

        Raises:
            UserError: for images or labels that can't be used.
        """
        boxes: Boxes = {}
        truth: Boxes = {}
        mean = LossMean()
        raw: list[Any] = []
        measure = training_loss(model) if loss else nullcontext()
        base: Any = self._base

        class Collecting(base):  # type: ignore[misc]
            """The validator, which also notes boxes, found and labelled, in pixels of the original images."""

            def get_dataloader(validator, *args: Any) -> Any:
                self._batches = _Kept(super().get_dataloader(*args))
                return self._batches

            def postprocess(validator, preds: Any) -> Any:
                raw[:] = [tuple(preds) if isinstance(preds, list) else preds]  # the wrapped model makes lists
                return super().postprocess(preds)

            def update_metrics(validator, preds: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
                for index, prediction in enumerate(preds):
                    prepared = validator._prepare_batch(index, batch)
                    scaled = validator.scale_preds(prediction, prepared)
                    columns = (scaled["bboxes"], scaled["conf"][:, None], scaled["cls"][:, None])
                    file = str(batch["im_file"][index])
                    boxes[file] = _array(*columns)
                    original = (prepared["ori_shape"], prepared["ratio_pad"])
                    labelled = scale_boxes(prepared["imgsz"], prepared["bboxes"].clone(), *original)
                    truth[file] = _array(labelled, prepared["cls"][:, None])
                if measured is not None and measured.missing is None:
                    mean.add(measured(batch, raw[0]), len(batch["img"]), len(batch["cls"]))
                super().update_metrics(preds, batch)

        copied: Any = copy.deepcopy(model)  # the validator fuses what it is given
        if loss:  # a fused end-to-end head lacks the branch that its loss needs
            copied.fuse = MethodType(_as_it_is, copied)
        with eval_mode(model), measure as measured, validating(self.data) as scratch:
            validator = Collecting(dataloader=self._batches, save_dir=scratch, args=self._settings)
            validator(model=copied)
        named = dict(enumerate(class_names_of(model)))
        return Detected(boxes, named, float(validator.metrics.box.map50), truth, mean.means())


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
    called: str | Path | None = None,
) -> Detected:
    """Detect on every image of a split, as `yolo val` does. See `Validation`.

    Args:
        model: path of a checkpoint, or a loaded model (unfused; it is left as it was).
        data, split, batch, device, workers, conf, iou, max_det, called: as for `Validation`.
        imgsz: in pixels; that of the model's training if None.
        trust: see `load_checkpoint`.

    Raises:
        UserError: for a model or data that can't be used.
    """
    if isinstance(model, nn.Module):
        module: Any = model
    else:
        checkpoint = load_checkpoint(model, trust)
        module, imgsz = checkpoint.model, imgsz or checkpoint.imgsz
    return Validation(
        data,
        module,
        split=split,
        imgsz=imgsz or 640,
        batch=batch,
        device=device,
        workers=workers,
        conf=conf,
        iou=iou,
        max_det=max_det,
        called=called,
    ).run(module)


class _Kept:
    """A loader whose batches are kept in memory from the first time they are gone through, if they fit."""

    LIMIT = 2 * 2**30  # bytes

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._batches: list[dict[str, Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The batches, each a dictionary of its own: the validator puts its tensors in place of the loader's."""
        if self._batches is not None:
            yield from map(dict, self._batches)
            return
        kept: list[dict[str, Any]] = []
        size = 0
        for batch in self._loader:
            size += sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))
            if size <= self.LIMIT:
                kept.append(dict(batch))
            else:
                kept.clear()
            yield dict(batch)
        if size <= self.LIMIT:
            self._batches = kept


def _array(*columns: Tensor) -> NDArray[np.float64]:
    joined: NDArray[np.float64] = torch.cat(columns, 1).double().cpu().numpy()
    return joined


def _as_it_is(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Stands in for a model's `fuse`."""
    return model
