"""The loss-aware shift: its algebra, the curvature it weighs with, the draw of rows, the guard, and all at once."""

import copy
import math

import pytest
import torch
from builders import labelled_batch, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from yolo_os import ShiftRecipe, curvature, prediction_layers, shift_
from yolo_os.heads import PredictionLayer, find_head
from yolo_os.linalg import Shrinkage, mu_for_norm
from yolo_os.loss import training_loss
from yolo_os.methods import METHODS, Guard
from yolo_os.methods.curvature import CurvatureGram, bernoulli, categorical, shrinkages
from yolo_os.statistics import Anchors, anchors_of, as_columns, capture

BUDGET = METHODS["budget"]
GAINS = {"cls": 0.5, "dfl": 1.5, "box": 7.5, "pose": 12.0}


def quadratic(seed, rows=60, m=7, n=4, offset=3.0):
    """Rows, weight, bias, curvatures and their moments: float64, with a mean far from 0 for the bias to take up."""
    torch.manual_seed(seed)
    a = torch.randn(rows, m, dtype=torch.float64) + offset
    v, b = torch.randn(m, n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    h = torch.rand(rows, n, dtype=torch.float64) ** 4
    with_one = torch.cat([a, torch.ones(rows, 1, dtype=torch.float64)], 1)
    return a, v, b, h, torch.einsum("ij,ik,il->jkl", h, with_one, with_one)


def layer_of(role="cls", m=6, n=3, name="cv3.0", group="0", seed=0, shift=-3.0, bias=True, stride=8.0):
    """A prediction layer; `shift` is added to its biases, which for classes says how much it sees of objects."""
    torch.manual_seed(seed)
    module = nn.Conv2d(m, n, 1, bias=bias)
    if bias:
        module.bias.data += shift
    return PredictionLayer(name, role, module, int(group[-1]), stride, group)


def batch_of(layer, images=2, points=40, seed=0, scorer=None):
    """Features, outputs and anchor points of one batch, numbered by its seed; the scores are those of a scorer."""
    generator = torch.Generator().manual_seed(seed + 100)
    features = torch.randn(images, layer.in_features, points, generator=generator) + 1

    def outputs_of(module):
        return module(features[..., None]).detach()[..., 0]

    return features, outputs_of(layer.module), Anchors(outputs_of((scorer or layer).module), batch=seed)


def sums_of(gram):
    """The weighted sums as they are, not divided by the presence."""
    gram = copy.copy(gram)
    gram.presence = torch.ones((), dtype=torch.float64)
    return gram.moments()


def seen_of(layer, batches=1, seed=0, **options):
    """A collector that has seen batches of the layer."""
    gram = CurvatureGram(layer, GAINS, seed)
    for number in range(batches):
        gram.add(*batch_of(layer, seed=number, **options))
    return gram


def kept(before, after):
    return float(after.square().sum() / before.square().sum())


@pytest.fixture
def every_row(monkeypatch):
    """All anchor points enter the sums, each once."""
    monkeypatch.setattr(curvature, "ROWS", 10**9)
    monkeypatch.setattr(curvature, "ROWS_SHARE", 1e7)


@pytest.fixture
def no_floor(monkeypatch):
    monkeypatch.setattr(curvature, "FLOOR", 0.0)


# The algebra


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), log_mu=st.floats(-6, 6))
def test_the_solution_minimises_the_penalised_quadratic_over_weight_and_bias(seed, log_mu):
    a, v, b, h, moments = quadratic(seed)
    mu, layer = 10**log_mu, Shrinkage.of(moments, v)
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
    weight, change = Shrinkage.of(moments, v).solve(10**log_mu)
    before, after = (h * (a @ v + b)).sum(0), (h * (a @ weight + b + change)).sum(0)
    torch.testing.assert_close(after, before, rtol=1e-8, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.floats(-8, 6), step=st.floats(0.01, 8))
def test_norm_falls_and_rise_grows_with_mu(seed, first, step):
    *_, moments = quadratic(seed)
    v = quadratic(seed)[1]
    layer = Shrinkage.of(moments, v)
    assert layer.norm2(10 ** (first + step)) < layer.norm2(10**first)
    assert layer.rise(10 ** (first + step)) > layer.rise(10**first)


