"""Classic YOLOv5 checkpoints (anchor-based, of the YOLOv5 repository, v5.0 to v7.0): read as data, written in kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_os.errors import UserError
from yolo_os.integration.unpickle import Damaged, Recorded, Refused, names_in, read_as_data
from yolo_os.integration.yolov5.architecture import build
from yolo_os.integration.yolov5.archive import records, rewrite
from yolo_os.integration.yolov5.loss import DEFAULTS, GAINS, scaled_gains
from yolo_os.integration.yolov5.model import ClassicYOLOv5
from yolo_os.integration.yolov5.recorded import tensors

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
        path: of the file.
        part: which model of it this is: `ema` where there is one, as that repository loads it, else `model`.
        model: in float32 and eval mode.
        stored: its tensors in the precision of the file, by the names of `model.state_dict()`.
        storages: the bytes of all tensors of the file, by key.
        shared: how many tensors of the file's models lie in the same bytes, by their address.
        train_args: image size and settings of the loss.
        records: of the shifts made to it so far, first to last.
        notes: what a person should know of how the file is taken.
    """

    path: Path
    part: str
    model: ClassicYOLOv5
    stored: Mapping[str, Tensor]
    storages: Mapping[str, torch.UntypedStorage]
    shared: Mapping[int, int]
    train_args: Mapping[str, Any]
    records: list[dict[str, Any]]
    notes: tuple[str, ...]

    @property
    def precision(self) -> torch.dtype:
        """In which the file holds the weights."""
        return next(iter(self.stored.values())).dtype

    def write(self, model: nn.Module, record: Mapping[str, Any], path: Path) -> None:
        """Write the file anew, under another name, with the tensors of a model of its own in place of those it has.

        Tensors that are as they were, and all else in the file, stay byte for byte; precision stays.

        Raises:
            UserError: if a tensor that changed shares its bytes with another.
        """
        keys = {storage.data_ptr(): key for key, storage in self.storages.items()}
        new: dict[str, Tensor] = model.state_dict()
        replaced = {}
        for name, there in self.stored.items():
            value = new[name].detach().cpu().to(there.dtype)
            if torch.equal(value, there):
                continue
            place = there.untyped_storage().data_ptr()
            if self.shared[place] > 1:
                raise UserError(f"tensor {name} shares its storage with another: it can't be written alone")
            whole = torch.empty(0, dtype=torch.uint8).set_(there.untyped_storage()).clone()
            whole.view(there.dtype).as_strided(there.shape, there.stride(), there.storage_offset()).copy_(value)
            replaced[keys[place]] = whole.numpy().tobytes()
        rewrite(self.path, path, replaced, RECORD, {**record, "part": self.part})


def recognises(path: Path) -> bool:
    """Whether a file is a checkpoint of the YOLOv5 repository, by the names of its classes; nothing of it is run."""
    try:
        return any(map(_HOME.fullmatch, names_in(path)))
    except (Damaged, OSError):
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
        contents, storages = read_as_data(path, lambda name: trust or _ALLOWED.fullmatch(name) is not None)
        made = records(path, RECORD)
        named = {name: contents.get(name) for name in ("ema", "model")} if isinstance(contents, dict) else {}
        parts = {name: each for name, each in named.items() if isinstance(each, Recorded)}
        if not parts:
            raise UserError("it holds no model")
        part, recorded = next(iter(parts.items()))
        model = build(recorded)
        every = [tensor for each in parts.values() for tensor in tensors(each).values()]
        held = tensors(recorded)
    except Refused as error:
        raise UserError(
            f"refused: it holds {error}, which is no plain part of a YOLOv5 checkpoint and could run code where it is "
            "loaded; trust=True takes it over all the same, as data"
        ) from None
    except Damaged as error:
        raise UserError(f"a damaged checkpoint of the YOLOv5 repository: {error}") from None
    return Classic(
        path,
        part,
        model,
        {name: held[name] for name in model.state_dict()},
        storages,
        Counter(tensor.untyped_storage().data_ptr() for tensor in every),
        _settings(recorded, contents.get("opt"), model),
        made,
        tuple(_notes(part, len(parts), recorded)),
    )


def _notes(part: str, parts: int, recorded: Recorded) -> Iterator[str]:
    if parts > 1:
        yield (
            f"it is of an unfinished training: its '{part}' is taken, as the YOLOv5 repository does, and its other "
            "model stays as it is"
        )
    hyp = recorded.state.get("hyp")
    if isinstance(hyp, dict) and hyp.get("fl_gamma"):
        yield "it was trained with focal loss (fl_gamma), in place of which plain cross entropy is taken here"


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
