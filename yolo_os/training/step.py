"""One shift within an optimizer step of a training: features of the step's own forward passes, no further pass.

The forward pass of a training batch already computes what a shift needs: the inputs and outputs of the prediction
layers, the targets that the loss assigns, the labels. `StepShift` takes them in by hooks while a step runs its batches,
and once the optimizer has stepped it solves, judges by the training loss on the step's last batch, and takes or leaves
the shift. For that loss only the last layers are run again, on the inputs they had.

Features are those of train mode: batch BatchNorm statistics and augmented images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolo_os.capture import Seen, capture, inputs_of
from yolo_os.distributed import rank, world_size
from yolo_os.heads import Head, last_module
from yolo_os.loss import LossMean, assigners, gains_of, has_labels, noting, per_image
from yolo_os.methods.base import Moved, Outcome
from yolo_os.recipe import ShiftRecipe
from yolo_os.report import LayerReport, kept
from yolo_os.shifter import Judge, Shifter


@dataclass(frozen=True)
class StepReport:
    """What one shift during training did.

    Attributes:
        layers: of those that had features; drift is not measured.
        loss_before, loss_after: training loss per image on the step's last batch, of all processes together, with the
            weights of the optimizer step and with the last ones tried; nan where none was taken.
        outcome: that the shift stands, or why the weights are those of the optimizer step.
        reverted: whether the loss allowed no strength of the shift.
    """

    layers: tuple[LayerReport, ...]
    loss_before: float
    loss_after: float
    outcome: Outcome
    reverted: bool

    @property
    def rise(self) -> float:
        """The rise of the loss, relative."""
        return self.loss_after / self.loss_before - 1 if self.loss_before else math.nan

    @property
    def moved(self) -> bool:
        """Whether any weight stands changed."""
        return isinstance(self.outcome, Moved)

    @property
    def keep(self) -> float:
        """Share of the squared norm of these layers that is left."""
        return kept(self.layers)


class StepShift(AbstractContextManager["StepShift"]):
    """Watches the training batches of one optimizer step, within a `with` block; then shifts the model.

    In a process group every process must do the same with its own share of the batch: statistics and losses are added
    up, the first process's weights are given to all.

    Args:
        model: the bare model in training.
        head: of this model.
        recipe: what to do.
        unchanged: layers to leave alone, with the reason (see `shifter.plan`).
        step: number of the optimizer step: with the recipe's seed it settles what is drawn.
        autocast: makes the context in which the trainer runs its forward passes.
        average: the head of the model's moving average, which is moved along (see `Shifter`). The loss is that of the
            model alone.

    Attributes:
        step: number of the optimizer step.
        batches: how many training batches were taken in.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        recipe: ShiftRecipe,
        unchanged: Mapping[str, str],
        step: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        average: Head | None = None,
    ) -> None:
        self.step, self.batches = step, 0
        self._model, self._head, self._recipe = model, head, recipe
        self._autocast = autocast
        drawn = recipe.replace(seed=(recipe.seed + step) % 2**31)
        self._shifter = Shifter(head, drawn, gains_of(model, head), unchanged, average=average)
        self._seen: Seen = {}
        self._labels: dict[str, Tensor] = {}
        self._batch: dict[str, Any] | None = None
        self._inputs: tuple[Any, ...] | None = None
        self._failure: Exception | None = None
        self._watching = ExitStack()

    def __enter__(self) -> StepShift:
        """Put the hooks in place."""
        modules = [layer.module for layer in (*self._head.layers, *self._head.refused)]
        self._seen = self._watching.enter_context(capture([*modules, *self._head.scorers.values()]))
        hooks = [
            self._model.register_forward_pre_hook(lambda *_: self._forget()),
            last_module(self._model).register_forward_pre_hook(self._note_inputs),
            *(each.register_forward_hook(noting(self._labels, branch)) for branch, each in self._assigners()),
        ]
        for hook in hooks:
            self._watching.callback(hook.remove)
        self._watching.enter_context(self._taking_in_batches())
        return self

    def __exit__(self, *error: object) -> None:
        """Take all hooks away and let go of the features."""
        self._watching.close()
        self._forget()

    @torch.no_grad()
    def shift_(self) -> StepReport | None:
        """Shift the layers by what was taken in; None where no features came or none that are finite.

        Raises:
            Exception: what taking in a batch has raised, which the forward pass of a training must not.
        """
        if self._failure is not None:
            raise self._failure
        tolerance = self._recipe.max_loss_rise
        before = self._loss()
        if not math.isfinite(before) and tolerance is not None:
            return None
        try:
            shift = self._shifter.shift_(Judge(self._loss, before, tolerance))
        except ValueError:  # features, outputs or weights that are not finite
            return None
        solved = self._shifter.systems
        if not solved:
            return None
        layers = tuple(layer for layer in self._shifter.layer_reports(shift) if layer.name in solved)
        last = shift.trials[-1].figure if shift.trials else None
        return StepReport(layers, before, before if last is None else last, shift.outcome, shift.reverted)

    @torch.no_grad()
    def _take_in(self, batch: dict[str, Any]) -> None:
        """Hand what the forward pass of a batch has shown to the collectors, in their own precision."""
        self._batch = batch
        number = self.batches * world_size() + rank()
        self.batches += 1
        try:
            with torch.autocast(batch["img"].device.type, enabled=False):
                self._shifter.statistics.add(self._seen, self._labels, number)
        except Exception as error:  # too little memory, say
            if world_size() > 1:  # the other processes wait for this one
                raise
            self._failure = error

    def _forget(self) -> None:
        """Let go of the feature maps of a batch that another one follows."""
        self._seen.clear()
        self._labels.clear()
        self._batch = self._inputs = None

    def _loss(self) -> float:
        """The training loss per image on the last batch with the weights as they are; nan where none can be taken.

        The head is run again in train mode on the feature maps it was given; towers that end in a prediction layer
        only from that layer on. What that would change besides, running statistics and random numbers, is put back.
        """
        batch, inputs, mean = self._batch, self._inputs, LossMean()
        if batch is not None and inputs is not None and has_labels(batch):
            head, device = last_module(self._model), batch["img"].device
            devices = [device] if device.type == "cuda" else []
            with self._autocast(), torch.random.fork_rng(devices), _buffers_kept(head), self._towers_cut():
                loss, _ = self._own_loss(batch, head(*inputs_of(inputs)))
            images = len(batch["img"])
            mean.add({"total": per_image(loss, images)}, images, len(batch["cls"]))
        mean.merge()
        return mean.means().get("total", math.nan)

    @contextmanager
    def _towers_cut(self) -> Iterator[None]:
        """Towers that end in a prediction layer run only that layer, on the input it had, for the length of a block."""
        towers = {}
        for module in last_module(self._model).modules():
            if isinstance(module, nn.Sequential) and len(module) and module[-1] in self._seen:
                towers[module] = module[-1]
        try:
            for tower, layer in towers.items():
                tower.forward = _from_last(layer, self._seen[layer][0])  # type: ignore[method-assign]
            yield
        finally:
            for tower in towers:
                del tower.forward

    @contextmanager
    def _taking_in_batches(self) -> Iterator[None]:
        """Take in each batch that the model takes its loss of: the one method that every way to train it goes through.

        A forward pass without a loss, such as that of a validation, is none of the step's.
        """
        untyped: Any = self._model
        loss, own = untyped.loss, untyped.__dict__.get("loss")
        self._own_loss = loss

        def noting_loss(batch: dict[str, Any], *given: Any, **named: Any) -> Any:
            result = loss(batch, *given, **named)
            self._take_in(batch)
            return result

        untyped.loss = noting_loss
        try:
            yield
        finally:
            del untyped.loss
            if own is not None:
                untyped.loss = own

    def _note_inputs(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._inputs = inputs_of(inputs)

    def _assigners(self) -> Iterator[tuple[str, nn.Module]]:
        """The assigners of the model's criterion; none before its first batch, on which it is made."""
        criterion = getattr(self._model, "criterion", None)
        return iter(assigners(criterion) if criterion is not None else ())


def _from_last(layer: nn.Module, given: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(_: Tensor) -> Tensor:
        output: Tensor = layer(given)
        return output

    return forward


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Running statistics put back after a block."""
    saved = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)