def test_no_mu_keeps_the_weight_and_an_endless_one_leaves_nothing():
    a, v, b, h, moments = quadratic(0)
    layer = Shrinkage.of(moments, v)
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
    shared, spelled = Shrinkage.of(moments[:1], v), Shrinkage.of(moments[:1].expand(4, -1, -1), v)
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
        layers.append(Shrinkage.of(moments * size, v))
    mu = mu_for_norm(layers, keep)
    whole = sum(float(layer.weight.square().sum()) for layer in layers)
    assert sum(layer.norm2(mu) for layer in layers) / whole == pytest.approx(keep, abs=1e-5)


def test_one_mu_costs_less_than_any_other_split_of_the_norm():
    """Equal marginal loss per unit of norm: moving norm from one layer to the other only raises the loss."""
    layers = []
    for seed, size in ((0, 1.0), (1, 30.0)):
        _, v, *_, moments = quadratic(seed)
        layers.append(Shrinkage.of(moments * size, v))
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
        Shrinkage.of(moments, v)


# The curvature of the loss


def test_the_curvature_of_classes_is_the_hessian_of_their_loss():
    torch.manual_seed(0)
    z, target = torch.randn(6, dtype=torch.float64) * 3, torch.rand(6, dtype=torch.float64)
    loss = nn.BCEWithLogitsLoss(reduction="sum")
    hessian = torch.autograd.functional.hessian(lambda z: loss(z, target), z)
    torch.testing.assert_close(hessian, torch.diag(bernoulli(z)))


def test_the_curvature_of_box_bins_is_the_diagonal_of_the_hessian_of_dfl():
    """Against Ultralytics' own loss, whatever the target: it means over four sides."""
    from ultralytics.utils.loss import DFLoss

    torch.manual_seed(0)
    bins = 5
    for seed in range(3):
        torch.manual_seed(seed)
        z, target = torch.randn(4 * bins, dtype=torch.float64) * 2, torch.rand(1, 4, dtype=torch.float64) * (bins - 1)

        def loss(z, target=target):
            return DFLoss(bins)(z.view(4, bins), target.clone()).sum()

        diagonal = torch.autograd.functional.hessian(loss, z).diagonal()
        torch.testing.assert_close(diagonal, categorical(z[None], bins)[0] / 4)


def test_class_sums_are_the_second_derivative_of_the_whole_training_loss(every_row):
    """In units of the loss: with respect to the biases, twice through the model's own criterion."""
    model = small_model().eval()
    batch = labelled_batch(model)
    head, target_sums = find_head(model), []
    layers = [layer for layer in head.layers if layer.role == "cls"]
    with training_loss(model) as loss, capture([layer.module for layer in layers]) as seen:
        model.criterion.assigner.register_forward_hook(lambda _, __, output: target_sums.append(output[2].sum()))
        total = loss(batch, model(batch["img"]))["total"]
        biases = [layer.module.bias for layer in layers]
        first = torch.autograd.grad(total, biases, create_graph=True)
        second = [torch.autograd.grad(each[3], bias, retain_graph=True)[0][3] for each, bias in zip(first, biases)]
        anchors = anchors_of(head, seen, {})
        for layer, expected in zip(layers, second):
            gram = CurvatureGram(layer, GAINS, 0)
            gram.add(*map(as_columns, seen[layer.module]), anchors[layer.group])
            # s stands for the target scores: here their true sum is taken (at least 1, as there), which makes it exact.
            gram.presence = target_sums[0].clamp(min=1).double()
            found = gram.moments()[3, -1, -1]
            assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_presence_stands_for_the_target_scores_on_a_trained_detector(detector, digits):
    """What lets the curvature do without labels: the sum of class probabilities is near that of the targets."""
    from yolo_os.integration.checkpoint import load_checkpoint
    from yolo_os.integration.data import calibration_batches

    model = load_checkpoint(detector).model
    batches, _ = calibration_batches(model, digits, ShiftRecipe(images=64, held_out=0))
    head, targets, presences = find_head(model), [], []
    with training_loss(model) as loss, torch.no_grad(), capture(head.scorers.values()) as seen:
        model.criterion.assigner.register_forward_hook(lambda _, __, output: targets.append(float(output[2].sum())))
        for batch in batches:
            loss(batch, model(batch["img"] / 255))
            presences += [float(each.presence.sum()) for each in anchors_of(head, seen, {}).values()]
    assert sum(presences) == pytest.approx(sum(targets), rel=0.2)


