"""Shift a model's prediction layers by the features of batches, in place, and report what that did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from yolo_os.capture import LayerStatistics
from yolo_os.distributed import gather
from yolo_os.errors import UserError
from yolo_os.forward import Batch, CachedHeads, Progress, memory_for_features, run_pass, silent
from yolo_os.heads import Head, find_head
from yolo_os.loss import LossMean, gains_of
from yolo_os.methods import judged_after_training
from yolo_os.recipe import ShiftRecipe
from yolo_os.report import LossReport, ShiftReport
from yolo_os.shifter import Judge, Shift, Shifter, check_finite, plan
from yolo_os.statistics import Gram
from yolo_os.terminal import counted
from yolo_os.timing import Clock

FEW_IMAGES = 32  # a judge of fewer is worth a warning


def shift_batches_(
    bare: nn.Module,
    used: Iterable[Batch],
    recipe: ShiftRecipe,
    *,
    held_out: Iterable[Batch] = (),
    precision: torch.dtype | None = None,
    always_judged: bool = False,
    progress: Progress = silent,
) -> ShiftReport:
    """Shift the prediction layers of a bare model; see `integration.shift.shift_`, which takes whatever users have.

    Args:
        bare: the model inside all wrappers (see `heads.unwrap`), with the args of its training.
        used: batches whose features the shift uses.
        recipe: what to do.
        held_out: batches that it does not use, for drift and loss.
        precision: to which the new weights are rounded, so that what is judged and measured is what a file in that
            precision will hold; None: that of the model.
        always_judged: judge any method by the loss: on held-out images or, where there are none, on the images used.
            Where no loss can be taken, nothing is then shifted.
        progress: wraps the batches of a pass, with a title, to show a progress bar.

    Raises:
        UserError: see `shift_`.
    """
    head = find_head(bare)
    unchanged = plan(head, recipe)
    check_finite(bare)
    used, held_out = ([each] if isinstance(each, Tensor | Mapping) else each for each in (used, held_out))
    if isinstance(used, Iterator) or isinstance(held_out, Iterator):
        raise UserError("the batches are gone through more than once: pass a list or a data loader, not an iterator")

    device = next(bare.parameters()).device
    clock = Clock(device)
    judged = recipe.max_loss_rise is not None and (always_judged or judged_after_training(recipe.method))
    shifter = Shifter(head, recipe, gains_of(bare, head), unchanged, precision)
    drift = {layer.name: Gram() for layer in shifter.layers}
    unseen = LayerStatistics(head, drift)
    heads = CachedHeads(memory_for_features(device)) if judged else None

    loss_before = run_pass(bare, used, clock, progress, "features, loss", shifter.statistics)
    if not loss_before.images:
        raise UserError("the data holds no images: nothing to take features from")
    held_out_before = run_pass(bare, held_out, clock, progress, "held-out loss", unseen, heads)
    unseen.merge()

    def loss() -> float:
        """The loss that judges, with the weights as they are; only the head is run again, where it is kept."""
        if heads and heads.batches:
            return heads.loss(bare, clock)
        return run_pass(bare, judging, clock, progress, "guard").means().get("total", float("nan"))

    before, judging = held_out_before.means().get("total"), held_out
    if before is None and always_judged:
        before, judging = loss_before.means().get("total", float("nan")), used
    with shifter.weights.put_back_on_error():
        with clock("solve"):
            shift = shifter.shift_(Judge(loss, before, recipe.max_loss_rise) if judged and before else None)
        loss_after = run_pass(bare, used, clock, progress, "loss after")
        held_out_after = run_pass(bare, held_out, clock, progress, "held-out loss after")
        return ShiftReport(
            recipe,
            shifter.layer_reports(shift, drift),
            LossReport(loss_before.images, loss_before.means(), loss_after.means()),
            LossReport(held_out_before.images, held_out_before.means(), held_out_after.means()),
            str(precision or head.layers[0].module.weight.dtype).removeprefix("torch."),
            _seconds(clock),
            shift.trials,
            (
                *getattr(used, "said", ()),
                *_warnings(head, shifter, recipe, shift, judged, loss_before, held_out_before),
                *_unreadable(used, held_out),
            ),
        )


def _seconds(clock: Clock) -> dict[str, float]:
    """Seconds by phase; the guard runs inside the solve and counts apart."""
    seconds = clock.seconds()
    return {**seconds, "solve": seconds["solve"] - seconds.get("guard", 0.0)}


def _warnings(
    head: Head,
    shifter: Shifter,
    recipe: ShiftRecipe,
    shift: Shift,
    judged: bool,
    calibration: LossMean,
    held_out: LossMean,
) -> Iterator[str]:
    sampled = [(layer, shifter.systems[layer.name]) for layer in shifter.layers if layer.name in shifter.systems]
    sampled = [(layer, system) for layer, system in sampled if system.sampling is not None]
    short = [
        f"{layer.name} ({system.rows} rows, {layer.out_features} outputs)"
        for layer, system in sampled
        if layer.role == "cls" and system.rows < layer.out_features
    ]
    if short:
        yield f"fewer rows than classes, the paper's lower bound: {', '.join(short)}"
    other = {system.sampling for _, system in sampled} - {recipe.sampling}
    if other:
        yield (
            f"sampling={recipe.sampling} came to {' and '.join(sorted(map(str, other)))}: it needs class scores of the "
            "head, and balanced sampling labels too"
        )
    if not calibration.means():
        yield "no training loss was measured: the images have no labelled objects, or the model's `args` no loss gains"
    if judged and shift.trials and shift.trials[-1].rise is None:
        yield "the shift was not guarded: no loss could be taken on held-out images, so it went to `keep` unchecked"
    if shift.trials and shift.trials[-1].rise is not None and 0 < held_out.images < FEW_IMAGES:
        yield f"the guard judged on {counted(held_out.images, 'image')} only: fewer than {FEW_IMAGES} say little"
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
        were = "was" if len(files) == 1 else "were"
        yield f"{counted(len(files), 'image')} could not be read and {were} left out: {names}"
