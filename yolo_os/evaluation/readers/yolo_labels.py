"""Labels of an Ultralytics data set: a text file beside each image, found and taken as Ultralytics does.

A line is a class number and a box (centre, width and height as fractions of the image), or a polygon, whose box is
meant. As with Ultralytics, an image without a label file holds no object, an image whose label file has a line that
is no label is left out, and a label that stands twice counts once.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations, Problem, unusable_image
from yolo_os.evaluation.readers.listed import Item, ListedImage, annotations_of, open_image
from yolo_os.files import is_dir, is_file
from yolo_os.terminal import counted

# What Ultralytics takes for an image.
_SUFFIXES = (
    ".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp",
)  # fmt: skip
_MOST, _LEAST = 1.01, -0.01  # what Ultralytics lets pass as a fraction


class _NoLabelError(Exception):
    """What is wrong with a label file, and in which line (0: the whole file)."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def read_labels(
    sources: Sequence[Path], classes: Sequence[str], place: tuple[Path, str], point_columns: int = 0
) -> Annotations:
    """The annotations of a split.

    Args:
        sources: folders of images, images, or text files that list images.
        classes: names in order.
        place: the data set's folder, and the name of the split.
        point_columns: how many numbers follow the box of a label where it has keypoints.

    Raises:
        UserError: if a source is not there, or holds no image that can be used.
    """
    images: list[ListedImage] = []
    items: list[Item] = []
    problems: list[Problem] = []
    left_out: list[Path] = []
    without = 0
    for file in list_images(sources):
        image, label = open_image(file), label_file(file)
        if not image.readable:
            problems.append(unusable_image(file))
            left_out.append(file)
            continue
        if not is_file(label):
            without += 1
            images.append(image)
            continue
        try:
            numbers, said = _read_file(label, len(classes), point_columns)
        except _NoLabelError as error:
            problems.append(Problem(label, error.line, f"{error}: image left out", True))
            left_out.append(file)
            continue
        problems += [Problem(label, *complaint) for complaint in said]
        sides = np.array(image.size * 2)
        boxes = numbers[:, 1:] * sides + np.array([1.0, 1.0, 0.0, 0.0])
        areas = ((numbers[:, 3:] - numbers[:, 1:3]) * sides[:2]).prod(axis=1)
        items += [
            Item(len(images), int(row[0]), (box[0], box[1], box[2], box[3]), area)
            for row, box, area in zip(numbers.tolist(), boxes.tolist(), areas.tolist())
        ]
        images.append(image)
    notes = ["labels of this format know no difficult objects: every object counts"]
    if without:
        notes.append(
            f"{without} of {counted(len(images), 'image')} without a label file: taken as images without objects"
        )
    if without == len(images) and images:
        raise UserError(
            f"split={place[1]} of {place[0]}: no image has a label file (the first is looked for at"
            f" {label_file(images[0].file)})"
        )
    return annotations_of(classes, images, items, place, problems, notes, left_out)


def list_images(sources: Sequence[Path]) -> list[Path]:
    """The images of folders and lists, sorted, each once.

    Raises:
        UserError: if a source is not there, or there is no image.
    """
    found: list[str] = []
    for source in sources:
        if is_dir(source):
            found += glob.glob(str(Path(glob.escape(str(source))) / "**" / "*.*"), recursive=True)
        elif source.suffix.lower() in _SUFFIXES and is_file(source):
            found.append(str(source))
        elif is_file(source):
            try:
                lines = source.read_text(encoding="utf-8-sig").strip().splitlines()
            except (OSError, ValueError) as error:
                raise UserError(f"{source}: can't be read as a list of images ({error})") from None
            before = f"{source.parent}{os.sep}"
            found += [line.replace("./", before, 1) if line.startswith("./") else line for line in lines]
        else:
            raise UserError(f"{source}: no such folder of images, or list of them")
    files = sorted({name for name in found if name.lower().endswith(_SUFFIXES)})
    if not files:
        raise UserError(f"no image in {', '.join(map(str, sources))}")
    return [Path(name) for name in files]


def label_file(image: Path) -> Path:
    """Where the labels of an image are: `labels` in place of the last `images` among its folders."""
    before, found, after = str(image.with_suffix(".txt")).rpartition(f"{os.sep}images{os.sep}")
    return Path(f"{before}{os.sep}labels{os.sep}{after}" if found else after)


def _read_file(
    file: Path, num_classes: int, point_columns: int
) -> tuple[NDArray[np.float64], list[tuple[int, str, bool]]]:
    """Rows of class, x1, y1, x2, y2 as fractions, and what is to be said of lines: line, text, what is lost.

    Raises:
        _NoLabelError: if a line is no label.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise _NoLabelError(0, f"can't be read as text ({error})") from None
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    lines = [(number, words[:5] if len(words) == 5 + point_columns else words) for number, words in lines]
    kinds = {len(words) > 6 for _, words in lines}
    if len(kinds) > 1:
        raise _NoLabelError(0, "boxes and polygons are mixed")
    rows, said = [], []
    seen: dict[tuple[float, ...], int] = {}  # by label, its line
    for number, words in lines:
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise _NoLabelError(number, f"'{' '.join(words)[:60]}' is not of numbers") from None
        row = _row(values, number, num_classes)
        if tuple(values) in seen:
            said.append((number, f"is the same label as line {seen[tuple(values)]}: counted once", False))
            continue
        seen[tuple(values)] = number
        if row[3] <= row[1] or row[4] <= row[2]:
            said.append((number, "the box is empty: object left out", True))
            continue
        rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, 5), said


def _row(values: list[float], line: int, num_classes: int) -> tuple[float, float, float, float, float]:
    """Class, x1, y1, x2, y2 of a label: class, x, y, width, height, or class and the points of a polygon.

    Raises:
        _NoLabelError: if it is none.
    """
    label, places = values[0], values[1:]
    if len(places) != 4 and (len(places) < 6 or len(places) % 2):
        raise _NoLabelError(line, f"{len(values)} columns, where a box has 5 and a polygon an odd number from 7 on")
    if not label.is_integer() or not 0 <= label < num_classes:
        raise _NoLabelError(line, f"class {label:g} is none of the data set's {num_classes} (0 to {num_classes - 1})")
    if not all(_LEAST <= place <= _MOST for place in places):
        raise _NoLabelError(line, "coordinates are no fractions of the image, from 0 to 1")
    if len(places) > 4:
        return label, min(places[::2]), min(places[1::2]), max(places[::2]), max(places[1::2])
    x, y, width, height = places
    return label, x - width / 2, y - height / 2, x + width / 2, y + height / 2
