"""The linear algebra of the shift: least-norm solutions of A V = Z with the outputs Z = A V held fixed, or nearly.

Pure tensors; nothing here knows a network. A is (b, m), one row of features per anchor point; V is (m, n), the
weight of a prediction layer. Solutions with the same outputs on A differ by a part in its null space, and the
least-norm one, V* = A^+ A V, has none of it (arXiv 2405.14111, section 3).

Numerics, decided once: everything is computed in float64, on the tensors' own device where it has float64 and on the
CPU where it has not. A direction counts as seen when its singular value exceeds `rtol` times the largest;
by default rtol = max(b, m) * eps of the precision the features came in (float32 at the coarsest, since half-precision
features are exact numbers once they are there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class LeastNorm:
    """A least-norm solution.

    Attributes:
        weight: V*, (m, n), float64.
        rank: how many directions of feature space A sees; V* has no part outside them.
        singular_values: of A, all min(b, m) or m of them, largest first, float64.
        seen: (rank, m), an orthonormal basis of the directions that A sees, float64.
    """

    weight: Tensor
    rank: int
    singular_values: Tensor
    seen: Tensor

    def apply(self, weight: Tensor) -> Tensor:
        """The least-norm solution for the same rows and another weight, (m, n)."""
        return _part(self.seen, weight)


def least_norm(rows: Tensor, weight: Tensor, rtol: float | None = None) -> LeastNorm:
    """The least-norm V* with rows @ V* = rows @ weight.

    V* is the projection of `weight` onto the row space, V* = R R^T V with R the right singular vectors: as exact as
    A^+ (A V) and better conditioned, since A is never inverted.

    Args:
        rows: A, (b, m); b may be 0.
        weight: V, (m, n).
        rtol: smallest singular value that counts, relative to the largest.

    Raises:
        ValueError: if A or V holds NaN or infinity, or their shapes do not fit.
    """
    rtol = default_rtol(rows) if rtol is None else rtol
    a, v = _checked(rows, weight)
    _, singular_values, right = torch.linalg.svd(a, full_matrices=False)
    rank = _numerical_rank(singular_values, rtol)
    seen = right[:rank]
    return LeastNorm(_part(seen, v), rank, singular_values, seen)


def least_norm_from_gram(gram: Tensor, weight: Tensor, rtol: float) -> LeastNorm:
    """The least-norm V* for all the rows that were summed into a Gram matrix, without the rows.

    Args:
        gram: A^T A, (m, m), summed in float64: squaring A halves the digits, so singular values below about
            sqrt(m * 2e-16) of the largest cannot be told from zero, and `rtol` is raised to that if it lies lower.
        weight: V, (m, n).
        rtol: smallest singular value of A that counts, relative to the largest.

    Raises:
        ValueError: if the Gram matrix or V holds NaN or infinity, or their shapes do not fit.
    """
    g, v = _checked(gram, weight)
    eigenvalues, vectors = torch.linalg.eigh((g + g.T) / 2)
    singular_values = eigenvalues.clamp(min=0).sqrt().flip(0)
    resolution = (g.shape[0] * torch.finfo(torch.float64).eps) ** 0.5
    rank = _numerical_rank(singular_values, max(rtol, resolution))
    seen = vectors.flip(1)[:, :rank].T
    return LeastNorm(_part(seen, v), rank, singular_values, seen)


def independent_rows(rows: Tensor, rtol: float | None = None) -> Tensor:
    """Indices, ascending, of a largest set of linearly independent rows.

    The paper removes dependent rows by Gaussian elimination, which without pivoting mistakes rounding for rank. This
    is the same elimination with the largest remaining row as pivot and orthogonal updates, each done twice
    (Gram-Schmidt with column pivoting on A^T), which is rank-revealing: elimination ends at the first pivot whose
    length is at most rtol times that of the longest row.

    Args:
        rows: A, (b, m).
        rtol: smallest remaining length that counts as independent, relative to the longest row.

    Raises:
        ValueError: if A holds NaN or infinity.
    """
    rtol = default_rtol(rows) if rtol is None else rtol
    (remaining,) = _checked(rows)
    remaining = remaining.clone()
    steps = min(remaining.shape)
    pivots, lengths = [], []
    basis = remaining.new_zeros(steps, remaining.shape[1])
    for step in range(steps):
        squared = remaining.square().sum(1)
        pivot = squared.argmax()
        direction = remaining[pivot] / squared[pivot].sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        direction = direction - basis[:step].T @ (basis[:step] @ direction)
        direction = direction / direction.norm().clamp(min=torch.finfo(torch.float64).tiny)
        basis[step] = direction
        pivots.append(pivot)
        lengths.append(squared[pivot].sqrt())
        remaining -= torch.outer(remaining @ direction, direction)
        remaining[pivot] = 0.0
    if not pivots:
        return torch.empty(0, dtype=torch.long, device=rows.device)
    length = torch.stack(lengths)
    count = int((length > rtol * length[0]).cumprod(0).sum())  # the one host synchronisation
    return torch.stack(pivots)[:count].sort().values.to(rows.device)


@dataclass(frozen=True)
class Shrinkage:
    """One layer on the way from V to 0, by a trade of loss against norm; diagonalised, so that every step is cheap.

    With a quadratic model of the loss in the layer's weight, output by output,

        minimise  1/2 (v' - v)^T C (v' - v) + mu/2 ||v'||^2,   C the curvature of the loss in v,

    and C = U diag(l) U^T, the solution is v' = U diag(l / (l + mu)) U^T v, the ridge path: directions in which the loss
    is curved stay, the others go. Over all layers, one mu is the optimum: every direction then pays the same loss per
    unit of squared norm. mu -> 0 is the exact shift: all curved directions stay, and the rest has the least norm.

    Attributes:
        weight: V, (m, n), float64.
        mean: (n, m), the features' mean under each output's weights; the bias takes up its part of the change.
        values: l, (n, m), from smallest to largest.
        vectors: U, (g, m, m): one for each output, or for each group of outputs that share one.
        groups: (n,), which of the vectors each output has; None: each its own.
    """

    weight: Tensor
    mean: Tensor
    values: Tensor
    vectors: Tensor
    groups: Tensor | None = None

    @classmethod
    def from_moments(cls, moments: Tensor, weight: Tensor, groups: Tensor | None = None) -> Shrinkage:
        """From sums over anchor points of w [a; 1] [a; 1]^T with w the curvature of the loss in each output.

        Args:
            moments: (g, m + 1, m + 1), float64.
            weight: V, (m, n).
            groups: (n,), which of the sums is that of each output, where outputs share some; None: each has its own.

        Raises:
            ValueError: if either holds NaN or infinity.
        """
        if not torch.isfinite(moments).all() or not torch.isfinite(weight).all():
            raise ValueError("the features or weights hold NaN or infinity")
        gram, mean = centred(moments)
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp(min=0)
        if groups is not None:
            mean, values = mean[groups], values[groups]
        return cls(in_float64(weight), mean, values, vectors, groups)

    def norm2(self, mu: float) -> float:
        """||V'||^2."""
        return float((self._inside * self._kept(mu)).square().sum())

    def rise(self, mu: float) -> float:
        """The quadratic model's rise of the loss."""
        return float(0.5 * (self.values * (self._inside * (1 - self._kept(mu))).square()).sum())

    def solve(self, mu: float) -> tuple[Tensor, Tensor]:
        """V' (m, n), and what is added to the bias (n,)."""
        new = self._turned(self._inside * self._kept(mu), self.vectors).T
        return new, ((self.weight - new) * self.mean.T).sum(0)

    @cached_property
    def _inside(self) -> Tensor:
        """V in the eigenvectors' coordinates, (n, m)."""
        return self._turned(self.weight.T, self.vectors.mT)

    def _turned(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Each of n rows, (n, m), times the matrix of its output or group."""
        if self.groups is None:
            return torch.einsum("nmk,nk->nm", matrices, rows)
        turned = torch.empty_like(rows)
        for group, matrix in enumerate(matrices):  # one by one: n matrices at once may not fit the memory
            mine = self.groups == group
            turned[mine] = rows[mine] @ matrix.T
        return turned

    def _kept(self, mu: float) -> Tensor:
        return self.values / (self.values + mu)


def centred(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of w [a; 1] [a; 1]^T, (n, m + 1, m + 1), as those of w (a - mean)(a - mean)^T, and the mean (n, m)."""
    mass = moments[:, -1, -1].clamp(min=torch.finfo(moments.dtype).tiny)
    mean = moments[:, :-1, -1] / mass[:, None]
    gram = moments[:, :-1, :-1] - mass[:, None, None] * mean[:, :, None] * mean[:, None, :]
    return (gram + gram.mT) / 2, mean


def mu_for_norm(layers: Sequence[Shrinkage], kept: float) -> float:
    """The one mu that leaves a share `kept` of the squared norm of all layers together, to a millionth.

    Directions without any curvature go at any mu: where they hold more than 1 - kept, less than `kept` is left.
    """
    target = kept * sum(float(layer.weight.square().sum()) for layer in layers)
    low, high = 1e-30, 1e30  # bisection of log mu: the norm falls strictly as mu grows
    while high / low > 1 + 1e-6:
        middle = (low * high) ** 0.5
        enough = sum(layer.norm2(middle) for layer in layers) >= target
        low, high = (middle, high) if enough else (low, middle)
    return low


def default_rtol(rows: Tensor) -> float:
    """max(b, m) * eps: what rounding alone can make of an exactly dependent set of rows."""
    precision = rows.dtype if rows.dtype == torch.float64 else torch.float32
    return float(max(rows.shape) * torch.finfo(precision).eps)


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on its own device if that has float64 (Apple's MPS has not), else on the CPU."""
    return tensor.detach().to("cpu" if tensor.device.type == "mps" else tensor.device).to(torch.float64)


def _part(seen: Tensor, weight: Tensor) -> Tensor:
    """The part of a weight, (m, n), within the span of an orthonormal basis, (rank, m)."""
    return seen.T @ (seen @ weight.to(seen))


def _numerical_rank(singular_values: Tensor, rtol: float) -> int:
    if singular_values.numel() == 0:
        return 0
    return int((singular_values > rtol * singular_values[0]).sum())


def _checked(*tensors: Tensor) -> list[Tensor]:
    for tensor in tensors:
        if tensor.ndim != 2:
            raise ValueError(f"expected a matrix, got a tensor of shape {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError("the features or weights hold NaN or infinity")
    if len(tensors) == 2 and tensors[0].shape[1] != tensors[1].shape[0]:
        raise ValueError(f"features of length {tensors[0].shape[1]} do not fit a weight of {tensors[1].shape[0]} rows")
    return [in_float64(tensor) for tensor in tensors]
