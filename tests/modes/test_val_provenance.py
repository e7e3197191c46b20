"""What a result file of `yolo-os val` says of its making."""

import hashlib
import json

import numpy
import pytest
import torch
import ultralytics
from builders import comp4, write_devkit

import yolo_os
from yolo_os.cli import main
from yolo_os.modes.provenance import checksum


@pytest.fixture
def kit(in_tmp):
    return write_devkit(in_tmp / "kit", {"a": [("cat", (1, 1, 50, 50))], "b": []}, {"test": "ab"})


def test_figures_say_where_they_come_from(kit, in_tmp, capsys):
    for name in ("one", "two"):
        comp4(in_tmp / name, cat=["a 0.9 1 1 50 50"])
    words = ["detections=one,two", "data=kit", "classes=cat", "iou=0.6", "plots=False", "bootstrap=20", "json=out.json"]
    assert main(["val", *words]) == 0
    printed = capsys.readouterr().out
    made = json.loads((in_tmp / "out.json").read_text())["made"]
    assert made["command"] == (
        "yolo-os val detections=one,two data=kit classes=cat iou=0.6 bootstrap=20 json=out.json plots=False"
    )
    assert made["versions"]["yolo_os"] == yolo_os.__version__
    assert made["versions"]["numpy"] == numpy.__version__
    line = hashlib.sha256((in_tmp / "one/cat.txt").read_bytes()).hexdigest()
    whole = hashlib.sha256(f"{line} cat.txt\n".encode()).hexdigest()
    assert made["read"] == {
        "detections": {name: {"path": name, "sha256": whole} for name in ("one", "two")},
    }
    assert made["ground_truth"] == {
        "path": "kit",
        "read": [{"folder": str(kit / "VOC2007"), "split": "test"}],
        "images": 2,
    }
    assert (made["settings"]["iou"], made["settings"]["split"], made["imgsz"]) == (0.6, "test", {})
    log = (in_tmp / "runs/val/exp/val.log").read_text()
    assert log.startswith(f"{made['command']}\n\n")
    assert printed.startswith(log.removeprefix(f"{made['command']}\n\n"))
    assert "95% paired intervals" in log
    assert main(made["command"].split()[1:]) == 0  # the command does it again


def test_a_models_figures_name_its_file_size_and_thresholds(digits, detector, in_tmp):
    from builders import digits_subset

    data = digits_subset(in_tmp / "own", digits, train=1, val=2)
    assert main(["val", f"model={detector}", f"data={data}", "split=val", "plots=False", "json=out.json"]) == 0
    made = json.loads((in_tmp / "out.json").read_text())["made"]
    assert made["read"]["model"]["detector"] == {
        "path": str(detector),
        "sha256": hashlib.sha256(detector.read_bytes()).hexdigest(),
    }
    assert made["read"]["data"]["data"]["sha256"] == checksum(data)
    assert made["imgsz"] == {"detector": 160}
    assert (made["settings"]["conf"], made["settings"]["nms_iou"]) == (0.001, 0.7)
    assert made["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert made["versions"]["ultralytics"] == ultralytics.__version__
