"""`yolo-os inspect`: the prediction layers of a model, and with data whether a shift can do anything to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from yolo_os.errors import UserError
from yolo_os.files import RUN_KEYS, as_path, check_folder, check_outputs, run_folder, write_json
from yolo_os.modes.common import DATA_KEYS, MODEL_KEYS, say_replaced
from yolo_os.settings import Key
from yolo_os.terminal import counted, shown

if TYPE_CHECKING:
    from torch import nn

    from yolo_os.flatness.report import TraceReport
    from yolo_os.heads import Head
    from yolo_os.report import LayerReport

KEYS = (
    MODEL_KEYS[0].described("the checkpoint (.pt), or an architecture (.yaml)"),
    MODEL_KEYS[1],
    Key(
        "data",
        (str, type(None)),
        None,
        "data set YAML, its shipped name, or a VOCdevkit folder: adds rank and spectrum",
    ),
    Key("images", (int,), 64, "images whose features are looked at", minimum=1),
    Key("seed", (int,), 0, "seed of the images drawn", minimum=0),
    Key("rtol", (float, type(None)), None, "singular values of A below rtol times the largest count as zero"),
    *DATA_KEYS,
    Key(
        "trace",
        (bool, str),
        False,
        "with data, the trace of the Hessian too: True for the prediction layers, or layers as in yolo-os trace",
    ),
    Key("json", (str,), None, "also write the table as JSON to this path"),
    *RUN_KEYS,
)
EXAMPLES = (
    "yolo-os inspect model=best.pt",
    "yolo-os inspect model=best.pt data=my.yaml",
    "yolo-os inspect model=yolo11n.yaml",
)


def run(options: dict[str, Any]) -> int:
    """Inspect as the keys say; the exit code."""
    check_outputs({"json": options["json"]}, {"model": options["model"], "data": options["data"]})
    say_replaced({"json": options["json"]})
    check_folder("inspect", options)
    if options["trace"] and not options["data"]:
        raise UserError("trace= is of a loss, which needs images and labels: give data=")
    from yolo_os.heads import find_head
    from yolo_os.integration.flatness import check_trace

    model, shifts = _open(options)
    head = find_head(model)
    if options["trace"]:
        check_trace(model, options["trace"])
    layers = _look(model, head, options)
    print(f"{options['model']}: {head.kind} head, {counted(len(layers), 'prediction layer')}\n")
    print(_table(layers, with_data=bool(options["data"])))
    for layer in head.refused:
        print(f"{layer.name} ({layer.role}) can't be shifted: {layer.refused}")
    for number, record in enumerate(shifts, 1):
        print("\n" + "\n".join(_recorded(number, record)))
    if options["data"]:
        from yolo_os.plots.shift import plot_spectra

        folder = run_folder("inspect", options)
        plot_spectra(layers, folder / "spectrum.png", options["rtol"])
        print(f"\n{_advice(layers)}\nspectra: {folder / 'spectrum.png'}")
    flatness = _trace(model, options) if options["trace"] else None
    if flatness is not None:
        print(f"\n{flatness}")
    if options["json"]:
        entries = [{key: value for key, value in vars(layer).items() if key in _JSON_FIELDS} for layer in layers]
        refused = [{"name": layer.name, "role": layer.role, "refused": layer.refused} for layer in head.refused]
        content = {"model": options["model"], "head": head.kind, "layers": entries, "refused": refused}
        measured = {} if flatness is None else {"trace": flatness.to_dict()["models"][0]}
        write_json(as_path(options["json"]), content | {"shifts": shifts} | measured)
    return 0


def _trace(model: nn.Module, options: dict[str, Any]) -> TraceReport:
    """How flat the loss is, over the images that the features are of."""
    from yolo_os.integration.flatness import hessian_trace, trace_bar

    layers = "head" if options["trace"] is True else options["trace"]
    drawing = {key: options[key] for key in ("images", "seed", "split", "imgsz", "batch", "workers", "device")}
    with trace_bar() as notice:
        return hessian_trace(model, options["data"], layers=layers, notice=notice, **drawing)


_JSON_FIELDS = ("name", "role", "level", "stride", "m", "n", "norm_before", "rank", "rows", "singular_values")


def _open(options: dict[str, Any]) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The model, and the shifts recorded in its checkpoint."""
    if not str(options["model"]).endswith((".yaml", ".yml")):
        from yolo_os.integration.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(options["model"], options["trust"])
        return checkpoint.model, checkpoint.shifts
    from yolo_os.integration.architecture import build

    return build(options["model"]), []


