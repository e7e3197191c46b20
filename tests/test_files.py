"""Files: outputs never over inputs, whole or absent, leftovers removed, names of strangers; YAML of strangers."""

from __future__ import annotations

import errno
import os
import resource
import sys

import pytest
import yaml
from builders import write_devkit
from processes import finished

from yolo_os.conversion.dataset import make_dataset
from yolo_os.errors import UserError
from yolo_os.files import (
    as_path,
    check_folder,
    check_outputs,
    discard_folder,
    file_name,
    is_dir,
    is_file,
    run_folder,
    temporary_prefix,
    write_text,
    written_whole,
)
from yolo_os.plain_yaml import read_yaml


@pytest.fixture
def world(tmp_path):
    """One input of every kind."""
    write_devkit(tmp_path / "kit", {stem: [("cat", (1, 1, 9, 9))] for stem in "ab"}, {"train": "a", "test": "b"})
    make_dataset(tmp_path / "kit", tmp_path / "made")
    (tmp_path / "results").mkdir()
    for name in ("model.pt", "found.json", "names.txt", "results/comp4_det_test_cat.txt"):
        (tmp_path / name).write_text("{}")
    for folder in ("images", "labels"):
        (tmp_path / "own" / folder / "train").mkdir(parents=True)
        (tmp_path / "own" / folder / "train" / "a.txt").write_text("")
    (tmp_path / "own" / "list.txt").write_text("images/train/a.jpg\n")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"path": "own", "train": "images/train", "val": "list.txt"}))
    (tmp_path / "link.json").symlink_to(tmp_path / "model.pt")
    os.link(tmp_path / "found.json", tmp_path / "hard.json")
    return tmp_path


INPUTS = {
    "model.pt": {"model": "{}/model.pt"},
    "link.json": {"model": "{}/model.pt"},
    "hard.json": {"detections": "{}/found.json"},
    "found.json": {"detections": "{0}/results,{0}/found.json"},
    "results/comp4_det_test_cat.txt": {"detections": "{}/results"},
    "kit/VOC2007/Annotations/a.xml": {"devkit": "{}/kit"},
    "kit/VOC2007/ImageSets/Main/test.txt": {"data": "{}/kit/VOC2007"},
    "kit/VOC2007/JPEGImages/a.jpg": {"data": "{}/made"},
    "made/data.yaml": {"data": "{}/made/data.yaml"},
    "made/labels/train2007/a.txt": {"data": "{}/made/data.yaml"},
    "own/labels/train/a.txt": {"data": "{}/own.yaml"},
    "own/list.txt": {"data": "{}/own.yaml"},
    "own.yaml": {"data": "{}/own.yaml"},
    "names.txt": {"classes": "{}/names.txt"},
}


@pytest.mark.parametrize("output", INPUTS)
def test_no_output_is_one_of_the_inputs(output, world):
    inputs = {key: value.format(world) for key, value in INPUTS[output].items()}
    with pytest.raises(UserError, match=r"json=.* itself, given as \w+=: the input is never changed"):
        check_outputs({"json": str(world / output), "out": None}, inputs)
    check_outputs({"json": str(world / "new.json")}, {**inputs, "iou": 0.5, "classes": "cat,dog", "year": None})


def test_two_outputs_are_two_files(world):
    with pytest.raises(UserError, match=r"json= and out= name one file"):
        check_outputs({"json": world / "a.pt", "out": world / "results" / ".." / "a.pt"}, {})
    with pytest.raises(UserError, match="it is a folder"):
        check_outputs({"json": world}, {})


def test_a_full_disk_is_said_of_the_file(tmp_path):
    write_text(tmp_path / "a.json", "before")
    with (
        pytest.raises(UserError, match=r"cannot write .*a\.json: No space left on device"),
        written_whole(tmp_path / "a.json"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (tmp_path / "a.json").read_text() == "before"
    assert os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(OSError), written_whole(tmp_path / "a.json"):
        raise FileNotFoundError(errno.ENOENT, "of something else")


def test_a_limit_of_the_system_is_said_of_the_file(tmp_path):
    """A real one: a process that may write no file of more than 1,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*a\.txt: File too large"):
            write_text(tmp_path / "a.txt", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path):
    killed = finished(
        [
            sys.executable,
            "-c",
            "import os, sys; from pathlib import Path; from yolo_os.files import written_whole\n"
            "with written_whole(Path(sys.argv[1])) as file: file.write_text('half'); os._exit(9)",
            str(tmp_path / "out.pt"),
        ]
    )
    assert killed.returncode == 9
    (left,) = os.listdir(tmp_path)
    mine = [".out.pt", ".out.notes", ".out.00000000-1-x", f".outer.{left.split('.')[2]}", "out.pt.tmp"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    alive = tmp_path / f"{temporary_prefix(tmp_path / 'out.pt')}x.pt"
    alive.write_text("of this process")
    with written_whole(tmp_path / "out.pt") as file:
        file.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, alive.name, "out.pt"])


def test_run_folders_are_taken_away_when_nothing_came_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"project": None, "name": "exp", "exist_ok": False}
    discard_folder(run_folder("val", options))
    assert os.listdir(tmp_path) == []
    first = run_folder("val", options)
    (first / "a").write_text("")
    discard_folder(run_folder("val", options))
    discard_folder(first)
    assert os.listdir("runs/val") == ["exp"]


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\udc80" * 300])
def test_paths_that_can_be_none(name, tmp_path):
    assert not is_file(name) and not is_dir(name)
    with pytest.raises(UserError, match="cannot write"):
        check_outputs({"json": str(tmp_path / name / "a")}, {})
    with pytest.raises(UserError, match="cannot make the run folder"):
        check_folder("val", {"project": str(tmp_path / name), "name": "exp"})


def test_a_user_who_is_not_there():
    with pytest.raises(UserError, match="~nosuchuser/a: no such user"):
        as_path("~nosuchuser/a")


def test_names_from_data_become_names_of_files():
    for ordinary in ("car", "traffic light", "Straße", "数字", "a.b-c_d"):
        assert file_name(ordinary) == ordinary
    strange = ["car/truck", "car\\truck", "car_truck", "../../etc", "x" * 5000, "x" * 5001, "数" * 5000, "a\x1b[2J", ""]
    names = [file_name(each) for each in strange]
    assert len(set(names)) == len(strange)
    assert all("/" not in name and name.isprintable() and len(name.encode()) < 200 for name in names)


BOMBS = {
    "aliases of aliases": "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
    "nesting": "a: " + "[" * 5000 + "]" * 5000,
    "an alias that holds itself": "a: &a [*a]",
    "a tag": "a: !!python/object/apply:os.system [touch owned]",
    "a date that is none": "a: 2001-99-99",
    "a number of many digits": "a: " + "9" * 5000,
    "an unhashable key": "? [a]\n: b",
    "no YAML": "a: [",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_yaml_that_is_refused_at_once(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(BOMBS[kind])
    with pytest.raises(UserError, match=r"bad\.yaml: ") as error:
        read_yaml(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert os.listdir(tmp_path) == ["bad.yaml"]


def test_yaml_is_read_as_ultralytics_reads_it(tmp_path):
    (tmp_path / "a.yaml").write_bytes("names: &n {0: 数, 1: '\x07b'}\nagain: *n\n".encode() + b"\xff")
    assert read_yaml(tmp_path / "a.yaml") == {"names": {0: "数", 1: "b"}, "again": {0: "数", 1: "b"}}
    with pytest.raises(UserError, match="can't be read"):
        read_yaml(tmp_path / "none.yaml")
