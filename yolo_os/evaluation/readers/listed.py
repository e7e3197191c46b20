"""Annotations of a plain list of images with their objects: what formats other than a development kit come down to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations, Problem
from yolo_os.evaluation.images import read_header
from yolo_os.evaluation.text import nfc

_SMALLEST = 10  # pixels: Ultralytics leaves smaller images out


class ListedImage(NamedTuple):
    """An image: its file, its size (0, 0 where nobody knows), and whether the file can be read."""

    file: Path
    size: tuple[float, float]
    readable: bool


class Item(NamedTuple):
    """An object: image and class by number, box in 1-based inclusive pixels, its area, and what is said of it."""

    image: int
    label: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False
    difficult: bool = False
    truncated: bool = False


def open_image(file: Path) -> ListedImage:
    """The image as its header shows it."""
    header = read_header(file)
    if header is None or min(header.size) < _SMALLEST:
        return ListedImage(file, (0.0, 0.0), False)
    return ListedImage(file, header.size, True)


def annotations_of(
    classes: Sequence[str],
    images: Sequence[ListedImage],
    items: Sequence[Item],
    place: tuple[Path, str],
    problems: Sequence[Problem],
    notes: Sequence[str],
    left_out: Sequence[Path] = (),
    continuous: bool = True,
    missing: Mapping[str, int] | None = None,
) -> Annotations:
    """Annotations of one folder, or of one file.

    Args:
        classes: names in order.
        images: in order.
        items: the objects.
        place: the folder or file that was read, and the split of it.
        problems, notes: as in `Annotations`.
        left_out: images of the split that can't be used.
        continuous, missing: as in `Annotations`.

    Raises:
        UserError: if no image is left.
    """
    root, split = place
    if not images:
        first = f"; first problem: {problems[0]}" if problems else ""
        raise UserError(f"no image of {split} of {root} can be used{first}")
    ids = short_ids([*(image.file for image in images), *left_out])
    return Annotations(
        classes=tuple(classes),
        images=tuple(ids[: len(images)]),
        size=np.array([image.size for image in images], dtype=np.float64),
        image=np.array([item.image for item in items], dtype=np.int64),
        class_index=np.array([item.label for item in items], dtype=np.int64),
        box=np.array([item.box for item in items], dtype=np.float64).reshape(-1, 4),
        difficult=np.array([item.difficult for item in items], dtype=bool),
        truncated=np.array([item.truncated for item in items], dtype=bool),
        missing=dict(missing or {}),
        problems=tuple(problems),
        notes=tuple(notes),
        left_out=frozenset(ids[len(images) :]),
        roots=(root,),
        sets=(split,),
        root=np.zeros(len(images), dtype=np.int64),
        stems=tuple(ids[: len(images)]),
        image_files=tuple(image.file for image in images),
        image_readable=np.array([image.readable for image in images], dtype=bool),
        crowd=np.array([item.crowd for item in items], dtype=bool),
        area=np.array([item.area for item in items], dtype=np.float64),
        continuous=continuous,
    )


def short_ids(files: Sequence[Path]) -> list[str]:
    """An id for each file: its name without suffix, with as many folders in front as tell it from the others.

    Files of one folder that differ in the suffix only keep it.
    """
    bare = [file.with_suffix("") for file in files]
    count = Counter(bare)
    whole = [file if count[stem] > 1 else stem for file, stem in zip(files, bare)]
    ids = [nfc(path.name) for path in whole]
    for depth in range(2, max((len(path.parts) for path in whole), default=0) + 1):
        seen = Counter(ids)
        if len(seen) == len(ids):
            break
        ids = [nfc("/".join(path.parts[-depth:])) if seen[name] > 1 else name for name, path in zip(ids, whole)]
    return ids