def divergence(layer, features, weight, bias):
    """KL(old || new) of the class probabilities in units of the loss, summed over all anchor points, over their s."""
    a = features.double().transpose(1, 2).flatten(0, 1)
    old = a @ layer.matrix.double() + layer.module.bias.detach().double()
    new = a @ weight + bias
    p = old.sigmoid()
    softplus = nn.functional.softplus
    return float(GAINS["cls"] * (softplus(new) - softplus(old) - p * (new - old)).sum() / p.sum())


def test_the_predicted_rise_is_the_divergence_of_the_predictions(every_row, no_floor):
    layer = layer_of(m=6, n=3)
    features, outputs, anchors = batch_of(layer, points=200)
    gram = CurvatureGram(layer, GAINS, 0)
    gram.add(features, outputs, anchors)
    ready = shrinkages([gram])[layer.name]
    mu = mu_for_norm([ready], 0.99)
    weight, change = ready.solve(mu)
    true = divergence(layer, features, weight, layer.module.bias.detach().double() + change)
    assert ready.rise(mu) > 0
    assert ready.rise(mu) == pytest.approx(true, rel=0.02)


def test_the_predicted_rise_of_a_box_bin_is_the_divergence_of_the_side(every_row, no_floor):
    """One bin at a time: between bins of a side the softmax has cross terms, which the diagonal leaves out."""
    bins, j = 4, 6
    scorer = layer_of("cls", m=5, n=2, seed=1, shift=0)
    layer = layer_of("box", m=5, n=4 * bins, name="cv2.0", shift=0)
    features, outputs, anchors = batch_of(layer, points=200, scorer=scorer)
    grams = [CurvatureGram(layer, GAINS, 0), CurvatureGram(scorer, GAINS, 0)]
    grams[0].add(features, outputs, anchors)
    grams[1].add(features, anchors.logits, anchors)
    ready = shrinkages(grams)["cv2.0"]
    one = Shrinkage(
        ready.weight[:, j : j + 1], ready.mean[j : j + 1], ready.values[j : j + 1], ready.vectors[j : j + 1]
    )
    mu = mu_for_norm([one], 0.95)
    weight, change = one.solve(mu)
    new = outputs.double().transpose(1, 2).flatten(0, 1)
    old = new.clone()
    new[:, j] += (features.double().transpose(1, 2).flatten(0, 1) @ (weight - one.weight) + change)[:, 0]
    old, new = (z.view(-1, 4, bins).log_softmax(2) for z in (old, new))
    s = anchors.presence.double().flatten()
    true = GAINS["dfl"] / 4 * ((old.exp() * (old - new)).sum((1, 2)) * s).sum() / s.sum()
    assert one.rise(mu) > 0
    assert one.rise(mu) == pytest.approx(float(true), rel=0.05)


@pytest.mark.parametrize(("role", "cost"), [("mask", 9.0), ("keypoint", 13.5), ("angle", 9.0), ("box", 9.0)])
def test_roles_without_a_curvature_do_not_care_for_the_scale_of_their_outputs(every_row, no_floor, role, cost):
    """A box without DFL has 4 outputs. All of an output gone is a change by one standard deviation: half a gain."""
    scorer = layer_of("cls", seed=1)
    for factors in (torch.ones(4), torch.tensor([1.0, 1e-3, 50.0, 7.0])):
        layer = layer_of(role, n=4, name="cv4.0")
        layer.module.weight.data *= factors[:, None, None, None]
        gram = CurvatureGram(layer, GAINS, 0)
        gram.add(*batch_of(layer, points=200, scorer=scorer))
        ready = shrinkages([gram])["cv4.0"]
        assert ready.rise(1e30) == pytest.approx(cost / 2, rel=1e-3)
        per_output = 0.5 * (ready.values * ready._inside.square()).sum(1)
        torch.testing.assert_close(per_output, torch.full((4,), cost / 8, dtype=torch.float64), rtol=1e-3, atol=0)


def test_an_output_that_never_changes_costs_nothing_and_breaks_nothing(every_row):
    layer = layer_of("mask", n=4, name="cv4.0")
    layer.module.weight.data[2] = 0
    ready = shrinkages([seen_of(layer, scorer=layer_of("cls", seed=1))])["cv4.0"]
    weight, change = ready.solve(mu_for_norm([ready], 0.5))
    assert torch.isfinite(weight).all()
    assert torch.isfinite(change).all()
    assert not weight[:, 2].any()


# What is summed up


