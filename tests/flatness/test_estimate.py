"""Traces by probes: unbiased, with honest errors, the same for two models."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from objectives import classifier, columns
from torch import nn
from torch.nn.functional import cross_entropy

from yolo_os import UserError
from yolo_os.flatness.estimate import Estimate, Probed, hutchinson, sketch, stratified, student
from yolo_os.flatness.operator import GaussNewton, Hessian, Objective


def quadratic(size=30, seed=0, batches=2, decay=1.0):
    """Batches of quadratics whose eigenvalues fall by a power; the objective and the mean matrix."""
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(size, generator=generator).double())
    matrices = []
    for _ in range(batches):
        basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator).double())
        matrices.append(basis @ torch.diag(10 * torch.arange(1, size + 1).double() ** -decay) @ basis.T)
    shares = [1 / batches] * batches
    objective = Objective(
        {"weight": weight}, shares, lambda batch: weight, lambda batch, made: made @ matrices[batch] @ made / 2
    )
    return objective, sum(matrices) / batches


def after(rounds):
    """Enough after so many rounds."""
    taken = []
    return lambda sampled: taken.append(1) or len(taken) >= rounds


def estimated(objective, seed=2, rounds=4, deflated=False, matrix=Hessian, scale=1.0):
    own = matrix(objective)
    scales = {"trace": [scale] * len(objective.tensors)}
    [found] = hutchinson([Probed(own, scales, sketch(own, seed) if deflated else None)], after(rounds), seed=seed)
    return found.estimate("trace")


def close(estimate, truth):
    return abs(estimate.value - truth) <= 3 * estimate.stderr


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("decay", [0.5, 2.0])
def test_the_trace_of_quadratics(decay, deflated):
    objective, matrix = quadratic(decay=decay)
    estimate = estimated(objective, rounds=20, deflated=deflated)
    assert close(estimate, float(matrix.trace()))
    assert 0 < estimate.stderr < 0.1 * float(matrix.trace())


@pytest.mark.parametrize("deflated", [False, True])
def test_a_linear_layer_with_squared_loss(deflated):
    torch.manual_seed(0)
    layer, x, y = nn.Linear(7, 3).double(), torch.randn(20, 7).double(), torch.randn(20, 3).double()
    objective = Objective(
        dict(layer.named_parameters()),
        [1.0],
        lambda batch: layer(x),
        lambda batch, made: (made - y).square().sum() / 20,
    )
    truth = 2 * 3 * float(x.square().sum() / 20 + 1)
    assert close(estimated(objective, rounds=8, deflated=deflated), truth)
    assert close(estimated(objective, rounds=8, deflated=deflated, matrix=GaussNewton), truth)


@pytest.mark.parametrize("deflated", [False, True])
def test_softmax_regression(deflated):
    torch.manual_seed(0)
    layer, x, y = nn.Linear(7, 4).double(), torch.randn(25, 7).double(), torch.randint(0, 4, (25,))
    objective = Objective(
        dict(layer.named_parameters()), [1.0], lambda batch: layer(x), lambda batch, made: cross_entropy(made, y)
    )
    p = layer(x).detach().softmax(1)
    truth = float(((x.square().sum(1) + 1) * (p * (1 - p)).sum(1)).mean())
    assert close(estimated(objective, rounds=8, deflated=deflated), truth)


def test_an_indefinite_hessian():
    _, _, objective = classifier(hidden=8)
    truth = float(columns(Hessian(objective)).trace())
    assert close(estimated(objective, rounds=8), truth)
    assert close(estimated(objective, rounds=8, deflated=True), truth)


@pytest.mark.parametrize("deflated", [False, True])
def test_the_standard_error_is_honest(deflated):
    """Over 200 seeds the intervals of 95 % hold the truth about so often, with the stop by relative error too."""
    objective, matrix = quadratic(size=24, decay=1.0, batches=2)
    truth = float(matrix.trace())
    own = Hessian(objective)
    held, errors, stderrs = 0, [], []
    for seed in range(200):
        probed = Probed(own, {"trace": [1.0]}, sketch(own, seed, 4) if deflated else None)
        [found] = hutchinson([probed], lambda all_: all_[0].estimate("trace").within(0.06), seed=seed, most=24)
        estimate = found.estimate("trace")
        low, high = estimate.interval
        held += low <= truth <= high
        errors.append(estimate.value - truth)
        stderrs.append(estimate.stderr)
    assert 178 <= held <= 199  # of 200; 190 expected, three standard deviations are 9
    spread = float(torch.tensor(errors).std())
    assert spread == pytest.approx(sum(stderrs) / 200, rel=0.2)
    assert abs(sum(errors) / 200) < 4 * spread / math.sqrt(200)


def test_taking_out_the_largest_directions_pays_where_few_eigenvalues_lead():
    objective, _ = quadratic(size=60, decay=2.0, batches=1)
    plain, deflated = estimated(objective, rounds=6), estimated(objective, rounds=4, deflated=True)
    assert plain.samples == deflated.samples + 8  # as many products in all
    assert deflated.stderr < plain.stderr / 5


def test_a_figure_is_the_scaled_sum_over_the_diagonal():
    objective, matrix = quadratic(decay=1.5)
    scale = torch.arange(30).double()
    truth = float((scale * matrix.diagonal()).sum())
    assert close(estimated(objective, rounds=6, scale=scale), truth)
    assert close(estimated(objective, rounds=6, scale=scale, deflated=True), truth)
    left_out = Probed(Hessian(objective), {"trace": [None]})
    assert hutchinson([left_out], after(2))[0].estimate("trace") == Estimate(0.0, 0.0, 16)


def test_the_largest_eigenvalue_comes_with_its_residual():
    objective, matrix = quadratic(decay=1.0)
    found = sketch(Hessian(objective), 0, 12)
    assert found.eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), abs=3 * found.residual + 1e-6)
    torch.testing.assert_close(found.products, matrix @ found.basis)
    torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(12).double())


def test_a_sketch_of_all_directions_leaves_nothing_to_probe():
    objective, matrix = quadratic(size=6, decay=1.0)
    probed = Probed(Hessian(objective), {"trace": [1.0]}, sketch(Hessian(objective), 0, 5))
    assert probed.known()["trace"] == pytest.approx(float(matrix.trace()), rel=0.2)


def test_the_difference_of_two_models_is_known_better_than_either():
    objective, matrix = quadratic()
    scaled = Objective(
        objective.parameters, objective.weights, objective.predict, lambda *all_: 0.99 * objective.criterion(*all_)
    )
    models = [Probed(Hessian(each), {"trace": [1.0]}) for each in (objective, scaled)]
    first, second = hutchinson(models, after(4), seed=1)
    difference = second.less(first, "trace")
    assert close(difference, -0.01 * float(matrix.trace()))
    assert difference.stderr < first.estimate("trace").stderr / 50


def test_samples_do_not_depend_on_which_rounds_they_came_in():
    objective, _ = quadratic()
    probed = [Probed(Hessian(objective), {"trace": [1.0]})]
    whole = hutchinson(probed, after(5))
    part = hutchinson(probed, after(2))
    resumed = hutchinson(probed, after(4), before=part)  # asked once more about the samples that were there
    assert torch.equal(whole[0].samples("trace"), resumed[0].samples("trace"))


def test_students_quantiles():
    for freedom, quantile in ((10, 2.228), (30, 2.042), (math.inf, 1.960)):
        assert student(0.975, freedom) == pytest.approx(quantile, abs=0.02)


def test_batches_count_by_their_weight():
    samples = torch.tensor([[1.0, 10.0], [3.0, 14.0]]).double()
    estimate = stratified(samples, [0.75, 0.25])
    assert estimate.value == pytest.approx(0.75 * 2 + 0.25 * 12)
    assert estimate.stderr == pytest.approx(math.sqrt(0.75**2 * 2 / 2 + 0.25**2 * 8 / 2))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hessian_eigenthings", None)
    objective, _ = quadratic()
    with pytest.raises(UserError, match=r"pip install 'yolo-os\[flatness\]'"):
        sketch(Hessian(objective), 0)
