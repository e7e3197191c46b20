"""Traces by random probes: every estimate with its standard error, several models by the same probes.

E v^T H v = tr H for a vector v of random signs (Hutchinson). Each batch is given probes of its own, as many for every
batch: for one pass over the data that is as many independent samples as there are batches, and the mean over batches
of their traces is the trace of the mean loss. The standard error is that of the probes, for the images at hand.

The variance of a probe is twice the sum of the squared entries off the diagonal, and of a network's Hessian a few
eigenvalues hold most of that. So, where plain probes would take long, these are taken out first, as Hutch++ does: a
basis Q of some directions in which H is large, there the trace is exact, and probes see what is left,

    tr S H  =  tr S (H - P H P)  +  E v^T S P H P v        P = I - Q Q^T, S any diagonal matrix

with H - P H P known from H Q. Hutch++ finds Q by products with random vectors; Lanczos' iteration finds the same by
fewer (docs/flatness.md has the measurement), and the largest eigenvalue on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from yolo_os.errors import UserError
from yolo_os.flatness.operator import Products, flat, shape_as, times
from yolo_os.statistics import generator_for

Scales = Sequence[Tensor | float | None]

ROUND = 4  # probes of a batch for one graph
LEAST = 16  # samples in all before a stop, and twice ROUND a batch: a standard error of fewer says little
DIRECTIONS = 8  # that a sketch takes out
SKETCH_BYTES = 2**31  # most that the sketch of one model may hold


@dataclass(frozen=True)
class Estimate:
    """A figure known by samples.

    Attributes:
        value: the mean.
        stderr: its standard error; 0 for what is exact.
        samples: how many; 0 for what is exact.
        freedom: degrees of freedom of the standard error.
    """

    value: float
    stderr: float = 0.0
    samples: int = 0
    freedom: float = math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %, by Student's t."""
        half = student(0.975, self.freedom) * self.stderr
        return self.value - half, self.value + half

    def plus(self, other: float) -> Estimate:
        """With an exact figure added."""
        return Estimate(self.value + other, self.stderr, self.samples, self.freedom)

    def within(self, tolerance: float) -> bool:
        """Whether the standard error is at most this share of the value."""
        return self.stderr <= tolerance * abs(self.value)


def student(level: float, freedom: float) -> float:
    """A quantile of Student's t, by the expansion in 1 / freedom of Cornish and Fisher."""
    z = NormalDist().inv_cdf(level)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return z + (z**3 + z) / (4 * freedom) + second


def stratified(samples: Tensor, weights: Sequence[float]) -> Estimate:
    """The weighted sum over batches of their means; samples (k, batches), weights one for each batch."""
    count, batches = samples.shape
    shares = samples.new_tensor(weights)
    value = float((samples.mean(0) * shares).sum())
    parts = shares.square() * samples.var(0) / count if count > 1 else torch.full_like(shares, math.inf)
    variance, squares = float(parts.sum()), float(parts.square().sum())
    freedom = variance**2 * (count - 1) / squares if squares > 0 else math.inf
    return Estimate(value, math.sqrt(variance), count * batches, freedom)


@dataclass(frozen=True, eq=False)
class Sketch:
    """Directions in which a matrix H is large.

    Attributes:
        basis: Q, (parameters, k), orthonormal.
        products: H Q.
        eigenvalue: the largest one of H, as Lanczos' iteration has it.
        residual: ||H x - eigenvalue x|| for its vector x: so far from it lies some eigenvalue.
    """

    basis: Tensor
    products: Tensor
    eigenvalue: float
    residual: float

    def without(self, vector: Tensor) -> Tensor:
        """P v: what is left of a flat vector."""
        return vector - self.basis @ (self.basis.T @ vector)

    def diagonal(self) -> Tensor:
        """Of H - P H P, (parameters,)."""
        inner = self.basis.T @ self.products
        return ((2 * self.products - self.basis @ inner) * self.basis).sum(1)


