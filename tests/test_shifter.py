"""The engine: weights that are tried, judged, taken or put back; methods of every kind that are added to it."""

import math

import pytest
import torch
from builders import batch_of, layer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from yolo_os import ShiftRecipe
from yolo_os.heads import GAINS, Head
from yolo_os.methods.base import Moved, Unchanged
from yolo_os.shifter import Judge, Shifter, Weights


def squared(layer):
    return float(layer.matrix.double().square().sum())


def shifted(rise=None, bias=True, average=None, precision=None, **settings):
    """A shift of one class layer, judged by a loss that rises by a function of the share of the norm that is left."""
    layer = layer_of(m=12, n=5, shift=-2, bias=bias)
    head = Head("Detect", (layer,), scorers={"0": layer.module}, branches={"": ("0",)})
    recipe, before = ShiftRecipe(**settings), squared(layer)
    shifter = Shifter(head, recipe, GAINS, {}, precision, average)
    for number in range(3):
        shifter.collectors["cv3.0"].add(*batch_of(layer, seed=number, points=200))
    judge = None
    if rise is not None:
        judge = Judge(lambda: 4.0 * (1 + rise(squared(layer) / before)), 4.0, recipe.max_loss_rise)
    shift = shifter.shift_(judge)
    (report,) = shifter.layer_reports(shift)
    assert report.keep == pytest.approx(squared(layer) / before)
    return shift, report, layer


# The judge


def test_without_a_judge_the_norm_is_what_was_asked_for():
    for keep in (0.9, 0.6, 0.2):
        shift, report, _ = shifted(keep=keep)
        assert report.keep == pytest.approx(keep, abs=1e-5)
        assert [trial.passed for trial in shift.trials] == [True]
        assert shift.trials[0].rise is None
        assert shift.outcome == report.outcome == Moved()


def test_a_judge_without_a_tolerance_only_measures():
    shift, report, _ = shifted(lambda share: 1e6, keep=0.6, max_loss_rise=None)
    assert report.keep == pytest.approx(0.6, abs=1e-5)
    assert shift.trials[0].rise == pytest.approx(1e6)


@settings(max_examples=30, deadline=None)
@given(keep=st.floats(0.1, 0.9), tolerances=st.tuples(st.floats(0, 0.3), st.floats(0, 0.3)), slope=st.floats(0, 0.5))
def test_a_larger_tolerance_never_shifts_less(keep, tolerances, slope):
    small, large = (
        shifted(lambda share: slope * (1 - share), keep=keep, max_loss_rise=tolerance)[1].keep
        for tolerance in sorted(tolerances)
    )
    assert large <= small + 1e-6
    assert large >= keep - 1e-5


def test_it_stops_at_the_first_strength_within_the_tolerance():
    shift, report, _ = shifted(lambda share: 0.1 * (1 - share), keep=0.2, max_loss_rise=0.05)
    assert report.keep >= 0.5 - 1e-5
    assert report.keep == pytest.approx(shift.trials[-1].keep, abs=1e-5)
    assert [trial.passed for trial in shift.trials] == [False] * (len(shift.trials) - 1) + [True]
    for trial in shift.trials:
        assert trial.rise == pytest.approx(0.1 * (1 - trial.keep), abs=1e-5)
        assert trial.figure == pytest.approx(4 * (1 + trial.rise))
        assert trial.passed == (max(trial.rise, trial.predicted / 4.0) <= 0.05)
    assert sorted(trial.keep for trial in shift.trials) == [trial.keep for trial in shift.trials]


@pytest.mark.parametrize("method", ["budget", "sos"])
@pytest.mark.parametrize("rise", [0.5, math.nan, math.inf])
def test_when_nothing_qualifies_the_weights_stay_and_the_reason_is_given(rise, method):
    shift, report, layer = shifted(lambda share: rise, method=method, samples=4, max_loss_rise=0.01)
    untouched = layer_of(m=12, n=5, shift=-2)
    assert torch.equal(layer.module.weight, untouched.module.weight)
    assert torch.equal(layer.module.bias, untouched.module.bias)
    wanted = "no training loss could be taken" if math.isnan(rise) else "still raises the loss by"
    assert wanted in shift.outcome.reason
    assert report.unchanged == report.skipped == shift.outcome.reason
    assert shift.reverted
    assert len(shift.trials) == (8 if method == "budget" else 4)
    assert not any(trial.passed for trial in shift.trials)


def test_a_loss_that_happens_to_fall_is_no_licence():
    """The prediction is a condition of its own: the loss falls here however much goes."""
    shift, report, _ = shifted(lambda share: share - 1, keep=0.02, max_loss_rise=1e-3)
    assert report.keep > 0.1
    assert all(trial.rise < 0 for trial in shift.trials)
    assert shift.trials[-1].predicted / 4.0 <= 1e-3 < shift.trials[-2].predicted / 4.0


def test_the_same_features_give_the_same_weights():
    first, second = (shifted(lambda share: 0.1 * (1 - share), keep=0.3, max_loss_rise=0.04) for _ in range(2))
    assert first[0].trials == second[0].trials
    assert torch.equal(first[2].module.weight, second[2].module.weight)


def test_layers_without_features_stay_and_say_so():
    layer = layer_of()
    shifter = Shifter(Head("Detect", (layer,)), ShiftRecipe(), GAINS, {})
    shift = shifter.shift_(None)
    assert shift.outcome == Unchanged("no layer could be shifted")
    assert not shift.reverted
    assert "no features" in shifter.layer_reports(shift)[0].unchanged


# Weights


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def named(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def test_weights_are_any_named_set_of_parameters_and_buffers(model):
    weights, kept = Weights(named(model)), {name: each.clone() for name, each in named(model).items()}
    values = {name: torch.full_like(each, 2) for name, each in kept.items()}
    assert weights.measure(values, lambda: float(model[1].running_var.sum())) == 8
    assert all(torch.equal(each, kept[name]) for name, each in named(model).items())
    parameter = model[0].weight
    weights.write_(values)
    assert model[0].weight is parameter
    assert all(torch.equal(each, values[name]) for name, each in named(model).items())


def test_values_are_rounded_to_the_precision_of_the_file(model):
    weights = Weights(named(model), torch.float16)
    weights.write_({"0.weight": torch.full((4, 3, 1, 1), 1 / 3)})
    assert model[0].weight.unique().tolist() == [float(torch.tensor(1 / 3).half())]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whatever_fails_the_weights_are_put_back(error, model):
    weights, kept = Weights(named(model)), {name: each.clone() for name, each in named(model).items()}

    def figure():
        raise error

    with pytest.raises(error):
        weights.measure({"0.weight": torch.zeros(4, 3, 1, 1)}, figure)
    with pytest.raises(error), weights.put_back_on_error():
        weights.write_({"0.weight": torch.zeros(4, 3, 1, 1)})
        raise error
    assert all(torch.equal(each, kept[name]) for name, each in named(model).items())
