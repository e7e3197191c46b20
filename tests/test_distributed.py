"""A shift by two processes is that of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from yolo_os import prediction_layers
from yolo_os.cli import main
from yolo_os.integration.checkpoint import load_checkpoint


@pytest.mark.parametrize("recipe", ["budget", "os", "sos"])
def test_two_processes_equal_one(recipe, detector, digits, in_tmp, capsys):
    words = ["shift", f"model={detector}", f"data={digits}", "images=48", "held_out=32", "batch=8", f"recipe={recipe}"]
    words += ["plots=False", "device=cpu"]
    assert main([*words, "out=one.pt", "json=one.json"]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "yolo_os", *words, "out=two.pt", "json=two.json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("shifted checkpoint:") == 1
    one, two = (json.loads((in_tmp / name).read_text()) for name in ("one.json", "two.json"))
    assert two["loss"]["held_out"]["images"] == 32
    for first, second in zip(one["layers"], two["layers"]):
        assert second.keys() == first.keys()
        assert second["rank"] == first["rank"]
        assert second["rows"] == first["rows"]
        for key in ("norm_after", "residual", "drift"):
            assert second[key] == pytest.approx(first[key], rel=1e-9, abs=1e-12)
    assert two["norm_ratio"] == pytest.approx(one["norm_ratio"], rel=1e-9)
    for part in ("calibration", "held_out"):
        for when in ("before", "after"):
            assert two["loss"][part][when] == pytest.approx(one["loss"][part][when], rel=1e-9)
    weights = ([layer.matrix for layer in prediction_layers(load_checkpoint(p).model)] for p in ("one.pt", "two.pt"))
    assert all(torch.equal(a, b) for a, b in zip(*weights))


def test_bad_input_is_said_once_and_nobody_waits(detector, in_tmp):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "yolo_os", "shift", f"model={detector}", "data=none.yaml", "device=cpu"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert done.stderr.count("yolo-os: error: data=none.yaml") == 1
