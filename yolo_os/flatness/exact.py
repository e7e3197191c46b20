"""The closed form of prediction layers: features times the curvature of the loss in their outputs.

A prediction layer is linear, z = a V + b, and the last one, so with C_ij = d^2 loss / d z_ij^2 at anchor point i

    trace over V  =  sum_ij ||a_i||^2 C_ij          trace over b  =  sum_ij C_ij

This is exact: no probe, no error. C is that of the true loss with its labels, where the budget method (`methods.
curvature`) has to do without them. It is taken by double backward through the loss alone, one pass for each output
channel: anchor points do not share a term of the loss once their assignment is fixed, so a channel's curvatures of all
of them come at once. Classes do not share one either (BCE), so all of theirs take one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad

from yolo_os.flatness.operator import Objective
from yolo_os.heads import Head, PredictionLayer


@dataclass(frozen=True)
class LayerTrace:
    """The trace of the Hessian over a prediction layer, output by output: of their weights, and of their biases."""

    weight: tuple[float, ...]
    bias: tuple[float, ...]

    @property
    def total(self) -> float:
        """Over the weight and the bias."""
        return sum(self.weight) + sum(self.bias)

    def normalised(self, weight: Tensor) -> float:
        """Over the weight, each output's part times the squared norm of its row."""
        squares: list[float] = weight.detach().flatten(1).double().square().sum(1).tolist()
        return sum(square * part for square, part in zip(squares, self.weight))


def has_closed_form(head: Head) -> bool:
    """Whether the loss follows the prediction layers at once; a transformer's decoder goes on with their outputs."""
    return all(isinstance(layer.module, nn.Conv2d) for layer in head.layers)


def prediction_traces(objective: Objective, layers: Sequence[PredictionLayer]) -> dict[str, LayerTrace]:
    """The exact traces of prediction layers by name; of an objective of the model that they are of."""
    totals = {layer.name: torch.zeros(2, layer.out_features, dtype=torch.float64) for layer in layers}
    for batch, share in enumerate(objective.weights):
        with torch.enable_grad(), _stepped([layer.module for layer in layers]) as seen:
            loss = objective.loss(batch)
            ran = [layer for layer in layers if layer.module in seen]
            for role in dict.fromkeys(layer.role for layer in ran):
                same = [layer for layer in ran if layer.role == role]
                steps = [seen[layer.module][1] for layer in same]
                slopes = grad(loss, steps, create_graph=True, materialize_grads=True)
                for layer, curvature in zip(same, _diagonals(slopes, steps, separable=role == "cls")):
                    sizes = seen[layer.module][0].square().sum(1, keepdim=True)
                    sums = [(sizes * curvature).sum((0, 2, 3)), curvature.sum((0, 2, 3))]
                    totals[layer.name] += share * torch.stack(sums).cpu().double()
    return {name: LayerTrace(*map(tuple, each.tolist())) for name, each in totals.items()}


def _diagonals(slopes: Sequence[Tensor], steps: Sequence[Tensor], separable: bool) -> list[Tensor]:
    """The second derivative in each output, (B, n, H, W) for each layer."""
    if separable:
        return _second([slope.sum() for slope in slopes], steps)
    found = [torch.zeros_like(step) for step in steps]
    for channel in range(max(step.shape[1] for step in steps)):
        sums = [slope[:, channel].sum() for slope in slopes if channel < slope.shape[1]]
        for own, second in zip(found, _second(sums, steps)):
            if channel < own.shape[1]:
                own[:, channel] = second[:, channel]
    return found


def _second(sums: Sequence[Tensor], steps: Sequence[Tensor]) -> list[Tensor]:
    total = torch.stack(list(sums)).sum()
    if not total.requires_grad:  # no object in the batch, say
        return [torch.zeros_like(step) for step in steps]
    return list(grad(total, steps, retain_graph=True, materialize_grads=True))


@contextmanager
def _stepped(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """Add a step of zero to the outputs of modules, by which a loss can be differentiated; notes inputs and steps."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def step(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        seen[module] = (inputs[0].detach(), torch.zeros_like(output, requires_grad=True))
        return output + seen[module][1]

    handles = [module.register_forward_hook(step) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