def sketch(matrix: Products, seed: int, directions: int = DIRECTIONS) -> Sketch:
    """Directions found by Lanczos' iteration over all batches: as many products.

    Raises:
        UserError: if the library of the extra `flatness` is not installed.
    """
    library = eigenthings()
    like = matrix.objective.tensors[0]
    size = matrix.objective.size
    products: list[Tensor] = []

    def product(vector: Tensor) -> Tensor:
        products.append(times(matrix, vector))
        return products[-1].clone()

    operator = library.LambdaOperator(product, size, like.device, like.dtype)
    start = torch.randn(size, generator=generator_for(like.device, seed, "start"), device=like.device, dtype=like.dtype)
    count = max(1, min(directions, size - 1, SKETCH_BYTES // (8 * size)))
    found = library.lanczos_tridiagonal(operator, start, count, reorthogonalize=True)
    taken = found.iterations
    inner = torch.diag(found.alphas[:taken].double().cpu())
    if taken > 1:
        off = found.betas[: taken - 1].double().cpu()
        inner += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(inner)
    basis = torch.stack(list(found.basis[:taken]), 1)
    return Sketch(
        basis, torch.stack(products[:taken], 1), float(values[-1]), float(found.last_beta) * abs(float(vectors[-1, -1]))
    )


def eigenthings() -> Any:
    """The library of the extra `flatness`.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import hessian_eigenthings
    except ImportError:
        raise UserError(
            "this needs the library hessian-eigenthings: pip install 'yolo-os[flatness]' (layers=head and "
            "estimator=hutchinson do without)"
        ) from None
    return hessian_eigenthings


@dataclass(frozen=True, eq=False)
class Probed:
    """What is read off the products of one model's matrix: by name, sums over the diagonal of scale * H_ii.

    Attributes:
        matrix: whose products.
        scales: by name of the figure, a factor for each parameter (a number, or a tensor that broadcasts); None leaves
            the parameter out.
        sketch: of the directions that are taken out; None: plain probes.
    """

    matrix: Products
    scales: Mapping[str, Scales]
    sketch: Sketch | None = None

    def known(self) -> dict[str, float]:
        """The part of each figure that is known without probes."""
        if self.sketch is None:
            return dict.fromkeys(self.scales, 0.0)
        return self._sums(shape_as(self.sketch.diagonal(), self.matrix.objective.tensors))

    def of_batch(self, batch: int, vectors: Sequence[list[Tensor]]) -> dict[str, Tensor]:
        """The figures by one batch and each probe, (k,) by name, in float64; without what is known."""
        tensors, left = self.matrix.objective.tensors, vectors
        if self.sketch is not None:
            left = [shape_as(self.sketch.without(flat(vector)), tensors) for vector in vectors]
        found = []
        for vector, product in zip(vectors, self.matrix.of_batch(batch, left)):
            if self.sketch is not None:
                product = shape_as(self.sketch.without(flat(product)), tensors)
            found.append(self._sums([v * p for v, p in zip(vector, product)]))
        return {name: torch.tensor([each[name] for each in found], dtype=torch.float64) for name in self.scales}

    def _sums(self, terms: Sequence[Tensor]) -> dict[str, float]:
        terms = [term if term.device.type == "mps" else term.double() for term in terms]
        plain = [float(term.sum()) for term in terms]
        return {
            name: sum(
                plain[index] * scale if isinstance(scale, float) else float((terms[index] * scale).sum())
                for index, scale in enumerate(scales)
                if scale is not None
            )
            for name, scales in self.scales.items()
        }


@dataclass(eq=False)
class Sampled:
    """The samples of one model.

    Attributes:
        weights: of the batches.
        known: the part of each figure that needed no probe.
        rounds: by name of the figure, (k, batches) for each round.
    """

    weights: Sequence[float]
    known: Mapping[str, float]
    rounds: dict[str, list[Tensor]] = field(default_factory=dict)

    def samples(self, name: str) -> Tensor:
        """(k, batches), without what is known."""
        return torch.cat(self.rounds[name])

    def estimate(self, name: str) -> Estimate:
        """Of one figure."""
        return stratified(self.samples(name), self.weights).plus(self.known[name])

    def less(self, other: Sampled, name: str) -> Estimate:
        """The difference of a figure from another model's on the same probes: what both have in common cancels."""
        difference = stratified(self.samples(name) - other.samples(name), self.weights)
        return difference.plus(self.known[name] - other.known[name])


def hutchinson(
    models: Sequence[Probed],
    done: Callable[[Sequence[Sampled]], bool],
    *,
    seed: int = 0,
    most: int = 400,
    least: int | None = None,
    before: list[Sampled] | None = None,
) -> list[Sampled]:
    """Samples of figures of several models, by the same probes where their parameters have the same shapes.

    Args:
        models: of each, what is read off; all have the same batches.
        done: asked after every round whether it is enough.
        seed: of the probes.
        most: probes of a batch.
        least: probes of a batch before it may be enough; None: two rounds, and LEAST over all batches.
        before: samples to go on from, of the same models without a sketch or with the same one.
    """
    sampled = before or [Sampled(each.matrix.objective.weights, each.known()) for each in models]
    batches = len(sampled[0].weights)
    least = least or max(2 * ROUND, math.ceil(LEAST / batches))
    taken = len(sampled[0].samples(next(iter(models[0].scales)))) if before else 0
    if before and taken >= least and done(sampled):
        return sampled
    while taken < most:
        count = min(ROUND, most - taken)
        for own, probed in zip(sampled, models):
            columns: dict[str, list[Tensor]] = {}
            for batch in range(batches):
                vectors = [signs(probed.matrix, seed, batch, taken + index) for index in range(count)]
                for name, values in probed.of_batch(batch, vectors).items():
                    columns.setdefault(name, []).append(values)
            for name, each in columns.items():
                own.rounds.setdefault(name, []).append(torch.stack(each, 1))
        taken += count
        if done(sampled) and taken >= least:
            break
    return sampled


def signs(matrix: Products, seed: int, batch: int, number: int) -> list[Tensor]:
    """A probe: random signs in the shapes of the parameters, by the seed, the batch and its number there."""
    tensors = matrix.objective.tensors
    generator = generator_for(tensors[0].device, seed, batch, number)
    return [
        torch.randint(0, 2, each.shape, generator=generator, device=each.device).to(each.dtype) * 2 - 1
        for each in tensors
    ]
