"""Detections: read and write the files detectors leave, and score them against annotations.

Two formats are read. A folder of the devkit's text files, `comp4_det_test_car.txt` with lines
`image score x1 y1 x2 y2` (or plain `car.txt`), whose boxes are 1-based inclusive pixels. A COCO result file, a JSON
list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`, as `yolo val save_json=True` writes it,
whose boxes are continuous pixels with the image's left top corner at 0, 0; they become x + 1, y + 1, x + width,
y + height, the pixels they cover.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.voc import VOCResult, evaluate_voc
from yolo_os.files import as_path, file_name, is_dir, is_file, written_whole

# Names that COCO and VOC have for the same class; compared in lower case and without spaces, hyphens, underscores.
_ALIASES = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}
_COMP_FILE = re.compile(r"comp\d+_det_([^_]+)_(.+)")


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found on the images of an image set: k detections.

    Attributes:
        classes: names of the classes, those of the annotations.
        images: ids of all images of the set, those of the annotations.
        image: shape (k,); which image.
        class_index: shape (k,); which class.
        box: shape (k, 4); x1, y1, x2, y2 in pixels, 1-based and inclusive as in the annotations.
        score: shape (k,).
        dropped: how many detections were left out, by reason.
        notes: what the reader should know about how the file was understood.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    box: NDArray[np.float64]
    score: NDArray[np.float64]
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line: how many, and what was left out."""
        parts = [f"{len(self.score)} detections on {len(np.unique(self.image))} of {len(self.images)} images"]
        return "; ".join([*parts, *(f"{count} {reason} left out" for reason, count in self.dropped.items())])


def evaluate_detections(
    annotations: Annotations,
    detections: Detections,
    iou_threshold: float = 0.5,
    pixel_offset: float = 1.0,
    recall_points: str = "numpy",
) -> VOCResult:
    """VOC AP of detections on the image set they were read for; see `evaluate_voc`."""
    return evaluate_voc(
        annotations.image,
        annotations.class_index,
        annotations.box,
        annotations.difficult,
        detections.image,
        detections.class_index,
        detections.box,
        detections.score,
        num_classes=len(annotations.classes),
        iou_threshold=iou_threshold,
        pixel_offset=pixel_offset,
        recall_points=recall_points,
        images=np.arange(len(annotations.images)),
        classes=annotations.classes,
    )


def read_detections(
    path: str | Path, annotations: Annotations, split: str = "test", strict: bool = True, pixel_offset: float = 1.0
) -> Detections:
    """Read a folder of comp4 text files, or a COCO result file.

    Args:
        path: the folder, or the JSON file.
        annotations: of the image set the detector ran on.
        split: its name, to choose among the files of a folder that holds several.
        strict: refuse an image or class that the annotations do not have, as the devkit does; otherwise such
            detections are left out and counted.
        pixel_offset: 1 where boxes of the annotations are inclusive pixels, 0 where they are continuous; JSON boxes
            are turned into that.

    Raises:
        UserError: for a file that cannot be read, a number that is not finite, and, if `strict`, an image or class
            that is unknown; it names file and line, or file and entry.
    """
    path = as_path(path)
    if is_dir(path):
        return read_comp4(path, annotations, split, strict)
    if is_file(path) and path.suffix == ".json":
        return read_coco_json(path, annotations, strict, pixel_offset)
    wanted = "a folder of comp4_det_test_CLASS.txt files or a COCO result file (.json) is needed"
    raise UserError(f"detections={path}: {'is neither' if is_file(path) else 'is not there'}; {wanted}")


def read_comp4(folder: Path, annotations: Annotations, split: str = "test", strict: bool = True) -> Detections:
    """Read the devkit's text files, `comp4_det_test_car.txt` or `car.txt`, of one folder; see `read_detections`."""
    files, notes = _comp4_files(folder, split)
    known = {file_name(name): index for index, name in enumerate(annotations.classes)}
    known |= {name: index for index, name in enumerate(annotations.classes)}
    gather = _Gather(annotations, strict)
    for name, file in sorted(files.items()):
        ids, numbers, lines = _comp4_lines(file)
        label = known.get(name)
        if label is None:
            what = f"{file}: class '{name}' is not among {_some(annotations.classes)}"
            gather.refuse("of unknown classes", what, len(ids))
            continue
        gather.add(
            ids,
            np.full(len(ids), label),
            numbers[:, 1:],
            numbers[:, 0],
            lambda row, file=file, lines=lines: f"{file}:{lines[row]}",
        )
    missing = [name for name in annotations.classes if name not in files and file_name(name) not in files]
    if missing:
        notes.append(f"{folder} has no file for {', '.join(missing)}: taken as no detections")
    return gather.result(notes)


