"""Ground truth from files: a module for each annotation format, and the list of them.

A new format is a module with `recognises` and `read`, and a line in `READERS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.readers import data_yaml, devkit


class Reader(Protocol):
    """What the module of a format has."""

    def recognises(self, source: str | Path) -> bool:
        """Whether a path is of this format; only its layout is looked at."""

    def read(
        self,
        source: str | Path,
        split: str,
        year: str | None = None,
        classes: str | Path | Sequence[str] | None = None,
    ) -> Annotations:
        """The annotations of a split.

        Raises:
            UserError: if they can't be read, or the format does not leave the choice of `year` or `classes`.
        """


READERS: tuple[Reader, ...] = (devkit, data_yaml)  # the last is tried where none recognises its format


def read_annotations(
    source: str | Path,
    split: str = "test",
    year: str | None = None,
    classes: str | Path | Sequence[str] | None = None,
) -> Annotations:
    """The annotations of a split of a data set, by the reader of its format."""
    reader = next((reader for reader in READERS if reader.recognises(source)), READERS[-1])
    return reader.read(source, split, year, classes)
