"""The documentation against the code."""

from __future__ import annotations

import ast
import re

import pytest
from conftest import ROOT
from test_architecture import LAYERS

from yolo_os.recipe import recipe_keys

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]
DOCS = ROOT / "docs"


def rows(page, start):
    """The lines of a page's tables that start so."""
    return [line for line in (DOCS / page).read_text().splitlines() if line.startswith(start)]


def anchors(page):
    """What GitHub calls the headings of a page in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_keys_of_a_recipe_are_those_of_the_code():
    keys = {key.name for key in recipe_keys()}
    found = [row for row in rows("use.md", "| `") if row.split("`")[1] in keys]
    assert found == [f"| `{key.name}` | {key.default} | {key.help} |" for key in recipe_keys()]


def test_the_keys_of_a_training_are_those_of_the_code():
    from yolo_os.modes.train import KEYS

    found = rows("training.md", ("| `os`", "| `os."))
    assert found == [f"| `{key.name}` | {key.default} | {key.help} |" for key in KEYS]


def test_the_keys_of_a_comparison_are_those_of_the_code():
    from yolo_os.modes.compare import KEYS

    running = (DOCS / "compare.md").read_text().split("\n## Running")[1].split("\n## ")[0]
    found = [line for line in running.splitlines() if line.startswith("| `")]
    assert found == [f"| `{key.name}` | {key.default} | {key.help} |" for key in KEYS]


def test_the_ready_arms_are_those_of_the_code():
    from yolo_os.comparison.arms import READY

    section = (DOCS / "compare.md").read_text().split("\n## Arms")[1].split("Arms of your own")[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert [name for cell in first for name in re.findall("`(.+?)`", cell)] == list(READY)


def test_the_layers_are_those_of_the_test_of_imports():
    section = (DOCS / "architecture.md").read_text().split("## Layers")[1].split("\n## ")[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert [re.findall("`(.+?)`", cell) for cell in first] == [line.split() for line in LAYERS.split("\n") if line]


def test_the_columns_of_a_training_are_explained():
    from yolo_os.training.log import COLUMNS, ShiftLog

    text = (DOCS / "training.md").read_text()
    assert {name for name in ShiftLog(None).totals() if f"`{name}`" not in text} == set()
    assert {"keep", "reverted"} <= set(COLUMNS)
    assert all(f"`{name}`" in text for name in ("keep", "reverted"))


def test_the_method_of_the_architecture_page_is_that_of_the_test_of_methods():
    def parts(text):
        found = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef))
        return {node.name: ast.dump(node) for node in found.body if isinstance(node, ast.FunctionDef)}

    shown = parts(re.search(r"```python\n(class .*?)```", (DOCS / "architecture.md").read_text(), re.DOTALL)[1])
    tested = parts((ROOT / "tests" / "methods" / "test_registry.py").read_text())
    del shown["move"], tested["move"]  # that of the test may change the bias as well
    assert shown == tested


def test_ci_calls_the_test_command_of_the_readme():
    command = next(
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "pytest" in line and "venv" in line
    )
    assert command.strip() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        if "://" in target:
            continue
        aim = page.parent / target if target else page
        assert aim.exists(), target
        assert not anchor or anchor in anchors(aim), f"{target}#{anchor}"


def test_every_page_is_reached_from_the_readme():
    linked = set(re.findall(r"\(docs/([\w]+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == {page.name for page in DOCS.glob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_and_tests_that_pages_name_exist(page):
    for name in re.findall(r"`((?:tests|benchmarks|data|docs|configs|yolo_os)/[\w./]+)`", page.read_text()):
        assert (ROOT / name).exists() or (page.parent / name).exists(), name


def test_what_the_package_says_of_its_pages_exists():
    for file in (*(ROOT / "yolo_os").rglob("*.py"), *(ROOT / "configs").glob("*.yaml")):
        for name in re.findall(r"\b((?:docs|tests|benchmarks)/[\w./]+\.(?:md|py))", file.read_text()):
            assert (ROOT / name).exists(), f"{file.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_pages_is_python(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_in_example_commands_exist(page):
    import importlib

    from ultralytics.utils import DEFAULT_CFG_DICT

    for mode, words in re.findall(r"^\s*(?:\S*/)?yolo-os (\w+)((?: \S+=\S+)*)", page.read_text(), re.MULTILINE):
        module = importlib.import_module(f"yolo_os.modes.{mode}")
        known = {key.name for key in module.KEYS} | (set(DEFAULT_CFG_DICT) if mode in ("train", "compare") else set())
        assert {word.split("=")[0] for word in words.split()} <= known, words