def read_coco_json(file: Path, annotations: Annotations, strict: bool = True, pixel_offset: float = 1.0) -> Detections:
    """Read a COCO result file; see `read_detections`.

    The image of an entry is its `file_name` without folder and suffix, else its `image_id`: the id as text, or a
    number that equals it (7 for 000007). The class is its `category_id`: by the file's `categories` if it is an
    object that has them, else counted from 1 as COCO and Ultralytics do, or from 0 if a 0 occurs.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{file}: cannot be read as JSON (nested too deep)") from None
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise UserError(f"{file}: holds no list of detections")
    numbers = np.zeros((len(entries), 5))
    ids: list[Any] = []
    categories: list[Any] = []
    for row, entry in enumerate(entries):
        try:
            numbers[row] = (*entry["bbox"], entry["score"])
            categories.append(_identity(entry["category_id"]))
            ids.append(Path(entry["file_name"]).stem if "file_name" in entry else _identity(entry["image_id"]))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            detail = f"lacks {error}" if isinstance(error, KeyError) else f"is not as it should be ({error})"
            raise UserError(
                f"{file}: entry {row} {detail}; needs image_id, category_id, bbox (4 numbers), score"
            ) from None

    by_number, note = _coco_classes(file, content, categories, annotations.classes)
    label = np.array([by_number.get(category, -1) for category in categories], dtype=np.int64)
    box = np.concatenate([numbers[:, :2] + pixel_offset, numbers[:, :2] + numbers[:, 2:4]], axis=1)
    gather = _Gather(annotations, strict)
    known = label >= 0
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        what = (
            f"{file}: entry {row} has category_id {categories[row]}, which is no class of {_some(annotations.classes)}"
        )
        gather.refuse("of unknown classes", what, int((~known).sum()))
    rows = np.flatnonzero(known)
    plain = {int(name): name for name in annotations.images if name.isdecimal()}
    as_text = [ids[row] if isinstance(ids[row], str) else plain.get(ids[row], str(ids[row])) for row in rows.tolist()]
    gather.add(as_text, label[rows], box[rows], numbers[rows, 4], lambda row: f"{file}: entry {rows[row]}")
    return gather.result([note] if note else [])


def from_boxes(
    boxes: Mapping[str, NDArray[np.float64]],
    names: Mapping[int, str],
    annotations: Annotations,
    pixel_offset: float = 1.0,
) -> Detections:
    """Detections of a model as devkit detections.

    Args:
        boxes: by file name of the image without suffix, shape (k, 6): x1, y1, x2, y2 in continuous pixels (the
            image's left edge 0, its right edge the width), score, class index of the model.
        names: the model's classes, matched to the annotations' by name; those that match none are left out and
            counted. Names may differ as COCO's and VOC's do: `tv` and `tvmonitor`, `dining table` and `diningtable`.
        annotations: of the images.
        pixel_offset: as for `read_detections`.

    Raises:
        UserError: if two images of the set have the same file name, no class matches, or an image of the set is not
            among `boxes`.
    """
    twice = [stem for stem, count in Counter(annotations.stems).items() if count > 1]
    if twice:
        raise UserError(f"two images of the set are called {twice[0]}: evaluate one year or devkit at a time")
    absent = [stem for stem in annotations.stems if stem not in boxes]
    if absent:
        raise UserError(
            f"the model saw no image {_some(absent)} ({len(absent)} of {len(annotations.stems)}): no such files"
        )
    label_of = match_names(names, annotations.classes)
    if not label_of:
        raise UserError(
            f"the model knows none of the classes {_some(annotations.classes)}, but {_some(names.values())}"
        )
    table = np.full(max(names) + 1, -1, dtype=np.int64)
    table[list(label_of)] = list(label_of.values())
    found = np.concatenate([np.asarray(boxes[stem], dtype=np.float64).reshape(-1, 6) for stem in annotations.stems])
    image = np.repeat(np.arange(len(annotations.stems)), [len(boxes[stem]) for stem in annotations.stems])
    label = table[found[:, 5].astype(np.int64)]
    keep = label >= 0
    box = found[keep, :4] + np.array([pixel_offset, pixel_offset, 0.0, 0.0])
    dropped = Counter({"of classes that the annotations lack": int((~keep).sum())})
    unmatched = [name for index, name in enumerate(annotations.classes) if index not in label_of.values()]
    notes = [f"the model has no class for {', '.join(unmatched)}: taken as no detections"] if unmatched else []
    return Detections(
        annotations.classes,
        annotations.images,
        image[keep],
        label[keep],
        box,
        found[keep, 4],
        dict(+dropped),
        tuple(notes),
    )


def match_names(names: Mapping[int, str], classes: Sequence[str]) -> dict[int, int]:
    """Which class each of a model's classes is: by name, or by COCO's name for a VOC class; others are missing."""
    by_name = {name: index for index, name in enumerate(classes)}
    by_form = {_plain(name): index for index, name in enumerate(classes)}
    found = {number: by_name.get(name, by_form.get(_plain(name))) for number, name in names.items()}
    return {number: index for number, index in found.items() if index is not None}


def write_comp4(detections: Detections, folder: Path, split: str = "test", competition: str = "comp4") -> list[Path]:
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
        file = folder / f"{competition}_det_{split}_{file_name(name)}.txt"
        with written_whole(file) as temporary:
            temporary.write_text(
                "".join(f"{image} {score!r} {x1!r} {y1!r} {x2!r} {y2!r}\n" for image, score, (x1, y1, x2, y2) in values)
            )
        files.append(file)
    return files


def write_coco_json(detections: Detections, file: Path, pixel_offset: float = 1.0) -> None:
    """Write a COCO result file: classes counted from 1, boxes x, y, width, height in continuous pixels.

    Raises:
        UserError: if the file cannot be written.
    """
    corner = detections.box[:, :2] - pixel_offset
    boxes = np.concatenate([corner, detections.box[:, 2:] - corner], axis=1).tolist()
    columns = zip(detections.image.tolist(), detections.class_index.tolist(), boxes, detections.score.tolist())
    entries = [
        {"image_id": detections.images[image], "category_id": label + 1, "bbox": box, "score": score}
        for image, label, box, score in columns
    ]
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(entries))


def suspect_offset(annotations: Annotations, detections: Detections) -> str | None:
    """A warning, with the evidence, if detections look 0-based and annotations 1-based or the other way about.

    Detectors clip boxes at the image's border, so many boxes that start at exactly 0 and none at 1 were counted from
    0. The mean distance from the ground truth is too small a thing to tell one pixel on its own.
    """
    zero, one = _starts(detections.box)
    gt_zero, gt_one = _starts(annotations.box)
    wide = annotations.size[detections.image]
    beyond = int(((detections.box[:, 2:] == wide) & (wide > 0)).sum())
    last = int(((detections.box[:, 2:] == wide - 1) & (wide > 0)).sum())
    if zero >= 5 and zero > 4 * one and gt_one > gt_zero:
        return (
            f"these detections look 0-based, and the annotations are 1-based: {zero} boxes start at exactly 0 and {one}"
            f" at 1, {last} end at the last pixel counted from 0 and {beyond} counted from 1, while {gt_one} boxes of"
            f" the ground truth start at 1 and {gt_zero} at 0; add 1 to all four numbers of each box"
        )
    if one >= 5 and one > 4 * zero and gt_zero > 4 * gt_one:
        return (
            f"these detections look 1-based, and the annotations are 0-based: {one} boxes start at exactly 1 and {zero}"
            f" at 0, while {gt_zero} boxes of the ground truth start at 0 and {gt_one} at 1; subtract 1 from all"
            " four numbers of each box"
        )
    return None


def _starts(box: NDArray[np.float64]) -> tuple[int, int]:
    """How many boxes start at exactly 0, and at exactly 1, to the left or at the top."""
    return int((box[:, :2] == 0).any(axis=1).sum()), int((box[:, :2] == 1).any(axis=1).sum())


class _Gather:
    """Collects detections, checks them, and refuses or counts those that do not belong to the annotations."""

    def __init__(self, annotations: Annotations, strict: bool) -> None:
        self.annotations = annotations
        self.strict = strict
        self.place = {name: index for index, name in enumerate(annotations.images)}
        self.dropped: Counter[str] = Counter()
        self.columns: list[tuple[NDArray[Any], ...]] = []

    def refuse(self, reason: str, what: str, count: int) -> None:
        if self.strict:
            raise UserError(f"{what} (strict=False leaves such detections out and counts them)")
        self.dropped[reason] += count

    def add(
        self,
        ids: Sequence[str],
        label: NDArray[np.int64],
        box: NDArray[np.float64],
        score: NDArray[np.float64],
        where: Any,
    ) -> None:
        """Add detections; `where(row)` says where one was read."""
        finite = np.isfinite(score) & np.isfinite(box).all(axis=1)
        if not finite.all():
            raise UserError(f"{where(int(np.flatnonzero(~finite)[0]))}: score and box must be finite numbers")
        image = np.array([self.place.get(name, -1) for name in ids], dtype=np.int64)
        lost = np.flatnonzero(image < 0)
        unread = [row for row in lost.tolist() if ids[row] in self.annotations.left_out]
        self.dropped["of images whose annotations could not be read"] += len(unread)
        if len(unread) < len(lost):
            row = next(row for row in lost.tolist() if ids[row] not in self.annotations.left_out)
            sets = ", ".join(f"{split} of {root}" for root, split in zip(self.annotations.roots, self.annotations.sets))
            self.refuse(
                "of unknown images",
                f"{where(row)}: image '{ids[row]}' is not in the image set {sets}",
                len(lost) - len(unread),
            )
        keep = image >= 0
        self.columns.append((image[keep], label[keep], box[keep], score[keep]))

    def result(self, notes: Iterable[str]) -> Detections:
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
        image, label, box, score = (np.concatenate(column) for column in zip(empty, *self.columns))
        classes, images = self.annotations.classes, self.annotations.images
        return Detections(classes, images, image, label, box, score, dict(+self.dropped), tuple(notes))


def _comp4_files(folder: Path, split: str) -> tuple[dict[str, Path], list[str]]:
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


def _comp4_lines(file: Path) -> tuple[list[str], NDArray[np.float64], list[int]]:
    """Image ids, numbers of shape (k, 5) (score and box) and line numbers of one text file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    rows = [line.rsplit(None, 5) for line in lines]  # from the right: an image id may hold spaces
    places = [number for number, row in enumerate(rows, 1) if row]
    rows = [row for row in rows if row]
    try:
        if any(len(row) != 6 for row in rows):
            raise ValueError
        values = np.fromiter(map(float, chain.from_iterable(row[1:] for row in rows)), np.float64, 5 * len(rows))
    except ValueError:
        for place, row in zip(places, rows):
            if len(row) != 6 or not all(map(_is_number, row[1:])):
                raise UserError(
                    f"{file}:{place}: '{lines[place - 1].strip()}' is not of the form 'image score x1 y1 x2 y2'"
                ) from None
        raise
    return [row[0] for row in rows], values.reshape(-1, 5), places


def _coco_classes(
    file: Path, content: Any, categories: list[Any], classes: tuple[str, ...]
) -> tuple[dict[Any, int], str]:
    """Which class each category id stands for, and a note on how that was decided."""
    if isinstance(content, dict) and content.get("categories"):
        try:
            return match_names(
                {_identity(item["id"]): str(item["name"]) for item in content["categories"]}, classes
            ), ""
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(
                f"{file}: its 'categories' are no list of id and name ({type(error).__name__}: {error})"
            ) from None
    names = {name: index for index, name in enumerate(classes)}
    first = 0 if 0 in categories else 1
    note = f"category_id is counted from {first}: {first} is {classes[0]}" if categories else ""
    return {**names, **{first + index: index for index in range(len(classes))}}, note


def _identity(value: Any) -> Any:
    """An id of an image or a category.

    Raises:
        TypeError: if it is neither a number nor text.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"an id is {value!r:.40}, neither a whole number nor text")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise TypeError("an id is a number of too many digits")
    return value


def _plain(name: str) -> str:
    form = re.sub(r"[\s_-]", "", name.lower())
    return _ALIASES.get(form, form)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
