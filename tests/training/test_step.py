"""One shift in one optimizer step of a training, on small models of each head."""

import copy
import math
import random
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from builders import labelled_batch, small_model
from torch import nn
from ultralytics.cfg import get_cfg

from yolo_os import ShiftRecipe
from yolo_os.capture import as_columns
from yolo_os.heads import find_head, last_module
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.data import calibration_batches
from yolo_os.methods.least_norm import SHARES
from yolo_os.shifter import Weights
from yolo_os.training.step import StepShift

FAMILIES = ["yolov8n", "yolov10n", "yolo26n", "yolo11n-seg", "yolo26n-seg", "yolo11n-pose", "yolo26n-pose"]
FAMILIES += ["yolo11n-obb", "yolo26n-obb", pytest.param("rtdetr-l", marks=pytest.mark.slow)]
UNGUARDED = ShiftRecipe(method="sos", samples=16, sampling="uniform", max_loss_rise=None)


def in_training(model):
    """A model as the trainer holds it, after the first of its batches, on which the criterion is made."""
    model.args, model.nc = get_cfg(), last_module(model).nc
    model.train()
    model(labelled_batch(model, seed=99))
    return model


def watching(model, recipe=UNGUARDED, step=1, unchanged=(), average=None, autocast=nullcontext):
    left_alone = dict.fromkeys(unchanged, "of the test")
    along = find_head(average) if average is not None else None
    return StepShift(model, find_head(model), recipe, left_alone, step, autocast, along)


def shifted(model, recipe=UNGUARDED, batches=None, **options):
    """One shift from a step of so many batches: the report, and by layer the rows that were sampled."""
    with watching(model, recipe, **options) as watch:
        for batch in batches or [labelled_batch(model)]:
            model(batch)
        report = watch.shift_()
        rows = {name: getattr(each, "rows", None) for name, each in collectors(watch).items()}
    return report, rows


def collectors(watch):
    return watch._shifter.collectors


def own_loss(model, batch):
    """What the training itself takes of a batch, per image."""
    loss, _ = model(batch)
    return float(loss.detach().sum() / len(batch["img"]) if loss.ndim else loss.detach())


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.allclose(value, second[name], rtol=0, atol=0, equal_nan=True) for name, value in first.items())


def matrices(model):
    return {layer.name: layer.matrix.double() for layer in find_head(model).layers}


def squared_norm(model):
    return sum(float(matrix.square().sum()) for matrix in matrices(model).values())


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def hooks(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules_of(model))


def modules_of(model):
    criterion = getattr(model, "criterion", None)
    parts = [getattr(criterion, name, None) for name in ("assigner",)]
    parts += [getattr(getattr(criterion, name, None), "assigner", None) for name in ("one2many", "one2one")]
    return [*model.modules(), *(part for part in parts if isinstance(part, nn.Module))]


@pytest.fixture(scope="module")
def fresh():
    return in_training(small_model())


@pytest.fixture
def model(fresh):
    return copy.deepcopy(fresh)


@pytest.fixture(scope="module")
def digit_batches(detector, digits):
    used, _ = calibration_batches(load_checkpoint(detector).model, digits, ShiftRecipe(images=16), imgsz=96, batch=8)
    return [{**batch, "img": batch["img"].float() / 255} for batch in used]


@pytest.fixture
def trained(detector):
    """The embedded detector, whose loss a crude shift raises."""
    return in_training(load_checkpoint(detector).model)


# The loss on the batch


@pytest.mark.parametrize("family", [each for each in FAMILIES if isinstance(each, str)])
def test_the_loss_is_the_forward_passs_own(family):
    model = in_training(small_model(family))
    batch = labelled_batch(model)
    with watching(model) as watch:
        assert watch._loss() != watch._loss()  # nan: no batch so far
        own = own_loss(model, batch)
        assert watch._loss() == own


