"""Read and write Ultralytics checkpoints: safely in, whole or not at all out, and ordinary for stock `YOLO()`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import guess_model_task, torch_safe_load
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from yolo_os.errors import UserError
from yolo_os.files import written_whole
from yolo_os.heads import find_head
from yolo_os.integration import yolov5

RECORD = "yolo_os"  # the checkpoint's key for the list of shifts made to it
# What only an unfinished training needs: a shifted model can't resume it, as `yolo train` clears them when it ends.
_TRAINING_ONLY = ("optimizer", "best_fitness", "stopper", "ema", "updates", "scaler")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from a file.

    Attributes:
        path: of the file.
        contents: all of it, as it was.
        stored: the model in it that Ultralytics would use (the EMA where there is one), as it was.
        model: a copy of that in float32 and eval mode, with complete `args`, to work on.
        classic: where it is one of the YOLOv5 repository, that; `contents` then hold what is known of its training.
    """

    path: Path
    contents: dict[str, Any]
    stored: nn.Module
    model: nn.Module
    classic: yolov5.Classic | None = None

    @property
    def precision(self) -> torch.dtype:
        """In which the file holds the weights."""
        return next(self.stored.parameters()).dtype

    @property
    def imgsz(self) -> int:
        """The image size of its training in pixels; 640 where it does not say."""
        size = (self.contents.get("train_args") or {}).get("imgsz") or 640
        return int(max(size)) if isinstance(size, list | tuple) else int(size)

    @property
    def shifts(self) -> list[dict[str, Any]]:
        """Records of the shifts made to it so far, first to last."""
        return list(self.contents.get(RECORD) or [])


def load_checkpoint(path: str | Path, trust: bool = False) -> Checkpoint:
    """Read an Ultralytics checkpoint, or an anchor-based one of the YOLOv5 repository.

    A checkpoint is a pickle, and unpickling can run code. Only the model classes of torch and Ultralytics, and plain
    data, are let through (torch's restricted unpickler with Ultralytics' list of its own classes).

    Args:
        path: of the `.pt` file; never downloaded.
        trust: unpickle whatever the file holds, its code included: only for a file whose maker you trust.

    Raises:
        UserError: if there is no such file, it is no checkpoint, or it holds classes that are not let through.
    """
    file = Path(path)
    if not file.exists():
        hint = (
            ""
            if file.parent != Path()
            else "; yolo-os downloads nothing: fetch official weights with Ultralytics first"
        )
        raise UserError(f"model={path}: no such file{hint}")
    if file.is_dir():
        raise UserError(f"model={path}: it is a folder; give the checkpoint's file")
    if file.suffix != ".pt":
        raise UserError(f"model={path}: takes a .pt checkpoint; exported formats hold no weights that can be shifted")
    if yolov5.recognises(file):
        return _classic(file, trust)
    try:
        contents, _ = torch_safe_load(str(file), safe_only=not trust)
    except Exception as error:  # whatever a damaged or hostile file makes the unpickler raise
        raise UserError(f"model={path}: {_why_unreadable(file, error, trust)}") from None
    stored = (contents.get("ema") or contents.get("model")) if isinstance(contents, dict) else None
    if not isinstance(stored, nn.Module):
        raise UserError(f"model={path}: no Ultralytics checkpoint: it holds no model (a bare state_dict is not enough)")
    model = copy.deepcopy(stored).float().eval()
    untyped: Any = model
    untyped.args = complete_args(contents.get("train_args") or {})
    untyped.task = getattr(model, "task", None) or guess_model_task(model)
    return Checkpoint(file, contents, stored, model)


def _classic(file: Path, trust: bool) -> Checkpoint:
    """A checkpoint of the YOLOv5 repository; which of its models is taken is said where it has two."""
    try:
        classic = yolov5.read(file, trust)
    except UserError as error:
        raise UserError(f"model={file}: {error}") from None
    if classic.other:
        LOGGER.warning(
            f"{file} is of an unfinished training: its '{classic.part}' is taken, as the YOLOv5 repository does, and "
            "its other model stays as it is"
        )
    model = classic.model
    model.args = complete_args(classic.train_args)
    stored = copy.deepcopy(model).to(classic.precision)
    contents = {"model": stored, "train_args": dict(classic.train_args), RECORD: classic.records}
    return Checkpoint(file, contents, stored, model, classic)


