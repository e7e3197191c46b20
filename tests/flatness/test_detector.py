"""The training loss of a detector as an objective."""

from __future__ import annotations

import pytest
import torch
from builders import labelled_batch, small_model
from classic import classic

from yolo_os import UserError
from yolo_os.flatness.detector import chosen, detector_objective, labelled_batches
from yolo_os.flatness.sharpness import filter_norms, sharpness


def test_the_loss_is_that_of_a_pass():
    from yolo_os.forward import run_pass, silent
    from yolo_os.timing import Clock

    model = small_model()
    batches = [labelled_batch(model, images=3), labelled_batch(model, images=1, seed=1)]
    passed = run_pass(model, batches, Clock(torch.device("cpu")), silent, "loss").means()["total"]
    with detector_objective(model, batches, chosen(model, "all")) as objective:
        assert objective.mean() == pytest.approx(passed, rel=1e-6)
        objective.check_determinism()


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n", "rtdetr-l"])
def test_the_assignment_stays_that_of_the_weights_as_they_were(name):
    """With other weights the targets are still those of the first look, and come back to the same loss."""
    model = small_model(name)
    batch = labelled_batch(model, images=2)
    before, held, asked_anew = held_and_asked_anew(model, batch, 0.3)
    assert held != pytest.approx(asked_anew, rel=1e-4)
    assert held != pytest.approx(before, rel=1e-4)


def held_and_asked_anew(model, batch, size):
    """The loss of the weights as they are, of moved ones with the targets held, and with targets of their own."""
    parameters = chosen(model, "head")
    with detector_objective(model, [batch], parameters) as objective, torch.no_grad():
        before = objective.mean()
        for each in parameters.values():
            each.add_(size * torch.randn_like(each))
        held = objective.mean()
        with detector_objective(model, [batch], parameters) as fresh:
            return before, held, fresh.mean()


def test_the_objectness_of_an_anchor_based_head_is_held_too(tmp_path):
    from yolo_os.integration.checkpoint import load_checkpoint

    classic(tmp_path / "v5.pt")
    model = load_checkpoint(tmp_path / "v5.pt").model
    batch = labelled_batch(model, images=2)
    _, held, asked_anew = held_and_asked_anew(model, batch, 0.1)
    assert held != pytest.approx(asked_anew, rel=1e-5)


def test_the_model_is_left_as_it_was():
    model = small_model().train()
    wanted = [each.requires_grad for each in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with detector_objective(model, [labelled_batch(model)], chosen(model, "all")) as objective:
        sharpness(objective, steps=2)
        sharpness(objective, relative=True, steps=2)
    assert [each.requires_grad for each in model.parameters()] == wanted
    assert model.training and isinstance(model.args, dict) and not hasattr(model, "criterion")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_words_for_layers():
    model = small_model()
    everything = chosen(model, "all")
    assert not any(".dfl." in name for name in everything)
    assert len(chosen(model, "head")) == 12
    assert list(chosen(model, "cv3.*")) == [name for name in chosen(model, "head") if ".cv3." in name]
    assert chosen(model, "cls").keys() == chosen(model, "cv3.*").keys()
    assert list(chosen(model, "model.0")) == ["model.0.conv.weight", "model.0.bn.weight", "model.0.bn.bias"]
    assert chosen(model, "box, model.0.conv").keys() == {*chosen(model, "box"), "model.0.conv.weight"}
    with pytest.raises(UserError, match=r"layers=neck: names no layer"):
        chosen(model, "neck")


def test_images_without_labels_are_refused():
    model = small_model()
    batch = labelled_batch(model)
    empty = {**batch, "cls": batch["cls"][:0], "bboxes": batch["bboxes"][:0], "batch_idx": batch["batch_idx"][:0]}
    for data in (batch["img"], [batch["img"]], [empty], [batch, batch["img"]]):
        with pytest.raises(UserError, match="no labels"):
            labelled_batches(data)
    with pytest.raises(UserError, match="no images"):
        labelled_batches([])
    assert len(labelled_batches([batch, empty])) == 2


def rescaled(model, factor=3.0):
    """The same function: every filter of a convolution before a BatchNorm times a factor, its statistics with it."""
    for block in model.modules():
        conv, norm = getattr(block, "conv", None), getattr(block, "bn", None)
        if isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
            conv.weight.data *= factor
            norm.running_mean *= factor
            norm.running_var *= factor**2
            norm.eps *= factor**2
    return model


def test_what_is_normalised_by_filters_goes_through_a_rescaling_and_what_is_not_does_not(detector):
    from yolo_os.flatness.estimate import Probed, hutchinson
    from yolo_os.flatness.operator import Hessian
    from yolo_os.integration.checkpoint import load_checkpoint

    found = []
    for change in (lambda model: model, rescaled):
        model = change(load_checkpoint(detector).model)
        parameters = chosen(model, "model.0.conv,model.1.conv")
        with detector_objective(model, [labelled_batch(model, images=1)], parameters) as objective:
            norms = [norm.square() for norm in filter_norms(parameters)]
            scales = {"trace": [1.0] * len(norms), "normalised": norms}
            [samples] = hutchinson([Probed(Hessian(objective), scales)], lambda all_: True)
            figures = {name: samples.estimate(name).value for name in scales}
            balls = {"plain": sharpness(objective).rise, "relative": sharpness(objective, relative=True).rise}
            found.append({"loss": objective.mean(), **figures, **balls})
    first, other = found
    assert other["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert other["trace"] == pytest.approx(first["trace"] / 9, rel=1e-2)
    assert other["normalised"] == pytest.approx(first["normalised"], rel=1e-2)
    assert other["relative"] == pytest.approx(first["relative"], rel=2e-2)
    assert 0 < other["plain"] < 0.6 * first["plain"]
