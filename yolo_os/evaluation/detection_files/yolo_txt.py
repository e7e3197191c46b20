"""YOLO text files: a folder with one for each image, as `save_txt=True save_conf=True` of Ultralytics and YOLOv5 leave.

A line is `class x y width height confidence`: centre and size as fractions of the image. An image without a file is one
on which nothing was found.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.detection_files.comp4 import is_named_so
from yolo_os.evaluation.detection_files.gather import Gather, Reading
from yolo_os.evaluation.detections import Detections
from yolo_os.evaluation.images import files_in
from yolo_os.evaluation.names import match_names, some, written_otherwise
from yolo_os.evaluation.text import nfc
from yolo_os.files import is_dir

_NAMES = "classes.txt"  # which labelling tools put beside such files
_LOOKED_AT = 20  # files that tell the format
_LEAST, _MOST = -0.05, 1.05  # of a fraction; a detector may reach a little over the border


def recognises(path: Path) -> bool:
    """Whether it is a folder of such files: lines begin with a whole number, and fractions follow."""
    if not is_dir(path):
        return False
    files = _files(path)[:_LOOKED_AT]
    kinds = {kind for file in files if (kind := _is_yolo(file)) is not None}
    return kinds == {True} and not all(map(is_named_so, files))


def read(folder: Path, annotations: Annotations, how: Reading) -> Detections:
    """The detections of one folder, or of `labels` in it."""
    gather = Gather(annotations, how.strict)
    numbers, notes = _classes(folder, annotations)
    used: set[int] = set()
    files = _files(folder)
    base = _base(folder)
    seen = set()
    for file in files:
        stem = nfc(file.relative_to(base).with_suffix("").as_posix())
        rows, lines = _rows(file)
        if not len(rows):
            continue
        place = gather.place_of(stem)
        seen.add(place)
        label = np.array([numbers.get(int(number), -1) for number in rows[:, 0]], dtype=np.int64)
        known = np.flatnonzero(label >= 0)
        if len(known) < len(rows):
            first = int(np.flatnonzero(label < 0)[0])
            what = f"{file}:{lines[first]}: class {rows[first, 0]:g} is none of {len(numbers)} classes"
            gather.refuse("of unknown classes", what, len(rows) - len(known))
        width, height = annotations.size[place] if place >= 0 else (1.0, 1.0)
        if not width:
            raise UserError(f"{file}: the size of image {stem}, which its fractions are of, is not known")
        half = rows[:, 3:5] / 2
        near, far = (rows[:, 1:3] - half) * (width, height), (rows[:, 1:3] + half) * (width, height)
        box = np.concatenate([near + how.pixel_offset, far], axis=1)
        where = [f"{file}:{lines[row]}" for row in known.tolist()]
        used.update(label[known].tolist())
        gather.add([stem] * len(known), label[known], box[known], rows[known, 5], where.__getitem__)
    if not _names_of(folder).is_file() and not gather.counted_from(0, folder, used):
        notes.append(
            f"class numbers of {folder} are taken in the order of the ground truth's classes: 0 is"
            f" {annotations.classes[0]}"
        )
    without = len(annotations.images) - len(seen - {-1})
    if without:
        notes.append(f"{folder} has no detections for {without} of {len(annotations.images)} images")
    return gather.result(notes)


def _base(folder: Path) -> Path:
    """The folder itself, or `labels` in it, where Ultralytics puts them."""
    inner = folder / "labels"
    return inner if is_dir(inner) and not any(folder.glob("*.txt")) else folder


def _names_of(folder: Path) -> Path:
    """Where the names of the classes are, if they are."""
    return _base(folder) / _NAMES


def _files(folder: Path) -> list[Path]:
    base = _base(folder)
    names = sorted(name for name, _ in files_in(base) if name.lower().endswith(".txt"))
    return [base / name for name in names if Path(name).name != _NAMES]


def _is_yolo(file: Path) -> bool | None:
    """Whether the first line of a file is of the format; None if it has no line."""
    try:
        with file.open(encoding="utf-8-sig") as opened:
            words = next((line.split() for line in opened if line.strip()), None)
        if words is None:
            return None
        label, *places = map(float, words)
    except (OSError, ValueError):
        return False
    fractions = len(places) >= 4 and all(_LEAST <= each <= _MOST for each in places[:4])
    return fractions and label.is_integer() and label >= 0


def _classes(folder: Path, annotations: Annotations) -> tuple[dict[int, int], list[str]]:
    """Which class each number stands for: by the names beside the files, else by the order of the annotations."""
    file = _names_of(folder)
    if not file.is_file():
        return {number: number for number in range(len(annotations.classes))}, []
    names = dict(enumerate(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()))
    numbers = match_names(names, annotations.classes)
    if not numbers:
        raise UserError(f"{file}: none of {some(names.values())} is among {some(annotations.classes)}")
    return numbers, written_otherwise(names, numbers, annotations.classes)


def _rows(file: Path) -> tuple[np.ndarray, list[int]]:
    """Class, x, y, width, height and confidence of each line, and the line's number.

    Raises:
        UserError: naming the line that has something else.
    """
    rows, lines = [], []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as text ({error})") from None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise UserError(f"{file}:{number}: '{line.strip()[:60]}' is not of numbers") from None
        if len(values) != 6:
            raise UserError(f"{file}:{number}: {_what_else(len(values))}")
        if not values[0].is_integer() or values[0] < 0 or not all(_LEAST <= each <= _MOST for each in values[1:5]):
            raise UserError(
                f"{file}:{number}: '{line.strip()[:60]}' is not of the form 'class x y width height confidence',"
                " in fractions of the image"
            )
        rows.append(values)
        lines.append(number)
    return np.array(rows, dtype=np.float64).reshape(-1, 6), lines


def _what_else(columns: int) -> str:
    """What a line with another number of columns is."""
    if columns == 5:
        return "no confidence: write the files with save_conf=True, since AP ranks detections by it"
    if columns == 7:
        return "7 columns, as of a tracker; 'class x y width height confidence' is read"
    return (
        f"{columns} columns: polygons, keypoints and rotated boxes are not read; 'class x y width height confidence' is"
    )
