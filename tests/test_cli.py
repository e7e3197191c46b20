"""The command line as a person meets it: output, exit codes, files."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from processes import finished

from yolo_os import __version__
from yolo_os.cli import MODES, main


def run(*words):
    return main([str(word) for word in words])


def test_help_version_and_mistakes_need_no_torch():
    script = (
        "import sys; from yolo_os.cli import main\n"
        "for words in (['--help'], ['--version'], ['shft'], ['shift', 'modle=x']):\n"
        "    main(words)\n"
        f"for mode in {list(MODES)}:\n"
        "    main([mode, '--help'])\n"
        "assert 'torch' not in sys.modules and 'ultralytics' not in sys.modules\n"
    )
    done = finished([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
    assert "did you mean shift?" in done.stderr
    assert "unknown key 'modle': did you mean model" in done.stderr


def test_version_and_module(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == __version__
    done = finished([sys.executable, "-m", "yolo_os", "--version"])
    assert done.stdout.strip() == __version__


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_help_with_its_keys(mode, capsys):
    assert run(mode, "--help") == 0
    text = capsys.readouterr().out
    import importlib

    module = importlib.import_module(f"yolo_os.modes.{mode}")
    assert all(f"  {key.name} " in text for key in module.KEYS)
    assert all(example in text for example in module.EXAMPLES)


def test_shift_writes_a_checkpoint_and_its_report(detector, digits, in_tmp, capsys):
    model = in_tmp / "best.pt"
    shutil.copy(detector, model)
    before = model.read_bytes()
    assert (
        run("shift", f"model={model}", f"data={digits}", "images=24", "held_out=16", "method=sos", "json=report.json")
        == 0
    )
    out = capsys.readouterr().out
    assert "cv3.0" in out
    assert "shifted checkpoint: " in out
    assert model.read_bytes() == before
    folder = in_tmp / "runs" / "shift" / "exp"
    assert {path.name for path in folder.iterdir()} == {"report.json", "layers.png", "spectrum.png", "shift.log"}
    report = json.loads((in_tmp / "report.json").read_text())
    assert report == json.loads((folder / "report.json").read_text())
    assert report["norm_ratio"] < 1
    assert report["loss_before"] > 0
    assert report["precision"] == "float16"
    assert report["loss"]["held_out"]["images"] == 16

    # The report is of the weights in the file.
    from yolo_os import prediction_layers
    from yolo_os.integration.checkpoint import load_checkpoint

    saved = load_checkpoint(in_tmp / "best-os.pt")
    norms = {layer.name: float(layer.matrix.double().norm()) for layer in prediction_layers(saved.model)}
    assert {layer["name"]: layer["norm_after"] for layer in report["layers"]} == norms
    assert saved.shifts[0]["recipe"]["images"] == 24

    assert (
        run("shift", "model=best-os.pt", f"data={digits}", "images=24", "held_out=0", "method=os", "plots=False") == 0
    )
    again = load_checkpoint(in_tmp / "best-os-os.pt")
    assert [record["recipe"]["method"] for record in again.shifts] == ["sos", "os"]
    assert (in_tmp / "runs" / "shift" / "exp2" / "report.json").exists()


def test_settings_of_another_method_are_not_silent(detector, digits, in_tmp, capsys):
    words = ("shift", f"model={detector}", f"data={digits}", "out=a.pt", "images=8", "held_out=4", "plots=False")
    assert run(*words, "samples=8", "json=a.json") == 0
    assert "the method is sos" in capsys.readouterr().err
    assert json.loads((in_tmp / "a.json").read_text())["method"] == "sos"
    assert run(*words, "method=os", "keep=0.5") == 0
    assert "keep= is for budget; os ignores it" in capsys.readouterr().err


def test_inspect_shows_layers_rank_and_past_shifts(detector, digits, in_tmp, capsys):
    assert run("inspect", f"model={detector}") == 0
    out = capsys.readouterr().out
    assert "Detect head, 6 prediction layers" in out
    assert "rank" not in out
    assert run("inspect", f"model={detector}", f"data={digits}", "images=8", "json=layers.json") == 0
    out = capsys.readouterr().out
    assert "method=os can" in out
    assert (in_tmp / "runs" / "inspect" / "exp" / "spectrum.png").exists()
    layers = json.loads((in_tmp / "layers.json").read_text())["layers"]
    assert [layer["name"] for layer in layers][:2] == ["cv2.0", "cv2.1"]
    assert all(0 < layer["rank"] <= layer["m"] for layer in layers)


def test_inspect_takes_an_architecture(in_tmp, capsys):
    assert run("inspect", "model=yolo26n.yaml") == 0
    assert "one2one_cv3.2" in capsys.readouterr().out


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, request):
    """One of each kind of input that can't be used."""
    folder = tmp_path_factory.mktemp("bad")
    detector = request.getfixturevalue("detector")
    (folder / "truncated.pt").write_bytes(detector.read_bytes()[:50_000])
    broken = torch.load(detector, weights_only=False)
    broken["model"].model[0].conv.weight.data.fill_(float("nan"))
    torch.save(broken, folder / "nan.pt")
    from yolo_os.integration.architecture import build

    torch.save({"model": build("yolo11n-cls.yaml").half(), "train_args": {}}, folder / "cls.pt")
    (folder / "none").mkdir()
    (folder / "empty.yaml").write_text(f"path: {folder}\ntrain: none\nval: none\nnames: {list('0123456789')}\n")
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").write_bytes(b"no image")
    (folder / "unreadable.yaml").write_text(
        f"path: {folder}\ntrain: images\nval: images\nnames: {list('0123456789')}\n"
    )
    (folder / "classes.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [a, b]\n")
    (folder / "dot.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames: {list('0123456789')}\n")
    return folder


