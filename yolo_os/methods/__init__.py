"""The methods of a shift: what each gathers of a layer's features, and how it solves for the new weight.

A method is an entry of METHODS: `refusal` says before any pass why a layer can't be shifted, `collector` makes what
takes in the features of a layer, and `solve` turns all collectors into solutions. A new method is a new entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from yolo_os.distributed import agreed
from yolo_os.heads import PredictionLayer
from yolo_os.linalg import (
    LeastNorm,
    Shrinkage,
    default_rtol,
    in_float64,
    independent_rows,
    least_norm,
    least_norm_from_gram,
    mu_for_norm,
)
from yolo_os.methods.curvature import CurvatureGram, shrinkages
from yolo_os.recipe import ShiftRecipe
from yolo_os.statistics import Collector, Gram, RowSample

LayerFeatures = tuple[PredictionLayer, Collector]
Move = Callable[[Tensor], tuple[Tensor, Tensor | None]]

# How many shares of the norm, from `keep` to 1, the guard looks at before it gives up.
_STEPS = 8


def _stay(weight: Tensor) -> tuple[Tensor, None]:
    return weight, None


@dataclass(frozen=True)
class Solution:
    """What a method found for one layer.

    Attributes:
        weight: the new V, (m, n), float64.
        rank: of the system A V = Z that was solved.
        rows: how many rows it has, dependent ones removed where the method removes them.
        singular_values: of A, largest first.
        bias_change: what is added to the bias, (n,); None leaves it alone.
        unchanged: why V is as it was; None for a weight that moved.
        move: the same move for another V, such as its average over training: the new V, and the bias change.
    """

    weight: Tensor
    rank: int
    rows: int
    singular_values: Tensor
    bias_change: Tensor | None = None
    unchanged: str | None = None
    move: Move = field(default=_stay, repr=False, compare=False)

    def write_(self, layer: PredictionLayer, precision: torch.dtype | None = None) -> None:
        """Put it into a layer, rounded to a precision (see `PredictionLayer.set_`)."""
        layer.set_(self.weight, self.bias_change, precision)

    def part(self, weight: Tensor, share: float) -> Solution:
        """The solution a share of the way from V, `weight`; for one without a bias change."""
        assert self.bias_change is None
        if share == 1:
            return self
        return replace(
            self,
            weight=weight + share * (self.weight - weight),
            move=lambda other: (other + share * (self.move(other)[0] - other), None),
        )


@dataclass(frozen=True)
class Trial:
    """One share of the norm that the guard looked at.

    Attributes:
        keep: share of the squared norm of the layers shifted.
        mu: the multiplier, in units of the loss per squared norm.
        predicted: rise of the loss by its quadratic model, in units of the loss.
        rise: relative rise of the true loss on held-out images; None if not taken.
        passed: whether both rises are within the tolerance.
        predicted_share: the predicted rise, relative to the held-out loss.
    """

    keep: float
    mu: float
    predicted: float
    rise: float | None
    passed: bool
    predicted_share: float = math.nan


@dataclass(frozen=True)
class Solved:
    """What a method found: solutions by layer, and what the guard looked at on the way."""

    solutions: Mapping[str, Solution]
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class Guard:
    """What judges solutions before they are taken.

    Attributes:
        loss: the true training loss on held-out images with the weights as they are.
        loss_with: the same with the weights of solutions in their place.
    """

    loss: float
    loss_with: Callable[[Mapping[str, Solution]], float]


class Method(Protocol):
    """One way to shift a head."""

    guarded: bool

    def refusal(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """Why this recipe can't do anything to the layer; None if it may."""

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe, gains: Mapping[str, float]) -> Collector:
        """A fresh collector of the layer's features; gains are those of the model's training loss, by name."""

    def solve(self, collectors: Sequence[LayerFeatures], recipe: ShiftRecipe, guard: Guard | None) -> Solved:
        """The new weights from what was collected.

        Args:
            collectors: the layers that had features, with their collectors.
            recipe: what to do.
            guard: for a guarded method; None where no loss can be taken.
        """


class OS:
    """Optimum shifting (arXiv 2405.14111, section 3): keep the outputs on every row of the data.

    Solved from the Gram matrix. The paper's break condition: with rank(A) = m, V is the only solution.
    """

    guarded = False

    def refusal(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """Never: the rank is known only after the pass."""
        return None

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe, gains: Mapping[str, float]) -> Gram:
        """The Gram matrix of all rows."""
        return Gram()

    def solve(self, collectors: Sequence[LayerFeatures], recipe: ShiftRecipe, guard: Guard | None) -> Solved:
        """Layer by layer, the least norm that keeps all outputs; V itself where the rank is full."""
        return Solved({layer.name: self.solve_layer(gram, layer.matrix, recipe) for layer, gram in collectors})

    def solve_layer(self, collector: Collector, weight: Tensor, recipe: ShiftRecipe) -> Solution:
        """One layer; weight is V, (m, n)."""
        assert isinstance(collector, Gram)
        features = len(weight)
        rtol = recipe.rtol if recipe.rtol is not None else default_rtol(weight)
        found = least_norm_from_gram(collector.matrix, weight, rtol)
        full = found.rank == features
        reason = f"rank(A) = m = {features}: the weights are the only solution, nothing to shift" if full else None
        return Solution(
            weight if full else found.weight,
            found.rank,
            collector.count,
            found.singular_values,
            unchanged=reason,
            move=_stay if full else _least_norm_move(found),
        )


