"""What a method is: it collects statistics of a layer's features and turns them into moves of the weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from yolo_os.heads import PredictionLayer
from yolo_os.methods import REGISTRY
from yolo_os.recipe import ShiftRecipe
from yolo_os.statistics import Collector

# From V, (m, n) in float64, to the new V, and what is added to the bias, (n,), or None. A linear map of V: the moving
# average of the weights goes through the same one.
Move = Callable[[Tensor], tuple[Tensor, Tensor | None]]
LayerFeatures = tuple[PredictionLayer, Collector]


@dataclass(frozen=True)
class Moved:
    """The weights moved."""


@dataclass(frozen=True)
class Unchanged:
    """The weights are as they were, and why."""

    reason: str


Outcome = Moved | Unchanged


@dataclass(frozen=True)
class System:
    """The linear system A V = Z of one layer, as a method solved it.

    Attributes:
        rank: of A.
        rows: of A, dependent ones removed where the method removes them.
        singular_values: of A, largest first.
        sampling: how the rows were drawn; None where all were used.
        unchanged: why V is the only solution; None where there are others.
    """

    rank: int
    rows: int
    singular_values: Tensor = field(repr=False)
    sampling: str | None = None
    unchanged: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A shift of one strength, which a judge is asked about.

    Attributes:
        moves: by layer name; layers that are not in it stay.
        predicted: the rise of the loss by the method's own model of it, in units of the loss; None if it has none.
        mu: the multiplier of a loss-aware method, in units of the loss per squared norm.
    """

    moves: Mapping[str, Move]
    predicted: float | None = None
    mu: float | None = None


@dataclass(frozen=True)
class Solved:
    """What a method found.

    Attributes:
        systems: by layer name.
        candidates: the strongest first; made as they are asked for.
    """

    systems: Mapping[str, System]
    candidates: Iterable[Candidate]


class Method(Protocol):
    """One way to shift a head. It knows nothing of losses taken, of guards or of how weights are written."""

    def unchanged(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """Why this recipe can't do anything to the layer, known before any pass; None if it may."""

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe, gains: Mapping[str, float]) -> Collector:
        """A fresh collector of the layer's features; gains are those of the model's training loss, by name."""

    def solve(self, found: Sequence[LayerFeatures], recipe: ShiftRecipe) -> Solved:
        """The moves that what was collected allows, for the layers that had features."""


def method_of(recipe: ShiftRecipe) -> Method:
    """The method that a recipe names."""
    module, _, name = REGISTRY[recipe.method].home.partition(":")
    method: Method = getattr(importlib.import_module(module), name)()
    return method
