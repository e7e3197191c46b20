"""Ultralytics' progress bar, as a wrapper of batches, and its log kept quiet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from ultralytics.utils import LOGGER, TQDM


def progress_bar(batches: Iterable[Any], title: str) -> Iterable[Any]:
    """The batches, with a bar while they last; none for an empty pass."""
    total = len(batches) if isinstance(batches, Sized) else None
    if total == 0:
        return batches
    bar: Iterable[Any] = TQDM(batches, desc=title, total=total)
    return bar


@contextmanager
def quiet() -> Iterator[None]:
    """Ultralytics' log kept to warnings for the length of a block."""
    level = LOGGER.level
    LOGGER.setLevel("WARNING")
    try:
        yield
    finally:
        LOGGER.setLevel(level)
