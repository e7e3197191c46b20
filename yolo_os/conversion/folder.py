"""The folder of a data set made here: recognised by what its data.yaml records, replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from yolo_os.errors import UserError
from yolo_os.evaluation.readers.data_yaml import RECORD

_OWN = {"data.yaml", "images", "labels", "problems.txt"}  # all that a data set made here holds


def record_of(folder: Path) -> dict[str, Any] | None:
    """What `data.yaml` says about its making, or None if the folder is no data set made here."""
    try:
        data = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    record = data.get(RECORD) if isinstance(data, dict) else None
    return record if isinstance(record, dict) and str(record.get("made_by", "")).startswith("yolo-os") else None


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `out` when the block ends well, and is removed when it does not.

    Raises:
        UserError: if `out` can't be written, or holds what was not made here.
    """
    _refuse_foreign(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"out={out}: cannot write there ({error.strerror})") from None
    try:
        building.chmod(0o755)  # mkdtemp makes it private
        yield building
        _move_into_place(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _refuse_foreign(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"out={out}: is a file; give a new folder")
    if not record_of(out):
        raise UserError(f"out={out}: holds something that yolo-os voc did not make; give a new folder")
    others = sorted(path.name for path in out.iterdir() if path.name not in _OWN)
    if others:
        raise UserError(
            f"out={out}: would be replaced, but holds {others[0]}, which yolo-os voc did not make; move it away"
        )


def _move_into_place(building: Path, out: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(out, old / out.name)
        os.rename(building, out)
    except OSError as error:  # such as another process that has just put its own there
        raise UserError(f"out={out}: cannot be replaced ({error.strerror})") from None
    finally:
        shutil.rmtree(old, ignore_errors=True)
