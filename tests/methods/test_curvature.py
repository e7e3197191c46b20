"""The curvature of the training loss that the loss-aware shift weighs with, and the draw of rows."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from builders import batch_of, joint_layer, labelled_batch, layer_of, small_model
from torch import nn

from yolo_os import ShiftRecipe
from yolo_os.capture import anchors_of, as_columns, capture
from yolo_os.heads import GAINS, find_head
from yolo_os.linalg import Shrinkage, mu_for_norm
from yolo_os.loss import training_loss
from yolo_os.methods import curvature
from yolo_os.methods.curvature import (
    CurvatureGram,
    bernoulli,
    boxes_felt,
    categorical,
    curvature_gram,
    shrinkages,
)
from yolo_os.statistics import Anchors


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


# Anchor-based layers


ANCHOR_GAINS = {"box": 0.05, "obj": 0.7, "cls": 0.3}


def joint_seen(layer, images=2, rows=6, columns=8, change=None):
    """The curvature of each output summed over all points of one batch, and the outputs, (B, anchors, H, W, .)."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(images, layer.in_features, rows * columns, generator=generator)
    outputs = layer.module(features[..., None]).detach()[..., 0]
    if change is not None:
        change(layer.layout.by_anchor(outputs))
    gram = curvature_gram(layer, ANCHOR_GAINS, 0)
    gram.add(features, outputs, Anchors())
    split = layer.layout.by_anchor(outputs).view(images, len(layer.layout.sizes), -1, rows, columns)
    return gram, split.permute(0, 1, 3, 4, 2)


def anchor_loss(layer):
    """The criterion of a head of this level alone."""
    from yolo_os.integration.yolov5.loss import AnchorLoss

    head = SimpleNamespace(anchors=torch.tensor([layer.layout.sizes]), nc=layer.layout.classes, nl=1)
    loss = AnchorLoss(head, ANCHOR_GAINS)
    loss.balance = (layer.layout.balance,)
    return loss


def second_derivative(function, values):
    """Of a function along the direction of all ones, in numbers of the shape of `values`."""
    gradient = torch.autograd.grad(function(values), values, create_graph=True)[0].sum()
    return float(torch.autograd.grad(gradient, values)[0].sum())


def test_objectness_sums_are_the_second_derivative_of_the_whole_training_loss(every_row):
    """With respect to the bias of each anchor's objectness, whatever the labels."""
    layer = joint_layer()
    gram, outputs = joint_seen(layer)
    found = gram.moments()[:, -1, -1].view(2, -1)[:, 4]
    batch = {"batch_idx": torch.tensor([0.0, 1.0]), "cls": torch.tensor([[0.0], [2.0]]),
             "bboxes": torch.tensor([[0.4, 0.4, 0.2, 0.3], [0.6, 0.3, 0.4, 0.4]])}  # fmt: skip
    for anchor in range(2):
        bias = torch.zeros((), requires_grad=True)
        moved = outputs.clone()
        target = moved[:, anchor, ..., 4]

        def total(bias, moved=moved, target=target, anchor=anchor):
            changed = moved.clone()
            changed[:, anchor, ..., 4] = target + bias
            terms = anchor_loss(layer)([changed], batch)[0] / len(changed)
            return terms[1]  # the box loss has no objectness in it, but its IoU is the target

        assert float(found[anchor]) == pytest.approx(second_derivative(total, bias), rel=1e-4)


def test_class_sums_of_an_anchor_based_layer_are_those_of_its_loss_where_objectness_says_who_learns(every_row):
    layer = joint_layer()
    batch = {"batch_idx": torch.tensor([0.0, 1.0]), "cls": torch.tensor([[0.0], [2.0]]),
             "bboxes": torch.tensor([[0.43, 0.4, 0.2, 0.3], [0.62, 0.3, 0.4, 0.4]])}  # fmt: skip
    matches = anchor_loss(layer).match(0, (6, 8), batch)
    learns = torch.full((2, 2, 6, 8), -60.0)
    learns[matches.image, matches.anchor, matches.row, matches.column] = 60.0
    assert int((learns > 0).sum()) == len(matches.label) > 4  # no cell twice

    def says_so(split):
        split[:, :, 4] = learns.flatten(2)

    gram, outputs = joint_seen(layer, change=says_so)
    found = gram.moments()[:, -1, -1].view(2, -1)[:, 5:]
    for anchor in range(2):
        for label in range(3):

            def total(bias, anchor=anchor, label=label):
                changed = outputs.clone()
                changed[:, anchor, ..., 5 + label] = changed[:, anchor, ..., 5 + label] + bias
                return anchor_loss(layer)([changed], batch)[0][2] / len(changed)

            expected = second_derivative(total, torch.zeros((), requires_grad=True))
            assert float(found[anchor, label]) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def iou(a, b):
    """Of boxes (k, 4) as x, y, w, h."""
    low, high = (torch.stack([box[:, :2] + side * box[:, 2:] / 2 for box in (a, b)]) for side in (-1, 1))
    inside = (high.amin(0) - low.amax(0)).clamp(min=0).prod(1)
    return inside / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - inside)


