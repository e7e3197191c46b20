"""Files: found safely, written whole or not at all, never over an input; run folders."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
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
# What the system says when there is no more room: on the disk, of the user's share, for one file.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG}
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-.*")
_DAY = 24 * 60 * 60
_LONGEST_NAME = 80  # letters of a file's name that come from data


def check_folder(mode: str, options: dict[str, Any]) -> None:
    """Refuse, before any work is done, a run folder that could not be made at its end.

    Raises:
        UserError: if something that is no folder, or not writable, stands in its way.
    """
    folder = _base(mode, options)
    try:
        if "\0" in str(folder):
            raise ValueError("a null in it")
        while not folder.exists():
            folder = folder.parent
    except (OSError, ValueError) as error:  # a name too long, or with a null in it
        raise UserError(f"cannot make the run folder {folder}: {getattr(error, 'strerror', None) or error}") from None
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"cannot make the run folder {_base(mode, options)}: {folder} is no folder that can be written")


def _base(mode: str, options: dict[str, Any]) -> Path:
    return as_path(options["project"] or Path("runs") / mode) / str(options["name"])


def run_folder(mode: str, options: dict[str, Any]) -> Path:
    """Make `runs/MODE/exp`, `exp2`, ... (as Ultralytics numbers them) from the RUN_KEYS of a mode.

    What killed runs left half written in those folders is removed.

    Raises:
        UserError: if the folder cannot be made.
    """
    base = _base(mode, options)
    folder, number = base, 2
    while folder.exists() and not options["exist_ok"]:
        folder, number = base.with_name(f"{base.name}{number}"), number + 1
    clean_runs(base)
    make_folder(folder)
    return folder


def make_folder(folder: Path) -> None:
    """Make a run folder, which may be there already; `discard_folder` takes it away again.

    Raises:
        UserError: if it cannot be made.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the run folder {folder}: {error.strerror}; choose another with project="
        ) from None
    _made[folder] = made


def clean_runs(base: Path) -> None:
    """Remove what killed runs left half written in a run folder and those that are numbered after it."""
    for folder in base.parent.glob(f"{glob.escape(base.name)}*"):
        _remove(folder.rglob(".*"))


_made: dict[Path, list[Path]] = {}  # by run folder, those that were not there before it, innermost first


def discard_folder(folder: Path) -> None:
    """Take a run folder away again in which nothing was left, and those that were made for it."""
    for each in _made.get(folder, []):
        with contextlib.suppress(OSError):  # something is in it
            each.rmdir()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; moved into place when the block ends well, removed when it does not.

    What earlier runs left when they were killed is removed.

    Raises:
        UserError: if the folder of `path` is missing or not writable, or there is no more room.
    """
    check_writable(path)
    with _said_of(path):
        remove_leftovers(path)
        handle, name = tempfile.mkstemp(prefix=temporary_prefix(path), suffix=path.suffix[:20], dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _said_of(path):
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes it private; a result is an ordinary file
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file; it appears, or changes, whole or not at all.

    Raises:
        UserError: as `written_whole`.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    """Write plain types as JSON, which has no NaN or infinity: these become null; whole or not at all.

    Raises:
        UserError: as `written_whole`.
    """
    write_text(path, json.dumps(_finite(content), indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """What the system says while something is written, said of the file that is meant.

    Raises:
        UserError: for what a person can do something about.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def temporary_prefix(path: Path) -> str:
    """The start of the name of a temporary file or folder for a path: it says which process it belongs to."""
    return f".{path.stem[:40]}.{_machine()}-{os.getpid()}-"


def remove_leftovers(path: Path) -> list[Path]:
    """Remove the temporary files for a path that killed processes left; returns temporary folders, which are left."""
    return _remove(entry for entry in path.parent.iterdir() if entry.name.startswith(f".{path.stem[:40]}."))


