"""`yolo-os MODE key=value ...`: find the mode, read its keys, run it, and say errors in one line.

Help, the version and a mistyped mode or key are answered without importing torch.
"""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import ModuleType

from yolo_os._version import __version__
from yolo_os.errors import UserError, what_is_missing
from yolo_os.files import FULL
from yolo_os.settings import parse_pairs
from yolo_os.terminal import plain_streams, shown

# For Ultralytics, before it is imported: it looks for the network then, and loads and installs what files ask for
# unless it is told otherwise (docs/security.md). Whoever sets one of them differently means it.
ENVIRONMENT = {"ULTRALYTICS_SAFE_LOAD": "1", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}

# Each mode is a module of `yolo_os.modes` with KEYS, EXAMPLES and run(options); the line is its help. One that takes
# more than its KEYS has parse(words) as well, and a NOTE on what that is.
MODES = {
    "train": "fine-tune as `yolo train` does, with shifts during the training and at its end",
    "compare": "trainings against each other, over seeds, with intervals: does a change help on your data?",
    "inspect": "the prediction layers of a model, and whether a shift can do anything to them",
    "shift": "move a trained detector's prediction layers to the least norm, and report what that did",
    "trace": "how flat the training loss is around models: the trace of its Hessian, with error bars",
    "val": "mAP of VOC and COCO with error bars, of models or of detection files, on any data set",
    "voc": "make an Ultralytics data set from a VOCdevkit",
    "demo": "shift the detector that comes with the package, before and after",
}


_TASKS = ("detect", "segment", "pose", "obb", "classify")
_OF_YOLO = ("predict", "track", "export", "benchmark", "tune")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0: done. 1: an unforeseen error. 2: bad input, nothing done. 3: done, but broken annotations were left out.
    130: interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    with plain_streams():
        try:
            return _dispatch(words)
        except UserError as error:
            if debug:
                raise
            return _say(str(error))
        except KeyboardInterrupt:
            print("yolo-os: interrupted; what was finished before is kept", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return 0
        except Exception as error:
            if debug:
                raise
            if isinstance(error, OSError) and error.errno in FULL:
                return _say(f"cannot write {error.filename or 'a file of this run'}: {error.strerror}")
            print(f"yolo-os: unforeseen {type(error).__name__}: {shown(error)}\n(--debug shows where)", file=sys.stderr)
            return 1


def _say(error: str) -> int:
    if os.environ.get("RANK", "0") == "0":  # of several processes that fail alike, one says so
        print(f"yolo-os: error: {shown(error)}", file=sys.stderr)
    return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("help", "--help", "-h"):
        print(_help(words[1:]))
        return 0
    if words[0] in ("version", "--version", "-V"):
        print(__version__)
        return 0
    module = _mode(words[0], words[1:])
    if {"--help", "-h", "help"} & set(words[1:]):
        print(_help(words[:1]))
        return 0
    with _all_there(words[0]):
        options = module.parse(words[1:]) if hasattr(module, "parse") else parse_pairs(words[1:], module.KEYS)
        code: int = module.run(options)
    return code


@contextmanager
def _all_there(mode: str) -> Iterator[None]:
    """What the evaluator alone is installed without is bad input to a mode that needs it.

    Raises:
        UserError: saying what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        said = what_is_missing(error, f"yolo-os {mode}")
        raise UserError(said) if said else error from None


def _mode(name: str, others: Sequence[str] = ()) -> ModuleType:
    if name in _TASKS:
        rest = "train, val" if not others or others[0] not in MODES else others[0]
        raise UserError(f"'{name}' is a task of `yolo`, which yolo-os takes from the model: write yolo-os {rest} ...")
    if name in _OF_YOLO:
        raise UserError(f"'{name}' is a mode of `yolo`, which runs what yolo-os writes: write yolo {name} ...")
    if name not in MODES:
        near = get_close_matches(name, list(MODES))
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"unknown mode '{name}'{hint} (modes: {', '.join(MODES)}; yolo-os --help)")
    with _all_there(name):
        return importlib.import_module(f"yolo_os.modes.{name}")


def _help(modes: list[str]) -> str:
    if not modes:
        lines = ["usage: yolo-os MODE key=value ...", ""]
        lines += [f"  {name:<8} {line}" for name, line in MODES.items()]
        lines += [
            "",
            "yolo-os MODE --help     the keys of a mode",
            "yolo-os --version",
            "--debug                 show the traceback of an error",
        ]
        return "\n".join(lines)
    module = _mode(modes[0])
    lines = [f"yolo-os {modes[0]}: {MODES[modes[0]]}", ""]
    width = max(len(key.name) for key in module.KEYS)
    for key in module.KEYS:
        default = "required" if key.required else f"default {key.default}"
        text = f"{key.help} [{default}]"
        lines += textwrap.wrap(
            text, 110, initial_indent=f"  {key.name:<{width}}  ", subsequent_indent=" " * (width + 4)
        )
    if hasattr(module, "NOTE"):
        lines += ["", *textwrap.wrap(module.NOTE, 110, initial_indent="  ", subsequent_indent="  ")]
    lines += ["", "examples:", *(f"  {example}" for example in module.EXAMPLES)]
    return "\n".join(lines)
