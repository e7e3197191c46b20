"""Classic YOLOv5 checkpoints (anchor-based, of the YOLOv5 repository, v5.0 to v7.0): read as data, written in kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_os.errors import UserError
from yolo_os.integration.yolov5.architecture import build
from yolo_os.integration.yolov5.archive import Archive, Damaged
from yolo_os.integration.yolov5.loss import DEFAULTS, GAINS, scaled_gains
from yolo_os.integration.yolov5.model import ClassicYOLOv5
from yolo_os.integration.yolov5.pickled import Recorded, Refused, Stored, names_in, read_as_data

RECORD = "yolo_os"  # the folder of the archive with the records of shifts
_HOME = re.compile(r"(yolov5\.)?models\.yolo\.\w+")
# Classes that may lie in such a file, as data: the repository's and torch's modules, and settings.
_ALLOWED = re.compile(
    r"(yolov5\.)?(models|utils)(\.\w+)*\.[A-Z]\w*|torch\.nn\.modules(\.\w+)+\.[A-Z]\w*|argparse\.Namespace"
)


@dataclass(frozen=True)
class Classic:
    """A checkpoint of the YOLOv5 repository.

    Attributes:
        archive: the file.
        part: which model of it this is: `ema` where there is one, as that repository loads it, else `model`.
        other: whether the file holds another model beside it, of an unfinished training.
        model: in float32 and eval mode, with the settings of its loss in `args`.
        precision: in which the file holds its weights.
        stored: its tensors in the file, by the names of `model.state_dict()`.
        train_args: what is known of its training.
        records: of the shifts made to it so far, first to last.
    """

    archive: Archive
    part: str
    other: bool
    model: ClassicYOLOv5
    precision: torch.dtype
    stored: Mapping[str, Stored]
    train_args: Mapping[str, Any]
    records: list[dict[str, Any]]

    def write(self, model: nn.Module, record: Mapping[str, Any], path: Path) -> None:
        """Write the file anew, under another name, with the tensors of a model of its own in place of those it has.

        Tensors that are as they were, and all else in the file, stay byte for byte; precision stays.

        Raises:
            UserError: if a tensor that changed shares its bytes with another.
        """
        replaced: dict[str, bytearray] = {}
        keys = [each.key for each in self.stored.values()]
        new: dict[str, Tensor] = model.state_dict()
        for name, where in self.stored.items():
            if name not in new:
                continue
            contents = self.archive.bytes_of(where.key)
            there = where.view(contents)
            value = new[name].detach().cpu().to(there.dtype)
            if torch.equal(value, there):
                continue
            if keys.count(where.key) > 1:
                raise UserError(f"tensor {name} shares its storage with another: it can't be written alone")
            there.copy_(value)
            replaced[where.key] = contents
        self.archive.write(path, replaced, RECORD, {**record, "part": self.part})


def recognises(path: Path) -> bool:
    """Whether a file is a checkpoint of the YOLOv5 repository, by the names of its classes; nothing of it is run."""
    try:
        archive = Archive(path)
        return b"models" in archive.pickle and any(map(_HOME.fullmatch, names_in(archive)))
    except Damaged:
        return False


def read(path: Path, trust: bool = False) -> Classic:
    """Read a checkpoint of the YOLOv5 repository; nothing of it is run.

    Args:
        path: of the file.
        trust: let other classes than the repository's and torch's lie in the file. They stay data here, but whoever
            loads what is written from it runs them.

    Raises:
        UserError: if it is damaged, holds other classes, or is no detector that can be built.
    """
    try:
        archive = Archive(path)
        contents = read_as_data(archive, lambda name: trust or _ALLOWED.fullmatch(name) is not None)
        parts = {name: contents.get(name) for name in ("ema", "model")} if isinstance(contents, dict) else {}
        part = next((name for name, each in parts.items() if isinstance(each, Recorded)), None)
        if part is None:
            raise UserError("it holds no model")
        recorded = parts[part]
        assert isinstance(recorded, Recorded)
        model = build(recorded, archive)
        stored = {name: each for name, each in recorded.tensors().items() if name in model.state_dict()}
        weight = next(iter(model.state_dict()))
        settings = _settings(recorded, contents.get("opt"), model)
        return Classic(
            archive,
            part,
            all(isinstance(each, Recorded) for each in parts.values()),
            model,
            stored[weight].dtype,
            stored,
            settings,
            archive.records(RECORD),
        )
    except Refused as error:
        raise UserError(
            f"refused: it holds {error}, which is no plain part of a YOLOv5 checkpoint and could run code where it is "
            "loaded; trust=True takes it over all the same, as data"
        ) from None
    except Damaged as error:
        raise UserError(f"a damaged checkpoint of the YOLOv5 repository: {error}") from None


def _settings(recorded: Recorded, opt: Any, model: ClassicYOLOv5) -> dict[str, Any]:
    """Image size and the settings of the loss; the gains in a checkpoint are scaled already, those of defaults not."""
    options = opt if isinstance(opt, dict) else {}
    size = options.get("imgsz", options.get("img_size"))
    size = max(size) if isinstance(size, list | tuple) and size else size
    if not isinstance(size, int) or not 1 <= size <= 65_536:
        size = 640 if int(model.stride.max()) <= 32 else 1280  # that of the official trainings
    hyp = recorded.state.get("hyp")
    known = {name: float(hyp[name]) for name in DEFAULTS if _is_number(hyp, name)} if isinstance(hyp, dict) else {}
    defaults = {**DEFAULTS, **scaled_gains(DEFAULTS, model.nc, len(model.stride), size)}
    gains = {name: known.get(name, defaults[name]) for name in GAINS}
    single = {"single_cls": True} if options.get("single_cls") is True else {}
    return {**DEFAULTS, **known, **gains, **single, "imgsz": size}


def _is_number(hyp: Mapping[Any, Any], name: str) -> bool:
    return isinstance(hyp.get(name), int | float) and hyp[name] >= 0
