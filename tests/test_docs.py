"""The documentation against the code."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

from yolo_os.recipe import recipe_keys

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]


def test_the_recipe_page_is_that_of_the_code():
    rows = [f"| `{key.name}` | {key.default} | {key.help} |" for key in recipe_keys()]
    page = (ROOT / "docs" / "recipe.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows


def test_the_training_page_is_that_of_the_code():
    from yolo_os.modes.train import KEYS

    rows = [f"| `{key.name}` | {key.default} | {key.help} |" for key in KEYS]
    page = (ROOT / "docs" / "train.md").read_text()
    assert [line for line in page.splitlines() if line.startswith(("| `os`", "| `os."))] == rows


def test_ci_calls_the_test_command_of_the_readme():
    command = next(
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "pytest" in line and "venv" in line
    )
    assert command.strip() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_in_example_commands_exist(page):
    import importlib

    from ultralytics.utils import DEFAULT_CFG_DICT

    for mode, words in re.findall(r"^\s*(?:\S*/)?yolo-os (\w+)((?: \S+=\S+)*)", page.read_text(), re.MULTILINE):
        module = importlib.import_module(f"yolo_os.modes.{mode}")
        known = {key.name for key in module.KEYS} | (set(DEFAULT_CFG_DICT) if mode == "train" else set())
        assert {word.split("=")[0] for word in words.split()} <= known, words
