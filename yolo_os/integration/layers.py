"""What an architecture may ask for, checked before Ultralytics builds it.

Ultralytics takes module names, arguments and the activation of an architecture as Python: `activation:` is evaluated,
a module may be anything its own code has imported, an argument any variable of the function that builds the model.
So what a file or a checkpoint asks for is held against what a detector needs, and refused otherwise.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from ultralytics.nn.tasks import parse_model

from yolo_os.errors import UserError
from yolo_os.integration.unpickle import module_class

_SETTINGS = ("nc", "kpt_shape")  # variables of the building function that arguments may name
_VARIABLES = {*parse_model.__code__.co_varnames, *parse_model.__code__.co_cellvars} - {*_SETTINGS}
MOST_CLASSES = 100_000
# Largest value of each number: more is no detector, and could ask for any amount of memory.
_MOST = {
    "nc": MOST_CLASSES,
    "reg_max": 1024,
    "channels": 1000,
    "ch": 1000,
    "depth_multiple": 100,
    "width_multiple": 100,
}
_MOST_REPEATED = 100
_MOST_NUMBER = 65_536


def check_architecture(config: object) -> None:
    """Refuse an architecture that names anything but layers, numbers and an activation.

    Raises:
        UserError: naming the row or key.
    """
    if not isinstance(config, Mapping):
        raise UserError("the architecture is no dictionary")
    for key, most in _MOST.items():
        value = config.get(key)
        if value is not None and not _is_number(value, most):
            raise UserError(f"the architecture's {key}={value!r:.40}: takes a number up to {most:,}")
    _check_scales(config.get("scales"))
    shape = config.get("kpt_shape")
    if shape is not None and not (isinstance(shape, list | tuple) and all(_is_number(each, 10_000) for each in shape)):
        raise UserError(f"the architecture's kpt_shape={shape!r:.40}: takes two numbers")
    if config.get("end2end") not in (None, True, False):
        raise UserError("the architecture's end2end: takes True or False")
    if config.get("activation"):
        _check_activation(config["activation"])
    for part in ("backbone", "head"):
        rows = config.get(part)
        if not isinstance(rows, list) or not rows:
            raise UserError(f"the architecture has no {part}")
        for number, row in enumerate(rows):
            _check_row(row, f"row {number} of the architecture's {part}")


def _check_row(row: object, where: str) -> None:
    if not isinstance(row, list | tuple) or len(row) != 4:
        raise UserError(f"{where} is not of the form [from, number, module, args]")
    source, number, name, arguments = row
    sources = source if isinstance(source, list | tuple) else [source]
    if not sources or not all(type(each) is int and abs(each) < 1000 for each in sources):
        raise UserError(f"{where}: 'from' takes whole numbers, not {source!r:.40}")
    if type(number) is not int or not 0 <= number <= _MOST_REPEATED:
        raise UserError(f"{where}: takes a number of repeats up to {_MOST_REPEATED}, not {number!r:.40}")
    if not isinstance(name, str) or not _is_layer(name):
        raise UserError(f"{where}: {name!r:.60} is no layer of torch or Ultralytics that may be named in a file")
    if not isinstance(arguments, list | tuple):
        raise UserError(f"{where}: the arguments of {name} are no list")
    for argument in arguments:
        _check_argument(argument, f"{where}: an argument of {name}")


def _is_layer(name: str) -> bool:
    if name == "Silence":  # of former versions
        return True
    full = f"torch.nn.modules.{name[3:]}" if name.startswith("nn.") else f"ultralytics.nn.tasks.{name}"
    found = module_class(full) if "." not in name[3:] else None
    return found is not None and found.__module__ != "ultralytics.nn.tasks"


def _check_argument(value: object, where: str, depth: int = 0) -> None:
    if isinstance(value, str):
        if len(value) > 64 or value in _VARIABLES:
            raise UserError(f"{where}, {value!r:.40}, is not let through")
        if not value.isidentifier():
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise UserError(f"{where}, {value!r:.40}, is neither a name nor a value") from None
            _check_argument(value, where, depth + 1)
    elif isinstance(value, list | tuple) and depth < 4:
        for each in value:
            _check_argument(each, where, depth + 1)
    elif not (value is None or isinstance(value, bool) or _is_number(value, _MOST_NUMBER, -_MOST_NUMBER)):
        raise UserError(f"{where}, {value!r:.40}, is not let through")


def _check_activation(text: object) -> None:
    """Refuse an activation that is not of the form `nn.SiLU()`, of a class of torch with plain arguments."""
    refused = UserError(f"activation={text!r:.60} is not of the form nn.SiLU() or nn.LeakyReLU(0.1)")
    if not isinstance(text, str) or len(text) > 200:
        raise refused
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            raise refused
        name = ast.unparse(call.func).removeprefix("torch.")
        values = [ast.literal_eval(each) for each in (*call.args, *(pair.value for pair in call.keywords))]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise refused from None
    named = all(pair.arg for pair in call.keywords)
    found = module_class(f"torch.nn.modules.{name[3:]}") if name.startswith("nn.") and "." not in name[3:] else None
    if found is None or not named or not all(value is None or isinstance(value, str | float | int) for value in values):
        raise refused


def _check_scales(scales: object) -> None:
    if scales is None:
        return
    if not isinstance(scales, Mapping):
        raise UserError("the architecture's scales are no dictionary")
    for name, numbers in scales.items():
        if not (isinstance(numbers, list | tuple) and len(numbers) == 3) or not all(
            _is_number(each, most) for each, most in zip(numbers, (100, 100, 1_000_000))
        ):
            raise UserError(f"the architecture's scale {name!r:.20} takes depth, width and largest number of channels")


def _is_number(value: object, most: float, least: float = 0) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
