"""The demo, end to end: what the README's first command runs."""

from __future__ import annotations

import json

from yolo_os.cli import main
from yolo_os.modes.demo import RECIPES


def test_demo(in_tmp, capsys):
    assert main(["demo", "replicates=100"]) == 0
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
