"""`shift_`: shift a model's prediction layers, in place, with whatever a user has for a model and data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from yolo_os.errors import UserError
from yolo_os.forward import Batch, Progress, silent
from yolo_os.heads import find_head, unwrap
from yolo_os.integration.checkpoint import trained_args
from yolo_os.integration.data import calibration_batches
from yolo_os.integration.toward import shift_toward_
from yolo_os.recipe import Given, ShiftRecipe
from yolo_os.report import ShiftReport
from yolo_os.shift import shift_batches_
from yolo_os.shifter import check_finite, plan
from yolo_os.toward import Origin
from yolo_os.toward_report import TowardReport


def shift_(
    model: Any,
    data: str | Path | Iterable[Batch],
    recipe: Given = None,
    *,
    held_out: Iterable[Batch] | None = None,
    imgsz: int | None = None,
    precision: torch.dtype | None = None,
    progress: Progress = silent,
    toward: str | Path | Origin | bool | None = None,
    retain: str | Path | Sequence[str | Path] = (),
    retain_drop: float | None = None,
    statistics: bool | None = None,
) -> ShiftReport | TowardReport:
    """Shift the prediction layers of a model, in place; everything else of the model is left as it was.

    With `toward`, move all layers towards the weights that the training started from instead, as far as the val split
    of `data` says that it helps (see `integration.toward.shift_toward_`, which has more settings).

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
        toward: the checkpoint that the training started from; True: the one that the model's record names.
        retain: with `toward`, data that must not get worse.
        retain_drop: with `toward`, most mAP that may be lost on them; None: they are only reported.
        statistics: with `toward`, whether BatchNorm statistics move too; None: val decides.

    Raises:
        UserError: for a model without prediction layers, weights or features that are not finite, a recipe that
            selects no layer or leaves none anything to shift, or data without images.
    """
    if hasattr(model, "predictor"):
        model.predictor = None  # it holds a copy of the model as it was
    if toward not in (None, False):
        if recipe is not None or held_out is not None:
            raise UserError("recipe= and held_out= are for a shift of the prediction layers, not for one with toward=")
        if not isinstance(data, str | Path):
            raise UserError("a shift with toward= is judged by mAP on the val split: give data= by its name")
        return shift_toward_(
            model,
            toward,
            data,
            retain=retain,
            retain_drop=retain_drop,
            statistics=statistics,
            imgsz=imgsz,
            precision=precision,
            progress=progress,
        )
    if retain or retain_drop is not None or statistics is not None:
        raise UserError("retain=, retain_drop= and statistics= are for a shift with toward=")
    recipe = ShiftRecipe.given(recipe) or ShiftRecipe()
    bare = unwrap(model)
    plan(find_head(bare), recipe)  # refused before data are looked for
    check_finite(bare)
    used: Iterable[Batch]
    if isinstance(data, str | Path):
        used, held_out = calibration_batches(bare, data, recipe, imgsz=imgsz)
    else:
        used = data
    with trained_args(model, bare):
        unused = () if held_out is None else held_out
        return shift_batches_(bare, used, recipe, held_out=unused, precision=precision, progress=progress)