def _look(model: nn.Module, head: Head, options: dict[str, Any]) -> list[LayerReport]:
    """Every layer as it is; with data, the rank and singular values of its features over all anchor points."""
    from yolo_os.forward import run_pass
    from yolo_os.linalg import in_float64
    from yolo_os.recipe import ShiftRecipe
    from yolo_os.report import LayerReport
    from yolo_os.shifter import Shifter, check_finite
    from yolo_os.timing import Clock

    recipe = ShiftRecipe(method="os", images=options["images"], held_out=0, seed=options["seed"], rtol=options["rtol"])
    shifter = Shifter(head, recipe, {}, {})
    if options["data"]:
        from yolo_os.integration.data import calibration_batches
        from yolo_os.integration.runtime import choose_device, progress_bar

        check_finite(model)
        device = choose_device(options["device"])
        loading = {key: options[key] for key in ("split", "imgsz", "batch", "workers")}
        batches, _ = calibration_batches(model.to(device), options["data"], recipe, **loading)
        if batches.images < options["images"]:
            print(f"note: images={options['images']}: {options['split']} has {batches.images}", file=sys.stderr)
        if not run_pass(model, batches, Clock(device), progress_bar, "features", shifter.statistics).images:
            raise UserError(f"data={options['data']}: none of the images drawn can be read")
        shifter.solve()
    weights = {layer.name: in_float64(layer.matrix) for layer in head.layers}
    return [
        LayerReport.of(layer, weights[layer.name], weights[layer.name], shifter.systems.get(layer.name))
        for layer in head.layers
    ]


def _recorded(number: int, record: Mapping[str, Any]) -> Iterator[str]:
    """All that a checkpoint says of a shift, by lines."""
    recipe = record.get("recipe") or {}
    yield f"shift {number}: {recipe.get('method')}, {record.get('date')}, from {shown(record.get('source'))}"
    for name, value in record.items():
        if name not in ("recipe", "date", "source"):
            yield f"  {name} {shown(value)}"
    yield "  recipe: " + ", ".join(f"{name}={shown(value)}" for name, value in recipe.items())


def effective_rank(singular_values: tuple[float, ...], energy: float) -> int:
    """How many of the largest singular values hold this share of the sum of their squares."""
    total = sum(value**2 for value in singular_values)
    held, count = 0.0, 0
    while count < len(singular_values) and held < energy * total:
        held += singular_values[count] ** 2
        count += 1
    return count


def _table(layers: list[LayerReport], with_data: bool) -> str:
    head = f"{'layer':<18}{'role':<10}{'stride':>7}{'m':>6}{'n':>5}{'norm':>10}"
    if with_data:
        head += f"{'rows':>10}{'rank':>6}{'99%':>6}{'99.9%':>7}"
    lines = [head, "-" * len(head)]
    for layer in layers:
        stride = "-" if layer.stride is None else f"{layer.stride:g}"
        line = f"{layer.name:<18}{layer.role:<10}{stride:>7}{layer.m:>6}{layer.n:>5}{layer.norm_before:>10.3f}"
        if with_data and layer.rank is not None:
            most, nearly_all = (effective_rank(layer.singular_values, energy) for energy in (0.99, 0.999))
            line += f"{layer.rows:>10}{layer.rank:>6}{most:>6}{nearly_all:>7}"
        elif with_data:
            line += "  does not run in eval mode"
        lines.append(line)
    if with_data:
        lines.append("rank: of A; 99%, 99.9%: directions that hold this share of the features' energy")
    return "\n".join(lines)


def _advice(layers: list[LayerReport]) -> str:
    """What a person can expect of a shift, from the ranks."""
    budget = "method=budget, the default, removes what hardly changes the training loss, and checks it on other images."
    free = [layer.name for layer in layers if layer.rank is not None and layer.rank < layer.m]
    if free:
        return (
            f"method=os can move {', '.join(free)}: on these images their features do not span all directions. "
            f"More images may; the drift in the report of a shift tells. {budget}"
        )
    return (
        "method=os can do nothing: on these images every layer has rank(A) = m, so its weights are the only solution. "
        "method=sos moves every layer with more inputs m than samples, and its outputs on other anchor points with it. "
        f"{budget}"
    )
