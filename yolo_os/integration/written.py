"""Which checkpoints this process wrote: they may be read again whatever they hold."""

from __future__ import annotations

from pathlib import Path

_written: dict[Path, tuple[int, int]] = {}  # size and time


def note_written(path: str | Path) -> None:
    """Remember a checkpoint that this process has just written: it may be read again whatever it holds."""
    file = Path(path).resolve()
    _written[file] = _stamp(file)


def written_here(path: str | Path) -> bool:
    """Whether this process wrote a file, and nobody changed it since."""
    file = Path(path).resolve()
    return file in _written and file.is_file() and _written[file] == _stamp(file)


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
