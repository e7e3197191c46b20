"""Shift a model's prediction layers to the least norm, in place, and report what that did."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_os.distributed import broadcast_parameters_, gather
from yolo_os.errors import UserError
from yolo_os.forward import Batch, CachedHeads, Progress, run_pass
from yolo_os.heads import Head, PredictionLayer, find_head, put_back, unwrap
from yolo_os.linalg import in_float64
from yolo_os.loss import LossMean, gains_of
from yolo_os.methods import METHODS, Guard, Solution, Solved
from yolo_os.recipe import ROLES, ShiftRecipe, matches
from yolo_os.report import LayerReport, LossReport, ShiftReport
from yolo_os.statistics import Collector, Gram, RowSample, relative_change
from yolo_os.timing import Clock


def _silent(batches: Iterable[Any], title: str) -> Iterable[Any]:
    return batches


def shift_(
    model: Any,
    data: str | Path | Iterable[Batch],
    recipe: ShiftRecipe | None = None,
    *,
    held_out: Iterable[Batch] | None = None,
    imgsz: int | None = None,
    precision: torch.dtype | None = None,
    reload: Callable[[], Any] | None = None,
    progress: Progress = _silent,
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
        recipe: what to do; the default recipe if None.
        held_out: batches that the shift does not use, for drift and loss; with `data` a name, they are drawn from it.
        imgsz: image size in pixels for `data` a name; that of the model's training if None.
        precision: in which the weights will be stored: the new ones are rounded to it, so that what is judged and
            reported is what the file will hold; None: as they are in the model.
        reload: called once the weights have moved; returns the model to measure in place of this one, such as the one
            read back from the file that it was saved to.
        progress: wraps the batches of a pass, with a title, to show a progress bar.

    Raises:
        UserError: for a model without prediction layers, weights or features that are not finite, a recipe that
            selects no layer or leaves none anything to shift, or data without images.
    """
    recipe = recipe or ShiftRecipe()
    bare = unwrap(model)
    head = find_head(bare)
    skipped = plan(head, recipe)
    check_finite(bare)
    used: Iterable[Batch]
    if isinstance(data, str | Path):
        from yolo_os.integration.data import calibration_batches

        used, held_out = calibration_batches(bare, data, recipe, imgsz=imgsz)
    else:
        used = data
    unused: Iterable[Batch] = () if held_out is None else held_out
    used, unused = ([each] if isinstance(each, Tensor | Mapping) else each for each in (used, unused))
    if isinstance(used, Iterator) or isinstance(unused, Iterator):
        raise UserError("the batches are gone through more than once: pass a list or a data loader, not an iterator")

    with _complete_args(model, bare):
        return _shift(bare, head, skipped, used, unused, recipe, precision, reload, progress)


def _shift(
    bare: nn.Module,
    head: Head,
    skipped: dict[str, str],
    used: Iterable[Batch],
    unused: Iterable[Batch],
    recipe: ShiftRecipe,
    precision: torch.dtype | None,
    reload: Callable[[], Any] | None,
    progress: Progress,
) -> ShiftReport:
    """The shift itself, of a bare model whose args are complete; see `shift_`."""
    method = METHODS[recipe.method]
    chosen = [layer for layer in head.layers if layer.name not in skipped]
    gains = gains_of(bare)
    collectors = {layer.name: method.collector(layer, recipe, gains) for layer in chosen}
    grams = {layer.name: Gram() for layer in chosen}
    clock = Clock(next(bare.parameters()).device)

    loss_before = run_pass(bare, used, head, collectors, clock, progress, "features, loss")
    if not loss_before.images:
        raise UserError("the data holds no images: nothing to take features from")
    heads = CachedHeads() if method.guarded and recipe.max_loss_rise is not None else None
    unused_before = run_pass(bare, unused, head, grams, clock, progress, "held-out loss", heads)

    before = {layer.name: _state(layer) for layer in head.layers}
    guard = None
    if heads and unused_before.means().get("total"):

        def loss_with(solutions: Mapping[str, Solution]) -> float:
            """The held-out loss with solutions written in for a moment; only the head is run again, where kept."""
            with put_back(chosen):
                for layer in chosen:
                    if layer.name in solutions:
                        solutions[layer.name].write_(layer, precision)
                if heads.batches:
                    return heads.loss(bare, clock)
                return run_pass(bare, unused, head, {}, clock, progress, "guard").means()["total"]

        guard = Guard(unused_before.means()["total"], loss_with)
    with clock("solve"):
        solved = _solve(chosen, collectors, recipe, guard)
    solutions = solved.solutions
    for name, solution in solutions.items():
        if solution.unchanged:
            skipped[name] = solution.unchanged
    for layer in chosen:
        if layer.name not in solutions:
            skipped[layer.name] = "it does not run in eval mode, so it has no features"

    with put_back(head.layers, only_on_error=True):
        for layer in chosen:
            if layer.name not in skipped:
                solutions[layer.name].write_(layer, precision)
                broadcast_parameters_(layer.module)
        measured = unwrap(reload()) if reload else bare
        loss_after = run_pass(measured, used, head, {}, clock, progress, "loss after")
        unused_after = run_pass(measured, unused, head, {}, clock, progress, "held-out loss after")
        after = {layer.name: _state(layer) for layer in find_head(measured).layers}

    return ShiftReport(
        recipe,
        tuple(
            _layer_report(
                layer,
                before[layer.name],
                after[layer.name],
                solutions.get(layer.name),
                skipped.get(layer.name),
                collectors.get(layer.name),
                grams.get(layer.name),
            )
            for layer in head.layers
        ),
        LossReport(loss_before.images, loss_before.means(), loss_after.means()),
        LossReport(unused_before.images, unused_before.means(), unused_after.means()),
        str(head.layers[0].module.weight.dtype).removeprefix("torch."),
        _seconds(clock),
        solved.trials,
        (*_warnings(head, recipe, solved, loss_before, unused_before), *_unreadable(used, unused)),
    )


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
    from yolo_os.integration.checkpoint import complete_args

    untyped: Any = bare
    untyped.args = {**complete_args(recorded), **args}
    try:
        yield
    finally:
        untyped.args = args


