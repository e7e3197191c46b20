"""The final step of a training towards the weights that it started from."""

import json
import re

import pytest
import torch
import yaml
from trainings import during, same
from ultralytics import YOLO

from yolo_os import SOS, shift_
from yolo_os.errors import UserError
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.toward import STAY, Step
from yolo_os.toward_report import TowardReport

# Steps so large that the training forgets what its start knew, so that going back must help.
RUINOUS = {"lr0": 0.02, "epochs": 2, "momentum": 0.0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def half(detector, digits):
    """Where the share is chosen without looking, so that a step is sure to come."""
    return lambda judged, drop: (Step(0.5), "of the test")


def test_it_takes_up_half_of_the_way_and_keeps_what_was_there(train, half, detector, monkeypatch):
    monkeypatch.setattr("yolo_os.toward.choose", half)
    run = train(SOS(toward=True), **RUINOUS)
    start, before, after = (
        model.float().state_dict()
        for model in (
            load_checkpoint(detector).model,
            run.weights("best-unshifted")["model"],
            run.weights("best")["model"],
        )
    )
    for name, tensor in after.items():  # of classes, which the data has in another order, none
        if tensor.is_floating_point() and not re.search(r"cv3\.\d\.2", name):
            expected = (start[name].double() + before[name].double()) / 2
            torch.testing.assert_close(tensor.double(), expected, rtol=2e-3, atol=1e-5)
    (record,) = run.weights("best")["yolo_os"]
    assert record["recipe"]["share"] == 0.5
    assert record["origin"] == "detector.pt"
    read = json.loads((run.folder / "os" / "best" / "toward.json").read_text())["toward"]
    assert next(trial["share"] for trial in read["tried"]) == 1
    assert not run.shifts  # no shift of the prediction layers beside it
    assert same(run.model.model.float().state_dict(), run.weights("best")["model"].float().state_dict())


def test_a_training_that_forgets_gets_it_back(train, detector):
    run = train(SOS(toward=True), **RUINOUS)
    read = json.loads((run.folder / "os" / "best" / "toward.json").read_text())["toward"]
    by_share = {trial["share"]: trial["map"] for trial in read["tried"]}
    assert by_share[0] > by_share[1] + 0.05
    assert read["share"] < 1
    assert by_share[read["share"]] > by_share[1]


def test_where_staying_is_best_nothing_is_written(train, monkeypatch):
    monkeypatch.setattr("yolo_os.toward.choose", lambda judged, drop: (STAY, "of the test"))
    run = train(SOS(toward=True), epochs=1)
    assert "yolo_os" not in run.weights("best")
    assert not (run.folder / "weights" / "best-unshifted.pt").exists()


def test_the_settings_name_the_file_so_that_a_resumed_training_finds_it(train, half, detector, tmp_path, monkeypatch):
    from yolo_os.integration.callback import settings_of

    monkeypatch.setattr("yolo_os.toward.choose", half)

    def interrupt(trainer):
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SOS(toward=True), callbacks={"on_train_epoch_start": interrupt})
    last = tmp_path / "run" / "weights" / "last.pt"
    settings = yaml.safe_load(settings_of(last).read_text())
    assert settings["toward"] == str(detector.resolve())
    assert settings["every"] is settings["final"] is None
    run = train(SOS.from_yaml(settings_of(last)), model=YOLO(last), resume=True)
    assert run.weights("best")["yolo_os"][0]["origin"] == "detector.pt"


def test_it_goes_with_shifts_that_are_asked_for(train, half, monkeypatch):
    monkeypatch.setattr("yolo_os.toward.choose", half)
    run = train(during(2, toward=True, final="budget"), epochs=2)
    assert run.steps == [2, 4, 6]
    assert [record["recipe"]["method"] for record in run.weights("best")["yolo_os"]] == ["toward", "budget"]


def test_a_frozen_head_is_no_obstacle(train, half, monkeypatch):
    monkeypatch.setattr("yolo_os.toward.choose", half)
    run = train(SOS(toward=True), epochs=1, freeze=[22])
    assert run.weights("best")["yolo_os"]


def test_a_step_that_fails_loses_no_training(train, caplog, monkeypatch):
    monkeypatch.setattr("yolo_os.integration.final.shift_toward_", lambda *_, **__: 1 / 0)
    run = train(SOS(toward=True), epochs=1)
    assert "yolo_os" not in run.weights("best")
    assert "it stays as trained: ZeroDivisionError" in caplog.text


def test_what_the_step_could_not_use_is_refused_before_the_first_batch(train, tmp_path, tiny_data, monkeypatch):
    """A typo must not cost a training."""
    from builders import small_model
    from ultralytics.engine.trainer import BaseTrainer

    monkeypatch.setattr(BaseTrainer, "optimizer_step", lambda self: pytest.fail("it trains"))
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"model": small_model("yolo11n").half(), "train_args": {}}, tmp_path / "other.pt")
    described = {**yaml.safe_load(tiny_data.read_text()), "names": ["a", "b"]}
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(described))
    for settings, said in (
        ({"toward": True, "retain": "nothing.yaml"}, "nothing.yaml"),
        ({"toward": True, "retain": str(tmp_path / "classes.yaml")}, "2 classes"),
        ({"toward": str(tmp_path / "text.pt")}, "text.pt"),
        ({"toward": str(tmp_path / "other.pt")}, "another architecture"),
    ):
        with pytest.raises(UserError, match=said):
            train(SOS(**settings), epochs=1)


def test_what_has_no_start_is_refused_before_the_first_batch(tiny_data, tmp_path):
    model = YOLO("yolov8n.yaml")
    SOS(toward=True).attach(model)
    with pytest.raises(UserError, match="starts from no checkpoint file"):
        model.train(data=str(tiny_data), epochs=1, imgsz=64, device="cpu", project=str(tmp_path), plots=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"retain": "x.yaml"}, "nothing without toward="), ({"toward": True, "retain_drop": "much"}, "retain_drop")],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        SOS(**settings)


def test_the_command_line_and_python_mean_the_same(detector):
    from yolo_os.modes.train import parse

    sos = parse([f"model={detector}", "data=x.yaml", "os.toward=True", "os.retain=a.yaml,b.yaml"])["sos"]
    assert sos.to_dict() == SOS(toward=True, retain=["a.yaml", "b.yaml"]).to_dict()
    assert sos.schedule.every is sos.final is None


def test_shift_takes_an_origin_too(train, tiny_data, detector):
    run = train(**RUINOUS)
    model = YOLO(run.folder / "weights" / "best.pt")
    report = shift_(model, str(tiny_data), toward=detector, imgsz=64)
    assert isinstance(report, TowardReport)
    assert report.share < 1
    for given in ({"recipe": "sos"}, {"held_out": []}):
        with pytest.raises(UserError, match="not for one with toward="):
            shift_(model, str(tiny_data), toward=detector, **given)
    with pytest.raises(UserError, match="are for a shift with toward="):
        shift_(model, str(tiny_data), retain="x.yaml")
