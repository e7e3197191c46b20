"""Where what was read of a data set is kept: beside it, or in the user's cache folder if that is not writable."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from yolo_os.evaluation.images import files_in

CACHE_FOLDER = ".yolo_os.cache"


def cache_folder(root: Path) -> Path | None:
    """The folder for what was made of a folder such as `VOC2007`: inside it, or in the user's cache; None if neither.

    A folder whose mode forbids writing is left alone, even by a user (root) who could write there.
    """
    beside = root / CACHE_FOLDER
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    private = home / "yolo_os" / f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:16]}"
    places = [beside] if root.stat().st_mode & 0o222 and os.access(root, os.W_OK) else []
    for folder in [*places, private]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        return folder
    return None


def fingerprint(*folders: Path) -> str:
    """A checksum of the names, sizes and times of the files below some folders; a missing folder counts as empty."""
    digest = hashlib.sha256()
    for folder in folders:
        stats = sorted((name, *_size_and_time(entry)) for name, entry in files_in(folder))
        digest.update(f"{stats}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        stat = entry.stat()
    except OSError:  # a link to nothing
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
