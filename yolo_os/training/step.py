"""One shift within an optimizer step of a training: features of the step's own forward passes, no further pass.

The forward pass of a training batch already computes what a shift needs: the inputs and outputs of the prediction
layers, the targets that the loss assigns, the labels. `StepShift` notes them by hooks while a step runs its batches,
and once the optimizer has stepped it solves, writes, judges the change by the training loss on the step's last batch
and takes it back if that rose too far. For that loss only the last layers are run again, on the inputs they had.

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

from yolo_os.distributed import agreed, broadcast_parameters_, rank, world_size
from yolo_os.heads import Head, PredictionLayer, last_module, put_back
from yolo_os.linalg import in_float64
from yolo_os.loss import LossMean, assigners, gains_of, has_labels, noting, per_image
from yolo_os.methods import METHODS, Guard, Solution, Solved
from yolo_os.recipe import ShiftRecipe
from yolo_os.report import LayerReport
from yolo_os.statistics import Collector, RowSample, capture, collect, inputs_of, relative_change

# How much of the way to a solution is gone, in turn, until the loss on the batch allows it.
SHARES = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class StepReport:
    """What one shift during training did.

    Attributes:
        layers: of those that had features; drift is not measured.
        loss_before, loss_after: training loss per image on the step's last batch, of all processes together, with the
            weights of the optimizer step and with those of the shift; nan where none was taken.
        taken_back: why the weights are those of the optimizer step again; empty for a shift that stands.
    """

    layers: tuple[LayerReport, ...]
    loss_before: float
    loss_after: float
    taken_back: str = ""

    @property
    def rise(self) -> float:
        """The rise of the loss, relative."""
        return self.loss_after / self.loss_before - 1 if self.loss_before else math.nan

    @property
    def moved(self) -> bool:
        """Whether any weight stands changed."""
        return not self.taken_back and any(layer.skipped is None for layer in self.layers)

    @property
    def kept(self) -> float:
        """Share of the squared norm of these layers that stands."""
        before, after = (sum(n**2 for n in side) for side in zip(*((e.norm_before, e.norm_after) for e in self.layers)))
        return after / before if self.moved and before else 1.0


class StepShift:
    """Watches the forward passes of one optimizer step of a model in training; then shifts it.

    In a process group every process must do the same with its own share of the batch: statistics and losses are added
    up, the first process's weights are given to all.

    Args:
        model: the bare model in training.
        head: of this model.
        recipe: what to do.
        skipped: names of layers to leave alone (see `shift.plan`).
        step: number of the optimizer step: with the recipe's seed it settles what is drawn.
        autocast: makes the context in which the trainer runs its forward passes.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        recipe: ShiftRecipe,
        skipped: Mapping[str, str],
        step: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.model, self.head, self.recipe, self.step = model, head, recipe, step
        self.layers = [layer for layer in head.layers if layer.name not in skipped]
        self._autocast = autocast
        self._method = METHODS[recipe.method]
        gains = gains_of(model)
        self._collectors: dict[str, Collector] = {
            each.name: self._method.collector(each, recipe.replace(seed=(recipe.seed + step) % 2**31), gains)
            for each in self.layers
        }
        self._batches = 0
        self._labels: dict[str, Tensor] = {}
        self._batch: dict[str, Any] | None = None
        self._inputs: tuple[Any, ...] | None = None
        self._watching = ExitStack()
        modules = [layer.module for layer in (*head.layers, *head.refused)] + list(head.scorers.values())
        self._seen = self._watching.enter_context(capture(modules))
        hooks = [
            last_module(model).register_forward_pre_hook(self._note_inputs),
            *(each.register_forward_hook(noting(self._labels, branch)) for branch, each in self._assigners()),
        ]
        for hook in hooks:
            self._watching.callback(hook.remove)
        self._watching.enter_context(self._noting_batch())

    def close(self) -> None:
        """Take all hooks away and let go of the features."""
        self._watching.close()
        self.forget_batch()

    @torch.no_grad()
    def take_in(self) -> None:
        """Hand what the forward pass just run has shown to the collectors, once; nothing if none was run."""
        if self._batch is None or not self._seen:
            return
        number = self._batches * world_size() + rank()
        collect(self.head, self.layers, self._collectors, self._seen, self._labels, number)
        self._batches += 1

    def forget_batch(self) -> None:
        """Let go of the feature maps of a batch that another one of the same step follows."""
        self._seen.clear()
        self._labels.clear()
        self._batch = self._inputs = None

    @torch.no_grad()
    def shift_(self, average: Head | None = None) -> StepReport | None:
        """Shift the layers by what was taken in; None where no features came or none that are finite.

        Args:
            average: the head of the model's moving average, whose layers are moved by the same linear map, which is
                why averages of shifted weights are shifted too. The loss is that of the model alone.
        """
        for collector in self._collectors.values():
            collector.merge()
        found = [(layer, self._collectors[layer.name]) for layer in self.layers]
        solvable = [(layer, collector) for layer, collector in found if collector.count]
        if not solvable:
            return None
        tolerance = self.recipe.max_loss_rise
        before = self._loss()
        if not math.isfinite(before) and tolerance is not None:
            return None
        guard = Guard(before, self._loss_with) if self._method.guarded and tolerance is not None else None
        try:
            solved = self._method.solve(solvable, self.recipe, guard)
        except ValueError:  # features, outputs or weights that are not finite
            return None
        solutions, after, taken_back = self._judged(solved, before)
        layers = tuple(self._layer(layer, collector, solutions[layer.name]) for layer, collector in solvable)
        averaged = average.layers if average is not None else ()
        if not taken_back:
            with put_back([*self.layers, *averaged], only_on_error=True):
                self._write(solutions)
                for layer in averaged:
                    if layer.name in solutions:
                        layer.set_(*solutions[layer.name].move(in_float64(layer.matrix)))
                        broadcast_parameters_(layer.module)
        return StepReport(layers, before, after, taken_back)

    def _judged(self, solved: Solved, before: float) -> tuple[Mapping[str, Solution], float, str]:
        """Solutions that the loss on the batch allows, the loss with them, and why they are taken back, if they are.

        A method with a guard has judged already. The solutions of another are gone towards by SHARES of the way,
        which keeps the outputs on the sample at any share, until the loss allows it.
        """
        if solved.trials:
            last, solutions = solved.trials[-1], solved.solutions
            after = before * (1 + last.rise) if last.rise is not None else self._loss_with(solutions)
            return solutions, after, "" if last.passed else f"{next(iter(solutions.values())).unchanged}"
        if all(solution.unchanged for solution in solved.solutions.values()):
            return solved.solutions, before, ""
        tolerance, first = self.recipe.max_loss_rise, math.nan
        weights = {layer.name: in_float64(layer.matrix) for layer in self.layers}
        for share in SHARES:
            solutions = {name: each.part(weights[name], share) for name, each in solved.solutions.items()}
            after = self._loss_with(solutions)
            first = after if share == SHARES[0] else first
            if tolerance is None or agreed(after / before - 1 <= tolerance):  # one that is no number does not pass
                return solutions, after, ""
        reason = f"it raised the loss on the batch by {first / before - 1:.2%}, and {SHARES[-1]:g} of it still by "
        reason += f"{after / before - 1:.2%}, beyond max_loss_rise={tolerance}"
        return solutions, after, reason

    def _write(self, solutions: Mapping[str, Solution]) -> None:
        for layer in self.layers:
            if layer.name in solutions and not solutions[layer.name].unchanged:
                solutions[layer.name].write_(layer)
                broadcast_parameters_(layer.module)

    def _layer(self, layer: PredictionLayer, collector: Collector, solution: Solution) -> LayerReport:
        before, after = in_float64(layer.matrix), solution.weight
        return LayerReport.of(
            layer,
            before,
            after,
            solution,
            sampling=collector.drawn if isinstance(collector, RowSample) else None,
            residual=relative_change(collector, before, after.to(before), solution.bias_change),
            skipped=solution.unchanged,
        )

    def _loss_with(self, solutions: Mapping[str, Solution]) -> float:
        """The loss with solutions written in for a moment."""
        with put_back(self.layers):
            self._write(solutions)
            return self._loss()

    def _loss(self) -> float:
        """The training loss per image on the last batch with the weights as they are; nan where none can be taken.

        The head is run again in train mode on the feature maps it was given; towers that end in a prediction layer
        only from that layer on. What that would change besides, running statistics and random numbers, is put back.
        """
        batch, inputs, mean = self._batch, self._inputs, LossMean()
        if batch is not None and inputs is not None and has_labels(batch):
            untyped: Any = self.model
            head, device = last_module(self.model), batch["img"].device
            devices = [device] if device.type == "cuda" else []
            with self._autocast(), torch.random.fork_rng(devices), _buffers_kept(head), self._towers_cut():
                loss, _ = untyped.loss(batch, head(*inputs_of(inputs)))
            images = len(batch["img"])
            mean.add({"total": per_image(loss, images)}, images, len(batch["cls"]))
        mean.merge()
        return mean.means().get("total", math.nan)

    @contextmanager
    def _towers_cut(self) -> Iterator[None]:
        """Towers that end in a prediction layer run only that layer, on the input it had, for the length of a block."""
        towers = {}
        for module in last_module(self.model).modules():
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
    def _noting_batch(self) -> Iterator[None]:
        """Note the batch that the model takes its loss of: the one method that every way to train it goes through."""
        untyped: Any = self.model
        loss, own = untyped.loss, untyped.__dict__.get("loss")

        def noting_loss(batch: dict[str, Any], *given: Any, **named: Any) -> Any:
            self._batch = batch
            return loss(batch, *given, **named)

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
        criterion = getattr(self.model, "criterion", None)
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
