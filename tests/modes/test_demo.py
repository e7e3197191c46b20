"""The demo, end to end: what the README's first command runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from yolo_os.cli import main
from yolo_os.modes.demo import RECIPES


def test_demo(in_tmp, capsys, monkeypatch):
    monkeypatch.setattr("yolo_os.toward.SHARES", (0.5,))  # the six take their time
    assert main(["demo", "replicates=100", "epochs=1"]) == 0
    out = capsys.readouterr().out
    content = json.loads((in_tmp / "runs" / "demo" / "exp" / "demo.json").read_text())
    assert content["before"]["map"] > 0.6
    assert set(content["shifts"]) == set(RECIPES)
    assert content["shifts"]["os"]["norm_ratio"] == 1
    assert content["shifts"]["os"]["gain"]["map"] == 0
    assert content["shifts"]["sos"]["norm_ratio"] < 0.95
    assert content["verdict"] in out
    for name in RECIPES:
        assert (in_tmp / "runs" / "demo" / "exp" / f"digits-{name}.pt").exists()
        assert (in_tmp / "runs" / "demo" / "exp" / name / "layers.png").exists()

    camera = content["camera"]
    assert 0 < camera["share"] <= 1
    assert camera["results"]["shipped"]["old"]["map"] == content["before"]["map"]
    assert camera["results"]["shipped"]["new"]["map"] < content["before"]["map"] - 0.05
    moved = camera["results"]["shifted"]["old"]["map"] - camera["results"]["trained"]["old"]["map"]
    assert camera["gain"]["old"]["map"] == pytest.approx(moved)
    assert "then the step back" in out
    assert (in_tmp / "runs" / "demo" / "exp" / "digits-toward.pt").exists()


def test_the_changed_camera_is_the_same_for_every_seed(digits, tmp_path):
    from yolo_os.modes.camera import camera_dataset, changed

    classes = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    first, second = (camera_dataset(digits, classes, tmp_path / str(seed), seed).parent for seed in (0, 1))
    images = [sorted((each / "images" / "test").iterdir()) for each in (first, second)]
    assert len(images[0]) == 300
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*images))
    drawn = [{file.name for file in (each / "images" / "train").iterdir()} for each in (first, second)]
    assert [len(each) for each in drawn] == [60, 60]
    assert drawn[0] != drawn[1]
    dark = changed(np.full((32, 32, 3), 250, np.uint8), np.random.default_rng(0))
    assert dark.mean() < 20


def test_the_demos_sentence_says_what_the_intervals_allow():
    from dataclasses import replace
    from types import SimpleNamespace

    from yolo_os.evaluation.bootstrap import Difference
    from yolo_os.modes.camera import Met

    def change(value):
        return Difference(value, value - 0.01, value + 0.01, 0.95, 0.005, 0.0, 0.05)

    met = Met(
        SimpleNamespace(share=0.5, reason="r"),
        {},
        {"old": change(-0.05), "new": change(0.1)},
        {"old": change(0.03), "new": change(0.004)},
    )
    assert "lost 0.050 mAP on the old camera" in met.sentence
    assert "got back 0.030 of it, and mAP on the new camera changed by no more than chance" in met.sentence
    assert "new camera fell" in replace(met, gain={"old": change(0.03), "new": change(-0.02)}).sentence
    assert "got back nothing" in replace(met, gain={"old": change(0.0), "new": change(0.02)}).sentence
    assert "forgot nothing" in replace(met, forgot={"old": change(0.0), "new": change(0.1)}).sentence
    assert "moved nothing (r)" in replace(met, report=SimpleNamespace(share=1, reason="r")).sentence
