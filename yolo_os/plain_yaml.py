"""YAML of strangers: plain data, of a size that can be handled."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from yolo_os.errors import UserError

_MOST_YAML = 20_000_000  # bytes
_MOST_NESTED = 64
_MOST_PARTS = 1_000_000  # of a YAML file, its aliases unfolded
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")


def read_yaml(path: str | Path) -> Any:
    """The contents of a YAML file: plain data, of a size that can be handled.

    A few lines of aliases of aliases can stand for any number of parts, and deep nesting ends in Python's own limit:
    both are measured before anything is built.

    Raises:
        UserError: if it can't be read, is no YAML, or asks for too much.
    """
    import yaml  # here, for what starts without it

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    file = Path(path)
    try:
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UserError(f"{file}: it is no ordinary file")  # but a pipe, which would be waited for
        if file.stat().st_size > _MOST_YAML:
            raise UserError(f"{file}: larger than any file of settings ({_MOST_YAML:,} bytes)")
        text = _NOT_YAML.sub("", file.read_text(encoding="utf-8", errors="ignore"))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        _measure(yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)  # a safe loader: plain data only
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # YAMLError, and ValueError for dates and numbers that are none
        raise UserError(f"{file}: is no YAML ({' '.join(str(error).split())[:300]})") from None


def _measure(events: Iterable[Any]) -> None:
    """Refuse nesting that is too deep, and aliases that unfold into too much or into themselves."""
    from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    sizes: dict[str, int] = {}
    holding: list[tuple[str | None, int]] = [(None, 0)]  # of the collections that are open: anchor and parts so far

    def add(count: int) -> None:
        anchor, parts = holding[-1]
        if parts + count > _MOST_PARTS:
            raise UserError(f"its aliases unfold into more than {_MOST_PARTS:,} parts")
        holding[-1] = (anchor, parts + count)

    for event in events:
        if isinstance(event, AliasEvent):
            if event.anchor in (anchor for anchor, _ in holding):
                raise UserError(f"its alias *{event.anchor} holds itself")
            add(sizes.get(str(event.anchor), 1))
        elif isinstance(event, CollectionStartEvent):
            if len(holding) > _MOST_NESTED:
                raise UserError(f"nested more than {_MOST_NESTED} deep")
            holding.append((event.anchor, 1))
        elif isinstance(event, CollectionEndEvent):
            anchor, parts = holding.pop()
            if anchor is not None:
                sizes[anchor] = parts
            add(parts)
        elif isinstance(event, ScalarEvent):
            if event.anchor is not None:
                sizes[event.anchor] = 1
            add(1)
