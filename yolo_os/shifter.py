"""The engine of every shift: proposed values for a named set of weights are tried, judged, taken or put back.

`Weights` is that set: prediction layers are one, all layers of a model another. `Shifter` moves the prediction layers
of a head, after a training (`shift`), within a step of one (`training.step`), or asks only what could move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from yolo_os.capture import LayerStatistics
from yolo_os.distributed import agreed, broadcast_
from yolo_os.errors import UserError
from yolo_os.heads import Head, PredictionLayer
from yolo_os.linalg import in_float64
from yolo_os.methods.base import Candidate, Moved, Outcome, Solved, System, Unchanged, method_of
from yolo_os.recipe import ROLES, ShiftRecipe, matches
from yolo_os.report import LayerReport, Trial
from yolo_os.statistics import Collector, Gram, relative_change

T = TypeVar("T")
Values = Mapping[str, Tensor]


class Weights:
    """A named set of a model's parameters and buffers: prediction layers are one such set, all layers another.

    Values are written into the tensors themselves, which optimizers and moving averages know by identity.

    Args:
        tensors: by name, the parameters and buffers.
        precision: floating-point values are rounded to it before they are written, so that what is judged is what a
            file in that precision will hold; None: to that of the tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], precision: torch.dtype | None = None) -> None:
        self.tensors = dict(tensors)
        self.precision = precision

    @torch.no_grad()
    def write_(self, values: Values) -> None:
        """Write values by name; of several processes, all end with the first one's. Names not given stay."""
        for name, value in values.items():
            tensor = self.tensors[name]
            rounded = value if self.precision is None or not tensor.is_floating_point() else value.to(self.precision)
            tensor.copy_(rounded)
            broadcast_(tensor)

    def measure(self, values: Values, figure: Callable[[], T]) -> T:
        """What a figure comes to with values in place; they are put back after it, interruptions included."""
        with self._saved(values, only_on_error=False):
            self.write_(values)
            return figure()

    @contextmanager
    def put_back_on_error(self) -> Iterator[None]:
        """Undo what a block does to the whole set, if it does not come to its end, interruptions included."""
        with self._saved(self.tensors, only_on_error=True):
            yield

    @contextmanager
    def _saved(self, names: Mapping[str, Tensor], only_on_error: bool) -> Iterator[None]:
        saved = {name: self.tensors[name].detach().clone() for name in names}
        done = False
        try:
            yield
            done = only_on_error
        finally:
            if not done:
                with torch.no_grad():
                    for name, value in saved.items():
                        self.tensors[name].copy_(value)


@dataclass(frozen=True)
class Judge:
    """A figure that a shift must not raise beyond a tolerance, such as the training loss on held-out images.

    Attributes:
        figure: takes it with the weights as they are; less is better.
        before: what it came to before the shift.
        tolerance: largest relative rise; None: it is only measured, and anything passes.
    """

    figure: Callable[[], float]
    before: float
    tolerance: float | None


