"""`shift_`: shift a model's prediction layers, in place, with whatever a user has for a model and data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_os.forward import Batch, Progress
from yolo_os.heads import find_head, unwrap
from yolo_os.integration.checkpoint import complete_args
from yolo_os.integration.data import calibration_batches
from yolo_os.recipe import Given, ShiftRecipe
from yolo_os.report import ShiftReport
from yolo_os.shift import shift_batches_, silent
from yolo_os.shifter import check_finite, plan


def shift_(
    model: Any,
    data: str | Path | Iterable[Batch],
    recipe: Given = None,
    *,
    held_out: Iterable[Batch] | None = None,
    imgsz: int | None = None,
    precision: torch.dtype | None = None,
    progress: Progress = silent,
) -> ShiftReport:
    """Shift the prediction layers of a model, in place; everything else of the model is left as it was.

    In a process group every process must call this, each with its share of the batches, one at least: statistics
    and losses are added up over all, and all end with the same weights.

    Features and losses are those of eval mode (running BatchNorm statistics), without gradients, on the device and
    in the precision of the model. If anything fails, the weights are put back.

    Args:
        model: a `YOLO`, an `RTDETR` or their bare model (see `prediction_layers`).
        data: what Ultralytics takes as `data=`, or a VOCdevkit folder: `recipe.images` and `recipe.held_out` images
            are drawn from its train split. Or an iterable of batches that can be gone through more than once: images
            (B, 3, H, W), uint8 or floats in 0..1, or dictionaries as Ultralytics' data loaders make them, whose
            labels the training loss needs; all of them are used.
        recipe: what to do: a recipe, its settings, or the name or file of one; the default recipe if None.
        held_out: batches that the shift does not use, for drift and loss; with `data` a name, they are drawn from it.
        imgsz: image size in pixels for `data` a name; that of the model's training if None.
        precision: in which the weights will be stored: the new ones are rounded to it, so that what is judged and
            reported is what the file will hold; None: as they are in the model.
        progress: wraps the batches of a pass, with a title, to show a progress bar.

    Raises:
        UserError: for a model without prediction layers, weights or features that are not finite, a recipe that
            selects no layer or leaves none anything to shift, or data without images.
    """
    recipe = ShiftRecipe.given(recipe) or ShiftRecipe()
    bare = unwrap(model)
    plan(find_head(bare), recipe)  # refused before data are looked for
    check_finite(bare)
    used: Iterable[Batch]
    if isinstance(data, str | Path):
        used, held_out = calibration_batches(bare, data, recipe, imgsz=imgsz)
    else:
        used = data
    with _complete_args(model, bare):
        unused = () if held_out is None else held_out
        if hasattr(model, "predictor"):
            model.predictor = None  # it holds a copy of the model as it was
        return shift_batches_(bare, used, recipe, held_out=unused, precision=precision, progress=progress)


@contextmanager
def _complete_args(model: Any, bare: nn.Module) -> Iterator[None]:
    """The args of the model's training on the bare model for the length of a block.

    A `YOLO` made from a file keeps most of them in its checkpoint only, and a loss needs its gains.
    """
    checkpoint = getattr(model, "ckpt", None)
    recorded = (checkpoint.get("train_args") or {}) if isinstance(checkpoint, Mapping) else None
    args: Any = getattr(bare, "args", None)
    if recorded is None or not isinstance(args, Mapping):
        yield
        return
    untyped: Any = bare
    untyped.args = {**complete_args(recorded), **args}
    try:
        yield
    finally:
        untyped.args = args
