"""A method is a file and a line: methods of every kind, added by the test and used everywhere.

They do as little as a method can: shrink the weights by a factor, with or without a change of the bias, with or without
a loss that judges them after training.
"""

import json

import pytest
import torch
from builders import labelled_batch, small_model
from ultralytics import YOLO

from yolo_os import SOS, ShiftRecipe, prediction_layers, shift_
from yolo_os.cli import main
from yolo_os.methods import REGISTRY, Entry
from yolo_os.methods.base import Candidate, Solved, System
from yolo_os.statistics import Gram


class Shrink:
    """V / 2, for every layer that has seen anything."""

    change = False

    def unchanged(self, layer, recipe):
        return "it is spared" if layer.name == "cv2.0" else None

    def collector(self, layer, recipe, gains):
        return Gram()

    def solve(self, found, recipe):
        systems = {layer.name: System(1, gram.count, torch.ones(1)) for layer, gram in found}
        moves = {layer.name: self.move for layer, _ in found}
        return Solved(systems, [Candidate(moves)] if moves else [])

    def move(self, weight):
        return weight / 2, torch.full((weight.shape[1],), 0.25, dtype=torch.float64) if self.change else None


class ShrinkWithBias(Shrink):
    change = True


class Nothing(Shrink):
    """Finds no way to move."""

    def solve(self, found, recipe):
        return Solved({layer.name: System(1, 1, torch.ones(1), unchanged="it is perfect") for layer, _ in found}, [])


KINDS = {
    "free": Entry(f"{__name__}:Shrink", "of the test", ()),
    "free_bias": Entry(f"{__name__}:ShrinkWithBias", "of the test", ()),
    "judged": Entry(f"{__name__}:Shrink", "of the test", ("max_loss_rise",)),
    "judged_bias": Entry(f"{__name__}:ShrinkWithBias", "of the test", ("max_loss_rise",)),
}


@pytest.fixture
def kinds(monkeypatch):
    for name, entry in {**KINDS, "nothing": Entry(f"{__name__}:Nothing", "of the test", ())}.items():
        monkeypatch.setitem(REGISTRY, name, entry)


@pytest.mark.parametrize("method", KINDS)
def test_after_training(method, kinds):
    model = small_model()
    batches = [labelled_batch(model)]
    before = {layer.name: (layer.matrix.clone(), layer.module.bias.clone()) for layer in prediction_layers(model)}
    report = shift_(model, batches, ShiftRecipe(method=method, max_loss_rise=10.0), held_out=batches)
    assert len(report.trials) == 1
    assert (report.trials[0].rise is not None) == method.startswith("judged")
    assert report.trials[0].passed
    for layer, told in zip(prediction_layers(model), report.layers):
        old, bias = before[layer.name]
        spared = layer.name == "cv2.0"
        assert torch.allclose(layer.matrix, old if spared else old / 2)
        shift = 0.25 if method.endswith("bias") and not spared else 0.0
        assert torch.allclose(layer.module.bias, bias + shift)
        assert told.unchanged == ("it is spared" if spared else None)
        assert told.keep == pytest.approx(1 if spared else 0.25, rel=1e-5)


@pytest.mark.parametrize("method", KINDS)
def test_a_loss_that_is_not_allowed_leaves_every_kind_as_it_was(method, kinds):
    model = small_model()
    batches = [labelled_batch(model)]
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with torch.no_grad():
        report = shift_(model, batches, ShiftRecipe(method=method, max_loss_rise=0.0), held_out=batches)
    worse = report.held_out.rise is not None and report.held_out.rise > 0
    if method.startswith("judged"):
        assert not worse
        allowed = report.trials[0].rise <= 0
        assert bool(report.moved) == allowed
        assert allowed or all(torch.equal(before[name], each) for name, each in model.state_dict().items())
        assert allowed or "still raises the loss" in report.layers[1].unchanged
    else:  # nothing judges it, and its report says what it cost
        assert report.moved


def test_a_method_that_finds_nothing_says_why(kinds):
    model = small_model()
    report = shift_(model, [labelled_batch(model)], ShiftRecipe(method="nothing"))
    assert not report.moved
    assert {layer.unchanged for layer in report.layers} == {"it is spared", "it is perfect"}
    assert "Nothing moved" in report.verdict


@pytest.mark.parametrize("method", KINDS)
def test_in_training(method, kinds, detector, tiny_data, tmp_path):
    model = YOLO(detector)
    SOS({"method": method, "max_loss_rise": 100.0}, every=1, start=0, final=None).attach(model)
    model.train(
        data=str(tiny_data), epochs=1, imgsz=64, batch=6, nbs=6, workers=0, device="cpu", plots=False, verbose=False,
        optimizer="SGD", lr0=1e-5, warmup_epochs=0, project=str(tmp_path), name="run",
    )  # fmt: skip
    rows = (tmp_path / "run" / "shifts.csv").read_text().splitlines()[1:]
    assert len(rows) == 2 * 5  # two steps, five layers that are not spared
    for row in rows:
        assert ",0.25," in row
    before = {layer.name: layer.matrix for layer in prediction_layers(YOLO(detector))}
    for layer in prediction_layers(YOLO(tmp_path / "run" / "weights" / "last.pt")):
        ratio = float(layer.matrix.norm() / before[layer.name].norm())
        assert ratio == pytest.approx(1.0 if layer.name == "cv2.0" else 0.25, rel=0.02)


@pytest.mark.parametrize("method", KINDS)
def test_from_the_command_line(method, kinds, detector, digits, in_tmp, capsys):
    words = ["shift", f"model={detector}", f"data={digits}", f"method={method}", "images=16", "held_out=8", "batch=8"]
    assert main([*words, "max_loss_rise=100", "imgsz=64", "out=out.pt", "json=out.json", "plots=False"]) == 0
    read = json.loads((in_tmp / "out.json").read_text())
    assert read["method"] == method
    assert [layer["keep"] for layer in read["layers"]] == pytest.approx([1, *[0.25] * 5], rel=1e-3)
    assert read["layers"][0]["unchanged"] == "it is spared"
    said = capsys.readouterr()
    assert ("max_loss_rise= is for" in said.err) == method.startswith("free")
    before = {layer.name: layer.module.bias for layer in prediction_layers(YOLO(detector))}
    for layer in prediction_layers(YOLO(in_tmp / "out.pt")):
        moved = layer.name != "cv2.0" and method.endswith("bias")
        change = float((layer.module.bias.float() - before[layer.name].float()).abs().mean())
        assert change == pytest.approx(0.25 if moved else 0.0, abs=5e-3)


def test_settings_that_are_for_one_method_alone_imply_it(capsys):
    from yolo_os.recipe import with_implied_method

    assert with_implied_method({"samples": 3}, "os.")["method"] == "sos"
    assert "note: os.samples= is for sos, so the method is sos" in capsys.readouterr().err
    assert with_implied_method({"samples": 3, "keep": 0.9})["method"] == "sos"
    assert "method" not in with_implied_method({"keep": 0.9, "rtol": 1e-4})
    assert with_implied_method({"samples": 3, "method": "os"})["method"] == "os"
