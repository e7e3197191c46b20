"""Nothing of the user's is lost, by any command, and what it prints is fit for a terminal."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from builders import comp4, write_devkit

from yolo_os.cli import main

CLASSES = ("car/truck", "a\x9b2Jb", "x" * 5000, "$a_b$", "数字", "cat")


def files(folder):
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def kit(in_tmp):
    boxes = [(name, (10 + 5 * index, 10, 40 + 5 * index, 40)) for index, name in enumerate(CLASSES)]
    return write_devkit(in_tmp / "kit", {"a": boxes, "b": boxes}, {"train": "a", "val": "b", "test": "b"})


@pytest.fixture
def found(in_tmp):
    entries = [
        {"image_id": "b", "category_id": 1 + index, "bbox": [9 + 5 * index, 9, 31, 31], "score": 0.9}
        for index in range(6)
    ]
    categories = [{"id": 1 + index, "name": name} for index, name in enumerate(CLASSES)]
    (in_tmp / "found.json").write_text(json.dumps({"annotations": entries, "categories": categories}))
    return in_tmp / "found.json"


@pytest.mark.parametrize(
    "output",
    ["model.pt", "found.json", "kit/VOC2007/Annotations/a.xml", "kit/VOC2007/ImageSets/Main/test.txt", "classes.txt"],
)
def test_json_is_written_over_no_input(output, kit, found, detector, in_tmp, capsys):
    shutil.copy(detector, in_tmp / "model.pt")
    (in_tmp / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    before = files(in_tmp)
    commands = {
        "val": [f"detections={found}", f"devkit={kit}", "classes=classes.txt"],
        "val of a model": ["model=model.pt", f"data={kit}"],
        "shift": ["model=model.pt", f"data={kit}"],
        "inspect": ["model=model.pt", f"data={kit}"],
    }
    for name, words in commands.items():
        if not any(output.split("/")[0].split(".")[0] in word for word in words):
            continue
        assert main([name.split()[0], *words, f"json={output}"]) == 2
        assert "the input is never changed" in capsys.readouterr().err
    assert files(in_tmp) == before


def test_out_over_an_existing_file_is_said(detector, digits, in_tmp, capsys):
    (in_tmp / "out.pt").write_bytes(b"earlier")
    words = ["images=4", "held_out=2", "plots=False", "imgsz=64"]
    assert main(["shift", f"model={detector}", f"data={digits}", "out=out.pt", *words]) == 0
    assert "note: out=out.pt is there already and will be replaced" in capsys.readouterr().err


def test_strange_names_break_no_output_and_no_terminal(kit, found, in_tmp, capsys):
    assert main(["val", f"detections={found}", f"devkit={kit}", "json=out.json"]) == 0
    captured = capsys.readouterr()
    assert all(letter.isprintable() or letter in "\n\t" for letter in captured.out + captured.err)
    assert max(map(len, captured.out.splitlines())) < 400
    assert set(json.loads((in_tmp / "out.json").read_text())["classes"]) == set(CLASSES)
    written = in_tmp / "runs/val/exp/comp4"
    assert len(list(written.glob("comp4_det_test_*.txt"))) == 6
    assert (in_tmp / "runs/val/exp/pr_curves.png").stat().st_size > 1000
    capsys.readouterr()
    assert main(["val", f"detections={written}", f"devkit={kit}"]) == 0  # its own files are understood again
    assert "1.0000" in capsys.readouterr().out


def test_many_classes_on_the_command_line(in_tmp):
    names = [f"class_number_{index}" for index in range(34)]
    kit = write_devkit(in_tmp / "many", {"a": [(name, (1, 1, 50, 50)) for name in names]}, {"test": "a"})
    good = comp4(in_tmp / "good", **{f"comp4_det_test_{name}": ["a 0.9 1 1 50 50"] for name in names})
    assert main(["val", f"detections={good}", f"devkit={kit}", f"classes={','.join(names)}", "plots=False"]) == 0
    assert main(["voc", f"devkit={kit}", "out=made", f"classes={','.join(names)}"]) == 0


def test_voc_takes_nothing_of_the_users_away(kit, in_tmp, capsys):
    words = ["voc", f"devkit={kit}", "out=made"]
    assert main(words) == main(words) == 0  # its own is replaced
    added = {
        "made/labels/train2007/mine.txt": "0 0.5 0.5 0.1 0.1\n",
        "made/images/train2007/mine.jpg": "x",
        "made/labels/train2007/a.txt": "5 0.1 0.1 0.1 0.1\n",
        "made/data.yaml": (in_tmp / "made/data.yaml").read_text() + "augment: mine\n",
    }
    for name, text in added.items():
        assert main(words) == 0
        (in_tmp / name).write_text(text)
        assert main(words) == 2
        assert f"{name.removeprefix('made/')}" in capsys.readouterr().err
        assert (in_tmp / name).read_text() == text
        shutil.rmtree(in_tmp / "made")
    assert main(words) == 0
    (in_tmp / "made/labels/train2007.cache").write_bytes(b"of Ultralytics")
    assert main(words) == 0
    assert not [name for name in os.listdir(in_tmp) if name.startswith(".")]


def test_no_empty_folders_are_left(kit, in_tmp):
    (in_tmp / "bad.json").write_text("[[]]")
    assert main(["val", "detections=bad.json", f"devkit={kit}"]) == 2
    assert not (in_tmp / "runs").exists()


STRANGE = {
    "lists": [{"image_id": ["b"], "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}],
    "dictionaries": [{"image_id": "b", "category_id": {"a": 1}, "bbox": [1, 1, 2, 2], "score": 0.5}],
    "lists in boxes": [{"image_id": "b", "category_id": 1, "bbox": [[1], 1, 2, 2], "score": 0.5}],
    "a box of text": [{"image_id": "b", "category_id": 1, "bbox": "1122", "score": {}}],
    "giant numbers": [{"image_id": "b", "category_id": 1, "bbox": [10**400, 1, 2, 2], "score": 0.5}],
    "a giant id": [{"image_id": "b", "category_id": 10**100, "bbox": [1, 1, 2, 2], "score": 0.5}],
    "categories of text": {"annotations": [], "categories": "abc"},
    "categories of lists": {"annotations": [], "categories": [{"id": [1], "name": "cat"}]},
    "no list": {"annotations": {"a": 1}},
    "a number": 7,
}


@pytest.mark.parametrize("kind", [*STRANGE, "nesting", "digits"])
def test_json_of_the_wrong_kind_is_refused_in_a_line(kind, kit, in_tmp, capsys):
    texts = {"nesting": "[" * 100_000, "digits": '[{"image_id": ' + "9" * 10_000 + "}]"}
    (in_tmp / "bad.json").write_text(texts.get(kind) or json.dumps(STRANGE[kind]))
    assert main(["val", "detections=bad.json", f"devkit={kit}"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("yolo-os")]
    assert len(lines) == 1 and "bad.json" in lines[0]


@pytest.mark.parametrize("value", ["~nosuchuser/x", "x" * 5000, "\udcff\udcfe", "a\x1b[2Jb"])
@pytest.mark.parametrize(
    "key", ["model", "data", "detections", "devkit", "json", "out", "recipe", "classes", "project"]
)
def test_paths_of_any_kind_end_in_a_line(key, value, kit, found, detector, in_tmp, capsys):
    base = {
        "shift": {"model": detector, "data": kit, "out": "o.pt"},
        "val": {"detections": found, "devkit": kit},
        "voc": {"devkit": kit, "out": "made"},
    }
    mode = {"detections": "val", "devkit": "voc", "classes": "voc", "json": "val"}.get(key, "shift")
    words = {**base[mode], key: f"{value}.pt" if key == "out" else value}
    assert main([mode, *(f"{name}={text}" for name, text in words.items())]) in (2, 0)
    captured = capsys.readouterr()
    assert "unforeseen" not in captured.err
    assert all(letter.isprintable() or letter in "\n\t" for letter in captured.err)


def test_a_training_does_not_write_over_the_checkpoint_that_it_starts_from(detector, tiny_data, in_tmp, capsys):
    own = in_tmp / "p" / "x" / "weights" / "best.pt"
    own.parent.mkdir(parents=True)
    shutil.copy(detector, own)
    before = own.read_bytes()
    words = ["train", f"model={own}", f"data={tiny_data}", "epochs=1", "imgsz=64", "workers=0", "plots=False"]
    assert main([*words, f"project={in_tmp / 'p'}", "name=x", "exist_ok=True", "os=False"]) == 2
    assert "lies in the folder that this training would write to" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_the_origin_that_a_record_names_is_an_input_too(detector, digits, in_tmp, capsys):
    shutil.copy(detector, in_tmp / "old.pt")
    contents = torch.load(detector, weights_only=False)
    contents["train_args"].update(model=str(in_tmp / "old.pt"), pretrained=True)
    torch.save(contents, in_tmp / "new.pt")
    before = files(in_tmp)
    assert main(["shift", "model=new.pt", "toward=True", f"data={digits}", "out=old.pt"]) == 2
    assert "the input is never changed" in capsys.readouterr().err
    assert files(in_tmp) == before
