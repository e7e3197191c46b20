import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_os.linalg import default_rtol, independent_rows, least_norm, least_norm_from_gram


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
