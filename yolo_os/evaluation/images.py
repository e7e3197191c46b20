"""Image files: which there are, and their size as their header says it. Pillow is imported when one is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from yolo_os.evaluation.text import IMAGE_SUFFIXES, nfc


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        stored: width and height of the pixels in the file.
        orientation: EXIF's: 1 is upright, 5 to 8 exchange width and height.
    """

    stored: tuple[float, float]
    orientation: int

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the image as it is shown, and as detectors see it."""
        return self.stored if self.orientation < 5 else (self.stored[1], self.stored[0])


def read_header(file: Path) -> Header | None:
    """The header of an image file; None if it can't be read. Pixels may be damaged all the same."""
    from PIL import Image

    try:
        if not file.is_file():  # a pipe would be waited for
            return None
        with Image.open(file) as image:
            orientation = image.getexif().get(0x0112, 1)
            return Header(image.size, orientation if orientation in range(1, 9) else 1)
    except Exception:  # Pillow raises anything from OSError to SyntaxError for a damaged file
        return None


def files_in(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The files of a folder and of those below it, by their path within it; hidden ones are left out."""
    pending = [("", folder)] if folder.is_dir() else []
    while pending:
        prefix, place = pending.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):  # a link could lead round in a circle
                    pending.append((f"{prefix}{entry.name}/", Path(entry.path)))
                else:
                    yield f"{prefix}{entry.name}", entry


def images_by_stem(folders: Iterable[Path]) -> dict[str, str]:
    """The image files of some folders by their path within it, without suffix; the first folder wins."""
    found: dict[str, str] = {}
    for folder in folders:
        for name, entry in sorted((name, entry.path) for name, entry in files_in(folder)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                found.setdefault(nfc(stem), entry)
    return found
