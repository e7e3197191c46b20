"""The devkit's text files: a folder of `comp4_det_test_car.txt`, or plain `car.txt`, one for each class.

A line is `image score x1 y1 x2 y2`; boxes are 1-based inclusive pixels.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.detection_files.gather import Gather, Reading
from yolo_os.evaluation.detections import Detections
from yolo_os.evaluation.names import some
from yolo_os.evaluation.text import nfc, read_text
from yolo_os.files import file_name, is_dir, written_whole

# Also with the mark of a run: comp4-123_det_..., comp4_RUN_det_..., compid_det_...
_COMP_FILE = re.compile(r"comp[^_]*(?:_.+?)?_det_(.+)")
_UNSAFE = '%/\\:*?"<>|'


def recognises(path: Path) -> bool:
    """Whether it is a folder."""
    return is_dir(path)


def is_named_so(file: Path) -> bool:
    """Whether a file has a name like comp4_det_test_car.txt, so that it is of no other format."""
    return _COMP_FILE.fullmatch(file.stem) is not None


def read(folder: Path, annotations: Annotations, how: Reading) -> Detections:
    """The detections of one folder; its boxes are of the annotations' kind, whatever that is."""
    known = {form: index for index, name in enumerate(annotations.classes) for form in (name, _file_name(name))}
    files, notes = _files(folder, how.split, known)
    gather = Gather(annotations, how.strict)
    by_image = [file for name, file in files.items() if name not in known and gather.place_of(name) >= 0]
    if by_image and not known.keys() & files.keys():
        raise UserError(
            f"detections={folder}: its files are named after images ({by_image[0].name}), and comp4's after classes; of"
            " files by image, lines 'class x y width height confidence' in fractions of the image are read"
        )
    for name, file in sorted(files.items()):
        ids, numbers, lines = _lines(file, gather)
        label = known.get(name)
        if label is None:
            gather.refuse(
                "of unknown classes", f"{file}: class '{name}' is not among {some(annotations.classes)}", len(ids)
            )
            continue
        where = [f"{file}:{line}" for line in lines]
        gather.add(ids, np.full(len(ids), label), numbers[:, 1:], numbers[:, 0], where.__getitem__)
    missing = [name for name in annotations.classes if not {name, _file_name(name)} & files.keys()]
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
        file = folder / f"{competition}_det_{split}_{_file_name(name)}.txt"
        with written_whole(file) as temporary:
            lines = (f"{image} {score!r} {x1!r} {y1!r} {x2!r} {y2!r}\n" for image, score, (x1, y1, x2, y2) in values)
            temporary.write_text("".join(lines), encoding="utf-8")
        files.append(file)
    return files


def _file_name(class_name: str) -> str:
    """The name of a class as part of a file name: what file systems refuse is written as in an address, `/` as %2F."""
    written = (f"%{ord(letter):02X}" if letter in _UNSAFE or letter < " " else letter for letter in class_name)
    return file_name("".join(written))  # cut where it is too long for a name


def _files(folder: Path, split: str, known: Collection[str]) -> tuple[dict[str, Path], list[str]]:
    """The file of each class, by the class's name in file names, and notes."""
    files = {nfc(file.stem): file for file in sorted(folder.glob("[!.]*.txt"))}
    matches = {stem: match[1] for stem in files if (match := _COMP_FILE.fullmatch(stem))}
    named = [(_split_and_class(text, split, known), files[stem]) for stem, text in matches.items()]
    if not named:
        if not files:
            raise UserError(
                f"detections={folder}: holds no file like comp4_det_{split}_CLASS.txt, CLASS.txt or, of YOLO, IMAGE.txt"
            )
        return files, []
    splits = sorted({of for (of, _), _ in named})
    chosen = split if split in splits else splits[0]
    if chosen != split and len(splits) > 1:
        raise UserError(f"detections={folder}: holds files of {', '.join(splits)}, none of {split}; choose with split=")
    notes = [f"{folder} holds detections of '{chosen}', taken as those of '{split}'"] if chosen != split else []
    found: dict[str, Path] = {}
    for (of, name), file in named:
        if of != chosen:
            continue
        if name in found:
            raise UserError(f"detections={folder}: {found[name].name} and {file.name} are of the same class")
        found[name] = file
    return found, notes


def _split_and_class(text: str, split: str, known: Collection[str]) -> tuple[str, str]:
    """The image set and the class that `test_small_car` names; both may hold underscores.

    A class that is known goes first, and of several the one that leaves the image set asked for, or the longest.
    """
    cuts = [match.start() for match in re.finditer("_", text)] or [len(text)]
    pairs = [(text[:cut], text[cut + 1 :]) for cut in cuts]
    return max(pairs, key=lambda pair: (pair[1] in known, pair[0] == split, len(pair[1])))


def _lines(file: Path, gather: Gather) -> tuple[list[str], NDArray[np.float64], list[int]]:
    """Image ids, numbers of shape (k, 5) (score and box) and line numbers of one text file."""
    lines = read_text(file, lambda text: gather.place_of(text.rsplit("\n", 1)[0].rsplit(None, 5)[0]) >= 0).splitlines()
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
