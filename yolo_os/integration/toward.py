"""Move a detector towards the weights that its training started from, judged on any data set that Ultralytics reads.

The share is chosen on the val split of the new data; see `yolo_os.toward`. The test split is never opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from yolo_os.errors import UserError
from yolo_os.evaluation.detections import evaluate_boxes
from yolo_os.forward import Progress, silent
from yolo_os.heads import unwrap
from yolo_os.integration.checkpoint import Checkpoint, digest, load_checkpoint, provenance, trained_args
from yolo_os.integration.data import args_of, class_names_of, describe, image_size, task_of
from yolo_os.integration.detect import Boxes, Validation
from yolo_os.toward import (
    SHARES,
    Judged,
    Origin,
    check_shares,
    line_to,
    move_toward_,
    named_tensors,
)
from yolo_os.toward_report import TowardReport

# Val is halved where each half has as many images: one to choose the share, one for a figure that no choice has seen.
ENOUGH = 200
# AP of a class with one or two boxes is 0 or 1 by luck; one with fewer than this counts in no mAP that decides.
LEAST_BOXES = 5
_NEW = "new"


def shift_toward_(
    model: Any,
    origin: str | Path | Origin | bool | None,
    data: str | Path,
    *,
    retain: str | Path | Sequence[str | Path] = (),
    retain_drop: float | None = None,
    shares: Sequence[float] | float = SHARES,
    statistics: bool | None = None,
    imgsz: int | None = None,
    batch: int = 16,
    workers: int = 0,
    precision: torch.dtype | None = None,
    trust: bool = False,
    progress: Progress = silent,
) -> TowardReport:
    """Move a model towards the weights that its training started from, in place, as far as its val images say.

    All layers that both have move. If anything fails, the weights are put back.

    Args:
        model: a `YOLO`, an `RTDETR` or their bare model.
        origin: the checkpoint that the training started from, or what `state_of` made of a model before a training;
            True or None: the file that the record of a `YOLO`'s own checkpoint names.
        data: what the model was trained on, as Ultralytics takes it, or a VOCdevkit folder. Its val split chooses.
        retain: data that must not get worse, of the same classes: their val splits are judged too.
        retain_drop: most mAP that may be lost on them; None: they are only reported (see `toward.choose`).
        shares: of the way from the origin to the model, to be judged.
        statistics: whether BatchNorm statistics move with the weights or stay as trained; None: both are judged.
        imgsz: image size in pixels; that of the model's training if None.
        batch: images per batch.
        workers: loader processes.
        precision: in which the weights will be stored: what is judged is rounded to it; None: as they are.
        trust: see `load_checkpoint`, for the origin.
        progress: wraps the shares, with a title, to show a progress bar.

    Raises:
        UserError: for an origin or data that can't be used.
    """
    bare = unwrap(model)
    if not isinstance(origin, Origin):
        contents = getattr(model, "ckpt", None) or {}
        source = getattr(model, "ckpt_path", None)
        origin = read_origin(origin, contents, Path(source) if source else None, trust)
    names = [retain] if isinstance(retain, str | Path) else list(retain)
    shares = check_shares(shares)
    with trained_args(model, bare):
        line = line_to(bare, origin, task_of(bare))
        judge = _Judge(bare, data, names, imgsz, batch, workers)
        return move_toward_(
            line,
            judge,
            shares=shares,
            statistics=statistics,
            retain_drop=retain_drop,
            precision=precision,
            progress=progress,
            warnings=judge.warnings,
        )


def state_of(model: Any, source: str = "the start of the training") -> Origin:
    """A copy of a model's weights on the CPU, to move towards after a training that starts from them.

    Args:
        model: a `YOLO`, an `RTDETR` or their bare model, before its training.
        source: what a report calls it.
    """
    bare = unwrap(model)
    state = {name: tensor.detach().cpu().clone() for name, tensor in named_tensors(bare).items()}
    return Origin(state, tuple(class_names_of(bare)), task_of(bare), source)


def read_origin(
    toward: str | Path | bool | None, contents: Mapping[str, Any], model: Path | None, trust: bool = False
) -> Origin:
    """The origin that a file holds.

    Args:
        toward: the file; True or None: the one that the model's own record names.
        contents: of the model's checkpoint.
        model: its file, where there is one.
        trust: see `load_checkpoint`.

    Raises:
        UserError: if there is no such checkpoint, or it is the model's own file.
    """
    path = Path(toward) if isinstance(toward, str | Path) else recorded_origin(contents, model)
    if model is not None and path.exists() and model.exists() and path.samefile(model):
        raise UserError(f"toward={path} is the model itself: give the weights that its training started from")
    checkpoint = load_checkpoint(path, trust, key="toward")
    # As stored: half the memory of the working copy, and enough, since values are computed in float64.
    state = {name: tensor.detach().clone() for name, tensor in named_tensors(checkpoint.stored).items()}
    return Origin(state, tuple(class_names_of(checkpoint.model)), task_of(checkpoint.model), str(path))


def recorded_origin(contents: Mapping[str, Any], model: Path | None) -> Path:
    """The file that a checkpoint's record says its training started from.

    Raises:
        UserError: if it names none that is there.
    """
    args = contents.get("train_args") or {}
    called = f"model={model}" if model else "the model"
    given = args.get("pretrained")
    names = [given] if isinstance(given, str | Path) else []
    if not args.get("resume") and given is not False:  # a resumed training records a file that it wrote itself
        names.append(args.get("model") or "")
    files = [str(name) for name in names if str(name).endswith(".pt")]
    for name in files:
        if Path(name).is_file():
            return Path(name)
    why = "was resumed" if args.get("resume") else "started from no weights that it names"
    if files:
        why = f"started from {' or '.join(files)}, which is not there"
    raise UserError(f"{called}: by its record the training {why}; give the weights it started from with toward=FILE")


def toward_record(checkpoint: Checkpoint, report: TowardReport, version: str, **more: Any) -> dict[str, Any]:
    """What a checkpoint moved towards an origin says of that: plain types only."""
    origin = Path(report.origin)
    return {
        **provenance(checkpoint, version),
        "recipe": {
            "method": "toward",
            "share": report.share,
            "statistics": report.statistics,
            "retain_drop": report.retain_drop,
            **more,
        },
        "tensors_moved": len(report.moved),
        "origin": origin.name,
        "origin_sha256": digest(origin) if origin.is_file() else None,
    }


class _Judge:
    """Judges the weights in a model on the val splits of the new data and of the retained sets, each opened once."""

    def __init__(
        self,
        model: nn.Module,
        data: str | Path,
        retain: Sequence[str | Path],
        imgsz: int | None,
        batch: int,
        workers: int,
    ) -> None:
        self._model = model
        names = {_NEW: data, **{str(each): each for each in retain}}
        if len(names) <= len(retain):
            raise UserError(f"retain={','.join(map(str, retain))}: names one data set twice")
        size = image_size(model, imgsz)
        device = next(model.parameters()).device
        self._sets = {
            name: Validation(each, model, split="val", imgsz=size, batch=batch, device=device, workers=workers)
            for name, each in names.items()
        }
        for name, each in names.items():
            _check_classes(each, self._sets[name].described, model)
        self.warnings = [warning for name in names for warning in _overlaps(names[name], self._sets[name].described)]

    def __call__(self) -> dict[str, Judged]:
        """What each set says: the new data first, then retained sets."""
        judged = {name: self._judged(validation, name == _NEW) for name, validation in self._sets.items()}
        for name, each in judged.items():
            if name != _NEW and not each.result.npos.any():
                raise UserError(f"retain={name}: its val split holds no labelled object to judge by")
        return judged

    def _judged(self, validation: Validation, new: bool) -> Judged:
        found = validation.run(self._model, loss=True)
        classes = list(found.names.values())
        images = sorted(found.truth)
        used, unused = _halves(images) if new else (images, [])
        truth, rare = _without_rare(found.truth, used)
        result = evaluate_boxes(found.boxes, truth, classes, used)
        apart = evaluate_boxes(found.boxes, truth, classes, unused) if unused else None
        return Judged(result, apart, found.loss.get("total"), tuple(classes[index] for index in rare))


def _without_rare(truth: Boxes, images: list[str]) -> tuple[Boxes, list[int]]:
    """Labels without those of classes with fewer than LEAST_BOXES boxes on the images, and these classes.

    Where no class has as many, all count.
    """
    labels = np.concatenate([np.zeros(0), *(truth[image][:, 4] for image in images)]).astype(int)
    counts = np.bincount(labels)
    rare = np.flatnonzero((counts > 0) & (counts < LEAST_BOXES)).tolist()
    if len(rare) == np.count_nonzero(counts):
        return truth, []
    return {image: boxes[~np.isin(boxes[:, 4], rare)] for image, boxes in truth.items()}, rare


def _halves(images: list[str]) -> tuple[list[str], list[str]]:
    """The images that decide and those that no decision uses, none where halves would be too small."""
    if len(images) < 2 * ENOUGH:
        return images, []
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    half = (len(images) + 1) // 2
    return [images[place] for place in order[:half]], [images[place] for place in order[half:]]


def check_retained(data: str | Path, model: nn.Module) -> None:
    """Refuse data that a model can't be judged on, before it is trained.

    Raises:
        UserError: if there is no such data set or val split, or its classes are not the model's.
    """
    single = bool(args_of(model).get("single_cls"))
    _check_classes(data, describe(data, "val", None if single else class_names_of(model)), model)


def _check_classes(data: str | Path, described: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse data whose labels mean other classes than the model's.

    Raises:
        UserError: if it has another number of classes (another order is refused by `describe`).
    """
    known = len(class_names_of(model))
    single = bool(args_of(model).get("single_cls"))
    if not single and len(described["names"]) != known:
        raise UserError(
            f"data={data} has {len(described['names'])} classes and the model {known}: take data of the model's classes"
        )


def _overlaps(data: str | Path, described: Mapping[str, Any]) -> list[str]:
    """Warnings of a val split that is not one of its own."""
    places = {split: described.get(split) for split in ("train", "val", "test")}
    return [
        f"val of {data} is its {split} split: {why}"
        for split, why in (
            ("train", "the training saw these images, which speaks for staying"),
            ("test", "what is chosen on it can't be tested on it"),
        )
        if places[split] and places[split] == places["val"]
    ]
