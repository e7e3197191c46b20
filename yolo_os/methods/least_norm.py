"""The paper's methods (arXiv 2405.14111): the least-norm weights with the same outputs on all rows, or on a sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from yolo_os.heads import PredictionLayer
from yolo_os.linalg import (
    LeastNorm,
    default_rtol,
    in_float64,
    independent_rows,
    least_norm,
    least_norm_from_gram,
)
from yolo_os.methods.base import Candidate, LayerFeatures, Move, Solved, System
from yolo_os.recipe import ShiftRecipe
from yolo_os.statistics import Collector, Gram, RowSample

# How much of the way to the solution is gone, in turn, until a judge allows it. At any share the outputs on the rows
# are kept, since both ends keep them.
SHARES = (1.0, 0.5, 0.25, 0.125)


class OS:
    """Optimum shifting (section 3 of the paper): keep the outputs on every row of the data.

    Solved from the Gram matrix. The paper's break condition: with rank(A) = m, V is the only solution.
    """

    def unchanged(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """Never: the rank is known only after the pass."""
        return None

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe, gains: Mapping[str, float]) -> Collector:
        """The Gram matrix of all rows."""
        return Gram()

    def solve(self, found: Sequence[LayerFeatures], recipe: ShiftRecipe) -> Solved:
        """Layer by layer, the least norm that keeps all outputs; nothing moves where the rank is full."""
        systems, solutions = {}, {}
        for layer, gram in found:
            assert isinstance(gram, Gram)
            features = layer.in_features
            rtol = recipe.rtol if recipe.rtol is not None else default_rtol(layer.matrix)
            solution = least_norm_from_gram(gram.matrix, layer.matrix, rtol)
            full = solution.rank == features
            reason = f"rank(A) = m = {features}: the weights are the only solution, nothing to shift" if full else None
            systems[layer.name] = System(solution.rank, gram.count, solution.singular_values, unchanged=reason)
            if not full:
                solutions[layer.name] = solution
        return Solved(systems, _on_the_way(solutions))


class SampledOS:
    """Stochastic optimum shifting, SOS (section 4 of the paper): keep the outputs on a small sample of rows."""

    def unchanged(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """A sample of m rows or more leaves the weights as the only solution."""
        rows = recipe.rows_for(layer.in_features)
        if rows < layer.in_features:
            return None
        return f"a sample of {rows} rows is not smaller than m = {layer.in_features}: nothing to shift"

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe, gains: Mapping[str, float]) -> Collector:
        """A sample of rows."""
        return RowSample(recipe.rows_for(layer.in_features), recipe.sampling, recipe.seed, layer.name)

    def solve(self, found: Sequence[LayerFeatures], recipe: ShiftRecipe) -> Solved:
        """Layer by layer, the least norm that keeps the outputs on the sample, its dependent rows removed first.

        What is left is independent by the recipe's tolerance, so all of its directions count: rank = rows.
        """
        systems, solutions = {}, {}
        for layer, sample in found:
            assert isinstance(sample, RowSample)
            rows = in_float64(sample.rows[independent_rows(sample.rows, recipe.rtol)])
            solution = solutions[layer.name] = least_norm(rows, layer.matrix)
            systems[layer.name] = System(solution.rank, len(rows), solution.singular_values, sample.drawn)
        return Solved(systems, _on_the_way(solutions))


def _on_the_way(solutions: Mapping[str, LeastNorm]) -> Iterator[Candidate]:
    """Shifts by SHARES of the way to the solutions of all layers; none where there is nothing to move."""
    for share in SHARES if solutions else ():
        yield Candidate({name: _move(solution, share) for name, solution in solutions.items()})


def _move(solution: LeastNorm, share: float) -> Move:
    def move(weight: Tensor) -> tuple[Tensor, None]:
        goal = solution.apply(weight)
        return (goal if share == 1 else weight + share * (goal - weight)), None

    return move
