"""What `yolo-os shift` and `yolo-os inspect` say, through the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import digits_subset, write_devkit

from yolo_os.cli import main


@pytest.fixture
def data(in_tmp, digits):
    """Twelve training images of the embedded data set, in a data.yaml of their own."""
    return digits_subset(in_tmp / "own", digits, train=12)


def shift(detector, data, *words):
    return main(["shift", f"model={detector}", f"data={data}", "out=out.pt", "plots=False", "imgsz=64", *words])


def report(name="exp"):
    return json.loads(Path(f"runs/shift/{name}/report.json").read_text())


def test_shares_are_of_all_layers_and_one_line_says_what_keep_counts(detector, data, capsys):
    words = ["images=8", "held_out=4", "layers=cls", "keep=0.6", "max_loss_rise=0.5"]
    assert shift(detector, data, *words) == 0
    out = capsys.readouterr().out
    left, guard = report()["keep"], report()["guard"][-1]["keep"]
    assert guard == pytest.approx(left, abs=1e-4)
    layers = report()["layers"]
    whole, chosen = (
        sum(x["norm_before"] ** 2 for x in layers if x["role"] in roles) for roles in (("cls", "box"), "cls")
    )
    assert f"the 3 chosen hold {chosen / whole:.1%} of it, of which keep=0.6 was asked" in out
    assert f"  {guard:.1%} of the squared norm left, loss" in out
    assert f"fell to {left:.1%}" in out
    assert shift(detector, data, "images=8", "held_out=4", "max_loss_rise=0.5") == 0
    assert "chosen hold" not in capsys.readouterr().out


def test_the_guard_says_on_how_many_images_it_judged_and_in_which_precision(detector, data, capsys):
    assert shift(detector, data, "images=8", "held_out=1") == 0
    out = capsys.readouterr().out
    assert "guard, judging by the loss on 1 held-out image:" in out
    assert "warning: the guard judged on 1 image only: fewer than 32 say little" in out
    assert "training loss, 1 held-out image:" in out
    assert (
        "measured with the weights in float16, as the file holds them: rounding alone makes residuals of 5e-04" in out
    )
    assert "are more than" not in out


def test_more_images_than_there_are_is_said(detector, data, capsys):
    assert shift(detector, data, "images=100") == 0
    expected = "warning: images=100 and held_out=128 are more than the 12 of train: 9 shape the shift, 3 judge it"
    assert expected in capsys.readouterr().out
    assert expected.removeprefix("warning: ") in report()["warnings"]


def test_images_of_one_class_or_without_labels_are_said(detector, data, in_tmp, capsys):
    for label in (in_tmp / "own/labels/train").iterdir():
        label.write_text("3 0.5 0.5 0.4 0.4\n")
    assert shift(detector, data, "images=8", "held_out=4") == 0
    out = capsys.readouterr().out
    assert "all objects in the images that shape the shift are of one class, three; the model has 10" in out
    for label in (in_tmp / "own/labels/train").iterdir():
        label.write_text("")
    for cache in (in_tmp / "own/labels").glob("*.cache"):
        cache.unlink()
    assert shift(detector, data, "images=8", "held_out=4") == 0
    assert "none of the 8 images that shape the shift has a labelled object" in capsys.readouterr().out


def test_matrices_of_one_layer_are_kept_and_can_be_checked_by_hand(detector, data, capsys):
    words = ["method=sos", "samples=16", "images=8", "held_out=4", "save=cv3.0"]
    assert shift(detector, data, *words) == 0
    with np.load("runs/shift/exp/cv3.0.npz") as kept:
        a, before, after = kept["A"], kept["V_before"], kept["V_after"]
        assert a.shape == (16, 32)
        np.testing.assert_allclose(np.linalg.pinv(a) @ a @ before, after, atol=2e-3)  # the file is in float16
        assert np.abs(before - after).max() > 0.02
        np.testing.assert_allclose(kept["Z_before"], a @ before)
        np.testing.assert_allclose(kept["Z_after"], a @ after)
        assert kept["b_before"].tolist() == kept["b_after"].tolist()
    (layer,) = [each for each in report()["layers"] if each["name"] == "cv3.0"]
    assert np.linalg.norm(after) == pytest.approx(layer["norm_after"], rel=1e-6)
    assert shift(detector, data, "images=8", "held_out=4", "save=cv3.1", "name=b") == 0
    with np.load("runs/shift/b/cv3.1.npz") as kept:
        assert kept["A"].shape == (8 * 16, 32)  # all rows of 8 images at 64 pixels and stride 16
    assert shift(detector, data, "save=cv9") == 2
    assert "save=cv9: names no prediction layer; there is cv2.0, cv2.1" in capsys.readouterr().err
    assert shift(detector, data, "toward=a.pt", "save=cv3.0") == 2
    assert "is for a shift of the prediction layers" in capsys.readouterr().err


def test_inspect_shows_the_whole_record_of_a_shift(detector, data, capsys):
    assert shift(detector, data, "images=8", "held_out=4", "keep=0.7", "seed=5") == 0
    capsys.readouterr()
    assert main(["inspect", "model=out.pt"]) == 0
    out = capsys.readouterr().out
    assert "shift 1: budget, " in out
    assert "from detector.pt" in out
    for name in ("layers_moved 6", "keep 0.", "version ", "source_sha256 "):
        assert f"\n  {name}" in out
    assert "recipe: method=budget, keep=0.7, max_loss_rise=0.002, samples=0.75" in out
    assert "seed=5" in out


def test_outputs_that_are_there_already_are_said(detector, data, in_tmp, capsys):
    (in_tmp / "x.json").write_text("{}")
    assert main(["inspect", f"model={detector}", "json=x.json"]) == 0
    assert "note: json=x.json is there already and will be replaced" in capsys.readouterr().err


def test_inspect_says_that_there_are_fewer_images(detector, data, capsys):
    assert main(["inspect", f"model={detector}", f"data={data}", "imgsz=64"]) == 0
    captured = capsys.readouterr()
    assert "note: images=64: train has 12" in captured.err


@pytest.fixture
def broken(in_tmp, digits):
    """A devkit with three broken annotations and an image that can't be read."""
    root = digits / "VOC2007"
    stems = (root / "ImageSets/Main/train.txt").read_text().split()[:14]
    images = {stem: (root / f"Annotations/{stem}.xml").read_text() for stem in stems}
    kit = write_devkit(in_tmp / "kit", images, {"train": stems, "val": stems[:2]}, pictures=False) / "VOC2007"
    for stem in stems:
        shutil.copy(root / f"JPEGImages/{stem}.jpg", kit / "JPEGImages")
    for stem in stems[3:6]:
        (kit / f"Annotations/{stem}.xml").write_text("<annotation>")
    picture = kit / f"JPEGImages/{stems[7]}.jpg"
    picture.write_bytes(picture.read_bytes()[:400])
    return kit.parent