def _remove(entries: Iterable[Path]) -> list[Path]:
    """Remove those of some files that nobody writes any more; returns such folders."""
    folders = []
    for entry in entries:
        match = _TEMPORARY.fullmatch(entry.name)
        if not match or _is_used(entry, match[1], int(match[2])):
            continue
        if entry.is_dir():
            folders.append(entry)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()
    return folders


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_used(entry: Path, machine: str, process: int) -> bool:
    """Whether a temporary file may still be written: its process lives, or it is of another machine and not old."""
    if machine != _machine():
        with contextlib.suppress(OSError):
            return time.time() - entry.lstat().st_mtime < _DAY
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def check_writable(path: Path) -> None:
    """Refuse, before any work is done, an output path that could not be written at its end.

    Raises:
        UserError: if `path` is a folder, or its folder is missing or not writable.
    """
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
        if not path.parent.is_dir():
            raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
        if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
            raise UserError(f"cannot write {path}: permission denied")
    except (OSError, ValueError) as error:  # a name too long, or with a null in it
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def check_outputs(outputs: Mapping[str, str | Path | None], inputs: Mapping[str, Any]) -> None:
    """Refuse output paths that can't be written, are one and the same, or are one of the files that are read.

    Args:
        outputs: by key, as the user gave them; None where not given.
        inputs: by key, as the user gave them: files, development kits, data sets, folders of detections, or lists of
            them; what is no path is left aside. In a folder, the files of its kind count.

    Raises:
        UserError: naming the keys.
    """
    given = {key: as_path(value) for key, value in outputs.items() if value}
    for key, path in given.items():
        check_writable(path)
        for other, second in given.items():
            if other < key and path.resolve() == second.resolve():
                raise UserError(f"{other}= and {key}= name one file, {path}")
        if not path.exists():
            continue
        for name, value in inputs.items():
            for what, source in _read_from(value):
                if _is_within(path, source):
                    raise UserError(
                        f"{key}={path} is {what} itself, given as {name}=: the input is never changed, choose another "
                        "name"
                    )


def _read_from(value: Any) -> Iterator[tuple[str, Path]]:
    """The files, and the folders of files, that a value of a key has read, each with what it is."""
    values = value if isinstance(value, list | tuple) else [value]
    whole = [each for each in values if isinstance(each, str | Path)]
    parts = [part.strip() for each in whole if "," in str(each) for part in str(each).split(",")]
    for each in [*whole, *parts]:
        path = as_path(each)
        if is_file(path):
            yield "the file", path
            if path.suffix in (".yaml", ".yml"):
                yield from _of_data_set(path)
        elif is_dir(path):
            kits = [root.parent for pattern in _KITS for root in path.glob(pattern)]
            for root in kits:
                yield from (("a file of the development kit", root / part) for part in _KIT_PARTS)
            if not kits:
                yield from (("a file of the data", file) for file in path.iterdir() if file.suffix in _DETECTIONS)
                yield from (pair for file in path.glob("*.yaml") for pair in _read_from(file))


_KITS = ("Annotations", "VOC*/Annotations", "VOCdevkit/VOC*/Annotations")
_KIT_PARTS = ("Annotations", "ImageSets", "JPEGImages")
_DETECTIONS = (".txt", ".json", ".xml")


def _of_data_set(file: Path) -> Iterator[tuple[str, Path]]:
    """The images, labels and lists of a data.yaml; nothing for another YAML file."""
    from yolo_os.plain_yaml import read_yaml  # with a YAML reader, which help and version do without

    with contextlib.suppress(UserError, TypeError, ValueError):
        data = read_yaml(file)
        record = data.get("voc")
        for root in record.get("devkit") or [] if isinstance(record, dict) else []:
            yield from (("a file of the development kit", Path(root) / part) for part in _KIT_PARTS)
        base = file.parent / str(data.get("path") or ".")
        for split in ("train", "val", "test"):
            entries = data.get(split) or []
            for each in entries if isinstance(entries, list) else [entries]:
                path = base / str(each)
                yield "a file of the data set", path
                yield "a file of the data set", Path(f"{os.sep}labels{os.sep}".join(_around_images(path)))


def _around_images(path: Path) -> tuple[str, str]:
    before, _, after = f"{path}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    return (before, after) if before else (str(path), "")


def _is_within(path: Path, source: Path) -> bool:
    """Whether an existing file is another one, or lies in a folder; links are followed."""
    try:
        if source.is_dir():
            return path.resolve().is_relative_to(source.resolve())
        return source.exists() and path.samefile(source)
    except (OSError, ValueError):
        return False


def as_path(text: str | Path) -> Path:
    """The path that a user means; `~` is the user's home.

    Raises:
        UserError: if it names a user whom this machine does not have.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: no such user") from None


def read_bytes(file: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: also for a pipe or a device, which would be waited for, or read, without end.
    """
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise OSError(errno.EINVAL, "it is no ordinary file", str(file))
    return file.read_bytes()


def is_file(path: str | Path) -> bool:
    """Whether a path is a file; False for what can be none, such as a text too long for a name."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: str | Path) -> bool:
    """Whether a path is a folder; False for what can be none."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def file_name(text: str) -> str:
    """A text from data as a part of a file's name: ordinary ones as they are, others changed but still told apart."""
    name = "".join(letter if letter.isprintable() and letter not in '/\\:*?"<>|' else "_" for letter in text)
    if name == text and len(name) <= _LONGEST_NAME and len(name.encode()) <= 2 * _LONGEST_NAME:
        return name
    short = name.encode()[: 2 * _LONGEST_NAME].decode(errors="ignore")[:_LONGEST_NAME]
    return f"{short}-{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:8]}"
