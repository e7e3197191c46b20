"""`yolo-os train`: keys, errors, and trainings from the command line."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from processes import finished

from yolo_os import SOS, ShiftRecipe, UserError
from yolo_os.cli import main
from yolo_os.integration.checkpoint import RECORD, load_checkpoint
from yolo_os.modes.train import KEYS, parse, sos_from

# Tiny: 15 images to learn from, 64 pixels.
TINY = ["epochs=2", "imgsz=64", "batch=8", "nbs=8", "fraction=0.05", "workers=0", "device=cpu", "plots=False"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


def every_step(detector, digits, project):
    """The words of a tiny training that shifts in every step, into the folder `a` of a project."""
    return [f"model={detector}", f"data={digits}", "os.every=1", "os.start=0", *TINY, f"project={project}", "name=a"]


def train(*words):
    return main(["train", *map(str, words)])


def test_defaults_are_those_of_the_file_and_of_python():
    assert SOS().to_dict() == SOS.from_yaml("train").to_dict() == sos_from({}).to_dict()
    defaults = {key.name.removeprefix("os."): key.default for key in KEYS}
    settings = SOS().to_dict()
    settings["final"] = "budget"
    assert {name: defaults[name] for name in settings if name in defaults} == {
        name: value for name, value in settings.items() if name in defaults
    }


def test_own_keys_override_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("method: sos\nsamples: 20\nevery: 50\nstart: 0.1\n")
    sos = sos_from({"os": str(file), "os.samples": 10, "os.end": 0.9, "os.final": None})
    assert (sos.recipe.method, sos.recipe.samples, sos.final) == ("sos", 10, None)
    assert (sos.schedule.every, sos.schedule.start, sos.schedule.end) == (50, 0.1, 0.9)


def test_settings_survive_their_file(tmp_path):
    sos = SOS(ShiftRecipe(method="sos", samples=9), every="2epochs", start=0.2, final=None)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(sos.to_dict()))
    assert SOS.from_yaml(tmp_path / "settings.yaml").to_dict() == sos.to_dict()


def test_samples_alone_mean_sos(capsys):
    assert sos_from({"os.samples": 8}).recipe.method == "sos"
    assert "so the method is sos" in capsys.readouterr().err
    assert sos_from({"os.samples": 8, "os.method": "budget"}).recipe.method == "budget"


def test_layers_left_alone_in_training_are_left_alone_at_the_end():
    assert SOS(ShiftRecipe(layers="cls")).final.layers == "cls"
    assert SOS(ShiftRecipe(layers="cls"), final=ShiftRecipe(layers="box")).final.layers == "box"


def test_stock_keys_go_through_as_yolo_reads_them():
    found = parse(["model=a.pt", "imgsz = 96".replace(" ", ""), "freeze=[0,", "1]", "plots", "name=007", "os.every=5"])
    assert found["stock"] == {"model": "a.pt", "imgsz": 96, "freeze": [0, 1], "plots": True, "name": "007"}
    assert found["sos"].schedule.every == 5
    assert parse(["model=a.pt", "os=False"])["sos"] is None


def test_keys_of_a_cfg_file_are_read(tmp_path):
    (tmp_path / "run.yaml").write_text("epochs: 7\nimgsz: 96\n")
    assert parse(["imgsz=64", f"cfg={tmp_path / 'run.yaml'}"])["stock"] == {"imgsz": 64, "epochs": 7}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["os.evry=2"], "os.every"),
        (["os.every=0"], "every=0"),
        (["os.start=0.9", "os.end=0.5"], "start=0.9"),
        (["os.method=adam"], "os.method=adam"),
        (["os=nix"], "nix"),
        (["os=False", "os.every=3"], "os.every"),
        (["os.final=None", "os.every=None"], "nothing left"),
        (["os.toward=True", "os.method=sos"], "os.method says nothing"),
        (["os=True", "os.toward=True", "os.start=0.5"], "os.start says nothing"),
        (["model=DETECTOR", "data=DIGITS", "os.toward=True", "os.retain=nope.yaml", *TINY], "nope.yaml"),
        (["model=DETECTOR", "data=DIGITS", "os.toward=LICENSE.pt", *TINY], "toward=LICENSE.pt"),
        (["epoch=3"], "'epoch' is not a valid YOLO argument"),
        (["epochs=abc"], "epochs"),
        (["freeze"], "freeze="),
        (["cfg=nix.yaml"], "cfg=nix.yaml"),
        ([], "model=... is missing"),
        (["model=nix.pt", "data=x.yaml"], "model=nix.pt: no such file"),
        (["model=nix.yaml", "data=x.yaml"], "model=nix.yaml"),
        (["model=DETECTOR"], "data=... is missing"),
        (["model=DETECTOR", "data=nix.yaml"], "data=nix.yaml"),
        (["model=DETECTOR", "data=DIGITS", "device=7"], "device=7"),
        (["model=DETECTOR", "data=DIGITS", "os.samples=1000"], "not smaller than m"),
        (["model=DETECTOR", "data=DIGITS", "os.layers=mask"], "layers=mask"),
        (["model=DETECTOR", "data=DIGITS", "every=2"], "did you mean os.every?"),
        (["model=DETECTOR", "data=DIGITS", "resume=True"], "nothing to resume"),
        (["resume=DETECTOR"], "nothing to resume"),
        (["model=DETECTOR", "data=DIGITS", "distill_model=DETECTOR"], "distill_model="),
        (["model=DETECTOR", "data=DIGITS", "os.keep=2"], "keep=2"),
        (["model=yolov8n-cls.yaml", "data=DIGITS"], "classify"),
        (["model=DETECTOR", "data=DIGITS", "freeze=[22]", *TINY], "freeze="),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_bad_input_is_said_in_a_line(words, said, detector, digits, in_tmp, capsys):
    words = [word.replace("DETECTOR", str(detector)).replace("DIGITS", str(digits)) for word in words]
    assert train(*words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("yolo-os: error: ") and said in error
    assert not list(in_tmp.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["imgsz=abc"], "imgsz"),
        (["optimizer=foo"], "foo"),
        (["data=EMPTY"], "empty"),
        (["project=/proc/none"], "/proc/none"),
    ],
    ids=str,
)
def test_what_ultralytics_refuses_before_the_first_batch_is_bad_input(words, said, detector, digits, in_tmp, capsys):
    (in_tmp / "empty").mkdir()
    (in_tmp / "empty.yaml").write_text(f"path: {in_tmp}\ntrain: empty\nval: empty\nnames:\n  0: a\n")
    settings = dict(word.split("=") for word in (f"data={digits}", f"project={in_tmp}", *TINY, *words))
    settings["data"] = settings["data"].replace("EMPTY", str(in_tmp / "empty.yaml"))
    assert train(f"model={detector}", *(f"{key}={value}" for key, value in settings.items())) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("yolo-os: error: Ultralytics can't set this training up: ") and said in error


def test_an_error_in_the_training_itself_is_no_bad_input(detector, digits, in_tmp, monkeypatch, capsys):
    from ultralytics.engine.trainer import BaseTrainer

    monkeypatch.setattr(BaseTrainer, "optimizer_step", lambda self: 1 / 0)
    assert train(f"model={detector}", f"data={digits}", f"project={in_tmp}", *TINY) == 1
    assert "unforeseen ZeroDivisionError" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(detector, digits, in_tmp, capsys):
    contents = torch.load(detector, weights_only=False)
    next(contents["model"].parameters()).data.flatten()[0] = float("nan")
    torch.save(contents, in_tmp / "nan.pt")
    assert train(f"model={in_tmp / 'nan.pt'}", f"data={digits}", f"project={in_tmp}", *TINY) == 2
    assert "the model's weights are not finite: model.0.conv.weight" in capsys.readouterr().err


def test_a_damaged_head_is_refused_in_a_line(detector, digits, in_tmp, capsys):
    contents = torch.load(detector, weights_only=False)
    vars(contents["model"].model[-1])["anchors"] = [1, 2]
    torch.save(contents, in_tmp / "bad.pt")
    assert train(f"model={in_tmp / 'bad.pt'}", f"data={digits}", *TINY, f"project={in_tmp}") == 2
    assert "its model can't be loaded (AttributeError" in capsys.readouterr().err


def test_processes_of_torchrun_need_one_folder(detector, digits, monkeypatch, capsys, in_tmp):
    monkeypatch.setattr("yolo_os.integration.train.WORLD_SIZE", 2)
    assert train(f"model={detector}", f"data={digits}") == 2
    assert "exist_ok=True" in capsys.readouterr().err


def test_settings_that_do_nothing_are_warned_of(capsys):
    sos_from({"os": "sos", "os.keep": 0.5})
    assert "os.keep= is for budget; sos ignores it" in capsys.readouterr().err


def test_a_file_of_settings_with_a_strange_key(tmp_path):
    (tmp_path / "mine.yaml").write_text("evry: 3\n")
    with pytest.raises(UserError, match=r"mine\.yaml: unknown key 'evry'.*every"):
        SOS.from_yaml(tmp_path / "mine.yaml")


def test_trains_a_voc_devkit_and_leaves_an_ordinary_checkpoint(detector, digits, in_tmp):
    from ultralytics import YOLO

    before = detector.read_bytes()
    words = every_step(detector, digits, in_tmp / "runs")
    assert train(*words) == 0
    run = in_tmp / "runs" / "a"
    assert detector.read_bytes() == before
    steps = {int(row["step"]) for row in rows(run / "shifts.csv")}
    assert steps == {1, 2, 3, 4}
    assert {"os/shifts", "os/reverted", "os/keep", "os/rise", "os/norm", "os/norm_ema"} <= set(
        rows(run / "results.csv")[0]
    )
    assert len(load_checkpoint(run / "weights" / "best.pt").contents[RECORD]) == 1
    assert YOLO(run / "weights" / "best.pt").predict(torch.zeros(1, 3, 64, 64), verbose=False)
    assert yaml.safe_load((run / "os" / "settings.yaml").read_text())["every"] == 1


def test_off_is_stock(detector, digits, in_tmp):
    assert (
        train(f"model={detector}", f"data={digits}", "os=False", *TINY, f"project={in_tmp / 'runs'}", "name=off") == 0
    )
    run = in_tmp / "runs" / "off"
    assert not (run / "shifts.csv").exists() and not (run / "os").exists()
    assert not any(name.startswith("os/") for name in rows(run / "results.csv")[0])


def test_a_resumed_training_takes_up_its_settings(detector, digits, in_tmp, monkeypatch):
    from ultralytics.engine.trainer import BaseTrainer

    run_callbacks = BaseTrainer.run_callbacks

    def interrupted(self, event):
        run_callbacks(self, event)
        if event == "on_train_epoch_start" and self.epoch == 1:
            raise KeyboardInterrupt

    words = every_step(detector, digits, in_tmp / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "run_callbacks", interrupted)
        assert train(*words) == 130
    run = in_tmp / "runs" / "a"
    assert {row["step"] for row in rows(run / "shifts.csv")} == {"1", "2"}
    assert train(f"model={run / 'weights' / 'last.pt'}", "resume=True") == 0
    assert [row["step"] for row in rows(run / "shifts.csv") if row["layer"] == "cv2.0"] == ["1", "2", "3", "4"]


def test_tensorboard_shows_the_columns(detector, digits, tmp_path):
    """In a process of its own, since Ultralytics reads the setting when it is imported."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    script = f"""