@pytest.mark.slow
def test_the_loss_of_rtdetr_draws_the_same_queries_at_each_call():
    model = in_training(small_model("rtdetr-l"))
    with watching(model) as watch:
        own = own_loss(model, labelled_batch(model))
        first = watch._loss()
        assert first == watch._loss()
        assert first == pytest.approx(own, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_taking_the_loss_changes_nothing(family):
    model = in_training(small_model(family))
    next(each for each in last_module(model).modules() if isinstance(each, nn.BatchNorm2d)).eval()  # as if frozen
    with watching(model) as watch:
        model(labelled_batch(model))
        before, random_before, modes = state(model), random_states(), [each.training for each in model.modules()]
        attributes = [set(vars(each)) for each in model.modules()]
        assert math.isfinite(watch._loss())
        assert same(before, state(model))
        assert random_before == random_states()
        assert modes == [each.training for each in model.modules()]
        assert attributes == [set(vars(each)) for each in model.modules()]  # no forward of our own left on a tower
        assert all(parameter.grad is None for parameter in model.parameters())


def test_the_loss_follows_the_weights_as_a_pass_of_all_of_the_model_would(model):
    """The towers are cut at their last layer: nothing before it may be needed."""
    batch = labelled_batch(model)
    with watching(model) as watch:
        before = own_loss(model, batch)
        with torch.no_grad():
            for layer in find_head(model).layers:
                layer.module.weight.mul_(1.5)
                layer.module.bias.add_(0.1)
        cut = watch._loss()
    assert cut != before
    assert cut == pytest.approx(own_loss(model, batch), rel=1e-6)


def test_the_loss_is_taken_in_the_trainers_own_precision(model):
    batch, entered = labelled_batch(model), []

    @contextmanager
    def autocast():
        entered.append(True)
        with torch.autocast("cpu", torch.bfloat16):
            yield

    with watching(model, autocast=autocast) as watch:
        with torch.autocast("cpu", torch.bfloat16):
            own = own_loss(model, batch)
        assert watch._loss() == own
        assert entered
    assert own != own_loss(model, batch)


def test_a_batch_without_objects_has_no_loss_and_no_guarded_shift(model):
    batch = labelled_batch(model)
    batch = {**batch, **{key: batch[key][:0] for key in ("cls", "bboxes", "batch_idx")}}
    with watching(model, ShiftRecipe()) as watch:
        model(batch)
        before = state(model)
        assert math.isnan(watch._loss())
        assert watch.shift_() is None
        assert same(before, state(model))
    report, _ = shifted(model, UNGUARDED, [batch])
    assert report.moved
    assert math.isnan(report.loss_before)


# The shift


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_keeps_its_outputs_and_the_norm_falls(family):
    model = in_training(small_model(family))
    old = matrices(model)
    report, rows = shifted(model, ShiftRecipe(method="sos", samples=0.5, max_loss_rise=None))
    new = matrices(model)
    assert report.moved
    assert not report.reverted
    for layer in report.layers:
        a = rows[layer.name].double()
        assert torch.linalg.norm(a @ (new[layer.name] - old[layer.name])) < 1e-4 * torch.linalg.norm(
            a @ old[layer.name]
        )
        assert layer.residual < 1e-4
        assert float(new[layer.name].norm()) == pytest.approx(layer.norm_after, rel=1e-5)
        assert layer.norm_before == pytest.approx(float(old[layer.name].norm()), rel=1e-9)
        assert layer.norm_after < 0.99 * layer.norm_before
        assert layer.rank <= layer.rows <= len(a)
    assert {layer.name for layer in report.layers} == set(old)


def test_outputs_of_the_whole_batch_are_kept_where_it_is_the_sample(model):
    """The coarsest level has 4 anchor points in each of 4 images."""
    layers = {layer.name: layer for layer in find_head(model).layers}
    with watching(model) as watch:
        model(labelled_batch(model))
        seen = dict(watch._seen)
        watch.shift_()
    for name in ("cv2.2", "cv3.2"):
        inputs, outputs = seen[layers[name].module]
        with torch.no_grad():
            torch.testing.assert_close(layers[name].module(inputs), outputs, atol=1e-4, rtol=0)
    inputs, outputs = seen[layers["cv3.0"].module]  # of whose 256 rows only 16 are kept
    assert not torch.allclose(layers["cv3.0"].module(inputs), outputs, atol=1e-2)


def test_only_prediction_layers_move_and_only_their_weights(model):
    with watching(model, ShiftRecipe(method="sos", samples=8, max_loss_rise=None), unchanged=["cv2.1"]) as watch:
        model(labelled_batch(model))
        before = state(model)
        watch.shift_()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"model.22.{part}.{level}.2.weight" for part in ("cv2", "cv3") for level in range(3)} - {
        "model.22.cv2.1.2.weight"
    }