class Shifter:
    """One shift of a head's prediction layers: takes in their features, solves, judges, takes or leaves, reports.

    Args:
        head: whose layers these are.
        recipe: what to do.
        gains: of the model's training loss, by name (see `loss.gains_of`).
        unchanged: layers to leave alone, with the reason (see `plan`).
        precision: in which the weights will be stored; None: as they are in the model.
        average: the head of the model's moving average. Its layers go through the same linear map, so that the average
            of shifted weights is the shifted average.

    Attributes:
        layers: those that may be shifted.
        weights: their parameters.
        statistics: what takes in their features.
        collectors: of the features, by layer name.
        systems: what was solved, by layer name; empty before that.
    """

    def __init__(
        self,
        head: Head,
        recipe: ShiftRecipe,
        gains: Mapping[str, float],
        unchanged: Mapping[str, str],
        precision: torch.dtype | None = None,
        average: Head | None = None,
    ) -> None:
        self.layers = tuple(layer for layer in head.layers if layer.name not in unchanged)
        self._method, self._recipe, self._head = method_of(recipe), recipe, head
        self.collectors: dict[str, Collector] = {
            layer.name: self._method.collector(layer, recipe, gains) for layer in self.layers
        }
        self.statistics = LayerStatistics(head, self.collectors)
        self.weights = _weights_of(self.layers, precision)
        names = set(self.collectors)
        self._average = tuple(layer for layer in average.layers if layer.name in names) if average else ()
        self._left_alone = dict(unchanged)
        self._before: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.systems: Mapping[str, System] = {}

    def solve(self) -> Solved:
        """Merge what all processes took in, and solve; nothing is written.

        Raises:
            UserError: for features that are not finite.
        """
        self.statistics.merge()
        found = [(layer, self.collectors[layer.name]) for layer in self.layers if self.collectors[layer.name].count]
        for layer, collector in found:
            if not math.isfinite(collector.energy(in_float64(layer.matrix))):
                raise UserError(f"layer {layer.name}: its features hold NaN or infinity: look for broken images")
        solved = self._method.solve(found, self._recipe)
        self.systems = solved.systems
        return solved

    def shift_(self, judge: Judge | None) -> Shift:
        """Solve, and take the strongest shift that the judge allows; without a judge the strongest.

        If anything fails, interruptions included, the weights are those of before.

        Raises:
            UserError: for features that are not finite.
        """
        self._before = {layer.name: _state(layer) for layer in self._head.layers}
        solved = self.solve()
        trials: list[Trial] = []
        for candidate in solved.candidates if solved.systems else ():
            values = _moved(self.layers, candidate)
            trials.append(self._tried(candidate, values, judge))
            if trials[-1].passed:
                self._take_(candidate, values)
                break
        return Shift(self._outcome(trials, judge), tuple(trials))

    def layer_reports(self, shift: Shift, drift: Mapping[str, Gram] | None = None) -> tuple[LayerReport, ...]:
        """What the shift did to every layer of the head, those left alone included.

        Args:
            shift: what `shift_` returned.
            drift: features of images that it did not use, by layer name.
        """
        reports = []
        for layer in self._head.layers:
            system = self.systems.get(layer.name)
            (before, old_bias), (after, new_bias) = self._before[layer.name], _state(layer)
            change = new_bias - old_bias if new_bias is not None and old_bias is not None else None
            unused = (drift or {}).get(layer.name)
            more = {
                "residual": relative_change(self.collectors[layer.name], before, after, change) if system else None,
                "drift": relative_change(unused, before, after, change) if system and unused and unused.count else None,
            }
            outcome = self._outcome_of(layer, system, shift)
            chosen = layer.name not in self._left_alone
            reports.append(LayerReport.of(layer, before, after, system, outcome=outcome, chosen=chosen, **more))
        return tuple(reports)

    def _tried(self, candidate: Candidate, values: Values, judge: Judge | None) -> Trial:
        keep = _squared_norm(self._head.layers, values) / (_squared_norm(self._head.layers, {}) or 1.0)
        if judge is None:
            return Trial(keep, candidate.mu, candidate.predicted, None, True)
        figure = self.weights.measure(values, judge.figure)
        rise = figure / judge.before - 1 if judge.before else math.nan
        # The prediction is how far the model's own predictions move, in units of the loss: a loss that happens to
        # fall is no licence to change them without end.
        share = candidate.predicted / judge.before if candidate.predicted is not None and judge.before else None
        # NaN does not pass. All processes decide alike, whatever their rounding.
        passed = judge.tolerance is None or agreed(
            all(each <= judge.tolerance for each in (rise, share) if each is not None)
        )
        return Trial(keep, candidate.mu, candidate.predicted, rise, passed, share, figure)

    def _take_(self, candidate: Candidate, values: Values) -> None:
        average = _weights_of(self._average, None)
        with self.weights.put_back_on_error(), average.put_back_on_error():
            self.weights.write_(values)
            average.write_(_moved(self._average, candidate))

    def _outcome(self, trials: list[Trial], judge: Judge | None) -> Outcome:
        if not trials:
            return Unchanged("no layer could be shifted")
        last = trials[-1]
        if last.passed:
            return Moved()
        many = f"the weakest of {len(trials)} strengths tried" if len(trials) > 1 else "the one strength tried"
        if last.rise is None or math.isnan(last.rise):
            return Unchanged("no training loss could be taken, so no shift could be judged")
        by = "" if last.predicted_share is None else f" (predicted {last.predicted_share:+.2%})"
        tolerance = judge.tolerance if judge else None
        return Unchanged(f"{many} still raises the loss by {last.rise:+.2%}{by}, beyond max_loss_rise={tolerance}")

    def _outcome_of(self, layer: PredictionLayer, system: System | None, shift: Shift) -> Outcome:
        if layer.name in self._left_alone:
            return Unchanged(self._left_alone[layer.name])
        if system is None:
            return Unchanged("it does not run in eval mode, so it has no features")
        return Unchanged(system.unchanged) if system.unchanged else shift.outcome


