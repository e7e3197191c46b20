"""Run folders and files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yolo_os.errors import UserError
from yolo_os.settings import Key

RUN_KEYS = (
    Key("project", (str,), None, "folder for the run's folder; None: runs/MODE"),
    Key("name", (str,), "exp", "name of the run's folder; a number is added when it exists"),
    Key("exist_ok", (bool,), False, "write into an existing run folder"),
)


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
