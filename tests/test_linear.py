"""The shift of a linear layer of any model, against closed forms."""

import pytest
import torch
from torch import nn

from yolo_os import UserError, shift_linear_


def made(m=6, n=3, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(m, n)


@pytest.mark.parametrize("rows", [1, 4, 40])
def test_outputs_are_kept_at_the_least_norm(rows):
    """Of all V with A V = Z, the pseudo-inverse gives the one of least norm; the features span 4 of 6 dimensions."""
    layer = made()
    features = torch.randn(rows, 4) @ torch.randn(4, 6)
    outputs, bias = layer(features).detach(), layer.bias.detach().clone()
    least = torch.linalg.pinv(features.double(), rtol=1e-5) @ (outputs - bias).double()
    squared = float(layer.weight.detach().square().sum())
    found = shift_linear_(layer, features)
    assert (found.rank, found.share) == (min(rows, 4), 1.0)
    torch.testing.assert_close(layer.weight.detach().double(), least.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(features), outputs, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer.bias, bias)
    assert found.keep == pytest.approx(float(layer.weight.detach().square().sum()) / squared, rel=1e-5)


def test_nothing_moves_where_the_features_have_full_rank():
    layer = made()
    before = layer.weight.detach().clone()
    found = shift_linear_(layer, torch.randn(50, 6))
    assert (found.rank, found.share, found.keep) == (6, 0.0, 1.0)
    assert torch.equal(layer.weight, before)


def test_of_dependent_rows_one_counts():
    row = torch.randn(1, 6)
    found = shift_linear_(made(), torch.cat([row, 2 * row]))
    assert (found.rank, found.rows) == (1, 1)


def test_the_loss_decides_how_far():
    """A loss that rises with the distance from the start, 0.16 all the way: a quarter of it is allowed."""
    layer = made()
    start, features = layer.weight.detach().clone(), torch.randn(2, 6)
    full = made()
    shift_linear_(full, features)
    length = float((full.weight.detach() - start).norm())

    def loss():
        return 1 + 0.16 * float((layer.weight.detach() - start).norm()) / length

    found = shift_linear_(layer, features, loss=loss, max_loss_rise=0.05)
    assert found.share == 0.25
    assert (found.loss_before, found.loss_after) == (1.0, pytest.approx(1.04, abs=1e-5))
    torch.testing.assert_close(layer.weight.detach(), start + 0.25 * (full.weight.detach() - start))


@pytest.mark.parametrize("after", [2.0, float("nan")])
def test_what_the_loss_forbids_is_not_done(after):
    layer = made()
    start = layer.weight.detach().clone()
    found = shift_linear_(
        layer, torch.randn(2, 6), loss=lambda: 1.0 if torch.equal(layer.weight.detach(), start) else after
    )
    assert (found.share, found.loss_after) == (0.0, 1.0)
    assert torch.equal(layer.weight, start)


@pytest.mark.parametrize("shape", [(3, 5), (0, 6), (6,), (2, 3, 6)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match="takes rows of 6 numbers"):
        shift_linear_(made(), torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    with pytest.raises(UserError, match="NaN or infinity"):
        shift_linear_(made(), torch.full((2, 6), value))