def test_the_draw_of_rows_is_unbiased(monkeypatch):
    layer, batch = layer_of(n=3), {"images": 2, "points": 60}
    monkeypatch.setattr(curvature, "ROWS", 10**9)
    monkeypatch.setattr(curvature, "ROWS_SHARE", 1e7)
    full = sums_of(seen_of(layer, **batch))
    monkeypatch.setattr(curvature, "ROWS", 6)
    draws = torch.stack([sums_of(seen_of(layer, seed=seed, **batch)) for seed in range(400)])
    error = float((draws.mean(0) - full).square().sum())
    expected = float(draws.var(0).sum()) / len(draws)
    assert 0 < expected < float(full.square().sum()) * 0.03**2  # the draws differ, and their mean is sharp
    assert error < 4 * expected


def test_an_object_is_drawn_far_more_often_than_background():
    """Chances add up to the rows wanted, none is above 1, and they go with the share."""
    share = torch.tensor([0.5] * 2 + [0.1] * 10 + [1e-4] * 1000)
    chance = curvature._chances(share, 8)
    assert float(chance.sum()) == pytest.approx(8, rel=1e-3)
    assert float(chance.max()) <= 1
    assert torch.equal(chance[:2], torch.ones(2))
    assert float(chance[2] / chance[-1]) == pytest.approx(1000, rel=1e-3)


def test_without_any_curvature_nothing_is_drawn():
    assert not curvature._chances(torch.zeros(9), 4).any()


def test_the_same_batch_draws_the_same_rows_and_another_batch_others():
    layer, sums = layer_of(), []
    features, outputs, anchors = batch_of(layer, points=300)
    for number, seed in ((3, 0), (3, 0), (4, 0), (3, 1)):
        gram = CurvatureGram(layer, GAINS, seed)
        gram.add(features, outputs, Anchors(anchors.logits, batch=number))
        sums.append(sums_of(gram))
    assert torch.equal(sums[0], sums[1])
    assert not torch.equal(sums[0], sums[2])
    assert not torch.equal(sums[0], sums[3])


def test_sums_add_up_whoever_takes_in_which_batch_in_whatever_order():
    layer = layer_of()
    batches = [batch_of(layer, points=100, seed=seed) for seed in range(4)]

    def seen(*numbers):
        gram = CurvatureGram(layer, GAINS, 0)
        for number in numbers:
            gram.add(*batches[number])
        return gram

    together, parts = seen(0, 1, 2, 3), [seen(2), seen(3, 0, 1)]
    torch.testing.assert_close(sum(sums_of(part) for part in parts), sums_of(together), rtol=1e-12, atol=0)
    torch.testing.assert_close(sum(part.uniform for part in parts), together.uniform, rtol=1e-12, atol=1e-12)
    assert float(sum(part.presence for part in parts)) == pytest.approx(float(together.presence), rel=1e-12)
    assert sum(part.count for part in parts) == together.count == 4 * 2 * 100


def test_memory_does_not_grow_with_the_images():
    layer = layer_of(n=3)
    few, many = seen_of(layer), seen_of(layer, batches=20)
    assert sums_of(few).shape == sums_of(many).shape == (3, 7, 7)
    assert few.uniform.shape == many.uniform.shape == (7, 7)


def test_a_layer_without_objects_goes_first_and_the_floor_holds_it(monkeypatch):
    alive, dead = layer_of(shift=-2), layer_of(name="cv3.1", group="1", seed=1, shift=-60)
    grams = [seen_of(alive, points=200), seen_of(dead, points=200)]
    grams[0].presence = grams[1].presence = grams[0].presence + grams[1].presence  # two levels of one branch
    shares = {}
    for floor in (0.0, curvature.FLOOR):
        monkeypatch.setattr(curvature, "FLOOR", floor)
        ready = shrinkages(grams)
        mu = mu_for_norm(list(ready.values()), 0.5)
        for layer in (alive, dead):
            weight, change = ready[layer.name].solve(mu)
            assert torch.isfinite(weight).all()
            assert torch.isfinite(change).all()
            shares[layer.name, floor] = kept(layer.matrix, weight)
    assert shares["cv3.1", 0.0] < 1e-12
    assert shares["cv3.1", curvature.FLOOR] > 1e-6
    assert shares["cv3.1", curvature.FLOOR] < 0.5 * shares["cv3.0", curvature.FLOOR]


# The guard


@pytest.fixture(scope="module")
def collected():
    """A class layer with what was seen of it."""
    layer = layer_of(m=12, n=5, shift=-2)
    return [(layer, seen_of(layer, batches=3, points=200))]


