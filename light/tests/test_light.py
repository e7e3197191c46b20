"""The evaluator alone, in an environment where neither torch nor Ultralytics nor OpenCV is installed (`.ci/run`)."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DIGITS = ROOT / "data" / "digits" / "VOCdevkit"


def yolo_os(*words, cwd):
    command = [str(Path(sys.executable).with_name("yolo-os")), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=300)


@pytest.fixture
def found(tmp_path):
    """All boxes of the embedded test set as a COCO result file, and a file without every third."""
    from yolo_os.voc import read_devkit

    truth = read_devkit(DIGITS)
    columns = zip(truth.image.tolist(), truth.class_index.tolist(), truth.box.tolist())
    entries = [
        {"image_id": truth.images[image], "category_id": label + 1, "score": 0.9,
         "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]}
        for image, label, (x1, y1, x2, y2) in columns
    ]  # fmt: skip
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(truth.classes)]
    for name, kept in (("all", entries), ("some", [each for number, each in enumerate(entries) if number % 3])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"annotations": kept, "categories": categories}))
    return tmp_path


def test_nothing_heavy_is_installed_and_the_package_is_the_installed_one():
    heavy = ("torch", "torchvision", "ultralytics", "cv2", "scipy")
    assert not [name for name in heavy if importlib.util.find_spec(name)]
    import yolo_os

    assert Path(yolo_os.__file__).is_relative_to(sys.prefix)


def test_two_detectors_are_compared_with_plots_and_cocos_numbers(found):
    words = ["val", "detections=some.json,all.json", f"devkit={DIGITS}", "bootstrap=50", "json=out.json"]
    done = yolo_os(*words, cwd=found)
    assert done.returncode == 0, done.stderr
    figures = json.loads((found / "out.json").read_text())
    assert figures["detectors"]["all"]["map"] == 1.0
    assert figures["gains"]["all"]["map"]["low"] > 0.1
    assert "COCO" in done.stdout
    assert len(list((found / "runs/val/exp").glob("*.png"))) >= 2


@pytest.mark.parametrize("mode", ["train", "compare", "inspect", "shift", "trace", "val", "voc", "demo"])
def test_every_mode_shows_its_keys(mode, tmp_path):
    done = yolo_os(mode, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"yolo-os {mode}: " in done.stdout


def test_python_has_the_evaluator_and_says_what_the_rest_needs():
    from yolo_os.voc import as_annotations, as_detections, evaluate_detections

    truth = as_annotations([[[0, 0, 9, 9, 0]]], ["cat"])
    assert evaluate_detections(truth, as_detections([[[0, 0, 9, 9, 0.5, 0]]], truth)).map == 1.0
    with pytest.raises(ImportError, match=r"yolo_os.shift_ needs .* install the whole package"):
        from yolo_os import shift_  # noqa: F401


@pytest.mark.parametrize(
    "words",
    [
        ["shift", "model=a.pt", "data=b.yaml"],
        ["shift", "model=a.pt", "toward=c.pt", "data=b.yaml"],
        ["train", "model=a.pt", "data=b.yaml"],
        ["inspect", "model=a.pt"],
        ["val", "model=a.pt", f"data={DIGITS}"],
        ["demo"],
        ["trace", "model=a.pt", "data=b.yaml"],
        ["compare", "model=a.pt", "data=b.yaml"],
    ],
)
def test_what_needs_more_says_so_in_one_line(words, tmp_path):
    done = yolo_os(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"yolo-os: error: yolo-os {words[0]} needs ")
    assert "install the whole package" in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_is_there_for_all_modes(tmp_path):
    for mode in ("shift", "train", "inspect", "val", "voc", "demo"):
        assert yolo_os(mode, "--help", cwd=tmp_path).returncode == 0
