"""`yolo-os shift`: shift a checkpoint's prediction layers, write it under a new name, report what that did."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_os._version import __version__
from yolo_os.errors import UserError
from yolo_os.files import RUN_KEYS, run_folder
from yolo_os.modes.common import DATA_KEYS, MODEL_KEYS, checkpoint_paths
from yolo_os.modes.toward import is_toward, shift_toward_checkpoint
from yolo_os.recipe import TOWARD_KEYS, ShiftRecipe, recipe_keys, warn_unused, with_implied_method
from yolo_os.settings import Key

if TYPE_CHECKING:
    from yolo_os.report import ShiftReport

KEYS = (
    *MODEL_KEYS,
    Key("data", (str,), None, "data set YAML, its shipped name, or a VOCdevkit folder", required=True),
    Key("out", (str,), None, "the shifted checkpoint; None: the model's name with -os, beside it"),
    *TOWARD_KEYS,
    Key("recipe", (str,), None, "a recipe in YAML, or the name of a shipped one (budget, os, sos, sos_paper)"),
    *recipe_keys(),
    *DATA_KEYS,
    Key(
        "trace",
        (bool, str),
        False,
        "also the trace of the Hessian before and after: True for the prediction layers, or layers as in yolo-os trace",
    ),
    Key("json", (str,), None, "also write the report as JSON to this path"),
    Key("save", (str,), None, "name of a layer whose A, Z and V before and after are kept as NAME.npz with the report"),
    Key("plots", (bool,), True, "plot norm, drift and spectra"),
    *RUN_KEYS,
)
EXAMPLES = (
    "yolo-os shift model=best.pt data=my.yaml",
    "yolo-os shift model=best.pt data=VOCdevkit layers=cls keep=0.8 out=best-os.pt",
    "yolo-os shift model=best.pt toward=yolo11n.pt data=my.yaml retain=old.yaml",
    "yolo-os shift model=best.pt data=my.yaml recipe=os images=1000",
    "yolo-os shift model=best.pt data=my.yaml method=sos save=cv3.0",
    "torchrun --nproc-per-node 4 -m yolo_os shift model=best.pt data=my.yaml images=10000",
)


def run(options: dict[str, Any]) -> int:
    """Shift as the keys say; the exit code."""
    if is_toward(options):
        _refuse_unused(options)
        shift_toward_checkpoint(options)
    else:
        shift_checkpoint(options)
    return 0


def _refuse_unused(options: dict[str, Any]) -> None:
    """Refuse keys that say nothing of a shift with toward=.

    Raises:
        UserError: naming one.
    """
    unused = {"recipe": None, "save": None, "trace": False, "split": "train"} | {
        key.name: None for key in recipe_keys()
    }
    for name, default in unused.items():
        if options.get(name) not in (None, default):
            raise UserError(f"{name}={options[name]} is for a shift of the prediction layers, not for one with toward=")


def shift_checkpoint(options: dict[str, Any]) -> tuple[ShiftReport, Path]:
    """Shift a checkpoint, write it and its report; the report and the path of the shifted checkpoint.

    Raises:
        UserError: for bad input, before anything is written.
    """
    recipe = recipe_from(options)
    source, out = checkpoint_paths(options, "-os")

    from yolo_os.distributed import process_group

    with process_group(options["device"]):
        return _shift(options, recipe, source, out)


def _shift(options: dict[str, Any], recipe: ShiftRecipe, source: Path, out: Path) -> tuple[ShiftReport, Path]:
    """The shift itself, in one of several processes: all of them compute, the first one writes and prints."""
    from yolo_os.distributed import local_device, rank
    from yolo_os.forward import silent
    from yolo_os.heads import find_head
    from yolo_os.integration.checkpoint import load_checkpoint, save_shifted, shift_record
    from yolo_os.integration.data import calibration_batches
    from yolo_os.integration.flatness import check_trace, trace_change
    from yolo_os.integration.runtime import choose_device, progress_bar
    from yolo_os.matrices import LayerMatrices, find_layer
    from yolo_os.plots.shift import plot_report
    from yolo_os.shift import shift_batches_
    from yolo_os.shifter import check_finite, plan

    checkpoint = load_checkpoint(source, options["trust"])
    plan(find_head(checkpoint.model), recipe)
    if options["save"]:
        find_layer(find_head(checkpoint.model), options["save"])  # refused before the images are looked for
    check_finite(checkpoint.model)
    if options["trace"]:
        check_trace(checkpoint.model, options["trace"])
    if options["imgsz"] not in (None, checkpoint.imgsz) and rank() == 0:
        said = f"imgsz={options['imgsz']} is not that of the model's training, {checkpoint.imgsz}"
        print(f"warning: {said}: what is kept there may be lost at the size that it is used at", file=sys.stderr)
    model = checkpoint.model.to(choose_device(options["device"] or local_device()))
    loading = {key: options[key] for key in ("split", "imgsz", "batch", "workers")}
    used, held_out = calibration_batches(model, options["data"], recipe, **loading)
    progress = progress_bar if rank() == 0 else silent
    matrices = None
    if options["save"]:
        matrices = LayerMatrices(model, find_head(model), options["save"], used, recipe, progress)
    before = copy.deepcopy(model) if options["trace"] else None
    report = shift_batches_(model, used, recipe, held_out=held_out, precision=checkpoint.precision, progress=progress)
    if rank() > 0:
        return report, out
    if before is not None:
        report = replace(report, trace=trace_change(before, model, held_out or used, options["trace"]))
    save_shifted(checkpoint, model, shift_record(checkpoint, model, recipe.to_dict(), __version__), out)
    folder = run_folder("shift", options)
    (folder / "shift.log").write_text(
        f"model={source} data={options['data']} out={out}\n\n{report}\n", encoding="utf-8"
    )
    for path in filter(None, (folder / "report.json", options["json"])):
        report.save(path)
    if options["plots"]:
        plot_report(report, folder)
    if matrices:
        matrices.save(folder / f"{options['save']}.npz")
    print(f"{report}\n\nshifted checkpoint: {out}\nreport and plots:   {folder}")
    return report, out


def recipe_from(options: dict[str, Any]) -> ShiftRecipe:
    """The recipe file of the options, or the default recipe, with the recipe keys that were given in its place."""
    given = {key.name: options[key.name] for key in recipe_keys() if key.name in options}
    base = ShiftRecipe.from_yaml(options["recipe"]) if options["recipe"] else ShiftRecipe()
    if not options["recipe"]:
        given = with_implied_method(given)
    recipe = base.replace(**given)
    warn_unused(given, recipe.method)
    return recipe