BAD = {
    "missing model": (["model=none.pt", "data={digits}"], "model=none.pt: no such file"),
    "truncated model": (["model={bad}/truncated.pt", "data={digits}"], "truncated or damaged"),
    "NaN weights": (["model={bad}/nan.pt", "data={digits}"], "not finite: model.0.conv.weight"),
    "headless": (["model={bad}/cls.pt", "data={digits}"], "a Classify head has no prediction layers"),
    "missing data": (["model={model}", "data=none.yaml"], "data=none.yaml"),
    "undownloaded data": (["model={model}", "data=coco8.yaml"], "yolo-os downloads nothing"),
    "relative path": (["model={model}", "data={bad}/dot.yaml"], "`path: .` starts from the folder that you are in"),
    "no images": (["model={model}", "data={bad}/empty.yaml"], "empty.yaml"),
    "unreadable images": (["model={model}", "data={bad}/unreadable.yaml"], "unreadable.yaml"),
    "other classes": (["model={model}", "data={bad}/classes.yaml"], "has 2 classes and the model 10"),
    "unknown key": (["model={model}", "data={digits}", "sample=4"], "unknown key 'sample': did you mean samples"),
    "bad value": (["model={model}", "data={digits}", "samples=-1"], "samples=-1"),
    "nothing to shift": (["model={model}", "data={digits}", "method=sos", "samples=500"], "no layer is left to shift"),
    "no such layer": (["model={model}", "data={digits}", "layers=angle"], "layers=angle selects no layer"),
    "out is the model": (["model={model}", "data={digits}", "out={model}"], "the input is never changed"),
    "out nowhere": (["model={model}", "data={digits}", "out=none/a.pt"], "does not exist"),
    "out no checkpoint": (["model={model}", "data={digits}", "out=a.onnx"], "ends in .pt"),
    "json is the model": (["model={model}", "data={digits}", "json={model}"], "the input is never changed"),
    "json is out": (["model={model}", "data={digits}", "out=a.pt", "json=a.pt"], "name one file"),
    "project is a file": (["model={model}", "data={digits}", "project={model}"], "cannot make the run folder"),
    "model is a folder": (["model={bad}", "data={digits}"], "it is a folder"),
    "no batch": (["model={model}", "data={digits}", "batch=0"], "batch=0: takes a whole number from 1"),
    "json nowhere": (["model={model}", "data={digits}", "json=none/a.json"], "does not exist"),
    "bad recipe": (["model={model}", "data={digits}", "recipe=none.yaml"], "cannot read the recipe"),
    "bad device": (["model={model}", "data={digits}", "device=cuda:99"], "device=cuda:99"),
    "bad size": (["model={model}", "data={digits}", "imgsz=100"], "imgsz=100: takes a multiple"),
    "no such split": (["model={model}", "data={bad}/empty.yaml", "split=test"], "no split 'test'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_2_and_writes_nothing(case, detector, digits, bad_files, in_tmp, capsys):
    shutil.copy(detector, in_tmp / "best.pt")
    words, message = BAD[case]
    values = {"model": in_tmp / "best.pt", "digits": digits, "bad": bad_files}
    assert run("shift", *(word.format(**values) for word in words)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("yolo-os: error:")]
    assert len(error) == 1
    assert message in error[0]
    assert [path.name for path in in_tmp.iterdir()] == ["best.pt"]


def test_debug_shows_the_traceback():
    done = finished([sys.executable, "-m", "yolo_os", "shift", "modle=x", "--debug"])
    assert "Traceback" in done.stderr


def test_unreadable_images_are_left_out_and_counted(detector, in_tmp, capsys):
    import cv2
    import numpy as np

    (in_tmp / "images").mkdir()
    for name in "abcdefgh":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(in_tmp / "images" / f"{name}.png"), noise)
    broken = in_tmp / "images" / "c.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (in_tmp / "mine.yaml").write_text(f"path: {in_tmp}\ntrain: images\nval: images\nnames: {list('0123456789')}\n")
    assert run("shift", f"model={detector}", "data=mine.yaml", "out=a.pt", "plots=False", "held_out=2") == 0
    assert f"warning: 1 image could not be read and was left out: {broken}" in capsys.readouterr().out


def test_images_that_fail_after_the_scan_are_left_out_too(detector, digits):
    from yolo_os import ShiftRecipe
    from yolo_os.integration.checkpoint import load_checkpoint
    from yolo_os.integration.data import calibration_batches

    recipe = ShiftRecipe(images=6, held_out=0)
    batches, _ = calibration_batches(load_checkpoint(detector).model, digits, recipe, batch=3)
    dataset = batches._loader.dataset.dataset.dataset
    gone = dataset.im_files[batches._loader.dataset.indices[1]] = "gone.jpg"
    assert [len(batch["img"]) for batch in batches] == [2, 3]
    assert batches.unreadable == {gone}


def test_none_is_none_also_for_text(detector, digits, in_tmp):
    words = ("shift", f"model={detector}", f"data={digits}", "out=a.pt", "images=8", "held_out=4", "plots=False")
    assert run(*words, "json=None", "recipe=None", "project=None") == 0
    assert {path.name for path in in_tmp.iterdir()} == {"a.pt", "runs"}


def test_an_interruption_leaves_no_output(detector, digits, in_tmp, monkeypatch, capsys):
    from yolo_os.integration import checkpoint

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_shifted", interrupted)
    assert run("shift", f"model={detector}", f"data={digits}", "out=a.pt", "images=8", "held_out=0") == 130
    assert not any(path.suffix == ".pt" for path in in_tmp.iterdir())


def test_another_image_size_than_that_of_the_training_is_said(detector, digits, in_tmp, capsys):
    words = ["shift", f"model={detector}", f"data={digits}", "images=8", "held_out=4", "batch=4", "plots=False"]
    assert main([*words, "imgsz=64", "out=small.pt"]) == 0
    assert "warning: imgsz=64 is not that of the model's training, 160" in capsys.readouterr().err
    assert main([*words, "out=same.pt"]) == 0
    assert "imgsz=" not in capsys.readouterr().err
