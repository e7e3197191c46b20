"""Towards the start of a training, on images: the share by val alone, the files, the errors of the command line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from builders import digits_subset
from ultralytics import YOLO

from yolo_os.cli import main
from yolo_os.errors import UserError
from yolo_os.integration import toward
from yolo_os.integration.checkpoint import RECORD, load_checkpoint
from yolo_os.integration.toward import recorded_origin, shift_toward_, state_of
from yolo_os.toward import named_tensors


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def data(request, tmp_path_factory):
    """Digits of its own; the test split holds a marker that no reader could open."""
    data = digits_subset(tmp_path_factory.mktemp("few"), request.getfixturevalue("digits"), train=4, val=30, test=1)
    for kind in ("images", "labels"):
        for file in (data.parent / kind / "test").iterdir():
            file.write_bytes(b"marker: whoever reads this has touched the test split")
    return data


@pytest.fixture(scope="module")
def forgetful(request, tmp_path_factory):
    """A checkpoint that forgot: the embedded detector with noise on all it knows; its record names where it began."""
    detector = request.getfixturevalue("detector")
    folder = tmp_path_factory.mktemp("forgetful")
    contents = torch.load(detector, weights_only=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in contents["model"].named_parameters():
            if tensor.ndim == 4 and "dfl" not in name:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_((0.25 * tensor.float().std() * noise).half())
    contents["train_args"] = {**contents["train_args"], "model": str(detector), "pretrained": True}
    torch.save(contents, folder / "new.pt")
    return folder / "new.pt"


def test_a_detector_that_forgot_gets_it_back(forgetful, detector, data, in_tmp, capsys):
    inputs = {path: path.read_bytes() for path in (forgetful, detector)}
    words = ("shift", f"model={forgetful}", f"toward={detector}", f"data={data}", "json=a.json", "out=a.pt")
    assert run(*words) == 0
    out = capsys.readouterr().out
    report = json.loads((in_tmp / "a.json").read_text())["toward"]
    assert report == json.loads((in_tmp / "runs" / "shift" / "exp" / "report.json").read_text())["toward"]
    assert report["share"] < 0.7
    assert [trial["share"] for trial in report["tried"]] == [1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0]
    by_share = {trial["share"]: trial for trial in report["tried"]}
    assert by_share[report["share"]]["gain"]["low"] > 0
    assert by_share[report["share"]]["loss"] < by_share[1.0]["loss"]
    assert report["images"] == {"new": 30}
    assert report["moved"] and report["stayed"]
    assert report["verdict"] in out
    assert {path.name for path in (in_tmp / "runs" / "shift" / "exp").iterdir()} == {
        *("report.json", "shift.log", "toward.png")
    }
    assert all(path.read_bytes() == content for path, content in inputs.items())

    # The file holds what was judged, in the precision it had, and says where it comes from.
    saved, old, new = (load_checkpoint(path) for path in (in_tmp / "a.pt", detector, forgetful))
    assert saved.precision == torch.float16
    start, end = (named_tensors(each.model) for each in (old, new))
    for name, tensor in named_tensors(saved.model).items():
        if tensor.is_floating_point() and (report["statistics"] or not name.endswith(("running_mean", "running_var"))):
            between = start[name].double() + report["share"] * (end[name].double() - start[name].double())
            assert torch.equal(tensor, between.half().float()), name
        else:
            assert torch.equal(tensor, end[name]), name
    (record,) = saved.contents[RECORD]
    assert (record["recipe"]["share"], record["recipe"]["statistics"]) == (report["share"], report["statistics"])
    assert (record["source"], record["origin"]) == ("new.pt", "detector.pt")
    assert saved.contents["train_args"] == new.contents["train_args"]
    assert YOLO(in_tmp / "a.pt").predict(torch.rand(1, 3, 64, 64), verbose=False)
    assert run("inspect", "model=a.pt") == 0
    assert "shift 1: toward" in capsys.readouterr().out


def test_without_toward_the_record_says_where_it_began(forgetful, detector, data, in_tmp):
    words = ("shift", f"model={forgetful}", f"data={data}", "plots=False", "shares=0.5", "imgsz=96", "json=a.json")
    assert run(*words, "toward=True", "out=a.pt") == 0
    report = json.loads((in_tmp / "a.json").read_text())["toward"]
    assert report["origin"] == str(detector)
    assert [trial["share"] for trial in report["tried"]] == [1.0, 0.5, 0.0]


def test_nothing_moves_where_staying_is_best(forgetful, detector, data, in_tmp, capsys):
    shutil.copy(detector, in_tmp / "good.pt")
    words = ("shift", "model=good.pt", f"toward={forgetful}", f"data={data}", "shares=0.6,0.3", "json=a.json")
    assert run(*words, f"retain={data.parent}") == 0
    assert "Nothing moved: no share beats staying" in capsys.readouterr().out
    report = json.loads((in_tmp / "a.json").read_text())["toward"]
    assert report["share"] == 1
    assert report["moved"] == []
    before, after = (named_tensors(load_checkpoint(path).model) for path in ("good.pt", "good-toward.pt"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    retained = {trial["share"]: trial["retained"][str(data.parent)] for trial in report["tried"]}
    assert retained[0.3]["map"] < retained[1.0]["map"]
    assert retained[0.3]["gain"]["high"] < 0


def test_what_must_be_kept_can_force_a_step(forgetful, detector, data, in_tmp):
    """New data on which staying is best, retained data on which it is not: the drop allowed decides."""
    shutil.copytree(data.parent, in_tmp / "old")
    described = (in_tmp / "old" / "data.yaml").read_text().replace(str(data.parent), str(in_tmp / "old"))
    (in_tmp / "old" / "data.yaml").write_text(described)
    for label in (data.parent / "labels" / "val").iterdir():  # the new data: nothing is where the detector looks
        (in_tmp / "old" / "labels" / "val" / label.name).write_text("0 0.5 0.5 1 1\n")
    words = ("shift", f"model={forgetful}", f"toward={detector}", f"data={in_tmp / 'old' / 'data.yaml'}", "plots=False")
    words += ("shares=0.6,0.3", f"retain={data}", "imgsz=96")
    assert run(*words, "out=a.pt", "json=a.json") == 0
    assert json.loads((in_tmp / "a.json").read_text())["toward"]["share"] == 1
    assert run(*words, "out=b.pt", "json=b.json", "retain_drop=0.15") == 0
    forced = json.loads((in_tmp / "b.json").read_text())["toward"]
    assert forced["share"] < 1
    kept = {trial["share"]: trial["retained"][str(data)]["map"] for trial in forced["tried"]}
    assert kept[forced["share"]] >= max(kept.values()) - 0.15 > kept[1.0]


def test_only_val_is_opened(forgetful, detector, data, monkeypatch):
    from ultralytics.data.base import BaseDataset

    opened = []
    get_img_files = BaseDataset.get_img_files
    monkeypatch.setattr(
        BaseDataset, "get_img_files", lambda self, path: opened.append(str(path)) or get_img_files(self, path)
    )
    model = YOLO(forgetful)
    shift_toward_(model, detector, data, shares=[0.5], imgsz=96, retain=data.parent)
    assert opened == [str(data.parent / "images" / "val")] * 2
    assert not (data.parent / "labels" / "test.cache").exists()


def test_from_python_in_place_with_the_gains_of_the_training(forgetful, detector, data):
    model = YOLO(forgetful)
    kept = dict(model.model.args)
    identities = [id(tensor) for tensor in model.model.parameters()]
    report = shift_toward_(model, None, data, shares=[0.5])
    assert report.origin == str(detector)
    assert report.share == 0.5
    assert report.tried[0].new.loss > 0
    assert report.precision == "float32"
    assert [id(tensor) for tensor in model.model.parameters()] == identities
    assert model.model.args == kept


def test_an_origin_kept_from_before_the_training(forgetful, detector, data):
    model = YOLO(detector)
    origin = state_of(model)
    with torch.no_grad():
        for mine, trained in zip(model.model.parameters(), YOLO(forgetful).model.parameters()):
            mine.copy_(trained)
    report = shift_toward_(model, origin, data, shares=[0.5], imgsz=96)
    assert report.origin == "the start of the training"
    assert report.share == 0.5


def test_a_half_of_val_that_no_decision_used(forgetful, detector, data, monkeypatch):
    monkeypatch.setattr(toward, "ENOUGH", 15)
    report = shift_toward_(YOLO(forgetful), detector, data, shares=[0.5])
    assert report.images == {"new": 15}
    assert report.unused_images == 15
    assert "On 15 val images that no decision used" in report.verdict
    assert not any("too few to set some apart" in warning for warning in report.warnings)


def test_val_that_is_no_split_of_its_own_is_warned_of(forgetful, detector, data, tmp_path):
    for split, why in (("train", "speaks for staying"), ("test", "can't be tested on it")):
        text = data.read_text().replace(f"{split}: images/{split}", f"{split}: images/val")
        (tmp_path / "my.yaml").write_text(text)
        report = shift_toward_(YOLO(forgetful), detector, tmp_path / "my.yaml", shares=[0.5], imgsz=96)
        assert any(why in warning for warning in report.warnings)


RECORDS = {
    "from scratch": ({"model": "yolov8n.yaml", "pretrained": False}, "from no weights that it names"),
    "untrained": ({}, "from no weights that it names"),
    "reset": ({"model": "{old}", "pretrained": False}, "from no weights that it names"),
    "gone": ({"model": "nowhere/old.pt", "pretrained": True}, "nowhere/old.pt, which is not there"),
    "resumed": ({"model": "{old}", "pretrained": True, "resume": "{old}"}, "the training was resumed"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_that_names_no_origin(case, detector):
    args, message = RECORDS[case]
    args = {key: value.format(old=detector) if isinstance(value, str) else value for key, value in args.items()}
    with pytest.raises(UserError, match=message):
        recorded_origin({"train_args": args}, None)


def test_pretrained_comes_before_model(detector, forgetful):
    args = {"model": str(forgetful), "pretrained": str(detector)}
    assert recorded_origin({"train_args": args}, None) == detector
    assert recorded_origin({"train_args": {**args, "pretrained": True}}, None) == forgetful
    assert recorded_origin({"train_args": {**args, "resume": str(forgetful)}}, None) == detector


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, request):
    """Origins and data sets that can't be used."""
    folder = tmp_path_factory.mktemp("bad")
    from builders import small_model

    torch.save({"model": small_model("yolo11n").half(), "train_args": {}}, folder / "other.pt")
    contents = torch.load(request.getfixturevalue("detector"), weights_only=False)
    contents["model"].task = "segment"
    torch.save(contents, folder / "task.pt")
    contents = torch.load(request.getfixturevalue("detector"), weights_only=False)
    contents["model"].float().fuse(verbose=False).half()
    torch.save(contents, folder / "fused.pt")
    contents = torch.load(request.getfixturevalue("detector"), weights_only=False)
    contents["model"].model[0].conv.weight.data.fill_(float("nan"))
    torch.save(contents, folder / "nan.pt")
    data = request.getfixturevalue("data")
    (folder / "classes.yaml").write_text(f"path: {data.parent}\ntrain: images/val\nval: images/val\nnames: [a, b]\n")
    (folder / "nothing" / "images").mkdir(parents=True)
    shutil.copy(next((data.parent / "images" / "val").iterdir()), folder / "nothing" / "images")
    described = {**yaml.safe_load(data.read_text()), "path": str(folder), "val": "nothing/images"}
    (folder / "nothing.yaml").write_text(yaml.safe_dump(described))
    (folder / "no-val.yaml").write_text(f"path: {data.parent}\ntrain: images/val\nval:\nnames: {list('0123456789')}\n")
    return folder


