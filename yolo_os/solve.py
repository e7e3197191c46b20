"""The linear algebra of the shift: least-norm solutions of A V = Z with the outputs Z = A V held fixed.

Pure tensors; nothing here knows a network. A is (b, m), one row of features per anchor point; V is (m, n), the
weight of a prediction layer; all solutions with the same outputs on A differ by a part of V that A cannot see, and
the least-norm one, V* = A^+ A V, has none of it (arXiv 2405.14111, section 3).

Numerics, decided once: everything is computed in float64, on the tensors' own device where it has float64 and on the
CPU where it has not. A direction counts as seen when its singular value exceeds `rtol` times the largest;
by default rtol = max(b, m) * eps of the precision the features came in (float32 at the coarsest, since half-precision
features are exact numbers once they are there).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LeastNorm:
    """A least-norm solution.

    Attributes:
        weight: V*, (m, n), float64.
        rank: how many directions of feature space A sees; V* has no part outside them.
        singular_values: of A, all min(b, m) or m of them, largest first, float64.
    """

    weight: Tensor
    rank: int
    singular_values: Tensor


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
    return LeastNorm(seen.T @ (seen @ v), rank, singular_values)


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
    seen = vectors.flip(1)[:, :rank]
    return LeastNorm(seen @ (seen.T @ v), rank, singular_values)


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


def default_rtol(rows: Tensor) -> float:
    """max(b, m) * eps: what rounding alone can make of an exactly dependent set of rows."""
    precision = rows.dtype if rows.dtype == torch.float64 else torch.float32
    return float(max(rows.shape) * torch.finfo(precision).eps)


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on its own device if that has float64 (Apple's MPS has not), else on the CPU."""
    return tensor.detach().to("cpu" if tensor.device.type == "mps" else tensor.device).to(torch.float64)


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
