"""The loss-aware shift: the least norm of the whole head at a given rise of the training loss (docs/method.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from yolo_os.heads import PredictionLayer
from yolo_os.linalg import Shrinkage, default_rtol, in_float64, least_norm_from_gram, mu_for_norm
from yolo_os.methods.base import Candidate, LayerFeatures, Move, Solved, System
from yolo_os.methods.curvature import CurvatureGram, curvature_gram, shrinkages
from yolo_os.recipe import ShiftRecipe
from yolo_os.statistics import Collector

# How many shares of the squared norm, from `keep` to 1, are tried before it is given up. They are fixed, so that a
# larger tolerance never shifts less, and the same data give the same weights.
STEPS = 8


class Budget:
    """One multiplier for all layers and outputs, curvatures of the loss as weights, the bias takes up the mean."""

    def unchanged(self, layer: PredictionLayer, recipe: ShiftRecipe) -> str | None:
        """A layer without bias, which is to take up the mean."""
        return "it has no bias to take up the mean: use method=sos" if layer.module.bias is None else None

    def collector(self, layer: PredictionLayer, recipe: ShiftRecipe, gains: Mapping[str, float]) -> Collector:
        """Sums weighted by the curvature of the loss."""
        return curvature_gram(layer, gains, recipe.seed)

    def solve(self, found: Sequence[LayerFeatures], recipe: ShiftRecipe) -> Solved:
        """From `keep` of the squared norm upwards in even steps."""
        grams = {layer.name: gram for layer, gram in found if isinstance(gram, CurvatureGram)}
        systems = {}
        for name, gram in grams.items():
            weight = gram.layer.matrix
            plain = least_norm_from_gram(gram.all.matrix, weight, default_rtol(weight))
            systems[name] = System(plain.rank, gram.count, plain.singular_values)
        return Solved(systems, _candidates(shrinkages(list(grams.values())), recipe.keep))


def _candidates(layers: Mapping[str, Shrinkage], keep: float) -> Iterator[Candidate]:
    for step in range(STEPS):
        mu = mu_for_norm(list(layers.values()), keep + (1 - keep) * step / STEPS)
        predicted = sum(layer.rise(mu) for layer in layers.values())
        yield Candidate({name: _move(layer, mu) for name, layer in layers.items()}, predicted, mu)


def _move(layer: Shrinkage, mu: float) -> Move:
    def move(weight: Tensor) -> tuple[Tensor, Tensor]:
        # The layer's own weight, that of every trial, is in the eigenvectors' coordinates already.
        own = torch.equal(weight, layer.weight)
        return (layer if own else replace(layer, weight=in_float64(weight))).solve(mu)

    return move