def complete_args(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The args of a training as a checkpoint records them, completed by Ultralytics' defaults, as it does itself."""
    return {**DEFAULT_CFG_DICT, **recorded}


def save_shifted(checkpoint: Checkpoint, model: nn.Module, record: Mapping[str, Any], out: Path) -> None:
    """Write what `shifted` makes of a checkpoint under another name.

    Raises:
        UserError: if `out` is the file read, or can't be written.
    """
    if out.exists() and out.samefile(checkpoint.path):
        raise UserError(f"out={out} is the model itself: the input is never changed, choose another name")
    if checkpoint.classic is not None:
        with written_whole(out) as temporary:
            checkpoint.classic.write(model, record, temporary)
    else:
        write(shifted(checkpoint, model, record), out)


def shifted(checkpoint: Checkpoint, model: nn.Module, record: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a checkpoint with the prediction layers of `model` and everything else as it was.

    The weights keep the precision of the file read; the record is appended to those of earlier shifts. What only an
    unfinished training needs is cleared, as `yolo train` does when it ends.
    """
    stored: Any = copy.deepcopy(checkpoint.stored)
    with torch.no_grad():
        for old, new in zip(find_head(stored).layers, find_head(model).layers):
            old.module.weight.copy_(new.module.weight)
            if old.module.bias is not None and new.module.bias is not None:
                old.module.bias.copy_(new.module.bias)
    if hasattr(stored, "args"):
        stored.args = dict(stored.args) if isinstance(stored.args, Mapping) else dict(vars(stored.args))
    if hasattr(stored, "criterion"):
        stored.criterion = None
    contents = {**checkpoint.contents, "model": stored, RECORD: [*checkpoint.shifts, dict(record)]}
    if contents.get("optimizer") is not None or contents.get("ema") is not None:
        contents.update(dict.fromkeys(_TRAINING_ONLY), epoch=-1)
    return contents


def write(contents: Mapping[str, Any], path: Path) -> None:
    """Write the contents of a checkpoint; the file appears, or changes, whole or not at all.

    Raises:
        UserError: if it can't be written.
    """
    with written_whole(path) as temporary:
        torch.save(dict(contents), temporary)


def shift_record(checkpoint: Checkpoint, model: nn.Module, recipe: Mapping[str, Any], version: str) -> dict[str, Any]:
    """What a shifted checkpoint says of the shift: plain types only."""
    pairs = [(old.matrix, new.matrix) for old, new in zip(find_head(checkpoint.stored).layers, find_head(model).layers)]
    norms = [sum(float(matrix.double().square().sum()) for matrix in side) for side in zip(*pairs)]
    return {
        "layers_moved": sum(not torch.equal(old.to(new), new) for old, new in ((o, n.cpu()) for o, n in pairs)),
        "keep": norms[1] / norms[0] if norms[0] else 1.0,
        "version": version,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": checkpoint.path.name,
        "source_sha256": hashlib.sha256(checkpoint.path.read_bytes()).hexdigest(),
        "recipe": dict(recipe),
    }


def _why_unreadable(file: Path, error: Exception, trust: bool) -> str:
    """One line on why a file could not be loaded."""
    if file.stat().st_size == 0:
        return "the file is empty"
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except Exception:
        is_archive = file.open("rb").read(2) == b"PK"
        if is_archive:
            return "the file is truncated or damaged"
        return (
            "no checkpoint that Ultralytics can read (damaged, not a checkpoint, or in the format of torch before 1.6)"
        )
    foreign = sorted(
        name for name in classes if name.split(".")[0] not in ("ultralytics", "torch", "numpy", "collections")
    )
    if any(name.startswith("models.") for name in foreign):  # a whole one would have been recognised
        return f"a checkpoint of the YOLOv5 repository ({foreign[0]}) that is truncated or damaged"
    if foreign and not trust:
        return (
            f"refused: it holds {', '.join(foreign[:4])}, classes of neither torch nor Ultralytics, and unpickling "
            "them runs their code; trust=True loads it all the same, if you trust its maker"
        )
    return f"can't be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