@pytest.mark.parametrize("j", range(4))
def test_the_curvature_of_a_box_is_that_of_the_mean_loss_over_targets(j):
    """By a simulation: targets normally distributed about a box, all four errors of one spread."""
    generator = torch.Generator().manual_seed(0)
    z, size = torch.tensor([0.4, -0.7, 0.3, -0.4], dtype=torch.float64), torch.tensor([3.0, 2.0], dtype=torch.float64)

    def box(z):
        y = z.sigmoid()
        return torch.cat([2 * y[:2] - 0.5, (2 * y[2:]).square() * size])

    whole, centre = 0.04, box(z)
    spread = whole / 4 * math.pi**0.5 / torch.tensor([2.0, 2.0, 1.0, 1.0])
    errors = torch.randn(400_000, 4, generator=generator, dtype=torch.float64) * spread
    targets = torch.cat([centre[:2] + errors[:, :2] * centre[2:], centre[2:] * errors[:, 2:].exp()], 1)
    assert float(1 - iou(centre.expand(len(targets), 4), targets).mean()) == pytest.approx(whole, rel=0.1)
    felt = boxes_felt(z[None, None], size[None])[0, 0]
    step = torch.zeros(4, dtype=torch.float64)
    step[j] = whole / 8 / felt[j]
    losses = [1 - iou(box(z + k * step).expand(len(targets), 4), targets).mean() for k in (-1, 0, 1)]
    found = float((losses[0] - 2 * losses[1] + losses[2]) / step[j] ** 2)
    assert found == pytest.approx(float(4 / (math.pi * whole) * felt[j] ** 2), rel=0.15)


def test_the_mean_box_loss_is_what_objectness_says_of_it(every_row):
    layer = joint_layer()

    def surely(split):
        split[:, :, 4] = math.log(0.8 / 0.2)

    gram, outputs = joint_seen(layer, change=surely)
    sizes = torch.tensor(layer.layout.sizes)
    felt = boxes_felt(outputs.permute(0, 2, 3, 1, 4)[..., :4].flatten(0, 2), sizes).square().mean(0) / 2  # per anchor
    expected = ANCHOR_GAINS["box"] * 4 / (math.pi * 0.2) * felt
    torch.testing.assert_close(gram.moments()[:, -1, -1].view(2, -1)[:, :4].float(), expected, rtol=1e-4, atol=0)


def test_a_single_class_has_no_class_loss(every_row):
    gram, _ = joint_seen(joint_layer(classes=1))
    sums = gram.moments()[:, -1, -1].view(2, 6)
    assert (sums[:, :5] > 0).all()
    assert not sums[:, 5].any()
    assert all(torch.isfinite(each).all() for each in shrinkages([gram])["m.0"].solve(1e-3))


def test_the_classes_of_a_large_layer_share_their_mean_curvature(every_row, monkeypatch):
    layer = joint_layer()
    apart, _ = joint_seen(layer)
    monkeypatch.setattr(curvature, "SHARED_ABOVE", 0)
    shared, _ = joint_seen(layer)
    assert apart.groups is None
    assert shared.groups.tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 10, 11, 11, 11]
    one, other = apart.moments().view(2, 8, 7, 7), shared.moments().view(2, 6, 7, 7)
    torch.testing.assert_close(other[:, :5], one[:, :5])
    torch.testing.assert_close(other[:, 5], one[:, 5:].mean(1))
    ready, spelled = shrinkages([shared])["m.0"], shrinkages([apart])["m.0"]
    assert ready.vectors.shape == (12, 6, 6)
    for mu in (1e-4, 1e-2):
        weight, change = ready.solve(mu)
        assert weight.shape == spelled.weight.shape
        assert torch.isfinite(change).all()
        box = spelled.solve(mu)[0].view(6, 2, 8)[..., :5]
        torch.testing.assert_close(weight.view(6, 2, 8)[..., :5], box)


def test_the_draw_of_rows_of_an_anchor_based_layer_is_unbiased(monkeypatch):
    layer = joint_layer(shift=0)

    def sums(seed):
        gram = curvature_gram(layer, ANCHOR_GAINS, seed)
        gram.add(*batch_of(layer, points=60))
        return gram.moments()

    monkeypatch.setattr(curvature, "ROWS", 10**9)
    monkeypatch.setattr(curvature, "ROWS_SHARE", 1e7)
    full = sums(0)
    monkeypatch.setattr(curvature, "ROWS", 16)
    draws = torch.stack([sums(seed) for seed in range(300)])
    error = float((draws.mean(0) - full).square().sum())
    expected = float(draws.var(0).sum()) / len(draws)
    assert 0 < expected < float(full.square().sum()) * 0.05**2
    assert error < 4 * expected


def test_sums_of_an_anchor_based_layer_add_up_whoever_takes_in_which_batch():
    layer = joint_layer()
    batches = [batch_of(layer, points=100, seed=seed) for seed in range(3)]

    def seen(*numbers):
        gram = curvature_gram(layer, ANCHOR_GAINS, 0)
        for number in numbers:
            gram.add(*batches[number])
        return gram

    together, parts = seen(0, 1, 2), [seen(2), seen(1, 0)]
    torch.testing.assert_close(sum(part.presence for part in parts), together.presence)
    assert sum(part.seen for part in parts) == together.seen
    weighted = sum(part._weighted for part in parts)
    torch.testing.assert_close(weighted, together._weighted, rtol=1e-10, atol=0)


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