def test_a_budget_keeps_its_share_of_the_squared_norm(model):
    before = squared_norm(model)
    report, _ = shifted(model, ShiftRecipe(keep=0.8, max_loss_rise=None))
    assert report.keep == pytest.approx(0.8, rel=1e-3)
    assert squared_norm(model) == pytest.approx(0.8 * before, rel=1e-3)


def test_a_budget_stops_where_its_guard_says(trained, digit_batches):
    loose, tight = copy.deepcopy(trained), copy.deepcopy(trained)
    free, _ = shifted(loose, ShiftRecipe(keep=0.05, max_loss_rise=None), digit_batches)
    report, _ = shifted(tight, ShiftRecipe(keep=0.05, max_loss_rise=0.002), digit_batches)
    assert free.rise > 0.002
    assert report.rise <= 0.002
    assert report.moved
    assert 0.05 < free.keep < report.keep < 1


def test_the_losses_reported_are_those_of_the_step_and_of_the_shift(trained, digit_batches):
    batch = digit_batches[0]
    with watching(trained) as watch:
        own = own_loss(trained, batch)
        report = watch.shift_()
        assert report.loss_before == own
        assert report.loss_after == watch._loss()
    assert report.rise == pytest.approx(report.loss_after / own - 1)


@pytest.mark.parametrize("recipe", [UNGUARDED.replace(samples=1), ShiftRecipe(keep=0.01)])
def test_a_shift_that_no_share_of_is_allowed_leaves_every_bit_and_says_so(recipe, trained, digit_batches, monkeypatch):
    original = Weights.measure
    monkeypatch.setattr(Weights, "measure", lambda self, values, figure: original(self, values, figure) * 1.1 + 1)
    average = copy.deepcopy(trained)
    kept = state(average)
    with watching(trained, recipe.replace(max_loss_rise=0.01), average=average) as watch:
        trained(digit_batches[0])
        before, norm = state(trained), squared_norm(trained)
        report = watch.shift_()
    assert same(before, state(trained))
    assert same(kept, state(average))
    assert "max_loss_rise" in report.outcome.reason
    assert report.reverted
    assert not report.moved
    assert report.keep == 1
    assert norm == squared_norm(trained)


def test_a_crude_shift_of_a_trained_model_is_taken_back_by_its_own_loss(trained, digit_batches):
    recipe = UNGUARDED.replace(samples=1)
    free, _ = shifted(copy.deepcopy(trained), recipe, digit_batches)
    assert free.rise > 0.1
    before = matrices(trained)
    report, _ = shifted(trained, recipe.replace(max_loss_rise=0.0), digit_batches)
    assert report.outcome.reason.startswith("the weakest of 4 strengths tried still raises the loss by +")
    assert report.outcome.reason.endswith("beyond max_loss_rise=0.0")
    assert all(torch.equal(before[name], matrix) for name, matrix in matrices(trained).items())
    assert report.loss_before == free.loss_before


def test_where_only_a_part_of_the_way_is_allowed_that_is_gone(trained, digit_batches):
    recipe, before, average = UNGUARDED.replace(samples=4), matrices(trained), copy.deepcopy(trained)
    whole = copy.deepcopy(trained)
    free, _ = shifted(whole, recipe, digit_batches)
    report, rows = shifted(trained, recipe.replace(max_loss_rise=0.6 * free.rise), digit_batches, average=average)
    goal, new = matrices(whole), matrices(trained)
    assert report.moved
    assert report.rise <= 0.6 * free.rise
    shares = set()
    for name, old in before.items():
        share = float(((new[name] - old) * (goal[name] - old)).sum() / (goal[name] - old).square().sum())
        torch.testing.assert_close(new[name], old + share * (goal[name] - old), atol=1e-6, rtol=0)
        torch.testing.assert_close(new[name], matrices(average)[name], atol=1e-6, rtol=0)
        a = rows[name].double()
        torch.testing.assert_close(a @ new[name], a @ old, atol=1e-4, rtol=0)
        shares.add(round(share, 4))
    assert len(shares) == 1
    assert shares < set(SHARES) - {1.0}
    assert free.keep < report.keep < 1


# The moving average


