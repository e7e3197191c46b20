"""Sharpness as SAM has it: the worst loss in a ball around the weights; and the norms of filters, by which it scales.

A plain ball, as a plain trace, is not the same for two models that compute the same: a filter before a BatchNorm may be
rescaled at will. In the relative ball each filter is measured by its own norm, which such a change goes through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from yolo_os.flatness.operator import Objective

RADIUS = 0.05  # SAM's own default, of the whole vector of weights
SHARE = 0.01  # root mean square, over filters, of the change relative to their norms
STEPS = 3


@dataclass(frozen=True)
class Sharpness:
    """The worst loss found in a ball.

    Attributes:
        radius: of the ball; of a relative one the root mean square over filters of change / norm.
        rise: of the loss, in its own units.
    """

    radius: float
    rise: float


def filter_norms(parameters: Mapping[str, Tensor]) -> list[Tensor | None]:
    """The norm of each filter (the weights of one output), to broadcast with the parameter; None for vectors.

    Scales and shifts of BatchNorm and biases are no filters: Li et al. (2018) leave them out too.
    """
    return [
        torch.linalg.vector_norm(each.detach(), dim=tuple(range(1, each.ndim)), keepdim=True) if each.ndim > 1 else None
        for each in parameters.values()
    ]


def sharpness(
    objective: Objective, radius: float | None = None, relative: bool = False, steps: int = STEPS
) -> Sharpness:
    """The worst loss in a ball, by ascent along the gradient: SAM's step to its surface, then some more along it.

    A lower bound of the worst, as every such figure is.

    Args:
        objective: whose parameters move; they are put back.
        radius: RADIUS, or SHARE for a relative ball, if None.
        relative: measure the change of each filter by its norm, and leave vectors alone.
        steps: gradients taken.
    """
    norms: Sequence[Tensor | None] = [torch.ones(())] * len(objective.tensors)
    if relative:
        norms = filter_norms(objective.parameters)
    given = radius if radius is not None else SHARE if relative else RADIUS
    filters = sum(each.numel() for each in norms if each is not None)
    reach = given * math.sqrt(filters) if relative else given
    with kept(objective.tensors) as start:
        before, slopes = objective.slope()
        worst = before
        step = [torch.zeros_like(each) for each in start]
        for number in range(steps):
            # In units of the norms the ball is round: the gradient there is norm * slope.
            scaled = [_times(slope, norm) for slope, norm in zip(slopes, norms)]
            length = _length(scaled)
            if length == 0:
                break
            step = [each + reach * slope / length for each, slope in zip(step, scaled)]
            size = _length(step)
            step = [each * (reach / size) for each in step]
            with torch.no_grad():
                for tensor, old, each, norm in zip(objective.tensors, start, step, norms):
                    tensor.copy_(old + _times(each, norm))
            reached, slopes = objective.slope() if number < steps - 1 else (objective.mean(), slopes)
            worst = max(worst, reached)
    return Sharpness(given, worst - before)


@contextmanager
def kept(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The values of tensors, which are put back at the end of a block, interruptions included."""
    start = [each.detach().clone() for each in tensors]
    try:
        yield start
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, start):
                tensor.copy_(old)


def _times(tensor: Tensor, norm: Tensor | None) -> Tensor:
    return torch.zeros_like(tensor) if norm is None else tensor * norm.to(tensor)


def _length(vector: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(each.double().square().sum()) for each in vector))
