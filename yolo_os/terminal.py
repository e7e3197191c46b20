"""Text of strangers made fit for a terminal: class names, file names and messages may hold anything."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOST = 2000
# What goes through as it is: printable text, line ends, tabs, and the colours and erasures of progress bars.
_COMMANDS = re.compile("(\x1b\\[[0-9;]*[mK])")
_COLOURS = re.compile("\x1b\\[[0-9;]*m")  # Ultralytics puts them into the messages of its errors


def in_table(name: str) -> str:
    """A name of a class or detector as it may stand in a column."""
    return shown(name, 40)


def shown(text: object, most: int = _MOST) -> str:
    """A text as one line for a terminal: without colours, control codes spelled out, a very long one cut."""
    text = _COLOURS.sub("", str(text))
    plain = "".join(letter if letter.isprintable() else _spelled(letter) for letter in text)
    return plain if len(plain) <= most else f"{plain[: most * 3 // 4]} ... {plain[-most // 8 :]}"


def counted(number: int, what: str, plural: str = "s", thousands: bool = False) -> str:
    """`1 image`, `2 images`; `plural` is what is added to the word, `thousands` makes it `2,000 images`."""
    return f"{number:{',' if thousands else ''}} {what}{'' if number == 1 else plural}"


@contextmanager
def plain_streams() -> Iterator[None]:
    """Standard output and error without control codes, but for colours, for the length of a block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Plain(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Plain:
    """A stream that spells out what a terminal could take for a command, or its encoding does not have."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text as it may go to a terminal."""
        if not text.isascii() or not text.replace("\n", "").isprintable():
            text = "".join(
                part if _COMMANDS.fullmatch(part) else "".join(map(self._fit, part)) for part in _COMMANDS.split(text)
            )
        written: int = self._stream.write(text)
        return written

    def _fit(self, letter: str) -> str:
        if letter in "\n\r\t":
            return letter
        if not letter.isprintable():
            return _spelled(letter)
        try:
            letter.encode(getattr(self._stream, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            return _spelled(letter)
        return letter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _spelled(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


@contextmanager
def kept_output() -> Iterator[list[str]]:
    """What goes to standard output during a block, which is printed all the same."""
    before = sys.stdout
    parts: list[str] = []
    sys.stdout = _Kept(before, parts)
    try:
        yield parts
    finally:
        sys.stdout = before


class _Kept:
    """A stream that also keeps what is written to it."""

    def __init__(self, stream: Any, parts: list[str]) -> None:
        self._stream, self._parts = stream, parts

    def write(self, text: str) -> int:
        """Write a text, and keep it."""
        self._parts.append(text)
        written: int = self._stream.write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
