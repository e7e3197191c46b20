"""The devkit's text files: a folder of `comp4_det_test_car.txt`, or plain `car.txt`, one for each class.

A line is `image score x1 y1 x2 y2`; boxes are 1-based inclusive pixels.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.detection_files.gather import Gather
from yolo_os.evaluation.detections import Detections
from yolo_os.evaluation.names import some
from yolo_os.files import written_whole

_COMP_FILE = re.compile(r"comp\d+_det_([^_]+)_(.+)")


def recognises(path: Path) -> bool:
    """Whether it is a folder."""
    return path.is_dir()


def read(
    folder: Path, annotations: Annotations, split: str = "test", strict: bool = True, pixel_offset: float = 1.0
) -> Detections:
    """The detections of one folder; see `read_detections`. Its boxes are of the annotations' kind, whatever that is."""
    files, notes = _files(folder, split)
    known = {name: index for index, name in enumerate(annotations.classes)}
    gather = Gather(annotations, strict)
    for name, file in sorted(files.items()):
        ids, numbers, lines = _lines(file)
        label = known.get(name)
        if label is None:
            gather.refuse("of unknown classes", f"{file}: class '{name}' is not among {some(known)}", len(ids))
            continue
        where = [f"{file}:{line}" for line in lines]
        gather.add(ids, np.full(len(ids), label), numbers[:, 1:], numbers[:, 0], where.__getitem__)
    missing = [name for name in annotations.classes if name not in files]
    if missing:
        notes.append(f"{folder} has no file for {', '.join(missing)}: taken as no detections")
    return gather.result(notes)


def write(detections: Detections, folder: Path, split: str = "test", competition: str = "comp4") -> list[Path]:
    """Write the devkit's text files, one for each class, also an empty one, which MATLAB's `VOCevaldet` needs.

    Numbers are written so that reading them gives the same floats, and thus the same AP.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from None
    files = []
    for label, name in enumerate(detections.classes):
        rows = np.flatnonzero(detections.class_index == label)
        ids = (detections.images[index] for index in detections.image[rows].tolist())
        values = zip(ids, detections.score[rows].tolist(), detections.box[rows].tolist())
        file = folder / f"{competition}_det_{split}_{name}.txt"
        with written_whole(file) as temporary:
            temporary.write_text(
                "".join(f"{image} {score!r} {x1!r} {y1!r} {x2!r} {y2!r}\n" for image, score, (x1, y1, x2, y2) in values)
            )
        files.append(file)
    return files


def _files(folder: Path, split: str) -> tuple[dict[str, Path], list[str]]:
    """The file of each class, and notes."""
    files = sorted(folder.glob("*.txt"))
    named = [(file, match) for file in files if (match := _COMP_FILE.fullmatch(file.stem))]
    if not named:
        if not files:
            raise UserError(f"detections={folder}: holds no file like comp4_det_{split}_CLASS.txt or CLASS.txt")
        return {file.stem: file for file in files}, []
    splits = sorted({match[1] for _, match in named})
    chosen = split if split in splits else splits[0]
    if chosen != split and len(splits) > 1:
        raise UserError(f"detections={folder}: holds files of {', '.join(splits)}, none of {split}; choose with split=")
    notes = [f"{folder} holds detections of '{chosen}', taken as those of '{split}'"] if chosen != split else []
    found: dict[str, Path] = {}
    for file, match in named:
        if match[1] != chosen:
            continue
        if match[2] in found:
            raise UserError(f"detections={folder}: {found[match[2]].name} and {file.name} are of the same class")
        found[match[2]] = file
    return found, notes


def _lines(file: Path) -> tuple[list[str], NDArray[np.float64], list[int]]:
    """Image ids, numbers of shape (k, 5) (score and box) and line numbers of one text file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    ids, values, places = [], [], []
    for place, line in enumerate(lines, 1):
        row = line.rsplit(None, 5)  # from the right: an image id may hold spaces
        if not row:
            continue
        try:
            image, score, x1, y1, x2, y2 = row
            values.append((float(score), float(x1), float(y1), float(x2), float(y2)))
        except ValueError:
            raise UserError(f"{file}:{place}: '{line.strip()}' is not of the form 'image score x1 y1 x2 y2'") from None
        ids.append(image)
        places.append(place)
    return ids, np.array(values, dtype=np.float64).reshape(-1, 5), places
