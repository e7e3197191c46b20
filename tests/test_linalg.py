import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_os.linalg import (
    Shrinkage,
    default_rtol,
    independent_rows,
    least_norm,
    least_norm_from_gram,
    mu_for_norm,
)


def system(rows, features, outputs, rank, seed):
    """A of a given rank and well separated spectrum, V at random; float64."""
    generator = torch.Generator().manual_seed(seed)

    def orthogonal(size):
        return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q

    spectrum = torch.zeros(rows, features, dtype=torch.float64)
    spectrum[range(rank), range(rank)] = torch.logspace(0, -3, rank, dtype=torch.float64)
    a = orthogonal(rows) @ spectrum @ orthogonal(features)
    return a, torch.randn(features, outputs, generator=generator, dtype=torch.float64)


shapes = st.tuples(st.integers(1, 20), st.integers(1, 24), st.integers(1, 6), st.integers(0, 20), st.integers(0, 10**6))


def drawn(case):
    rows, features, outputs, rank, seed = case
    return system(rows, features, outputs, min(rank, rows, features), seed), min(rank, rows, features)


@settings(deadline=None)
@given(shapes)
def test_is_the_pseudoinverse_solution(case):
    (a, v), rank = drawn(case)
    found = least_norm(a, v)
    wanted = np.linalg.pinv(a.numpy(), rcond=1e-9) @ (a.numpy() @ v.numpy())
    assert found.rank == rank
    np.testing.assert_allclose(found.weight.numpy(), wanted, atol=1e-10)


@settings(deadline=None)
@given(shapes)
def test_properties_of_the_least_norm_solution(case):
    (a, v), _ = drawn(case)
    best = least_norm(a, v).weight
    torch.testing.assert_close(a @ best, a @ v, atol=1e-10, rtol=0)  # exact on the sample
    torch.testing.assert_close(least_norm(a, best).weight, best, atol=1e-10, rtol=0)  # idempotent
    assert abs(float(((v - best) * best).sum())) < 1e-9  # V - V* is orthogonal to V*
    assert best.norm() <= v.norm() + 1e-12


@settings(deadline=None)
@given(shapes)
def test_gram_gives_the_same_as_rows(case):
    (a, v), rank = drawn(case)
    found = least_norm_from_gram(a.T @ a, v, 1e-6)
    assert found.rank == rank
    torch.testing.assert_close(found.weight, least_norm(a, v, 1e-6).weight, atol=1e-7, rtol=0)
    values = torch.linalg.svdvals(a)
    torch.testing.assert_close(found.singular_values[: len(values)], values[: len(v)], atol=1e-7, rtol=0)


@settings(deadline=None)
@given(shapes)
def test_independent_rows_are_a_basis(case):
    (a, _), rank = drawn(case)
    kept = independent_rows(a, 1e-9)
    assert len(kept) == rank
    assert kept.tolist() == sorted(set(kept.tolist()))
    if rank:
        assert np.linalg.matrix_rank(a[kept].numpy(), tol=1e-10) == rank


def test_dependent_rows_are_left_out():
    a = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a[3] = a[0]  # a padding row seen twice
    a[4] = 2 * a[1] - a[2]
    a[5] = 0
    kept = independent_rows(a).tolist()
    assert len(kept) == 3
    assert 5 not in kept
    assert not {0, 3} <= set(kept)
    assert not {1, 2, 4} <= set(kept)


