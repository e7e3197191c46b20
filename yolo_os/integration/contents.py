"""The contents of checkpoints: found, read without running anything of theirs, and held against what they claim."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.utils import LOGGER

from yolo_os.errors import UserError
from yolo_os.integration.layers import check_architecture
from yolo_os.integration.unpickle import Damaged, Refused, is_foreign, names_in, read_archive

_SAVE = "save it with the save() of its YOLO object, YOLO(...).save('NAME.pt'), or take the best.pt of its training"
RECORD = "yolo_os"  # the checkpoint's key for the list of shifts made to it


def read_plain(file: Path, said: str) -> Any:
    """All that a checkpoint holds, as plain data and modules.

    Args:
        file: to read.
        said: what an error calls it.

    Raises:
        UserError: if it is no checkpoint, or holds something that is not let through.
    """
    try:
        return read_archive(file)
    except Refused as error:
        raise UserError(f"{said}: {_why_refused(file, error)}") from None
    except Damaged as error:
        raise UserError(f"{said}: {_why_damaged(file, error)}") from None
    except (OSError, MemoryError) as error:
        raise UserError(f"{said}: can't be read ({line_of(error)})") from None


def announce(file: Path, key: str) -> None:
    """Say what a checkpoint holds that is about to be loaded with its code."""
    try:
        foreign = [name for name in names_in(file) if is_foreign(name)]
        held = f"which holds {', '.join(foreign[:8])}" if foreign else "which holds nothing that needs it"
        held += ", ..." if len(foreign) > 8 else ""
    except (Damaged, OSError):
        held = "in a format that can't be looked at beforehand"
    LOGGER.warning(f"trust=True: {key}={file} is loaded with its code, {held}")


def find_checkpoint(path: str | Path, key: str = "model") -> Path:
    """The file of a checkpoint, as a path that Ultralytics takes for nothing else than a file.

    It deletes a damaged file that is called by the bare name of one of its own, and fetches that again.

    Raises:
        UserError: if there is no such file, or it is no `.pt`.
    """
    file = Path(path)
    try:
        there, folder, ordinary = file.exists(), file.is_dir(), file.is_file()
    except (OSError, ValueError) as error:  # a name too long, or with a null in it
        raise UserError(f"{key}={path}: no such file ({line_of(error)})") from None
    if not there:
        hint = (
            ""
            if file.parent != Path()
            else "; yolo-os downloads nothing: fetch official weights with Ultralytics first"
        )
        raise UserError(f"{key}={path}: no such file{hint}")
    if folder:
        raise UserError(f"{key}={path}: it is a folder; give the checkpoint's file")
    if not ordinary:
        raise UserError(f"{key}={path}: it is no ordinary file")
    if file.suffix != ".pt":
        raise UserError(f"{key}={path}: takes a .pt checkpoint; {_why_not_taken(file.suffix)}")
    return file.absolute()


def model_in(contents: Mapping[str, Any]) -> nn.Module:
    """The model of a checkpoint that Ultralytics would use: that of the moving average, where there is one."""
    held = contents.get("model") if contents.get("ema") is None else contents["ema"]
    assert isinstance(held, nn.Module), "check_contents has not seen these contents"
    return held


def _why_not_taken(suffix: str) -> str:
    if suffix in (".pth", ".ckpt", ".bin", ".safetensors", ".pkl"):
        return f"a {suffix} file mostly holds weights without their model: {_SAVE}"
    return "exported formats hold no weights that can be shifted"


def check_contents(contents: object, trust: bool = False) -> None:
    """Refuse contents that are no checkpoint of a model, or whose parts are not what they are called.

    Raises:
        UserError: naming the part.
    """
    nothing = f"it holds no model, as an Ultralytics checkpoint does: {_SAVE}"
    if isinstance(contents, nn.Module):
        raise UserError(f"a bare {type(contents).__name__} was saved (torch.save of a model): {_SAVE}")
    if isinstance(contents, Mapping) and contents and all(isinstance(each, torch.Tensor) for each in contents.values()):
        raise UserError(f"a bare state_dict was saved, weights without their model: {_SAVE}")
    if not isinstance(contents, dict):
        raise UserError(f"{nothing}, and this is a {type(contents).__name__}")
    if type(contents.get("model")) is nn.Sequential:  # so Ultralytics reads a bare model, its class names gone
        raise UserError(f"the bare layers of a model were saved (torch.save of it): {_SAVE}")
    for name in ("ema", "model"):
        if contents.get(name) is not None and not isinstance(contents[name], nn.Module):
            raise UserError(f"{nothing}; its '{name}' is a {type(contents[name]).__name__}")
    if contents.get("ema") is None and contents.get("model") is None:
        raise UserError(nothing)
    args = contents.get("train_args")
    if args is not None and not (isinstance(args, dict) and all(isinstance(key, str) for key in args)):
        raise UserError(f"its train_args are a {type(args).__name__}, not a dictionary of settings")
    if contents.get("modelopt"):
        raise UserError("it was quantised in training, which yolo-os does not restore: take the float checkpoint")
    for name in ("best_fitness", "updates", "epoch"):
        if contents.get(name) is not None and not isinstance(contents[name], Real):
            raise UserError(f"its '{name}' is a {type(contents[name]).__name__}, no number")
    _check_size((args or {}).get("imgsz"))
    _check_records(contents.get(RECORD))
    for name in ("ema", "model"):
        if contents.get(name) is not None:
            _check_model(contents[name], trust)


def _check_size(size: object) -> None:
    sizes = size if isinstance(size, list | tuple) and size else [size or 640]
    if not all(type(each) is int and 1 <= each <= 65_536 for each in sizes):
        raise UserError(f"the image size of its training, {size!r:.40}, is none")


def _check_records(records: object) -> None:
    if records is None:
        return
    known = isinstance(records, list) and all(
        isinstance(record, dict)
        and isinstance(record.get("recipe"), dict)
        and all(isinstance(text, str) for text in (record["recipe"].get("method"), record.get("date")))
        and isinstance(record.get("source"), str)
        for record in records
    )
    if not known:
        raise UserError(f"its record of earlier shifts ('{RECORD}') is damaged")


def _check_model(model: nn.Module, trust: bool) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    weights = list(model.parameters())
    if not weights:
        raise UserError("its model has no weights")
    if any(tensor.is_meta for tensor in tensors):
        raise UserError("its model has tensors without data (on the device 'meta')")
    if not all(weight.is_floating_point() for weight in weights):
        raise UserError("its model has weights that are no floating-point numbers")
    for name, module in model.named_modules():
        expected = _expected_shape(module)
        weight = getattr(module, "weight", None)
        if expected and isinstance(weight, torch.Tensor) and tuple(weight.shape) != expected:
            raise UserError(f"the weights of its {name} have the shape {tuple(weight.shape)}, not {expected}")
    untyped: Any = model
    layers = getattr(model, "model", None)
    if not isinstance(layers, nn.Sequential) or not len(layers):
        return  # no Ultralytics detector, which finding its head says better
    stride, names = getattr(model, "stride", None), getattr(model, "names", None)
    if stride is not None and not (isinstance(stride, torch.Tensor) and 0 < stride.numel() <= 64):
        raise UserError("the strides of its model are damaged")
    if stride is not None and not bool(((stride >= 1) & (stride <= 4096)).all()):
        raise UserError(f"the strides of its model, {stride.flatten()[:4].tolist()}, are none")
    _check_names(names)
    if not trust and getattr(model, "yaml", None) is not None:
        check_architecture(untyped.yaml)


def _check_names(names: object) -> None:
    """Refuse class names that are no text, or not numbered from 0 on; there may be none."""
    if isinstance(names, dict):
        if not all(type(key) is int or (isinstance(key, str) and key.isdecimal()) for key in names):
            raise UserError("the class names of its model are not by number")
        if {int(key) for key in names} != set(range(len(names))):
            raise UserError("the classes of its model are not numbered from 0 without a gap")
        names = list(names.values())
    if names is not None and not (
        isinstance(names, list | tuple) and all(isinstance(name, str | int | float) for name in names)
    ):
        raise UserError("the class names of its model are damaged")


def _expected_shape(module: nn.Module) -> tuple[int, ...] | None:
    """The shape of a layer's weight by its own settings; None where there is nothing to compare, or they are damaged.

    Raises:
        UserError: if the settings are damaged.
    """
    try:
        if type(module) is nn.Conv2d:
            return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        if type(module) is nn.ConvTranspose2d:
            return (module.in_channels, module.out_channels // module.groups, *module.kernel_size)
        if type(module) is nn.Linear:
            return (module.out_features, module.in_features)
        if type(module) is nn.BatchNorm2d:
            return (module.num_features,)
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"a {type(module).__name__} of its model is damaged ({line_of(error)})") from None
    return None


_WHOLE = (".YOLO", ".RTDETR", ".YOLOWorld", ".YOLOE")


def _why_refused(file: Path, error: Refused) -> str:
    try:
        named = names_in(file)
    except (Damaged, OSError):
        named = []
    if any(name.startswith("models.") for name in named):
        return (
            f"a checkpoint of the YOLOv5 repository ({next(name for name in named if name.startswith('models.'))}), "
            "which Ultralytics can't train: take a YOLOv5u (shift, inspect and val read it)"
        )
    whole = next((name for name in named if name.startswith("ultralytics.models.") and name.endswith(_WHOLE)), None)
    if whole is not None:
        return (
            f"a whole {whole.rpartition('.')[2]} object was saved (torch.save of it), which is more than a model: save "
            "it with its own model.save('NAME.pt'); trust=True loads this one, its code included"
        )
    return (
        f"refused: it holds {error}, which is no plain part of a checkpoint and could run code; "
        "trust=True loads it all the same, if you trust its maker"
    )


def _why_damaged(file: Path, error: Damaged) -> str:
    """One line on why a file could not be read."""
    with file.open("rb") as opened:
        start = opened.read(2)
    if not start:
        return "the file is empty"
    if start == b"PK":
        return f"the file is truncated or damaged ({error})"
    return "no checkpoint that Ultralytics can read (damaged, not a checkpoint, or in the format of torch before 1.6)"


def line_of(error: BaseException) -> str:
    """An error as a part of a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
