"""The small distribution of the evaluator is the whole package without what it does not need (light/tests has more)."""

from __future__ import annotations

import pytest
from conftest import ROOT

from yolo_os.cli import main

HEAVY = ("torch", "torchvision", "ultralytics", "opencv-python", "scipy")


def listed(file):
    """The dependencies of a project, by hand: Python 3.10 has no reader of TOML."""
    text = file.read_text(encoding="utf-8")
    block = text[text.index("\ndependencies = [") :]
    return [line.split('"')[1] for line in block[: block.index("\n]")].splitlines() if line.strip().startswith('"')]


def test_it_needs_what_the_whole_package_needs_but_for_the_heavy_ones():
    whole = [each for each in listed(ROOT / "pyproject.toml") if not each.startswith(tuple(f"{h}>" for h in HEAVY))]
    assert len(listed(ROOT / "pyproject.toml")) == len(whole) + len(HEAVY)
    assert sorted(listed(ROOT / "light/pyproject.toml")) == sorted(whole)


def test_ci_tests_it():
    assert "light/tests" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["torch", "ultralytics", "cv2"])
def test_a_part_that_is_missing_is_named_in_one_line(missing, monkeypatch, capsys):
    from yolo_os.modes import inspect

    def run(options):
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    monkeypatch.setattr(inspect, "run", run)
    assert main(["inspect", "model=a.pt"]) == 2
    assert capsys.readouterr().err == (
        f"yolo-os: error: yolo-os inspect needs {missing}, which is not installed: install the whole package, yolo-os "
        "(`pip install .` in its clone); yolo-os-light is the evaluator alone\n"
    )


def test_a_module_of_no_ours_that_is_missing_is_no_matter_of_the_installation(monkeypatch, capsys):
    from yolo_os.modes import inspect

    def run(options):
        raise ModuleNotFoundError("No module named 'mine'", name="mine")

    monkeypatch.setattr(inspect, "run", run)
    assert main(["inspect", "model=a.pt"]) == 1
    assert "unforeseen ModuleNotFoundError" in capsys.readouterr().err


def test_python_says_what_a_name_needs(monkeypatch):
    import yolo_os

    def missing(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    monkeypatch.setattr(yolo_os.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"yolo_os.shift_ needs torch, which is not installed: install the whole"):
        yolo_os.shift_  # noqa: B018
