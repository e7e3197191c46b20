"""A loss over fixed batches as a function of some parameters, and products of its Hessian and Gauss-Newton matrix.

Both are of plain double backward, so the loss may do what it likes: write in place, index by masks, hold dictionaries.
The graph of a batch is made once for all vectors that it is multiplied with, and let go before the next batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import grad

from yolo_os.errors import UserError

Vector = Sequence[Tensor]  # in the shapes of the parameters
CHANGE = 1e-5  # a loss that changes by more than this share between two calls has no Hessian to speak of


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss over fixed batches, the mean of theirs, as a function of parameters.

    Attributes:
        parameters: by name; what the loss is differentiated by.
        weights: the share of each batch in the mean.
        predict: what the model makes of a batch, given its number.
        criterion: the loss of a batch, a scalar, given its number and what the model made of it.
    """

    parameters: Mapping[str, Tensor]
    weights: Sequence[float]
    predict: Callable[[int], Any]
    criterion: Callable[[int, Any], Tensor]

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The parameters in order."""
        return list(self.parameters.values())

    @property
    def size(self) -> int:
        """How many numbers the parameters hold."""
        return sum(tensor.numel() for tensor in self.tensors)

    def loss(self, batch: int) -> Tensor:
        """Of one batch, with its graph where parameters want one."""
        return self.criterion(batch, self.predict(batch))

    @torch.no_grad()
    def mean(self) -> float:
        """The loss over all batches, with the parameters as they are."""
        return sum(weight * float(self.loss(batch)) for batch, weight in enumerate(self.weights))

    def slope(self) -> tuple[float, list[Tensor]]:
        """The loss over all batches and its gradient."""
        mean, total = 0.0, [torch.zeros_like(tensor) for tensor in self.tensors]
        with differentiable(self.tensors):
            for batch, weight in enumerate(self.weights):
                loss = self.loss(batch)
                mean += weight * float(loss.detach())
                for sum_, part in zip(total, grad(loss, self.tensors, materialize_grads=True)):
                    sum_.add_(part, alpha=weight)
        return mean, total

    def check_determinism(self) -> None:
        """Refuse a loss that changes between two calls.

        Raises:
            UserError: with both values.
        """
        with torch.no_grad():
            first, second = float(self.loss(0)), float(self.loss(0))
        if not abs(first - second) <= CHANGE * max(abs(first), abs(second)):
            raise UserError(
                f"the loss changes between two calls on the same images, from {first:.6g} to {second:.6g}, or is not "
                "finite, so it has no Hessian: something in the model is drawn at random (dropout, noise) or overflows"
            )


class Products(Protocol):
    """A symmetric matrix in the space of an objective's parameters, known by its products."""

    objective: Objective

    def of_batch(self, batch: int, vectors: Sequence[Vector]) -> Iterator[list[Tensor]]:
        """The products of the matrix of one batch with vectors, one after the other."""


class Hessian:
    """The Hessian of an objective."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def of_batch(self, batch: int, vectors: Sequence[Vector]) -> Iterator[list[Tensor]]:
        """The products of the Hessian of one batch with vectors, one after the other."""
        tensors = self.objective.tensors
        with differentiable(tensors):
            slopes = grad(self.objective.loss(batch), tensors, create_graph=True, materialize_grads=True)
            for vector in vectors:
                yield _backward(slopes, tensors, vector)


class GaussNewton:
    """The Gauss-Newton matrix J^T C J: J the Jacobian of the outputs, C the Hessian of the loss in the outputs.

    It leaves out what the bend of the model adds to the Hessian. Where the loss is convex in the outputs it has no
    negative eigenvalue; the box losses of detectors are not.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def of_batch(self, batch: int, vectors: Sequence[Vector]) -> Iterator[list[Tensor]]:
        """The products of the matrix of one batch with vectors, one after the other."""
        tensors = self.objective.tensors
        with differentiable(tensors):
            made = self.objective.predict(batch)
            outputs = [leaf for leaf in leaves(made) if leaf.requires_grad]
            free = [leaf.detach().requires_grad_() for leaf in outputs]
            swapped = replaced(made, dict(zip(map(id, outputs), free)))
            slopes = grad(self.objective.criterion(batch, swapped), free, create_graph=True, materialize_grads=True)
            # J v as the derivative of J^T u in u, which is linear in it: backward twice gives forward.
            dual = [torch.zeros_like(leaf, requires_grad=True) for leaf in outputs]
            pulled = grad(outputs, tensors, dual, create_graph=True, materialize_grads=True)
            for vector in vectors:
                bent = _backward(slopes, free, _backward(pulled, dual, vector))
                yield list(grad(outputs, tensors, bent, retain_graph=True, materialize_grads=True))


def times(matrix: Products, vector: Tensor) -> Tensor:
    """The product of the matrix of all batches with a flat vector."""
    shaped = shape_as(vector, matrix.objective.tensors)
    total = torch.zeros_like(vector)
    for batch, weight in enumerate(matrix.objective.weights):
        for product in matrix.of_batch(batch, [shaped]):
            total.add_(flat(product), alpha=weight)
    return total


def flat(vector: Vector) -> Tensor:
    """A vector in the shapes of parameters as one of one dimension."""
    return torch.cat([part.reshape(-1) for part in vector])


def shape_as(vector: Tensor, tensors: Vector) -> list[Tensor]:
    """A flat vector in the shapes of parameters."""
    parts = torch.split(vector, [each.numel() for each in tensors])
    return [part.view_as(like) for part, like in zip(parts, tensors)]


def leaves(made: Any) -> list[Tensor]:
    """The outputs in what a model made: tensors in tuples, lists and dictionaries, but no feature maps (`feats`)."""
    if isinstance(made, Tensor):
        return [made] if made.is_floating_point() else []
    if isinstance(made, Mapping):
        return [leaf for key, part in made.items() if key != "feats" for leaf in leaves(part)]
    return [leaf for part in made for leaf in leaves(part)] if isinstance(made, list | tuple) else []


def replaced(made: Any, by: Mapping[int, Tensor]) -> Any:
    """What a model made with other tensors in place of some, given by the id of these."""
    if isinstance(made, Tensor):
        return by.get(id(made), made)
    if isinstance(made, Mapping):
        return {key: replaced(part, by) for key, part in made.items()}
    return type(made)(replaced(part, by) for part in made) if isinstance(made, list | tuple) else made


@contextmanager
def differentiable(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Gradients for these tensors for the length of a block."""
    before = [tensor.requires_grad for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for tensor, wanted in zip(tensors, before):
            tensor.requires_grad_(wanted)


def _backward(outputs: Vector, inputs: Vector, vector: Vector) -> list[Tensor]:
    """The gradient of <outputs, vector>; zeros where nothing depends on the inputs."""
    pairs = [(output, part) for output, part in zip(outputs, vector) if output.requires_grad]
    if not pairs:
        return [torch.zeros_like(each) for each in inputs]
    dependent, parts = zip(*pairs)
    return list(grad(dependent, inputs, parts, retain_graph=True, materialize_grads=True))