import os, sys
os.environ["YOLO_CONFIG_DIR"] = {str(tmp_path / "settings")!r}
os.environ["YOLO_OFFLINE"] = "true"
import torch
torch.set_num_threads(1)
from ultralytics.utils import SETTINGS
SETTINGS["tensorboard"] = True
from yolo_os.cli import main
sys.exit(main(sys.argv[1:]))
"""
    (tmp_path / "settings").mkdir()
    words = every_step(detector, digits, tmp_path)
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}  # it logs in no test
    command = [sys.executable, "-c", script, "train", *words]
    done = finished(command, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    events = accumulator.EventAccumulator(str(tmp_path / "a"))
    events.Reload()
    written = [float(row["os/norm"]) for row in rows(tmp_path / "a" / "results.csv")]
    assert [event.value for event in events.Scalars("os/norm")] == pytest.approx(written, rel=1e-5)


def test_a_part_of_the_head_is_frozen_by_its_name(detector, digits, in_tmp, capsys):
    """A name alone is one of a list; the reason names the layers, and how to go on."""
    words = ["train", f"model={detector}", f"data={digits}", "epochs=1", "imgsz=64", "device=cpu", "plots=False"]
    assert main([*words, "freeze=22.cv3", "workers=0"]) == 2
    assert "freezes cv3.0, cv3.1, cv3.2: leave them alone with os.layers=box" in capsys.readouterr().err
