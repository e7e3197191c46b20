"""Knowledge flows one way: the imports of the package, lazy ones and those for types included."""

from __future__ import annotations

import ast
import json
import sys

import pytest
from conftest import ROOT
from processes import finished

PACKAGE = ROOT / "yolo_os"
# Each line may import from the lines above it, and from its own folder; docs/architecture.md says what they are.
LAYERS = """
errors _version
distributed linalg timing resources terminal plain_yaml
settings heads
files
statistics
capture loss
methods
recipe
methods.base methods.least_norm methods.budget methods.curvature
forward
report
shifter
evaluation
conversion
comparison
toward_report
flatness
shift toward training matrices linear
plots
voc
integration
modes
cli
__init__ __main__
"""
RANK = {name: rank for rank, line in enumerate(LAYERS.split("\n")) for name in line.split()}


def modules():
    """By name without the package's own: the file of each module; a folder's is that of its __init__."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = file
    return found


MODULES = modules()


def imports(name):
    """The modules of the package that a module imports anywhere in its text, and the top names of others."""
    own, foreign = set(), set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are written out"
            targets = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, part in targets:
            if module != "yolo_os" and not module.startswith("yolo_os."):
                foreign.add(module.split(".")[0])
                continue
            short = module.removeprefix("yolo_os").removeprefix(".")
            inner = f"{short}.{part}".removeprefix(".") if part else short
            own.add(inner if inner in MODULES else short or "__init__")
    return own - {name}, foreign


IMPORTS = {name: imports(name) for name in MODULES}


def rank(name):
    """Of the longest part of a module's name that LAYERS has."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in RANK:
            return RANK[".".join(parts[:length])]
    raise AssertionError(f"{name} has no place in LAYERS")


def test_every_import_goes_down():
    up = [
        f"{name} -> {target}"
        for name, (own, _) in IMPORTS.items()
        for target in own
        if (rank(target) >= rank(name) and name.split(".")[0] != target.split(".")[0]) or rank(target) > rank(name)
    ]
    assert not up, up


def test_there_is_no_circle():
    state = {}

    def visit(name, path):
        assert state.get(name) != "open", " -> ".join([*path, name])
        if name not in state:
            state[name] = "open"
            for target in sorted(IMPORTS[name][0]):
                visit(target, [*path, name])
            state[name] = "done"

    for name in MODULES:
        visit(name, [])


def test_only_the_integration_knows_ultralytics():
    assert {name for name, (_, foreign) in IMPORTS.items() if "ultralytics" in foreign} <= {
        name for name in MODULES if name.split(".")[0] == "integration"
    }


@pytest.mark.parametrize("package", ["evaluation", "methods"])
def test_what_must_stay_light_imports_only_what_is(package):
    """`evaluation` sees files, errors, settings and the likes; the registry of methods nothing."""
    light = {"errors", "files", "settings", "_version", "terminal", "plain_yaml"}
    allowed = {"evaluation": light, "methods": set()}[package]
    names = [name for name in MODULES if name.split(".")[0] == package] if package == "evaluation" else [package]
    for name in names:
        own, foreign = IMPORTS[name]
        assert {each for each in own if each.split(".")[0] != package} <= allowed, name
        assert not {"torch", "ultralytics", "matplotlib"} & foreign, name


@pytest.mark.parametrize(
    ("words", "banned"),
    [
        ("import yolo_os.voc", ["torch", "ultralytics", "matplotlib.figure"]),
        ("import yolo_os.recipe", ["torch", "ultralytics"]),
        ("import yolo_os.plots.compare_page", ["torch", "ultralytics", "matplotlib.figure"]),
        ("from yolo_os.cli import main; main(['--help'])", ["torch", "ultralytics", "numpy", "yaml"]),
        ("from yolo_os.cli import main; main(['train', '--help'])", ["torch", "ultralytics"]),
        ("from yolo_os.cli import main; main(['shift', '--help'])", ["torch", "ultralytics"]),
        ("import yolo_os.shift, yolo_os.training.step", ["ultralytics"]),
    ],
)
def test_what_starts_light_stays_light(words, banned):
    code = f"import sys, json; {words}; print(json.dumps([each for each in {banned} if each in sys.modules]))"
    done = finished([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