def test_the_average_is_projected_onto_the_same_rows(model):
    average = copy.deepcopy(model)
    torch.manual_seed(1)
    for layer in find_head(average).layers:
        nn.init.normal_(layer.module.weight)
    before, untouched = matrices(average), state(average)
    _, rows = shifted(model, average=average)
    for name, after in matrices(average).items():
        a = rows[name].double().numpy()
        np.testing.assert_allclose(after, np.linalg.pinv(a) @ a @ before[name].numpy(), atol=1e-4)
        assert not torch.allclose(after, before[name], atol=1e-2)
    weights = {id(layer.module.weight) for layer in find_head(average).layers}
    for name, parameter in average.state_dict(keep_vars=True).items():
        assert torch.equal(parameter, untouched[name]) == (id(parameter) not in weights)


def test_the_average_under_a_budget_moves_by_the_same_linear_map(model):
    """The map of 3 V is 3 times that of V, the part that the bias takes up included."""
    average = copy.deepcopy(model)
    with torch.no_grad():
        for layer in find_head(average).layers:
            layer.module.weight.mul_(3)
    biases = {layer.name: layer.module.bias.clone() for layer in find_head(model).layers}
    old = matrices(model)
    report, _ = shifted(model, ShiftRecipe(keep=0.8, max_loss_rise=None), average=average)
    assert report.moved
    for one, three in zip(find_head(model).layers, find_head(average).layers):
        assert not torch.allclose(one.matrix.double(), old[one.name])
        torch.testing.assert_close(three.matrix, 3 * one.matrix, atol=1e-6, rtol=1e-5)
        change = one.module.bias - biases[one.name]
        assert change.abs().max() > 0
        torch.testing.assert_close(three.module.bias - biases[one.name], 3 * change, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", ["os", "sos", "budget"])
def test_an_average_of_models_stays_that_of_the_shifted_ones(method, model):
    """Averaging and shifting commute, so the moving average may be moved along and averaged on."""
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in find_head(other).layers:
            layer.module.weight.add_(torch.randn_like(layer.module.weight) * 0.1)
    mean = copy.deepcopy(model)
    for part, first, second in zip(*(find_head(each).layers for each in (mean, model, other))):
        part.module.weight.data.copy_((first.module.weight + second.module.weight) / 2)
    recipe = ShiftRecipe(method=method, samples=16, keep=0.8, max_loss_rise=None)
    average = copy.deepcopy(other)
    shifted(copy.deepcopy(model), recipe, average=mean)
    report, _ = shifted(model, recipe, average=average)
    assert report.moved
    for part, first, second in zip(*(find_head(each).layers for each in (mean, model, average))):
        torch.testing.assert_close(part.matrix, (first.matrix + second.matrix) / 2, atol=1e-5, rtol=1e-4)
        biases = torch.stack([first.module.bias, second.module.bias])
        torch.testing.assert_close(part.module.bias, biases.mean(0), atol=1e-5, rtol=1e-4)


# What a shift leaves alone


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n-pose", "yolo11n-seg"])
@pytest.mark.parametrize("method", ["sos", "budget"])
def test_a_whole_shift_draws_no_random_numbers_and_leaves_no_hook(method, family):
    model = in_training(small_model(family))
    had, attributes = hooks(model), [set(vars(each)) for each in model.modules()]
    with watching(model, ShiftRecipe(method=method, samples=8, max_loss_rise=None)) as watch:
        assert hooks(model) > had
        model(labelled_batch(model))
        before, modes = random_states(), [each.training for each in model.modules()]
        assert watch.shift_().moved
        assert before == random_states()
        assert modes == [each.training for each in model.modules()]
    assert hooks(model) == had
    assert [set(vars(each)) for each in model.modules()] == attributes
    assert not watch._seen
    assert watch._batch is watch._inputs is None


def test_watching_changes_nothing_of_a_training_step(model):
    """Loss and gradients of a watched batch are those of one that nobody watches."""
    other, batch = copy.deepcopy(model), labelled_batch(model)
    other(batch)[0].sum().backward()
    with watching(model, ShiftRecipe()):
        loss, _ = model(batch)
        loss.sum().backward()
    assert all(
        torch.equal(first.grad, second.grad)
        for first, second in zip(model.parameters(), other.parameters())
        if first.requires_grad and first.grad is not None
    )
    assert same(state(model), state(other))


def test_a_validation_on_the_way_is_not_taken_for_a_batch(model):
    """The trainer's forward passes get a dictionary; others, such as those of a tensor, are no training batch."""
    with watching(model) as watch, torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
        assert watch.shift_() is None


def test_an_interrupted_loss_restores_weights_and_towers(model, monkeypatch):
    calls, original = [], type(model).loss

    def loss(self, batch, predictions=None):
        calls.append(True)
        if len(calls) == 3:  # after the forward pass's own and that before the shift, with the solutions written in
            raise KeyboardInterrupt
        return original(self, batch, predictions)

    monkeypatch.setattr(type(model), "loss", loss)
    with watching(model, UNGUARDED) as watch:
        model(labelled_batch(model))
        before = state(model)
        with pytest.raises(KeyboardInterrupt):
            watch.shift_()
    assert len(calls) == 3
    assert same(before, state(model))
    assert not any({"forward", "loss"} & set(vars(each)) for each in model.modules())


def test_a_loss_of_the_models_own_is_as_before(model):
    """Such as one that somebody has put in its place on the object."""
    original, batch = model.loss, labelled_batch(model)
    model.loss = lambda *given: original(*given)
    own = model.loss
    with watching(model) as watch:
        assert own_loss(model, batch) == watch._loss()
    assert model.loss is own


def test_forward_passes_without_a_batch_are_followed_by_its_loss_too(model):
    """As the trainer does it for a compiled model."""
    batch = labelled_batch(model)
    with watching(model) as watch:
        loss, _ = model.loss(batch, model(batch["img"]))
        report = watch.shift_()
    assert report.loss_before == float(loss.detach().sum() / 4)
    assert report.moved


# What is taken in


def test_batches_of_one_step_are_all_taken_in(model):
    layer = "cv3.1"  # 16 anchor points in each of 4 images
    batches = [labelled_batch(model, seed=seed) for seed in range(3)]
    with watching(model) as watch:
        for number, batch in enumerate(batches, 1):
            model(batch)
            assert collectors(watch)[layer].count == number * 4 * 16
        report = watch.shift_()
    assert {each.name: each.rows for each in report.layers}[layer] == 16


def test_the_sample_is_drawn_from_all_batches_of_the_step(model):
    batches = [labelled_batch(model, seed=seed) for seed in range(2)]
    with watching(model) as watch:
        inputs = []
        for batch in batches:
            model(batch)
            module = find_head(model).layers[3].module
            inputs.append(as_columns(watch._seen[module][0]).transpose(1, 2).reshape(-1, module.in_channels))
        rows = collectors(watch)[find_head(model).layers[3].name].rows
    found = [sum(bool((row == each).all(1).any()) for row in rows) for each in inputs]
    assert sum(found) == 16
    assert min(found) > 0


def test_without_a_batch_nothing_is_shifted(model):
    before = state(model)
    with watching(model) as watch:
        assert watch.shift_() is None
    assert same(before, state(model))


def test_the_step_settles_what_is_drawn(model):
    recipe = UNGUARDED.replace(samples=4)
    rows = [shifted(copy.deepcopy(model), recipe, step=step)[1]["cv2.0"] for step in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_a_balanced_sample_knows_the_labels_that_the_loss_assigns(model):
    with watching(model, UNGUARDED.replace(sampling="balanced")) as watch:
        model(labelled_batch(model))
        assert watch._labels[""].shape == (4, 64 + 16 + 4)
        assert collectors(watch)["cv3.0"].drawn == "balanced"


# What is not finite


@pytest.mark.parametrize("tolerance", [None, 0.002])
@pytest.mark.parametrize("method", ["os", "sos", "budget"])
@pytest.mark.parametrize("where", ["features", "outputs"])
def test_without_finite_numbers_there_is_no_shift_and_no_error(where, method, tolerance, model):
    spoilt = model.model[15].cv2.conv.weight if where == "features" else find_head(model).layers[3].module.bias
    average = copy.deepcopy(model)
    with torch.no_grad():
        spoilt.view(-1)[0] = math.nan
    recipe = ShiftRecipe(method=method, samples=8, max_loss_rise=tolerance)
    with watching(model, recipe, average=average) as watch:
        model(labelled_batch(model))
        before, kept = state(model), state(average)
        report = watch.shift_()
    if where == "outputs" and tolerance is None and method != "budget":  # which look at features only, without a guard
        assert report.moved
    else:
        assert report is None
        assert same(before, state(model))
        assert same(kept, state(average))