def test_elimination_without_pivoting_would_fail_here():
    # A tiny first pivot: naive Gaussian elimination loses the second row to rounding.
    a = torch.tensor([[1e-17, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert independent_rows(a).tolist() == [0, 1]


def test_full_rank_moves_nothing():
    a, v = system(30, 8, 3, 8, 0)
    torch.testing.assert_close(least_norm(a, v).weight, v, atol=1e-12, rtol=0)


def test_no_rows_ask_for_nothing():
    found = least_norm(torch.empty(0, 5), torch.ones(5, 2))
    assert found.rank == 0
    assert float(found.weight.abs().sum()) == 0
    assert independent_rows(torch.empty(0, 5)).tolist() == []


def test_rank_is_judged_in_the_precision_of_the_features():
    a, v = system(6, 10, 2, 5, 3)
    assert least_norm(a.float(), v.float()).rank == 5  # rounding to float32 makes the sixth direction 1e-8, not 0
    assert default_rtol(a.float()) == default_rtol(a.half())
    assert default_rtol(a) < 1e-14


def test_results_are_in_float64():
    found = least_norm(torch.randn(3, 5), torch.randn(5, 2))
    assert found.weight.dtype == found.singular_values.dtype == torch.float64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_what_is_not_finite(bad):
    a, v = torch.randn(3, 5), torch.randn(5, 2)
    for first, second in ((a.clone().fill_(bad), v), (a, v.clone().fill_(bad))):
        with pytest.raises(ValueError, match="NaN or infinity"):
            least_norm(first, second)
    with pytest.raises(ValueError, match="NaN or infinity"):
        independent_rows(a.fill_(bad))


def test_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        least_norm(torch.randn(3, 5), torch.randn(4, 2))
    with pytest.raises(ValueError, match="expected a matrix"):
        least_norm(torch.randn(3, 5, 1), torch.randn(5, 2))


# One layer, or several, on the way to zero


def quadratic(seed, rows=60, m=7, n=4, offset=3.0):
    """Rows, weight, bias, curvatures and their moments: float64, with a mean far from 0 for the bias to take up."""
    torch.manual_seed(seed)
    a = torch.randn(rows, m, dtype=torch.float64) + offset
    v, b = torch.randn(m, n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    h = torch.rand(rows, n, dtype=torch.float64) ** 4
    with_one = torch.cat([a, torch.ones(rows, 1, dtype=torch.float64)], 1)
    return a, v, b, h, torch.einsum("ij,ik,il->jkl", h, with_one, with_one)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), log_mu=st.floats(-6, 6))
def test_the_solution_minimises_the_penalised_quadratic_over_weight_and_bias(seed, log_mu):
    a, v, b, h, moments = quadratic(seed)
    mu, layer = 10**log_mu, Shrinkage.from_moments(moments, v)
    weight, change = layer.solve(mu)
    x, y = weight.clone().requires_grad_(), (b + change).requires_grad_()
    rise = 0.5 * (h * (a @ x + y - a @ v - b).square()).sum()
    (rise + mu / 2 * x.square().sum()).backward()
    size = float(moments.abs().amax()) + mu
    assert max(x.grad.abs().max(), y.grad.abs().max()) < 1e-9 * size
    assert layer.rise(mu) == pytest.approx(rise.item(), rel=1e-6, abs=1e-12 * size)
    assert layer.norm2(mu) == pytest.approx(x.square().sum().item(), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), log_mu=st.floats(-6, 6))
def test_the_bias_keeps_the_mean_output_whatever_goes(seed, log_mu):
    a, v, b, h, moments = quadratic(seed)
    weight, change = Shrinkage.from_moments(moments, v).solve(10**log_mu)
    before, after = (h * (a @ v + b)).sum(0), (h * (a @ weight + b + change)).sum(0)
    torch.testing.assert_close(after, before, rtol=1e-8, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.floats(-8, 6), step=st.floats(0.01, 8))
def test_norm_falls_and_rise_grows_with_mu(seed, first, step):
    *_, moments = quadratic(seed)
    v = quadratic(seed)[1]
    layer = Shrinkage.from_moments(moments, v)
    assert layer.norm2(10 ** (first + step)) < layer.norm2(10**first)
    assert layer.rise(10 ** (first + step)) > layer.rise(10**first)


def test_no_mu_keeps_the_weight_and_an_endless_one_leaves_nothing():
    a, v, b, h, moments = quadratic(0)
    layer = Shrinkage.from_moments(moments, v)
    weight, change = layer.solve(1e-15)
    torch.testing.assert_close(weight, v)
    torch.testing.assert_close(change, torch.zeros_like(b), atol=1e-10, rtol=0)
    weight, change = layer.solve(1e20)
    assert float(weight.norm()) < 1e-15
    mean = (h * (a @ v)).sum(0) / h.sum(0)
    torch.testing.assert_close(change, mean)
    spread = 0.5 * (h * (a @ v - mean).square()).sum()
    assert layer.rise(1e20) == pytest.approx(float(spread))


def test_outputs_may_share_one_spectrum():
    """As in a layer whose outputs all have the same weights: (1, m + 1, m + 1) moments for n outputs."""
    _, v, *_, moments = quadratic(0)
    shared, spelled = Shrinkage.from_moments(moments[:1], v), Shrinkage.from_moments(moments[:1].expand(4, -1, -1), v)
    assert shared.norm2(0.3) == pytest.approx(spelled.norm2(0.3))
    assert shared.rise(0.3) == pytest.approx(spelled.rise(0.3))
    for one, other in zip(shared.solve(0.3), spelled.solve(0.3)):
        torch.testing.assert_close(one, other)


def test_outputs_may_share_spectra_in_groups():
    _, v, *_, moments = quadratic(0)
    groups = torch.tensor([1, 0, 1, 1])
    shared, spelled = Shrinkage.from_moments(moments[:2], v, groups), Shrinkage.from_moments(moments[groups], v)
    assert len(shared.vectors) == 2
    assert shared.norm2(0.3) == pytest.approx(spelled.norm2(0.3))
    assert shared.rise(0.3) == pytest.approx(spelled.rise(0.3))
    for one, other in zip(shared.solve(0.3), spelled.solve(0.3)):
        torch.testing.assert_close(one, other)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), keep=st.floats(0.01, 0.99), scale=st.floats(-3, 3))
def test_one_mu_hits_the_norm_of_all_layers_together(seed, keep, scale):
    layers = []
    for each, size in ((seed, 1.0), (seed + 1, 10**scale)):
        _, v, *_, moments = quadratic(each)
        layers.append(Shrinkage.from_moments(moments * size, v))
    mu = mu_for_norm(layers, keep)
    whole = sum(float(layer.weight.square().sum()) for layer in layers)
    assert sum(layer.norm2(mu) for layer in layers) / whole == pytest.approx(keep, abs=1e-5)


def test_one_mu_costs_less_than_any_other_split_of_the_norm():
    """Equal marginal loss per unit of norm: moving norm from one layer to the other only raises the loss."""
    layers = []
    for seed, size in ((0, 1.0), (1, 30.0)):
        _, v, *_, moments = quadratic(seed)
        layers.append(Shrinkage.from_moments(moments * size, v))
    norms = [float(layer.weight.square().sum()) for layer in layers]
    mu = mu_for_norm(layers, 0.5)
    best = sum(layer.rise(mu) for layer in layers)
    kept_norm = [layer.norm2(mu) for layer in layers]
    for moved in (-0.1, -0.01, 0.01, 0.1):
        shares = [(kept_norm[0] + moved * sum(norms)) / norms[0], (kept_norm[1] - moved * sum(norms)) / norms[1]]
        split = sum(layer.rise(mu_for_norm([layer], share)) for layer, share in zip(layers, shares))
        assert split > best


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad):
    _, v, *_, moments = quadratic(0)
    moments[1, 2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        Shrinkage.from_moments(moments, v)
