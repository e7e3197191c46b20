"""JSON of strangers, and the ids in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yolo_os.errors import UserError
from yolo_os.files import read_bytes


def read_json(file: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        UserError: if it can't be read.
    """
    try:
        return json.loads(read_bytes(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{file}: cannot be read as JSON (nested too deep)") from None


def identity(value: Any) -> int | str:
    """An id of an image or a category.

    Raises:
        TypeError: if it is neither a whole number nor text.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"an id is {value!r:.40}, neither a whole number nor text")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise TypeError("an id is a number of too many digits")
    return value


def name_of(value: Any) -> str:
    """A name.

    Raises:
        TypeError: if it is no text.
    """
    if not isinstance(value, str | int | float):
        raise TypeError(f"a name is {value!r:.40}, no text")
    return str(value)
