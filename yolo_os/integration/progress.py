"""Ultralytics' progress bar, as a wrapper of batches."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

from ultralytics.utils import TQDM


def progress_bar(batches: Iterable[Any], title: str) -> Iterable[Any]:
    """The batches, with a bar while they last; none for an empty pass."""
    total = len(batches) if isinstance(batches, Sized) else None
    if total == 0:
        return batches
    bar: Iterable[Any] = TQDM(batches, desc=title, total=total)
    return bar
