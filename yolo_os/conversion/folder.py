"""The folder of a data set made here: recognised by what its data.yaml records, replaced whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yolo_os.errors import UserError
from yolo_os.evaluation.readers.data_yaml import RECORD
from yolo_os.files import FULL, remove_leftovers, temporary_prefix
from yolo_os.plain_yaml import read_yaml

_MANIFEST = ".files.json"  # of a data set made here: its files with sizes and times, so that it knows them again
_OWN = {"data.yaml", "images", "labels", "problems.txt", _MANIFEST}  # all that a data set made here holds


def record_of(folder: Path) -> dict[str, Any] | None:
    """What `data.yaml` says about its making, or None if the folder is no data set made here."""
    try:
        data = read_yaml(folder / "data.yaml")
    except UserError:
        return None
    record = data.get(RECORD) if isinstance(data, dict) else None
    return record if isinstance(record, dict) and str(record.get("made_by", "")).startswith("yolo-os") else None


@contextlib.contextmanager
def replacing(out: Path, cache: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `out` when the block ends well, and is removed when it does not.

    Args:
        out: the folder.
        cache: it is one of ours, where nobody keeps anything.

    Raises:
        UserError: if `out` can't be written, or holds what was not made here, or there is no more room.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(out)
        if not cache:
            _refuse_foreign(out)
        building = Path(tempfile.mkdtemp(prefix=temporary_prefix(out), dir=out.parent))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"out={out}: cannot write there ({getattr(error, 'strerror', None) or error})") from None
    try:
        building.chmod(0o755)  # mkdtemp makes it private
        yield building
        (building / _MANIFEST).write_text(json.dumps(dict(_stamps(building))), encoding="utf-8")
        _move_into_place(building, out)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(f"out={out}: cannot write there ({error.strerror})") from None
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
    try:
        made = json.loads((out / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"out={out}: would be replaced, but has no list of its files any more; move it away") from None
    for name, stamp in _stamps(out):
        if name not in made and not re.fullmatch(r"labels/[^/]+\.cache", name):
            raise UserError(
                f"out={out}: would be replaced, but holds {name}, which yolo-os voc did not make; move it away"
            )
        if name in made and made[name] != stamp:
            raise UserError(f"out={out}: would be replaced, but {name} was changed since; move it away")


def _stamps(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """The files of a data set, but for their list itself: name, and size and time, of a link those of its own."""
    for file in sorted(folder.rglob("*")):
        if (file.is_symlink() or not file.is_dir()) and file.name != _MANIFEST:
            stat = file.lstat()
            yield file.relative_to(folder).as_posix(), [stat.st_size, stat.st_mtime_ns]


def _clean_up(out: Path) -> None:
    """Remove what killed runs left beside `out`; one killed in the middle of replacing it is put back."""
    for folder in remove_leftovers(out):
        old = folder / out.name
        if old.is_dir() and not out.exists():
            os.rename(old, out)
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(building: Path, out: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f"{temporary_prefix(out)}old-", dir=out.parent))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(out, old / out.name)
        os.rename(building, out)
    except OSError as error:  # such as another process that has just put its own there
        raise UserError(f"out={out}: cannot be replaced ({error.strerror})") from None
    finally:
        shutil.rmtree(old, ignore_errors=True)