def test_warnings_name_the_users_files_and_no_cache(detector, broken, capfd, caplog):
    assert shift(detector, broken, "images=8", "held_out=2") == 0
    captured = capfd.readouterr()
    said = captured.out + captured.err + caplog.text
    assert "problems in its files:" in said
    assert "yolo-os voc devkit=" in said
    lines = [line for line in said.splitlines() if ".yolo_os.cache" in line and "Scanning" not in line]
    assert lines == []
    assert main(["val", f"model={detector}", f"devkit={broken}", "split=test", "plots=False"]) == 2
    assert ".yolo_os.cache" not in capfd.readouterr().err + caplog.text


def test_classes_that_are_chosen_bring_no_warning_of_others(detector, digits, capfd, caplog):
    words = [f"devkit={digits}", "classes=two,seven", "plots=False", "coco=False", "imgsz=32", "split=val"]
    assert main(["val", f"model={detector}", *words]) == 0
    captured = capfd.readouterr()
    assert "warning" not in (captured.out + captured.err + caplog.text).lower()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["detect", "train", "model=a.pt"], "'detect' is a task of `yolo`, which yolo-os takes from the model: write"),
        (["detect", "train", "model=a.pt"], "write yolo-os train ..."),
        (["segment", "predict"], "'segment' is a task of `yolo`"),
        (["export", "model=a.pt"], "'export' is a mode of `yolo`, which runs what yolo-os writes: write yolo export"),
        (["shift", "best.pt"], "'best.pt' is no key: write model=best.pt"),
        (["shift", "my.yaml"], "'my.yaml' is no key: write data=my.yaml"),
        (["val", "model=a.pt", "./kit"], "'./kit' is no key: write data=./kit"),
    ],
)  # fmt: skip
def test_words_of_yolo_get_a_hint(words, says, capsys):
    assert main(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["inspect", "shift"])
def test_layers_of_a_trace_are_looked_at_before_the_images_are(mode, detector, data, in_tmp, capsys):
    assert main([mode, f"model={detector}", f"data={data}", "imgsz=64", "trace=foo"]) == 2
    assert "trace=foo: names no layer" in capsys.readouterr().err
    assert not (in_tmp / "runs").exists()


@pytest.mark.parametrize(
    "words", [["demo", "replicates=1"], ["trace", "model=a.pt", "data=a.yaml", "seed=-1"]], ids=str
)
def test_numbers_out_of_range_are_refused_at_once(words, in_tmp, capsys):
    assert main(words) == 2
    assert f"error: {words[-1]}: takes a whole number from" in capsys.readouterr().err
    assert not list(in_tmp.iterdir())