def plan(head: Head, recipe: ShiftRecipe) -> dict[str, str]:
    """Layers that will not be shifted, with the reason, before any pass is run.

    Raises:
        UserError: if the recipe selects no layer, or leaves none anything to shift.
    """
    method = METHODS[recipe.method]
    skipped: dict[str, str] = {}
    for layer in head.layers:
        if not recipe.selects(layer.name, layer.role):
            skipped[layer.name] = f"not selected by layers={recipe.layers}"
        elif reason := method.refusal(layer, recipe):
            skipped[layer.name] = reason
    names = ", ".join(f"{layer.name} ({layer.role})" for layer in head.layers)
    for word in recipe.words:
        if word not in ROLES and not any(matches(word, each.name, each.role) for each in (*head.layers, *head.refused)):
            raise UserError(f"layers={word} names no layer of this {head.kind} head and no role: it has {names}")
    if all(not recipe.selects(layer.name, layer.role) for layer in head.layers):
        refused = [layer for layer in head.refused if recipe.selects(layer.name, layer.role)]
        why = f"; {refused[0].name} is refused: {refused[0].refused}" if refused else ""
        raise UserError(f"layers={recipe.layers} selects no layer of this {head.kind} head: it has {names}{why}")
    if len(skipped) == len(head.layers):
        reasons = "; ".join(f"{layer.name}: {skipped[layer.name]}" for layer in head.layers)
        raise UserError(f"no layer is left to shift: {reasons}")
    return skipped


def check_finite(model: nn.Module) -> None:
    """Refuse a model whose weights or buffers hold NaN or infinity.

    Raises:
        UserError: naming the first such tensor.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"the model's weights are not finite: {name} holds NaN or infinity")


def _seconds(clock: Clock) -> dict[str, float]:
    """Seconds by phase; the guard runs inside the solve and counts apart."""
    seconds = clock.seconds()
    return {**seconds, "solve": seconds["solve"] - seconds.get("guard", 0.0)}


def _solve(
    layers: Iterable[PredictionLayer], collectors: Mapping[str, Collector], recipe: ShiftRecipe, guard: Guard | None
) -> Solved:
    """The method's solution for the layers that had features."""
    seen = [(layer, collectors[layer.name]) for layer in layers if collectors[layer.name].count]
    for layer, collector in seen:
        if not math.isfinite(collector.energy(in_float64(layer.matrix))):
            raise UserError(f"layer {layer.name}: its features hold NaN or infinity: look for broken images")
    return METHODS[recipe.method].solve(seen, recipe, guard)


def _state(layer: PredictionLayer) -> tuple[Tensor, Tensor | None]:
    """A copy of V, (m, n), and the bias, (n,), in float64."""
    bias = layer.module.bias
    return in_float64(layer.matrix).clone(), None if bias is None else in_float64(bias).clone()


def _layer_report(
    layer: PredictionLayer,
    old: tuple[Tensor, Tensor | None],
    new: tuple[Tensor, Tensor | None],
    solution: Solution | None,
    skipped: str | None,
    collector: Collector | None,
    gram: Gram | None,
) -> LayerReport:
    solved = solution is not None and collector is not None and gram is not None
    (before, old_bias), (after, new_bias) = old, ((each if each is None else each.to(old[0].device)) for each in new)
    assert after is not None
    change = new_bias - old_bias if new_bias is not None and old_bias is not None else None
    return LayerReport.of(
        layer,
        before,
        after,
        solution,
        sampling=collector.drawn if solved and isinstance(collector, RowSample) else None,
        residual=relative_change(collector, before, after, change) if solved and collector else None,
        drift=relative_change(gram, before, after, change) if solved and gram and gram.count else None,
        skipped=skipped,
    )


def _warnings(
    head: Head,
    recipe: ShiftRecipe,
    solved: Solved,
    calibration: LossMean,
    held_out: LossMean,
) -> Iterator[str]:
    solutions = solved.solutions
    short = [
        f"{layer.name} ({solutions[layer.name].rows} rows, {layer.out_features} outputs)"
        for layer in head.layers
        if recipe.method == "sos"
        and layer.name in solutions
        and layer.role == "cls"
        and solutions[layer.name].rows < layer.out_features
    ]
    if short:
        yield f"fewer rows than classes, the paper's lower bound: {', '.join(short)}"
    if not calibration.means():
        yield "no training loss was measured: the batches have no labelled objects, or the model's `args` no loss gains"
    if METHODS[recipe.method].guarded and recipe.max_loss_rise is not None and solved.trials[0].rise is None:
        yield "the shift was not guarded: no loss could be taken on held-out images, so it went to `keep` unchecked"
    if not held_out.images:
        yield "no images were held out: drift and the loss on unused images are unknown"
    for layer in head.refused:
        if recipe.selects(layer.name, layer.role):
            yield f"{layer.name} was left alone: {layer.refused}"


def _unreadable(*passes: Iterable[Batch]) -> Iterator[str]:
    """A warning of the images that our own batches (`integration.data.Batches`) had to leave out."""
    found = [set(getattr(batches, "unreadable", ())) for batches in passes]
    files = sorted(set().union(*(each for everyone in gather(found) for each in everyone)))
    if files:
        names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        yield f"{len(files)} images could not be read and were left out: {names}"
