"""What several modes share: the keys of a model and its data, and the paths of what is read and written."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo_os.errors import UserError
from yolo_os.files import as_path, check_folder, check_outputs, is_dir
from yolo_os.settings import Key

MODEL_KEYS = (
    Key("model", (str,), None, "the checkpoint (.pt); it is never changed", required=True),
    Key(
        "trust",
        (bool,),
        False,
        "unpickle a checkpoint with classes of neither torch nor Ultralytics, its code included",
    ),
)
DATA_KEYS = (
    Key("split", (str,), "train", "split of the data that the images are drawn from", choices=("train", "val", "test")),
    Key("imgsz", (int, type(None)), None, "image size in pixels; None: that of the model's training", minimum=32),
    Key("batch", (int,), 16, "images per batch", minimum=1),
    Key("device", (str,), "", "cpu, 0, cuda:0, mps; a GPU where there is one if not given"),
    Key("workers", (int,), 0, "loader processes", minimum=0),
)


def checkpoint_paths(options: dict[str, Any], suffix: str) -> tuple[Path, Path]:
    """The checkpoint that is read and the one that will be written, by the keys of `yolo-os shift`.

    Args:
        options: of the mode.
        suffix: added to the model's name where `out` is not given.

    Raises:
        UserError: if an output can't be written, is no name of a checkpoint, or is one of the inputs.
    """
    source = as_path(options["model"])
    if is_dir(source):
        raise UserError(f"model={source}: it is a folder; give the checkpoint's file")
    out = as_path(options["out"]) if options["out"] else source.with_name(f"{source.stem}{suffix}.pt")
    if out.suffix != ".pt":
        raise UserError(f"out={out}: takes a name that ends in .pt, so that YOLO() opens it")
    inputs = {key: options.get(key) for key in ("model", "data", "toward", "retain", "recipe")}
    check_outputs({"out": out, "json": options["json"]}, inputs)
    check_folder("shift", options)
    say_replaced({"out": out, "json": options["json"]})
    return source, out


def say_replaced(outputs: Mapping[str, str | Path | None]) -> None:
    """Say which outputs, by key, are there already."""
    for key, value in outputs.items():
        if value and as_path(value).exists():
            print(f"note: {key}={value} is there already and will be replaced", file=sys.stderr)
