"""The loss-aware shift: which layers it takes, and all of it at once on models."""

import copy
import math

import pytest
import torch
from builders import joint_layer, labelled_batch, layer_of, small_model

from yolo_os import ShiftRecipe, prediction_layers, shift_
from yolo_os.methods.budget import Budget


def test_layers_that_the_budget_cannot_judge_are_refused():
    recipe = ShiftRecipe()
    assert "no bias" in Budget().unchanged(layer_of(bias=False), recipe)
    assert Budget().unchanged(layer_of(), recipe) is None
    assert Budget().unchanged(joint_layer(), recipe) is None


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
    assert all("beyond max_loss_rise" in layer.unchanged for layer in report.layers)
    assert len(report.trials) == 8
    assert "Nothing moved" in report.verdict
    assert report.held_out.after == report.held_out.before


def test_the_rise_that_the_guard_saw_is_the_rise_that_came(untouched, batches):
    report = shift_(copy.deepcopy(untouched), batches, ShiftRecipe(max_loss_rise=0.5), held_out=batches[:2])
    assert report.trials[-1].passed
    assert report.trials[-1].rise == pytest.approx(report.held_out.rise, abs=1e-6)
    assert report.keep == pytest.approx(report.trials[-1].keep, abs=1e-4)
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
    assert all("does not run in eval mode" in layer.unchanged for layer in report.layers if layer not in report.moved)
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
    assert reports["budget"].keep == pytest.approx(0.6, abs=1e-3)
    assert reports["budget"].trials[-1].passed
    assert abs(reports["budget"].held_out.rise) < 0.003
    assert abs(scores["budget"] - scores["before"]) < 0.002
    assert reports["sos"].keep > reports["budget"].keep
    assert reports["sos"].held_out.rise > 5 * abs(reports["budget"].held_out.rise)
    assert scores["sos"] < scores["budget"] - 0.002
