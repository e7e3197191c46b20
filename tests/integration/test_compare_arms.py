"""What arms do to a training besides its settings."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from builders import small_model

from yolo_os import UserError
from yolo_os.comparison.arms import read_arms
from yolo_os.comparison.plan import Config
from yolo_os.heads import find_head
from yolo_os.integration import guard
from yolo_os.integration.callback import callback_of
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.compare_arms import START, Jitter, NewHead, Pull, ScaledRate, settings_for
from yolo_os.integration.toward import read_origin


def trainer_of(model, tmp_path, resume=False):
    ema = SimpleNamespace(ema=copy.deepcopy(model))
    args = SimpleNamespace(imgsz=64, task="detect")
    return SimpleNamespace(model=model, ema=ema, args=args, wdir=tmp_path, resume=resume, epoch=9, epochs=10)


def test_a_new_head_is_that_of_its_seed(tmp_path, monkeypatch):
    states, draws = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 5)
        trainer = trainer_of(small_model(seed=3), tmp_path)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        torch.manual_seed(7)
        NewHead(seed).on_pretrain_routine_end(trainer)
        draws.append(torch.rand(1).item())
        states.append(trainer.model.state_dict())
        ema = trainer.ema.ema.state_dict()
        assert all(torch.equal(value, ema[name]) for name, value in states[-1].items())
    head = f"model.{len(trainer.model.model) - 1}."
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
        if not name.startswith(head) or ".dfl." in name:
            assert torch.equal(value, before[name]), name
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, before[name]) for name, value in states[0].items())
    assert len(set(draws)) == 1  # the order of the data and all else stay those of the training's own seed

    monkeypatch.setattr(guard, "_written", {})  # as another process would find it
    origin = read_origin(str(tmp_path / START), {}, None)
    assert all(torch.equal(value, states[2][name]) for name, value in origin.state.items())
    assert load_checkpoint(tmp_path / START).imgsz == 64


def test_a_training_that_is_resumed_keeps_its_head(tmp_path):
    trainer = trainer_of(small_model(), tmp_path, resume=True)
    before = copy.deepcopy(trainer.model.state_dict())
    NewHead(4).on_pretrain_routine_end(trainer)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("resumed", [False, True])
def test_the_rate_is_scaled_once_also_where_a_training_is_resumed(resumed):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    trainer = SimpleNamespace(optimizer=optimizer)
    trainer.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    if resumed:  # groups come from the checkpoint, scaled before
        optimizer.param_groups[0].update(lr=0.02, initial_lr=0.02)
    ScaledRate(0.1).on_pretrain_routine_end(trainer)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.02)
    optimizer.step()
    trainer.scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)


def test_the_control_is_disturbed_a_little_and_late(tmp_path):
    trainer = trainer_of(small_model(), tmp_path)
    before = [layer.matrix.clone() for layer in find_head(trainer.model).layers]
    trainer.epoch = 3
    Jitter(1e-4).on_train_epoch_end(trainer)
    assert all(torch.equal(old, layer.matrix) for old, layer in zip(before, find_head(trainer.model).layers))
    trainer.epoch = 9
    Jitter(1e-4).on_train_epoch_end(trainer)
    for old, layer in zip(before, find_head(trainer.model).layers):
        change = float(((layer.matrix - old).norm() / old.norm()).detach())
        assert 0.5e-4 < change < 2e-4


@pytest.mark.parametrize("kind", ["same classes", "other spelling", "other classes", "new head"])
def test_a_pull_is_l2sp(kind, tmp_path):
    """In closed form: w - lr g, then lr times the strength of the distance to the start less, so decoupled."""
    model = small_model()
    model.names = {index: f"kind {index}" for index in range(len(model.names))}
    start, last = copy.deepcopy(model), f"model.{len(model.model) - 1}."
    with torch.no_grad():
        for weight in start.parameters():
            weight.add_(1.0)
    if kind.startswith("other"):
        start.names = {
            index: name.upper() if "spelling" in kind else f"no {name}" for index, name in model.names.items()
        }
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = trainer_of(model, tmp_path)
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.optimizer.param_groups[0]["initial_lr"] = 0.05  # of a warm-up, in which biases have a larger one
    Pull(4.0, start, new_head=kind == "new head").on_train_start(trainer)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 2.0)
    trainer.optimizer.step()
    for name, weight in model.named_parameters():
        wanted = before[name] - 0.1 * 2.0
        if kind in ("same classes", "other spelling") or not name.startswith(last):
            wanted += 0.05 * 4.0 * (before[name] + 1.0 - wanted)
        torch.testing.assert_close(weight.detach(), wanted, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"model": "yolo11n.yaml"}, "arm b: pull= is towards a checkpoint's weights, and model=yolo11n.yaml is none"),
        ({"pretrained": False}, "arm b: pull= is towards the weights of model=, and with pretrained=False"),
        ({"pretrained": "other.pt"}, "and with pretrained=other.pt the training does not start from these"),
        ({"distill_model": "t.pt"}, "pull= and distill_model= do not go together"),
    ],
)
def test_a_pull_towards_nothing_is_refused(arm, said):
    arms = read_arms(["stock", {"name": "b", "pull": 3, **arm}])
    with pytest.raises(UserError, match=re.escape(said)):
        settings_for(arms[1], Config("m.pt", ("a.yaml",), arms, (0,)), 11)


def test_shifts_of_arms():
    assert callback_of({}) is None
    assert callback_of({"os": False}) is None
    assert callback_of({"os": "sos"}).recipe.method == "sos"
    mild = callback_of({"keep": 0.95})
    assert (mild.recipe.keep, mild.schedule.start) == (0.95, 0.7)
    with pytest.raises(UserError, match=r"leave os\.keep away"):
        callback_of({"os": False, "keep": 0.5})
    with pytest.raises(UserError, match=r"os\.method says nothing"):
        callback_of({"toward": True, "method": "sos"})


def test_a_rate_that_is_ignored_is_warned_of(caplog):
    arms = read_arms(["stock", {"name": "slow", "lr0": 0.001}, "low_lr"])
    config = Config("m.pt", ("a.yaml",), arms, (0,))
    for arm in arms:
        settings_for(arm, config, 11)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "arm slow: optimizer=auto takes no notice of lr0=0.001" in said
    caplog.clear()
    settings_for(arms[1], Config("m.pt", ("a.yaml",), arms, (0,), train={"optimizer": "SGD"}), 11)
    assert not caplog.records


def test_the_backbone_is_frozen_by_its_number_of_modules():
    config = Config("m.pt", ("a.yaml",), read_arms("stock,freeze"), (0,), train={"epochs": 3})
    assert settings_for(config.arms[1], config, 11) == {"model": "m.pt", "epochs": 3, "freeze": 11}
    with pytest.raises(UserError, match="says of no backbone"):
        settings_for(config.arms[1], config, None)
