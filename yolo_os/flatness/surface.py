"""The loss along the line through two minima, and over a plane that holds both.

The line goes from the weights before, at 0, to those after, at 1, and past both. The plane is spanned by that line and
by a random direction across it, each filter of which has the norm of the model's own (Li et al., 2018): a step across
is one that all filters feel alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from yolo_os.flatness.operator import Objective
from yolo_os.flatness.sharpness import filter_norms, kept
from yolo_os.statistics import generator_for

LINE = tuple(-0.5 + 0.25 * index for index in range(11))  # to 2
ALONG = tuple(-1 + 0.375 * index for index in range(9))  # to 2
ACROSS = tuple(-0.12 + 0.04 * index for index in range(7))  # of each filter's norm
Tensors = Mapping[str, Tensor]


def along_line(objective: Objective, before: Tensors, after: Tensors, places: Sequence[float] = LINE) -> list[float]:
    """The losses on the line.

    Args:
        objective: of a model.
        before: the tensors of that model that differ, by name; they are moved, and put back.
        after: their values at 1.
        places: on the line.
    """
    steps = {name: after[name].to(old) - old.detach() for name, old in before.items()}
    found = []
    for place in places:
        with moved(before, [(place, steps)]):
            found.append(objective.mean())
    return found


def over_plane(
    objective: Objective,
    before: Tensors,
    after: Tensors,
    direction: Tensors,
    along: Sequence[float] = ALONG,
    across: Sequence[float] = ACROSS,
    notice: Callable[[str], None] = lambda text: None,
) -> list[list[float]]:
    """The loss over the plane: a row for each place across, a column for each along the line.

    Args:
        objective: of the model.
        before, after: see `along_line`.
        direction: across, by name of the parameter; see `across_line`.
        along, across: places.
        notice: is told of each row.
    """
    steps = {name: after[name].to(old) - old.detach() for name, old in before.items()}
    tensors = {**before, **objective.parameters}
    rows = []
    for number, place in enumerate(across, 1):
        row = []
        for column in along:
            with moved(tensors, [(column, steps), (place, direction)]):
                row.append(objective.mean())
        rows.append(row)
        notice(f"surface, row {number} of {len(across)}")
    return rows


def across_line(parameters: Tensors, before: Tensors, after: Tensors, seed: int) -> dict[str, Tensor]:
    """A random direction across the line, each filter of it with the norm of the model's own; vectors stay.

    Within each filter that the line moves it is orthogonal to the line.
    """
    found = {}
    for (name, own), norms in zip(parameters.items(), filter_norms(parameters)):
        if norms is None:
            continue
        generator = generator_for(own.device, seed, name)
        drawn = torch.randn(own.shape, generator=generator, device=own.device, dtype=own.dtype).flatten(1)
        if name in before:
            step = (after[name].to(own) - before[name].detach()).flatten(1)
            size = step.square().sum(1, keepdim=True).clamp(min=torch.finfo(own.dtype).tiny)
            drawn -= step * ((drawn * step).sum(1, keepdim=True) / size)
        drawn *= norms.flatten(1) / drawn.norm(dim=1, keepdim=True).clamp(min=torch.finfo(own.dtype).tiny)
        found[name] = drawn.view_as(own)
    return found


@contextmanager
def moved(tensors: Tensors, parts: Sequence[tuple[float, Tensors]]) -> Iterator[None]:
    """Tensors moved by multiples of directions, by name, for the length of a block."""
    with kept(list(tensors.values())), torch.no_grad():
        for name, tensor in tensors.items():
            for factor, direction in parts:
                if name in direction:
                    tensor.add_(direction[name], alpha=factor)
        yield
