"""A shift by two processes is that of one."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta

import pytest
import torch
from processes import finished

from yolo_os import prediction_layers
from yolo_os.cli import main
from yolo_os.integration.checkpoint import load_checkpoint

RECIPES = ("budget", "os", "sos")


def words(recipe, detector, digits, name):
    given = ["shift", f"model={detector}", f"data={digits}", "images=32", "held_out=16", "batch=8", f"recipe={recipe}"]
    return [*given, "plots=False", "device=cpu", f"out={name}-{recipe}.pt", f"json={name}-{recipe}.json"]


@pytest.fixture(scope="module")
def folder(detector, digits, tmp_path_factory):
    """Shifts by one process, and the same by two that were started together."""
    folder = tmp_path_factory.mktemp("processes")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = finished(
        [*launcher, __file__, str(detector), str(digits)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("shifted checkpoint:") == len(RECIPES)
    for recipe in RECIPES:
        assert main(words(recipe, detector, digits, "one")) == 0
    patch.undo()
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_equal_one(recipe, folder):
    one, two = (json.loads((folder / f"{name}-{recipe}.json").read_text()) for name in ("one", "two"))
    assert two["loss"]["held_out"]["images"] == 16
    for first, second in zip(one["layers"], two["layers"]):
        assert second.keys() == first.keys()
        assert second["rank"] == first["rank"]
        assert second["rows"] == first["rows"]
        for key in ("norm_after", "residual", "drift"):
            assert second[key] == pytest.approx(first[key], rel=1e-9, abs=1e-12)
    assert two["keep"] == pytest.approx(one["keep"], rel=1e-9)
    for part in ("calibration", "held_out"):
        for when in ("before", "after"):
            assert two["loss"][part][when] == pytest.approx(one["loss"][part][when], rel=1e-9)
    files = (folder / f"{name}-{recipe}.pt" for name in ("one", "two"))
    weights = ([layer.matrix for layer in prediction_layers(load_checkpoint(file).model)] for file in files)
    assert all(torch.equal(a, b) for a, b in zip(*weights))


def test_bad_input_is_said_once_and_nobody_waits(detector, in_tmp):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["shift", f"model={detector}", "data=none.yaml", "device=cpu"]
    done = finished([*launcher, "-m", "yolo_os", *words], seconds=120)
    assert done.returncode != 0
    assert done.stderr.count("yolo-os: error: data=none.yaml") == 1


if __name__ == "__main__":  # in each of two processes
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    for each in RECIPES:
        assert main(words(each, *sys.argv[1:], "two")) == 0
    torch.distributed.destroy_process_group()