@dataclass(frozen=True)
class Shift:
    """What a shift came to.

    Attributes:
        outcome: that weights moved, or why none did.
        trials: the strengths tried, the strongest first.
    """

    outcome: Outcome
    trials: tuple[Trial, ...] = field(default=())

    @property
    def reverted(self) -> bool:
        """Whether there were shifts to make and the judge allowed none."""
        return bool(self.trials) and not self.trials[-1].passed


def plan(head: Head, recipe: ShiftRecipe) -> dict[str, str]:
    """Layers that will not be shifted, with the reason, before any pass is run.

    Raises:
        UserError: if the recipe selects no layer, or leaves none anything to shift.
    """
    method = method_of(recipe)
    unchanged: dict[str, str] = {}
    for layer in head.layers:
        if not recipe.selects(layer.name, layer.role):
            unchanged[layer.name] = f"not selected by layers={recipe.layers}"
        elif reason := method.unchanged(layer, recipe):
            unchanged[layer.name] = reason
    names = ", ".join(f"{layer.name} ({layer.role})" for layer in head.layers)
    for word in recipe.words:
        if word not in ROLES and not any(matches(word, each.name, each.role) for each in (*head.layers, *head.refused)):
            raise UserError(f"layers={word} names no layer of this {head.kind} head and no role: it has {names}")
    if all(not recipe.selects(layer.name, layer.role) for layer in head.layers):
        refused = [layer for layer in head.refused if recipe.selects(layer.name, layer.role)]
        why = f"; {refused[0].name} is refused: {refused[0].refused}" if refused else ""
        raise UserError(f"layers={recipe.layers} selects no layer of this {head.kind} head: it has {names}{why}")
    if len(unchanged) == len(head.layers):
        reasons = "; ".join(f"{layer.name}: {unchanged[layer.name]}" for layer in head.layers)
        raise UserError(f"no layer is left to shift: {reasons}")
    return unchanged


def check_finite(model: torch.nn.Module) -> None:
    """Refuse a model whose weights or buffers hold NaN or infinity.

    Raises:
        UserError: naming the first such tensor.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"the model's weights are not finite: {name} holds NaN or infinity")


def _weights_of(layers: tuple[PredictionLayer, ...], precision: torch.dtype | None) -> Weights:
    return Weights({name: tensor for layer in layers for name, tensor in layer.tensors.items()}, precision)


def _moved(layers: tuple[PredictionLayer, ...], candidate: Candidate) -> Values:
    """The values that a candidate proposes for layers, from their weights as they are."""
    values: dict[str, Tensor] = {}
    for layer in layers:
        if layer.name in candidate.moves:
            values |= layer.values(*candidate.moves[layer.name](in_float64(layer.matrix)))
    return values


def _squared_norm(layers: tuple[PredictionLayer, ...], values: Values) -> float:
    """Of the weights of layers, with values in place of those that they are proposed for."""
    weights = (values.get(f"{layer.name}.weight", layer.module.weight) for layer in layers)
    return sum(float(in_float64(weight).square().sum()) for weight in weights)


def _state(layer: PredictionLayer) -> tuple[Tensor, Tensor | None]:
    """A copy of V, (m, n), and the bias, (n,), in float64."""
    bias = layer.module.bias
    return in_float64(layer.matrix).clone(), None if bias is None else in_float64(bias).clone()
