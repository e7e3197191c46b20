"""What several tests share: the embedded data, small models of each head family, the real material where it is."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from builders import write_devkit

# Before Ultralytics is imported: its settings go into a folder of the tests, and it stays offline.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="yolo_os_tests_")

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "data" / "digits"


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory):
    """Caches and settings written by the tests stay in a folder of theirs."""
    folder = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    from yolo_os.integration.runtime import limit_threads

    limit_threads(1)  # the models are too small to gain from more, and lose where cores are shared
    yield
    patch.undo()


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """The test runs in a folder of its own, so that runs/ lands there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def digits():
    """The embedded VOCdevkit."""
    return DIGITS / "VOCdevkit"


@pytest.fixture(scope="session")
def detector():
    """The embedded detector's checkpoint."""
    return DIGITS / "detector.pt"


@pytest.fixture(scope="session")
def shared():
    """Real weights and VOC images beside the clone (or at YOLO_OS_SHARED); tests that need them skip without."""
    folder = Path(os.environ.get("YOLO_OS_SHARED", ROOT.parent / "shared"))
    if not (folder / "weights" / "voc_yolov5nu.pt").exists():
        pytest.skip("the real VOC images and weights are not here (set YOLO_OS_SHARED to their folder)")
    return folder


@pytest.fixture(scope="session")
def tiny_data(digits, tmp_path_factory):
    """Lists of 12 images to train on and 4 to validate on."""
    import yaml

    from yolo_os.conversion.dataset import make_dataset

    made = make_dataset(digits, tmp_path_factory.mktemp("tiny") / "digits")
    described = yaml.safe_load(made.read_text())
    for split, count in (("train", 12), ("val", 4)):
        images = sorted((made.parent / "images" / f"{split}2007").iterdir())[:count]
        (made.parent / f"{split}.txt").write_text("\n".join(map(str, images)))
    tiny = made.with_name("tiny.yaml")
    settings = {"path": str(made.parent), "train": "train.txt", "val": "val.txt", "names": described["names"]}
    tiny.write_text(yaml.safe_dump(settings))
    return tiny


@pytest.fixture
def truth(tmp_path):
    """Annotations of two images, and one whose XML is broken; classes cat and dog."""
    images = {
        "000007": [("cat", (10, 20, 30, 40)), ("dog", (50, 50, 60, 60), {"difficult": "1"})],
        "000012": [("dog", (1, 1, 100, 80))],
        "bad": "<annotation>",
    }
    kit = write_devkit(tmp_path / "kit", images, {"test": list(images)}, pictures=False)
    from yolo_os.voc import read_devkit

    return read_devkit(kit, classes="cat,dog")


@pytest.fixture
def kit(tmp_path):
    """Three images in test, one in train and val each."""
    images = {
        "a": [("cat", (10, 20, 30, 40)), ("dog", (5, 5, 8.5, 9), {"difficult": "1", "truncated": "1"})],
        "b": [("dog", (1, 1, 100, 80))],
        "c": [],
        "d": [("cat", (10, 20, 30, 40))],
        "e": [("dog", (1, 1, 100, 80))],
    }
    return write_devkit(tmp_path / "kit", images, {"test": "abc", "train": "d", "val": "e"})


@pytest.fixture
def train(detector, tiny_data, tmp_path):
    """Train the embedded detector further; callbacks by event, called after those of SOS."""
    from trainings import TINY, Trained
    from ultralytics import YOLO

    def run(sos=None, name="run", model=None, callbacks=None, **changes):
        yolo = model or YOLO(detector)
        if sos is not None:
            sos.attach(yolo)
        for event, function in (callbacks or {}).items():
            yolo.add_callback(event, function)
        yolo.train(data=str(tiny_data), project=str(tmp_path), name=name, exist_ok=True, **{**TINY, **changes})
        return Trained(yolo, tmp_path / name)

    return run
