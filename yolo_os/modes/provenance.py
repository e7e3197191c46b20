"""Where the figures of a run come from: the command, the versions, and what was read, told again by its checksum."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from yolo_os._version import __version__
from yolo_os.evaluation.images import files_in
from yolo_os.files import as_path, is_dir, is_file
from yolo_os.settings import Key

# Of what computes figures, by the name it is imported by; named where it was used.
_PARTS = {
    "numpy": "numpy",
    "hotcoco": "hotcoco",
    "pycocotools": "pycocotools",
    "torch": "torch",
    "ultralytics": "ultralytics",
}


def provenance(
    mode: str, options: Mapping[str, Any], keys: Sequence[Key], read: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """What a result file says of its making.

    Args:
        mode: of the command line.
        options: as the mode got them.
        keys: of the mode, in order; the command names those that are not at their default.
        read: by key, and by name, the paths of the files and folders of which a checksum is kept.
    """
    given = [key.name for key in keys if options.get(key.name, key.default) != key.default]
    words = [f"{name}={_written(options[name])}" for name in given]
    return {
        "command": shlex.join(["yolo-os", mode, *words]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": _versions(),
        "read": {
            key: {name: {"path": path, "sha256": checksum(as_path(path))} for name, path in paths.items()}
            for key, paths in read.items()
        },
        "settings": {key.name: options.get(key.name, key.default) for key in keys},
    }


def checksum(path: Path) -> str | None:
    """SHA-256 of a file; of a folder that of the names and checksums of all files in it, sorted; None for neither."""
    if is_file(path):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    if not is_dir(path):
        return None
    lines = sorted(f"{checksum(Path(entry.path))} {name}\n" for name, entry in files_in(path))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"yolo_os": __version__, "python": platform.python_version()}
    for module, distribution in _PARTS.items():
        if module in sys.modules:
            try:
                versions[module] = version(distribution)
            except PackageNotFoundError:
                continue
    return versions


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