class SampledOS:
    """Stochastic optimum shifting (arXiv 2405.14111, section 4): keep the outputs on a small sample of rows."""

    guarded = False

    def refusal(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """A sample of m rows or more leaves the weights as the only solution."""
        rows = recipe.rows_for(layer.in_features)
        if rows < layer.in_features:
            return None
        return f"a sample of {rows} rows is not smaller than m = {layer.in_features}: nothing to shift"

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe, gains: Mapping[str, float]) -> RowSample:
        """A sample of rows."""
        return RowSample(recipe.rows_for(layer.in_features), recipe.sampling, recipe.seed, layer.name)

    def solve(self, collectors: Sequence[LayerFeatures], recipe: ShiftRecipe, guard: Guard | None) -> Solved:
        """Layer by layer, the least norm that keeps the outputs on the sample, its dependent rows removed first.

        What is left is independent by the recipe's tolerance, so all of its directions count: rank = rows.
        """
        solutions = {}
        for layer, collector in collectors:
            assert isinstance(collector, RowSample)
            rows = in_float64(collector.rows[independent_rows(collector.rows, recipe.rtol)])
            found = least_norm(rows, layer.matrix)
            solutions[layer.name] = Solution(
                found.weight, found.rank, len(rows), found.singular_values, move=_least_norm_move(found)
            )
        return Solved(solutions)


class Budget:
    """The loss-aware shift: the least norm of the whole head at a given rise of the training loss (docs/budget.md).

    One multiplier for all layers and outputs, curvatures of the loss as weights, the bias takes up the mean. It goes
    to `keep` of the squared norm, or only as far as the guard allows.
    """

    guarded = True

    def refusal(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """A layer whose outputs mix box, objectness and classes, or one without bias to take up the mean."""
        if layer.role == "joint":
            return "budget knows no curvature of an anchor-based head: use method=sos"
        return "it has no bias to take up the mean: use method=sos" if layer.module.bias is None else None

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe, gains: Mapping[str, float]) -> Collector:
        """Sums weighted by the curvature of the loss."""
        return CurvatureGram(layer, gains, recipe.seed)

    def solve(self, collectors: Sequence[LayerFeatures], recipe: ShiftRecipe, guard: Guard | None) -> Solved:
        """From `keep` upwards in even steps, the first share of the norm that the guard lets pass.

        The steps are fixed, so that a larger tolerance never shifts less, and the same data give the same weights.
        """
        grams = {layer.name: gram for layer, gram in collectors if isinstance(gram, CurvatureGram)}
        layers = shrinkages(list(grams.values()))
        seen = {name: self._seen(gram, recipe) for name, gram in grams.items()}
        tried: list[Trial] = []
        for step in range(_STEPS):
            keep = recipe.keep + (1 - recipe.keep) * step / _STEPS
            mu = mu_for_norm(list(layers.values()), keep)
            solutions = {}
            for name, layer in layers.items():
                weight, bias_change = layer.solve(mu)
                move = _shrinkage_move(layer, mu)
                solutions[name] = replace(seen[name], weight=weight, bias_change=bias_change, move=move)
            predicted = sum(layer.rise(mu) for layer in layers.values())
            rise, share, passed = None, math.nan, True
            if guard is not None and recipe.max_loss_rise is not None:
                rise = guard.loss_with(solutions) / guard.loss - 1
                # The prediction is how far the model's own predictions move, in units of the loss: a loss that happens
                # to fall is no licence to change them without end.
                share = predicted / guard.loss
                # A rise that is no number does not pass. All processes go on alike, whatever their rounding.
                passed = agreed(max(rise, share) <= recipe.max_loss_rise)
            tried.append(Trial(keep, mu, predicted, rise, passed, share))
            if passed:
                return Solved(solutions, tuple(tried))
        last = tried[-1]
        reason = f"keeping {last.keep:.0%} of the squared norm still raises the loss beyond max_loss_rise"
        reason += f"={recipe.max_loss_rise} (taken {last.rise:+.2%}, predicted {last.predicted_share:+.2%})"
        return Solved({name: replace(each, unchanged=reason) for name, each in seen.items()}, tuple(tried))

    def _seen(self, gram: CurvatureGram, recipe: ShiftRecipe) -> Solution:
        """The layer as it is, with the rank and spectrum of its features."""
        weight = gram.layer.matrix
        found = least_norm_from_gram(gram.all.matrix, weight, default_rtol(weight))
        return Solution(in_float64(weight), found.rank, gram.count, found.singular_values)


def _least_norm_move(found: LeastNorm) -> Move:
    return lambda weight: (found.of(weight), None)


def _shrinkage_move(layer: Shrinkage, mu: float) -> Move:
    return lambda weight: replace(layer, weight=in_float64(weight)).solve(mu)


METHODS: Mapping[str, Method] = {"os": OS(), "sos": SampledOS(), "budget": Budget()}