BAD = {
    "no origin there": (["toward=none.pt"], "toward=none.pt: no such file"),
    "no checkpoint": (["toward={data}"], "takes a .pt checkpoint"),
    "the same file": (["toward={model}"], "is the model itself: give the weights that its training started from"),
    "the same weights": (["toward={copy}"], "its weights are those of the model"),
    "another architecture": (["toward={bad}/other.pt"], "another architecture"),
    "another task": (["toward={bad}/task.pt"], "a model of the task 'segment'"),
    "fused": (["toward={bad}/fused.pt"], "it is fused"),
    "not finite": (["toward={bad}/nan.pt"], "the origin's weights are not finite"),
    "no record": (["toward=True"], "which is not there; give the weights it started from with toward="),
    "no such retained data": (["toward={old}", "retain=none.yaml"], "data=none.yaml"),
    "retained twice": (["toward={old}", "retain={data},{data}"], "names one data set twice"),
    "retained data of other classes": (["toward={old}", "retain={bad}/classes.yaml"], "has 2 classes and the model 10"),
    "retained data of nothing": (["toward={old}", "retain={bad}/nothing.yaml"], "holds no labelled object to judge by"),
    "no val": (["toward={old}", "data={bad}/no-val.yaml"], "no-val.yaml"),
    "a drop of nothing": (["toward={old}", "retain_drop=0.1"], "says nothing without retain="),
    "a drop without toward": (["retain_drop=0.1"], "is for a shift with toward="),
    "statistics without toward": (["statistics=False"], "is for a shift with toward="),
    "a recipe's key": (["toward={old}", "keep=0.5"], "keep=0.5 is for a shift of the prediction layers"),
    "a trace": (["toward={old}", "trace=True"], "trace=True is for a shift of the prediction layers"),
    "another split": (["toward={old}", "split=test"], "split=test is for a shift of the prediction layers"),
    "retain and no origin": (["toward=False", "retain={data}"], "which is False"),
    "shares beyond the ends": (["toward={old}", "shares=0.5,1.5"], "shares=1.5: takes numbers between 0"),
    "shares that are none": (["toward={old}", "shares=half"], "takes numbers between 0 and 1 with commas"),
    "out is the origin": (["toward={old}", "out={old}"], "the input is never changed"),
    "json is the model": (["toward={old}", "json={model}"], "the input is never changed"),
    "bad size": (["toward={old}", "imgsz=100"], "imgsz=100: takes a multiple"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_2_and_writes_nothing(case, forgetful, detector, data, bad_files, in_tmp, capsys):
    shutil.copy(forgetful, in_tmp / "best.pt")
    shutil.copy(forgetful, in_tmp / "copy.pt")
    if case == "no record":
        contents = torch.load(forgetful, weights_only=False)
        contents["train_args"]["model"] = "nowhere/old.pt"
        torch.save(contents, in_tmp / "best.pt")
    words, message = BAD[case]
    values = {"model": in_tmp / "best.pt", "copy": in_tmp / "copy.pt", "old": detector, "data": data, "bad": bad_files}
    words = [word.format(**values) for word in words]
    if not any(word.startswith("data=") for word in words):
        words.append(f"data={data}")
    assert run("shift", f"model={in_tmp / 'best.pt'}", *words) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("yolo-os: error:")]
    assert len(error) == 1
    assert message in error[0]
    assert {path.name for path in in_tmp.iterdir()} == {"best.pt", "copy.pt"}
