"""The methods of a shift: what each gathers of a layer's features, and how it solves for the new weight.

A method is an entry of METHODS: `refusal` says before any pass why a layer can't be shifted, `collector` makes what
takes in the features, and `solve` turns it and the weight into a `Solution`. A new method is a new entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from yolo_os.features import Collector, Gram, RowSample
from yolo_os.heads import PredictionLayer
from yolo_os.recipe import ShiftRecipe
from yolo_os.solve import default_rtol, in_float64, independent_rows, least_norm, least_norm_from_gram


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
    """

    weight: Tensor
    rank: int
    rows: int
    singular_values: Tensor
    bias_change: Tensor | None = None
    unchanged: str | None = None


class Method(Protocol):
    """One way to shift a layer."""

    def refusal(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """Why this recipe can't do anything to the layer; None if it may."""

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe) -> Collector:
        """A fresh collector of the layer's features."""

    def solve(self, collector: Collector, weight: Tensor, recipe: ShiftRecipe) -> Solution:
        """The new weight from what was collected; weight is V, (m, n)."""


class OS:
    """Optimum shifting (arXiv 2405.14111, section 3): keep the outputs on every row of the data.

    Solved from the Gram matrix. The paper's break condition: with rank(A) = m, V is the only solution.
    """

    def refusal(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """Never: the rank is known only after the pass."""
        return None

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe) -> Gram:
        """The Gram matrix of all rows."""
        return Gram()

    def solve(self, collector: Collector, weight: Tensor, recipe: ShiftRecipe) -> Solution:
        """The least norm that keeps all outputs; V itself where the rank is full."""
        assert isinstance(collector, Gram)
        features = len(weight)
        rtol = recipe.rtol if recipe.rtol is not None else default_rtol(weight)
        found = least_norm_from_gram(collector.matrix, weight, rtol)
        full = found.rank == features
        reason = f"rank(A) = m = {features}: the weights are the only solution, nothing to shift" if full else None
        return Solution(
            weight if full else found.weight, found.rank, collector.count, found.singular_values, unchanged=reason
        )


class SOS:
    """Stochastic optimum shifting (arXiv 2405.14111, section 4): keep the outputs on a small sample of rows."""

    def refusal(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """A sample of m rows or more leaves the weights as the only solution."""
        rows = recipe.rows_for(layer.in_features)
        if rows < layer.in_features:
            return None
        return f"a sample of {rows} rows is not smaller than m = {layer.in_features}: nothing to shift"

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe) -> RowSample:
        """A sample of rows."""
        return RowSample(recipe.rows_for(layer.in_features), recipe.sampling, recipe.seed, layer.name)

    def solve(self, collector: Collector, weight: Tensor, recipe: ShiftRecipe) -> Solution:
        """The least norm that keeps the outputs on the sample, its dependent rows removed first.

        What is left is independent by the recipe's tolerance, so all of its directions count: rank = rows.
        """
        assert isinstance(collector, RowSample)
        rows = in_float64(collector.rows[independent_rows(collector.rows, recipe.rtol)])
        found = least_norm(rows, weight)
        return Solution(found.weight, found.rank, len(rows), found.singular_values)


METHODS: Mapping[str, Method] = {"os": OS(), "sos": SOS()}
