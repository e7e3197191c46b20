"""Run folders and files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from yolo_os.errors import UserError
from yolo_os.settings import Key

RUN_KEYS = (
    Key("project", (str,), None, "folder for the run's folder; None: runs/MODE"),
    Key("name", (str,), "exp", "name of the run's folder; a number is added when it exists"),
    Key("exist_ok", (bool,), False, "write into an existing run folder"),
)
_MOST_YAML = 20_000_000  # bytes
_MOST_NESTED = 64
_MOST_PARTS = 1_000_000  # of a YAML file, its aliases unfolded
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")


def read_yaml(path: str | Path) -> Any:
    """The contents of a YAML file: plain data, of a size that can be handled.

    A few lines of aliases of aliases can stand for any number of parts, and deep nesting ends in Python's own limit:
    both are measured before anything is built.

    Raises:
        UserError: if it can't be read, is no YAML, or asks for too much.
    """
    file = Path(path)
    try:
        if file.stat().st_size > _MOST_YAML:
            raise UserError(f"{file}: larger than any file of settings ({_MOST_YAML:,} bytes)")
        text = _NOT_YAML.sub("", file.read_text(encoding="utf-8", errors="ignore"))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        _measure(text)
        return yaml.load(text, Loader=_LOADER)  # a safe loader: plain data only
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # YAMLError, and ValueError for dates and numbers that are none
        raise UserError(f"{file}: is no YAML ({' '.join(str(error).split())[:300]})") from None


def _measure(text: str) -> None:
    """Refuse nesting that is too deep, and aliases that unfold into too much or into themselves."""
    sizes: dict[str, int] = {}
    holding: list[tuple[str | None, int]] = [(None, 0)]  # of the collections that are open: anchor and parts so far

    def add(count: int) -> None:
        anchor, parts = holding[-1]
        if parts + count > _MOST_PARTS:
            raise UserError(f"its aliases unfold into more than {_MOST_PARTS:,} parts")
        holding[-1] = (anchor, parts + count)

    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in holding):
                raise UserError(f"its alias *{event.anchor} holds itself")
            add(sizes.get(str(event.anchor), 1))
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(holding) > _MOST_NESTED:
                raise UserError(f"nested more than {_MOST_NESTED} deep")
            holding.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, parts = holding.pop()
            if anchor is not None:
                sizes[anchor] = parts
            add(parts)
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None:
                sizes[event.anchor] = 1
            add(1)


def check_folder(mode: str, options: dict[str, Any]) -> None:
    """Refuse, before any work is done, a run folder that could not be made at its end.

    Raises:
        UserError: if something that is no folder, or not writable, stands in its way.
    """
    folder = _base(mode, options)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"cannot make the run folder {_base(mode, options)}: {folder} is no folder that can be written")


def _base(mode: str, options: dict[str, Any]) -> Path:
    base: Path = Path(options["project"] or Path("runs") / mode) / options["name"]
    return base


def run_folder(mode: str, options: dict[str, Any]) -> Path:
    """Make `runs/MODE/exp`, `exp2`, ... (as Ultralytics numbers them) from the RUN_KEYS of a mode.

    Raises:
        UserError: if the folder cannot be made.
    """
    base = _base(mode, options)
    folder, number = base, 2
    while folder.exists() and not options["exist_ok"]:
        folder, number = base.with_name(f"{base.name}{number}"), number + 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the run folder {folder}: {error.strerror}; choose another with project="
        ) from None
    return folder


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; moved into place when the block ends well, removed when it does not.

    Raises:
        UserError: if the folder of `path` is missing or not writable.
    """
    check_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private; a result is an ordinary file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse, before any work is done, an output path that could not be written at its end.

    Raises:
        UserError: if `path` is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"cannot write {path}: permission denied")
