"""Read and write Ultralytics checkpoints: safely in, whole or not at all out, and ordinary for stock `YOLO()`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import guess_model_task
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER
from ultralytics.utils.torch_utils import strip_optimizer

from yolo_os.errors import UserError
from yolo_os.files import written_whole
from yolo_os.heads import find_head
from yolo_os.integration import yolov5
from yolo_os.integration.contents import RECORD, find_checkpoint, line_of, model_in
from yolo_os.integration.guard import guarded, note_written, through_the_gate
from yolo_os.integration.runtime import quiet
from yolo_os.integration.trial import check_runs
from yolo_os.toward import named_tensors

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


def load_checkpoint(path: str | Path, trust: bool = False, key: str = "model") -> Checkpoint:
    """Read an Ultralytics checkpoint, or an anchor-based one of the YOLOv5 repository.

    A checkpoint is a pickle, and unpickling can run code: `yolo_os.integration.unpickle` reads it without.

    Args:
        path: of the `.pt` file; never downloaded.
        trust: unpickle whatever the file holds, its code included: only for a file whose maker you trust.
        key: what an error calls the file.

    Raises:
        UserError: if there is no such file, it is no checkpoint, or it holds something that is not let through.
    """
    if yolov5.recognises(find_checkpoint(path, key)):
        return _classic(Path(path), trust, key)
    contents = read_contents(path, trust, key)
    stored = model_in(contents)
    try:
        model = copy.deepcopy(stored).float().eval()
    except Exception as error:  # too little memory for it, say
        raise UserError(f"{key}={path}: its model can't be copied ({line_of(error)})") from None
    untyped: Any = model
    untyped.args = complete_args(contents.get("train_args") or {})
    if not isinstance(getattr(model, "task", None), str):
        untyped.task = guess_model_task(model)
    try:
        check_runs(model)
    except UserError as error:
        raise UserError(f"{key}={path}: {error}") from error
    return Checkpoint(Path(path), contents, stored, model)


def _classic(file: Path, trust: bool, key: str) -> Checkpoint:
    """A checkpoint of the YOLOv5 repository; how it is taken is said where that is not plain."""
    try:
        classic = yolov5.read(file, trust)
    except UserError as error:
        raise UserError(f"{key}={file}: {error}") from None
    for note in classic.notes:
        LOGGER.warning(f"{key}={file}: {note}")
    model = classic.model
    model.args = complete_args(classic.train_args)
    stored = copy.deepcopy(model).to(classic.precision)
    contents = {"model": stored, "train_args": dict(classic.train_args), RECORD: classic.records}
    return Checkpoint(file, contents, stored, model, classic)


def read_contents(path: str | Path, trust: bool = False, key: str = "model") -> dict[str, Any]:
    """All that a checkpoint holds, checked.

    Args:
        path: of the `.pt` file; never downloaded.
        trust: see `load_checkpoint`.
        key: what an error calls the file.

    Raises:
        UserError: as `load_checkpoint`.
    """
    with guarded(trust):
        return through_the_gate(path, key)


def complete_args(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The args of a training as a checkpoint records them, completed by Ultralytics' defaults, as it does itself."""
    return {**DEFAULT_CFG_DICT, **recorded}


@contextmanager
def trained_args(model: Any, bare: nn.Module) -> Iterator[None]:
    """The args of its training on a bare model for the length of a block, where a `YOLO` keeps them apart.

    A `YOLO` made from a file keeps most of them in its checkpoint only, and a loss needs its gains.
    """
    checkpoint = getattr(model, "ckpt", None)
    untyped: Any = bare
    args = getattr(untyped, "args", None)
    if not isinstance(checkpoint, Mapping) or not isinstance(args, Mapping):
        yield
        return
    untyped.args = {**complete_args(checkpoint.get("train_args") or {}), **args}
    try:
        yield
    finally:
        untyped.args = args


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
    """The contents of a checkpoint with the weights of `model`, a shifted copy of its own, and all else as it was.

    The weights keep the precision of the file read; the record is appended to those of earlier shifts. What only an
    unfinished training needs is cleared, as `yolo train` does when it ends.
    """
    stored: Any = copy.deepcopy(checkpoint.stored)
    new = named_tensors(model)
    with torch.no_grad():
        for name, tensor in named_tensors(stored).items():
            tensor.copy_(new[name])
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
    with written_whole(path) as temporary, temporary.open("wb") as file:  # of which a full disk is said as such
        torch.save(dict(contents), file)
    note_written(path)


def write_stripped(path: Path, out: Path) -> None:
    """Write a checkpoint as `yolo train` leaves it at its end under another name, whole or not at all.

    Raises:
        UserError: if it can't be written.
    """
    with written_whole(out) as temporary, quiet():
        strip_optimizer(path, str(temporary))


def shift_record(checkpoint: Checkpoint, model: nn.Module, recipe: Mapping[str, Any], version: str) -> dict[str, Any]:
    """What a shifted checkpoint says of the shift: plain types only."""
    pairs = [(old.matrix, new.matrix) for old, new in zip(find_head(checkpoint.stored).layers, find_head(model).layers)]
    norms = [sum(float(matrix.double().square().sum()) for matrix in side) for side in zip(*pairs)]
    return {
        "layers_moved": sum(not torch.equal(old.to(new), new) for old, new in ((o, n.cpu()) for o, n in pairs)),
        "keep": norms[1] / norms[0] if norms[0] else 1.0,
        **provenance(checkpoint, version),
        "recipe": dict(recipe),
    }


def provenance(checkpoint: Checkpoint, version: str) -> dict[str, Any]:
    """What every record of a shift says of when, by what and of which file it was made."""
    return {
        "version": version,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": checkpoint.path.name,
        "source_sha256": digest(checkpoint.path),
    }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
