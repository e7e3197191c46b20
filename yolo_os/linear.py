"""The paper's shift of the last linear layer of any model, for those whose model is no detector."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolo_os.errors import UserError
from yolo_os.linalg import default_rtol, in_float64, independent_rows, least_norm, least_norm_from_gram
from yolo_os.methods.least_norm import SHARES
from yolo_os.shifter import Weights


@dataclass(frozen=True)
class LinearShift:
    """What a shift of a linear layer did.

    Attributes:
        rank: of the features A.
        rows: of A; of a sample, those that are independent.
        share: of the way to the least norm that was gone; 0: nothing moved, since rank(A) = m leaves V as the only
            solution, or no share was allowed by the loss.
        keep: share of the layer's squared norm that is left.
        loss_before, loss_after: None where no loss was given.
    """

    rank: int
    rows: int
    share: float
    keep: float
    loss_before: float | None
    loss_after: float | None


def shift_linear_(
    layer: nn.Linear,
    features: Tensor,
    *,
    loss: Callable[[], float] | None = None,
    max_loss_rise: float = 0.002,
) -> LinearShift:
    """Move a linear layer to the least norm that keeps its outputs on some features, in place; the bias stays.

    With the features of all training data this is the paper's OS (arXiv 2405.14111, section 3), with those of a small
    sample, such as a batch, its SOS (section 4). At most m rows are taken for a sample and made independent first.

    Args:
        layer: V transposed, of shape (n, m), and a bias.
        features: A, shape (rows, m): what the layer is given, in eval mode.
        loss: takes the loss with the weights as they are; a shift that raises it too far is made half, a quarter, an
            eighth of the way, or not at all. None: the whole way.
        max_loss_rise: largest relative rise of the loss.

    Raises:
        UserError: for features of another shape, none, or such that are not finite.
    """
    m = layer.in_features
    if features.ndim != 2 or features.shape[1] != m or not len(features):
        raise UserError(f"features={tuple(features.shape)}: takes rows of {m} numbers, the inputs of the layer")
    if not torch.isfinite(features).all():
        raise UserError("features: hold NaN or infinity")
    weight, rows = in_float64(layer.weight.detach().T), in_float64(features.detach())
    if len(rows) > m:
        solution = least_norm_from_gram(rows.T @ rows, weight, default_rtol(features))
    else:
        rows = rows[independent_rows(features.detach())]
        solution = least_norm(rows, weight)
    before = loss() if loss else None
    if solution.rank == m:
        return LinearShift(m, len(rows), 0.0, 1.0, before, before)
    weights, goal = Weights({"weight": layer.weight}), solution.apply(weight)
    for share in SHARES:
        values = {"weight": (weight + share * (goal - weight)).T}
        after = weights.measure(values, loss) if loss else None
        if before is None or after is None or after <= before + max_loss_rise * abs(before):
            weights.write_(values)
            squared = float(values["weight"].square().sum()) / (float(weight.square().sum()) or math.nan)
            return LinearShift(solution.rank, len(rows), share, squared, before, after)
    return LinearShift(solution.rank, len(rows), 0.0, 1.0, before, before)