def guard_of(collected, rise):
    """A guard whose loss rises by a function of the share of the norm that is left."""
    (layer, _), *_ = collected

    def loss_with(solutions):
        return 4.0 * (1 + rise(kept(layer.matrix.double(), solutions[layer.name].weight)))

    return Guard(4.0, loss_with)


def solve(collected, guard, **settings):
    solved = BUDGET.solve(collected, ShiftRecipe(**settings), guard)
    return solved, kept(collected[0][0].matrix.double(), solved.solutions["cv3.0"].weight)


def test_without_a_guard_the_norm_is_what_was_asked_for(collected):
    for keep in (0.9, 0.6, 0.2):
        solved, share = solve(collected, None, keep=keep)
        assert share == pytest.approx(keep, abs=1e-5)
        assert [trial.passed for trial in solved.trials] == [True]
    guard = guard_of(collected, lambda share: 1e6)
    assert solve(collected, guard, keep=0.6, max_loss_rise=None)[1] == pytest.approx(0.6, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(keep=st.floats(0.1, 0.9), tolerances=st.tuples(st.floats(0, 0.3), st.floats(0, 0.3)), slope=st.floats(0, 0.5))
def test_a_larger_tolerance_never_shifts_less(collected, keep, tolerances, slope):
    guard = guard_of(collected, lambda share: slope * (1 - share))
    small, large = (solve(collected, guard, keep=keep, max_loss_rise=tolerance)[1] for tolerance in sorted(tolerances))
    assert large <= small
    assert large >= keep - 1e-5


def test_the_guard_stops_at_the_first_share_within_the_tolerance(collected):
    guard = guard_of(collected, lambda share: 0.1 * (1 - share))
    solved, share = solve(collected, guard, keep=0.2, max_loss_rise=0.05)
    assert share >= 0.5 - 1e-5
    assert share == pytest.approx(solved.trials[-1].keep, abs=1e-5)
    assert [trial.passed for trial in solved.trials] == [False] * (len(solved.trials) - 1) + [True]
    for trial in solved.trials:
        assert trial.rise == pytest.approx(0.1 * (1 - trial.keep), abs=1e-5)
        assert trial.passed == (max(trial.rise, trial.predicted / 4.0) <= 0.05)
    assert sorted(trial.keep for trial in solved.trials) == [trial.keep for trial in solved.trials]


@pytest.mark.parametrize("rise", [0.5, math.nan, math.inf])
def test_when_nothing_qualifies_the_weights_stay_and_the_reason_is_given(collected, rise):
    solved, share = solve(collected, guard_of(collected, lambda share: rise), max_loss_rise=0.01)
    assert share == 1
    (solution,) = solved.solutions.values()
    assert "still raises the loss beyond max_loss_rise" in solution.unchanged
    assert solution.bias_change is None
    assert len(solved.trials) == 8
    assert not any(trial.passed for trial in solved.trials)


def test_a_loss_that_happens_to_fall_is_no_licence(collected):
    """The prediction is a condition of its own: the loss falls here however much goes."""
    guard = guard_of(collected, lambda share: share - 1)
    solved, share = solve(collected, guard, keep=0.02, max_loss_rise=1e-3)
    assert share > 0.1
    assert all(trial.rise < 0 for trial in solved.trials)
    assert solved.trials[-1].predicted / 4.0 <= 1e-3 < solved.trials[-2].predicted / 4.0


def test_the_guard_is_deterministic(collected):
    guard = guard_of(collected, lambda share: 0.1 * (1 - share))
    first, second = (solve(collected, guard, keep=0.3, max_loss_rise=0.04)[0] for _ in range(2))
    assert first.trials == second.trials
    assert torch.equal(first.solutions["cv3.0"].weight, second.solutions["cv3.0"].weight)


def test_layers_that_the_budget_cannot_judge_are_refused():
    recipe = ShiftRecipe()
    assert "use method=sos" in BUDGET.refusal(layer_of("joint"), recipe)
    assert "no bias" in BUDGET.refusal(layer_of(bias=False), recipe)
    assert BUDGET.refusal(layer_of(), recipe) is None


# All of it at once


@pytest.fixture(scope="module")
def untouched():
    return small_model()


@pytest.fixture(scope="module")
def batches(untouched):
    return [labelled_batch(untouched, seed=seed) for seed in range(3)]


def test_a_guard_that_lets_nothing_pass_leaves_the_model_as_it_was(untouched, batches):
    model = copy.deepcopy(untouched)
    report = shift_(model, batches, ShiftRecipe(max_loss_rise=0.0), held_out=batches[:1])
    assert all(
        torch.equal(before, after)
        for before, after in zip(untouched.state_dict().values(), model.state_dict().values())
    )
    assert not report.moved
    assert all("beyond max_loss_rise" in layer.skipped for layer in report.layers)
    assert len(report.trials) == 8
    assert "Nothing moved" in report.verdict
    assert report.held_out.after == report.held_out.before


def test_the_rise_that_the_guard_saw_is_the_rise_that_came(untouched, batches):
    report = shift_(copy.deepcopy(untouched), batches, ShiftRecipe(max_loss_rise=0.5), held_out=batches[:2])
    assert report.trials[-1].passed
    assert report.trials[-1].rise == pytest.approx(report.held_out.rise, abs=1e-6)
    assert report.norm_ratio**2 == pytest.approx(report.trials[-1].keep, abs=1e-4)
    again = shift_(copy.deepcopy(untouched), batches, ShiftRecipe(max_loss_rise=0.5), held_out=batches[:2])
    assert again.trials == report.trials
    assert [layer.norm_after for layer in again.layers] == [layer.norm_after for layer in report.layers]


def test_no_label_enters_the_weights(untouched, batches):
    labelled, bare = copy.deepcopy(untouched), copy.deepcopy(untouched)
    recipe = ShiftRecipe(max_loss_rise=None)
    shift_(labelled, batches, recipe)
    shift_(bare, [batch["img"] for batch in batches], recipe)
    for one, other in zip(prediction_layers(labelled), prediction_layers(bare)):
        assert torch.equal(one.matrix, other.matrix)
        assert torch.equal(one.module.bias, other.module.bias)


@pytest.mark.parametrize("family", ["yolo26n", "yolo11n-seg", "yolo26n-pose", "yolo11n-obb"])
def test_all_roles_and_both_branches_share_the_budget(family):
    model = small_model(family)
    batches = [labelled_batch(model, seed=seed) for seed in range(2)]
    report = shift_(model, batches, ShiftRecipe(keep=0.7, max_loss_rise=None), held_out=batches[:1])
    before, after = (
        sum(norm**2 for norm in norms) for norms in zip(*((x.norm_before, x.norm_after) for x in report.moved))
    )
    assert after / before == pytest.approx(0.7, abs=1e-3)
    assert {layer.role for layer in report.moved} == {layer.role for layer in report.layers}
    assert all(layer.norm_after <= layer.norm_before * (1 + 1e-6) for layer in report.moved)
    assert all("does not run in eval mode" in layer.skipped for layer in report.layers if layer not in report.moved)
    assert all(map(math.isfinite, report.held_out.after.values()))


def test_on_a_real_detector_it_costs_nothing_where_sos_costs_much(detector, digits):
    from yolo_os.evaluation.detections import evaluate_detections, from_boxes
    from yolo_os.integration.checkpoint import load_checkpoint
    from yolo_os.integration.data import calibration_batches
    from yolo_os.integration.detect import detect
    from yolo_os.voc import read_devkit

    checkpoint = load_checkpoint(detector)
    truth = read_devkit(digits, split="test", classes=list(checkpoint.model.names.values()))
    used, held_out = calibration_batches(checkpoint.model, digits, ShiftRecipe(images=96, held_out=64))

    def score(model):
        found = detect(model, digits, imgsz=checkpoint.imgsz)
        return evaluate_detections(truth, from_boxes(found.boxes, found.names, truth)).map

    reports, scores = {}, {"before": score(checkpoint.model)}
    for method in ("budget", "sos"):
        model = copy.deepcopy(checkpoint.model)
        reports[method] = shift_(model, used, ShiftRecipe(method=method, samples=0.75), held_out=held_out)
        scores[method] = score(model)
    assert reports["budget"].norm_ratio ** 2 == pytest.approx(0.6, abs=1e-3)
    assert reports["budget"].trials[-1].passed
    assert abs(reports["budget"].held_out.rise) < 0.003
    assert abs(scores["budget"] - scores["before"]) < 0.002
    assert reports["sos"].norm_ratio > reports["budget"].norm_ratio
    assert reports["sos"].held_out.rise > 5 * abs(reports["budget"].held_out.rise)
    assert scores["sos"] < scores["budget"] - 0.002
