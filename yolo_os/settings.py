"""The `key=value` grammar of the command line, as `yolo` has it, without importing torch or Ultralytics.

Ultralytics' own parser sits behind an import that takes seconds; a mistyped key should be answered at once. The
grammar is the same (`tests/test_settings.py` holds the two side by side): `imgsz=320`, `imgsz = 320`, `conf=0.1`,
`plots=False`, a bare `plots` for `plots=True`, Python literals, `None`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from yolo_os.errors import UserError

_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    list: "a list",
    type(None): "None",
}


@dataclass(frozen=True)
class Key:
    """One key that a mode takes.

    Attributes:
        name: as typed before the `=`.
        types: the Python types a value may have; `(str,)` alone keeps the text as typed, so `name=007` stays `007`.
        default: the value when the key is not given.
        help: one sentence for the help page and the reference.
        required: whether the mode cannot run without it.
        choices: the values allowed, where they are few.
        minimum: the least value of a number; None: any.
        filled: whether the default stands in for a key that is not given; if not, the key is left out of the options.
    """

    name: str
    types: tuple[type, ...]
    default: Any
    help: str
    required: bool = False
    choices: tuple[str, ...] = ()
    filled: bool = True
    minimum: float | None = None

    def described(self, help: str) -> Key:
        """The same key with another help text."""
        return replace(self, help=help)

    def check(self, value: Any) -> Any:
        """The value, converted where that loses nothing (a number where text is wanted, an int for a float).

        Raises:
            UserError: naming the key, what it takes and what it got.
        """
        if self.choices and value not in self.choices and not (value is None and type(None) in self.types):
            raise UserError(
                f"{self.name}={value}: use one of {', '.join(self.choices)}{_did_you_mean(value, self.choices)}"
            )
        if isinstance(value, bool) and bool not in self.types and str not in self.types:
            raise UserError(f"{self.name}={value}: takes {self._wanted()}")
        if self.minimum is not None and isinstance(value, int | float) and not value >= self.minimum:
            raise UserError(f"{self.name}={value}: takes {self._wanted()} from {self.minimum:g}")
        if isinstance(value, self.types):
            return value
        if float in self.types and isinstance(value, int):
            return float(value)
        if list in self.types and isinstance(value, tuple):
            return list(value)
        if str in self.types and isinstance(value, int | float):
            return str(value)
        raise UserError(f"{self.name}={value}: takes {self._wanted()}")

    def _wanted(self) -> str:
        return " or ".join(_TYPE_NAMES.get(kind, kind.__name__) for kind in self.types)


def parse_pairs(words: Sequence[str], keys: Iterable[Key]) -> dict[str, Any]:
    """Values by key, defaults filled in for the keys that want it, from the words after the mode.

    Raises:
        UserError: for a word that is no `key=value`, an unknown key (with the nearest known ones), a key given twice,
            a value of the wrong type, or a required key left out.
    """
    known = {key.name: key for key in keys}
    given: dict[str, Any] = {}
    for word in join_spaced(words):
        name, equals, text = (part.strip() for part in word.partition("="))
        name = name.removeprefix("--")
        if not equals and name not in known and (meant := _key_of_file(name)) in known:
            raise UserError(f"'{name}' is no key: write {meant}={name}")
        reject_unknown([name], known)
        key = known[name]
        if not equals:
            if key.types != (bool,):
                raise UserError(f"'{word}' has no value: write {name}=...")
            text = "True"
        if not text:
            raise UserError(f"'{name}=' has no value")
        if name in given:
            raise UserError(f"'{name}' is given twice")
        if key.types != (str,):
            given[name] = key.check(parse_value(text))
        else:
            given[name] = None if key.default is None and text.lower() == "none" else key.check(text)
    for key in known.values():
        if key.required and key.name not in given:
            raise UserError(f"{key.name}=... is missing: {key.help}")
    return {name: given.get(name, key.default) for name, key in known.items() if name in given or key.filled}


def reject_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not known.

    Raises:
        UserError: naming the first unknown one, and the nearest known ones.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(f"unknown key '{name}'{_did_you_mean(name, known)}")


def parse_value(text: str) -> Any:
    """The Python value that a text stands for: None, True, False (any case), a literal, or the text itself."""
    constants: Mapping[str, Any] = {"none": None, "true": True, "false": False}
    if text.lower() in constants:
        return constants[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def listed(value: Any) -> list[str]:
    """A list, one text, or text with commas, as a list of texts; None is none."""
    if value is None:
        return []
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def _key_of_file(word: str) -> str | None:
    """The key that a file or folder is most likely meant for, where it stands without one."""
    suffix = word.rpartition(".")[2].lower() if "." in word else ""
    if suffix in ("yaml", "yml"):
        return "data"
    if suffix in ("pt", "pth"):
        return "model"
    return "data" if word.startswith((".", "/", "~")) or word.endswith("/") else None


def join_spaced(words: Sequence[str]) -> list[str]:
    """`a = b`, `a= b` and `a =b` as `a=b`, which is what a person means; a trailing comma is dropped."""
    joined: list[str] = []
    for word in words:
        word = word if word == "," else word.rstrip(",")
        if joined and (joined[-1].endswith("=") or word.startswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _did_you_mean(word: Any, known: Iterable[str]) -> str:
    matches = get_close_matches(str(word), list(known))
    return f": did you mean {' or '.join(matches)}?" if matches else ""
