"""Read the ground truth of a PASCAL VOC development kit: `VOC2007/Annotations/*.xml` and `ImageSets/Main/*.txt`.

Boxes are what the files say: pixels, 1-based and inclusive (a box from 3 to 3 is one pixel wide), and are never
changed for evaluation but for the cases listed as problems:

- broken XML, or none: the image is left out;
- an object without a name or a readable box: the object is left out;
- an inverted box (x2 < x1 - 1): its corners are swapped;
- an empty box (x2 = x1 - 1), or one wholly outside the image: left out;
- a box partly outside the image: kept as it is (training labels are clipped);
- an image size that is missing or 0: boxes are not checked, and training needs the image itself.

Reading 10,000 files takes seconds, so what was read is kept beside the data (in `VOC2007/.yolo_os.cache`, or in the
user's cache folder if that is not writable) and used again as long as names, sizes and times of all files stay.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml.common import EntitiesForbidden
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.files import as_path, is_dir, is_file, written_whole

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
CACHE_FOLDER = ".yolo_os.cache"
_CACHE_FORMAT = 1
_TAGS = ("difficult", "truncated", "pose")
_SETS = ("train", "val", "trainval", "test")


@dataclass(frozen=True)
class Problem:
    """Something wrong in the data.

    Attributes:
        file: where.
        line: the line, or 0 where the whole file is meant.
        text: what is wrong, and what was done about it.
        lost: whether an image or an object was left out because of it.
    """

    file: Path
    line: int
    text: str
    lost: bool

    def __str__(self) -> str:
        """`file:line: what`, as compilers write it."""
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


@dataclass(frozen=True, eq=False)
class Annotations:
    """The ground truth of one image set: n images and m objects.

    Attributes:
        classes: names of the classes that are looked at.
        images: n image ids, as the image set lists them; ids that occur in more than one development kit or year
            are told apart as `VOC2012/000001`.
        size: shape (n, 2); width and height in pixels, 0 where the file does not say.
        image: shape (m,); which image each object is in.
        class_index: shape (m,); which class it is.
        box: shape (m, 4); x1, y1, x2, y2 in pixels, 1-based and inclusive.
        difficult, truncated: shape (m,).
        missing: how many objects lacked a `difficult`, `truncated` or `pose` tag, which is taken as 0.
        problems: what was wrong in the files of this image set, in order.
        notes: choices made for want of a file, for the person to read.
        left_out: ids of images of the set that could not be read.
        roots: the folders `VOC2007`, `VOC2012`, ... that were read.
        sets: the image set read from each of them.
        root: shape (n,); which of the roots each image is in.
        stems: n file names without suffix.
        image_folders: where images may be besides `JPEGImages`.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    size: NDArray[np.float64]
    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    box: NDArray[np.float64]
    difficult: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    missing: dict[str, int]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    left_out: frozenset[str]
    roots: tuple[Path, ...]
    sets: tuple[str, ...]
    root: NDArray[np.int64]
    stems: tuple[str, ...]
    image_folders: tuple[Path, ...] = ()

    @cached_property
    def image_files(self) -> tuple[Path, ...]:
        """The n image files; `JPEGImages/ID.jpg` where there is none, which does not exist then."""
        found = [_files_by_stem((root / "JPEGImages", *self.image_folders)) for root in self.roots]
        return tuple(
            found[root].get(stem, self.roots[root] / "JPEGImages" / f"{stem}.jpg")
            for root, stem in zip(self.root.tolist(), self.stems)
        )

    @property
    def lost(self) -> tuple[Problem, ...]:
        """The problems because of which an image or an object was left out."""
        return tuple(problem for problem in self.problems if problem.lost)

    def __str__(self) -> str:
        """One line: how much there is, and what was missing or wrong."""
        parts = [
            f"{len(self.images)} images, {len(self.box)} objects ({int(self.difficult.sum())} difficult)"
            f" of {len(self.classes)} classes"
        ]
        parts += [f"{count} without <{tag}> (taken as 0)" for tag, count in self.missing.items() if count]
        if self.problems:
            parts.append(f"{len(self.problems)} problems, {len(self.lost)} with something left out")
        return "; ".join(parts)


def read_devkit(
    devkit: str | Path | Sequence[str | Path],
    year: str | int | Sequence[str | int] | None = "2007",
    split: str = "test",
    classes: str | Path | Sequence[str] | None = None,
) -> Annotations:
    """Read one image set of a development kit, or of several together.

    Args:
        devkit: the folder that holds `VOC2007` (or holds `VOCdevkit`), or such a folder itself; or several.
        year: "2007", "2007,2012" or a list, the part of the folder's name after `VOC`; None for 2007 where there is
            one, else the only year there is. Not looked at where `devkit` is itself a folder with `Annotations`.
        split: the image set, the name of a file of `ImageSets/Main`. A devkit without `trainval` has it as train and
            val together; one without `val` has a tenth of its training images as `val` and the rest as `train`,
            chosen by a checksum of their names, which is said in `notes`.
        classes: names, or the path of a text file with one a line. By default the 20 of VOC where all objects are
            of those, else the sorted names of all objects of the devkit's image sets.

    Returns:
        The annotations. What is wrong in single files is in their `problems`; reading goes on.

    Raises:
        UserError: if a folder, a year or an image set is not there (naming those that are), or no image is left.
    """
    return read_roots([(root, split) for root in find_roots(devkit, year)], classes)


def read_roots(
    parts: Sequence[tuple[Path, str]],
    classes: str | Path | Sequence[str] | None = None,
    image_folders: Sequence[Path] = (),
) -> Annotations:
    """Read image sets of folders such as `VOC2007`, each given with the name of the set; see `read_devkit`."""
    problems: list[Problem] = []
    notes: list[str] = []
    listed: dict[tuple[Path, str], tuple[Path, int]] = {}  # root and stem, and the place that lists it
    for root, split in parts:
        entries, note = image_set(root, split)
        if note:
            notes.append(note)
        for stem, (file, line) in entries:
            if (root, stem) in listed:
                before = listed[root, stem][1]
                problems.append(Problem(file, line, f"{stem} is listed again (first in line {before}): ignored", False))
            else:
                listed[root, stem] = (file, line)

    years = {root: _read_year(root) for root, _ in parts}
    kept: list[tuple[Path, str]] = []
    left_out: list[tuple[Path, str]] = []
    for (root, stem), (file, line) in listed.items():
        at = years[root].place.get(stem)
        if at is None:
            problems.append(Problem(file, line, f"{stem} has no XML file in Annotations: image left out", True))
        else:
            problems += years[root].problems.get(stem, ())
        (kept if at is not None and years[root].readable[at] else left_out).append((root, stem))
    if not kept:
        where = ", ".join(f"{split} of {root}" for root, split in parts)
        raise UserError(f"no image of {where} can be used; first problem: {problems[0]}")

    names = _class_names(classes, years.values())
    class_of = {name: index for index, name in enumerate(names)}
    selected = []
    for root, year in years.items():
        image_of = {stem: index for index, (owner, stem) in enumerate(kept) if owner == root}
        selected.append(year.select(image_of, class_of).columns())
    objects = _Objects(*(np.concatenate(column) for column in zip(*selected)))
    ids = _unique_ids([*kept, *left_out])
    roots = tuple(years)
    return Annotations(
        classes=names,
        images=tuple(ids[: len(kept)]),
        size=np.array([years[root].size[years[root].place[stem]] for root, stem in kept], dtype=np.float64),
        image=objects.image,
        class_index=objects.class_index,
        box=objects.box,
        difficult=objects.difficult,
        truncated=objects.truncated,
        missing={tag: int(((objects.lacks >> bit) & 1).sum()) for bit, tag in enumerate(_TAGS)},
        problems=tuple(problems),
        notes=tuple(notes),
        left_out=frozenset(ids[len(kept) :]),
        roots=roots,
        sets=tuple(split for _, split in parts),
        root=np.array([roots.index(root) for root, _ in kept], dtype=np.int64),
        stems=tuple(stem for _, stem in kept),
        image_folders=tuple(image_folders),
    )


def find_roots(
    devkit: str | Path | Sequence[str | Path], year: str | int | Sequence[str | int] | None = "2007"
) -> list[Path]:
    """The folders `VOC2007`, ... of the development kits given, each once.

    Raises:
        UserError: if a devkit is no folder, or has none of the years, or a year is in none of the devkits.
    """
    given = [devkit] if isinstance(devkit, str | Path) else list(devkit)
    whole = [[item] if is_dir(as_path(item)) else _comma_separated(item) for item in given]
    devkits = [as_path(item) for items in whole for item in items]
    years = None if year is None else _years(year)
    roots: list[Path] = []
    found_years: set[str] = set()
    for folder in devkits:
        if not is_dir(folder):
            raise UserError(f"devkit={folder}: no such folder")
        if (folder / "Annotations").is_dir():
            roots.append(folder.resolve())
            continue
        inner = folder if any(folder.glob("VOC*/Annotations")) else folder / "VOCdevkit"
        there = sorted(path.parent.name[3:] for path in inner.glob("VOC*/Annotations"))
        if not there:
            raise UserError(f"devkit={folder}: holds no folder like VOC2007 with Annotations in it")
        if years is None and "2007" not in there and len(there) > 1:
            raise UserError(f"devkit={folder}: say which of its years with year=: {', '.join(there)}")
        wanted = years or (["2007"] if "2007" in there else there)
        mine = [name for name in wanted if name in there]
        if not mine:
            raise UserError(f"devkit={folder}: has no VOC{', VOC'.join(wanted)}; year= one of {', '.join(there)}")
        found_years.update(mine)
        roots += [(inner / f"VOC{name}").resolve() for name in mine]
    absent = [name for name in years or [] if name not in found_years]
    if absent and found_years:
        raise UserError(f"year={','.join(absent)}: no devkit given has VOC{', VOC'.join(absent)}")
    if not roots:
        raise UserError("devkit=: no folder given")
    return list(dict.fromkeys(roots))


def image_set(root: Path, split: str) -> tuple[list[tuple[str, tuple[Path, int]]], str]:
    """The images of one set of `VOC2007/ImageSets/Main`, each with the file and line that lists it, and a note.

    `trainval`, `train` and `val` are made from the others where their own file is missing; the note says how.

    Raises:
        UserError: if there is no such set (naming those that are), or it is empty.
    """
    folder = root / "ImageSets" / "Main"
    there = sorted(path.stem for path in folder.glob("*.txt"))
    if split in there:
        return _listed(folder / f"{split}.txt"), ""
    if split == "trainval" and {"train", "val"} <= set(there):
        return [*_listed(folder / "train.txt"), *_listed(folder / "val.txt")], ""
    pool = next((name for name in ("trainval", "train") if name in there), None)
    if split in ("train", "val") and pool:
        listed = _listed(folder / f"{pool}.txt")
        if "val" in there:
            outside = {stem for stem, _ in _listed(folder / "val.txt")}
            return [entry for entry in listed if entry[0] not in outside], f"{root.name}: train is {pool} without val"
        held = _held_out(stem for stem, _ in listed)
        note = f"{root.name} has no val image set: {len(held)} of the {len(listed)} images of {pool} are used as val"
        return [entry for entry in listed if (entry[0] in held) == (split == "val")], note
    names = [name for name in there if "_" not in name] or there  # car_test and the like are sets of single classes
    raise UserError(
        f"{folder / split}.txt is missing: no image set '{split}'" + (f"; there is {', '.join(names)}" if names else "")
    )


def class_names(roots: Iterable[Path], classes: str | Path | Sequence[str] | None = None) -> tuple[str, ...]:
    """The classes of some folders such as `VOC2007`, as `read_devkit` chooses them.

    Raises:
        UserError: if no class is named, one is named twice, or there is no object to take them from.
    """
    return _class_names(classes, [] if classes is not None else [_read_year(root) for root in roots])


def set_names(root: Path) -> set[str]:
    """Which of train, val, trainval and test a folder such as `VOC2007` lists in a file of its own."""
    return {name for name in _SETS if (root / "ImageSets" / "Main" / f"{name}.txt").is_file()}


def cache_folder(root: Path) -> Path | None:
    """The folder for what was made of a folder such as `VOC2007`: inside it, or in the user's cache; None if neither.

    A folder whose mode forbids writing is left alone, even by a user (root) who could write there.
    """
    beside = root / CACHE_FOLDER
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    private = home / "yolo_os" / f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:16]}"
    places = [beside] if root.stat().st_mode & 0o222 and os.access(root, os.W_OK) else []
    for folder in [*places, private]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        return folder
    return None


def fingerprint(*folders: Path) -> str:
    """A checksum of the names, sizes and times of the files in some folders; a missing folder counts as empty."""
    digest = hashlib.sha256()
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                stats = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries if e.is_file())
            digest.update(repr(stats).encode())
        digest.update(b"\n")
    return digest.hexdigest()


class _Row(NamedTuple):
    """One object of an XML file."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    truncated: bool
    lacks: int


@dataclass(frozen=True, eq=False)
class _Objects:
    """Objects as columns: of which image and class, and what the XML says."""

    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    box: NDArray[np.float64]
    difficult: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    lacks: NDArray[np.uint8]  # bit i: lacks the tag _TAGS[i]

    def columns(self) -> tuple[NDArray[Any], ...]:
        return self.image, self.class_index, self.box, self.difficult, self.truncated, self.lacks


@dataclass(frozen=True, eq=False)
class _Year:
    """All XML files of one folder such as `VOC2007`: n files, and their objects by file and name."""

    root: Path
    stems: tuple[str, ...]
    readable: NDArray[np.bool_]
    size: NDArray[np.float64]
    names: tuple[str, ...]
    objects: _Objects
    reports: tuple[tuple[str, int, str, bool], ...]  # stem, line, text, lost

    @cached_property
    def place(self) -> dict[str, int]:
        return {stem: index for index, stem in enumerate(self.stems)}

    @cached_property
    def problems(self) -> dict[str, list[Problem]]:
        found: dict[str, list[Problem]] = {}
        for stem, line, text, lost in self.reports:
            found.setdefault(stem, []).append(Problem(self.root / "Annotations" / f"{stem}.xml", line, text, lost))
        return found

    def listed_names(self) -> set[str]:
        """The names of all objects in the images that train, val, trainval or test list."""
        listed = np.zeros(len(self.stems), dtype=bool)
        for name in set_names(self.root):
            stems = (stem for stem, _ in _listed(self.root / "ImageSets" / "Main" / f"{name}.txt"))
            listed[[self.place[stem] for stem in stems if stem in self.place]] = True
        return {self.names[index] for index in np.unique(self.objects.class_index[listed[self.objects.image]])}

    def select(self, image_of: dict[str, int], class_of: dict[str, int]) -> _Objects:
        """The objects of some images and classes, renumbered."""
        image = np.array([image_of.get(stem, -1) for stem in self.stems], dtype=np.int64)[self.objects.image]
        label = np.array([class_of.get(name, -1) for name in self.names], dtype=np.int64)[self.objects.class_index]
        keep = (image >= 0) & (label >= 0)
        rest = (column[keep] for column in self.objects.columns()[2:])
        return _Objects(image[keep], label[keep], *rest)


def _read_year(root: Path) -> _Year:
    """All XML files of a folder such as `VOC2007`, from the cache if nothing changed since."""
    folder = root / "Annotations"
    key = f"{_CACHE_FORMAT} {fingerprint(folder)}"
    cache = cache_folder(root)
    if cache and (cached := _load_year(root, cache / "annotations.npz", key)):
        return cached
    year = _parse_year(root, sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml"))
    if cache:
        _save_year(year, cache / "annotations.npz", key)
    return year


def _load_year(root: Path, file: Path, key: str) -> _Year | None:
    try:
        with np.load(file, allow_pickle=False) as saved:
            head = json.loads(str(saved["head"]))
            if head["key"] != key:
                return None
            columns = [saved[f"column{index}"] for index in range(6)]
            readable, size = saved["readable"], saved["size"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # none yet, or damaged: read the XML again
    reports = tuple((stem, line, text, lost) for stem, line, text, lost in head["reports"])
    return _Year(root, tuple(head["stems"]), readable, size, tuple(head["names"]), _Objects(*columns), reports)


def _save_year(year: _Year, file: Path, key: str) -> None:
    head = json.dumps({"key": key, "stems": year.stems, "names": year.names, "reports": year.reports})
    arrays: dict[str, Any] = {f"column{index}": column for index, column in enumerate(year.objects.columns())}
    try:
        with written_whole(file) as temporary, temporary.open("wb") as out:
            np.savez(out, head=np.array(head), readable=year.readable, size=year.size, **arrays)
    except (OSError, UserError):
        pass  # a full disk costs the cache, not the result


def _parse_year(root: Path, files: list[Path]) -> _Year:
    names: dict[str, int] = {}
    stems: dict[str, None] = {}
    readable: list[bool] = []
    sizes: list[tuple[float, float]] = []
    rows: list[tuple[int, int, bool, bool, int]] = []
    boxes: list[tuple[float, float, float, float]] = []
    reports: list[tuple[str, int, str, bool]] = []
    for file in files:
        if file.stem in stems:
            reports.append((file.stem, 0, f"{file.name} is a second file of that name: ignored", False))
            continue
        at = len(stems)
        stems[file.stem] = None
        try:
            data = file.read_bytes()
            tree = fromstring(data)
            if tree.tag != "annotation":
                raise ValueError(f"is no VOC annotation: its root is <{tree.tag}>")
        except ParseError as error:
            reports.append((file.stem, error.position[0], f"broken XML ({error}): image left out", True))
        except EntitiesForbidden:
            reports.append((file.stem, 0, "declares XML entities, which are refused: image left out", True))
        except (OSError, ValueError, LookupError) as error:
            reports.append((file.stem, 0, f"{error}: image left out", True))
        else:
            size, found, complaints = _read_annotation(tree)
            for name, box, difficult, truncated, lacks in found:
                rows.append((at, names.setdefault(name, len(names)), difficult, truncated, lacks))
                boxes.append(box)
            if complaints:
                lines = _object_lines(data)
                for index, text, lost in complaints:
                    line = lines[index] if 0 <= index < len(lines) else 0
                    reports.append((file.stem, line, text, lost))
            readable.append(True)
            sizes.append(size)
            continue
        readable.append(False)
        sizes.append((0.0, 0.0))
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    objects = _Objects(
        image=table[:, 0],
        class_index=table[:, 1],
        box=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        difficult=table[:, 2].astype(bool),
        truncated=table[:, 3].astype(bool),
        lacks=table[:, 4].astype(np.uint8),
    )
    return _Year(
        root=root,
        stems=tuple(stems),
        readable=np.array(readable, dtype=bool),
        size=np.array(sizes, dtype=np.float64).reshape(-1, 2),
        names=tuple(names),
        objects=objects,
        reports=tuple(reports),
    )


def _read_annotation(tree: Element) -> tuple[tuple[float, float], list[_Row], list[tuple[int, str, bool]]]:
    """Size, objects, and complaints (number of the object or -1, text, whether it was left out) of one XML tree."""
    rows: list[_Row] = []
    complaints: list[tuple[int, str, bool]] = []
    width, height = (_number(tree.findtext(f"size/{side}")) or 0.0 for side in ("width", "height"))
    if width <= 0 or height <= 0:
        width = height = 0.0
        complaints.append((-1, "has no image size: boxes are not checked against it", False))
    for index, element in enumerate(tree.findall("object")):
        name = (element.findtext("name") or "").strip()
        corners = [_number(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        if not name:
            complaints.append((index, "object without a name: left out", True))
            continue
        if None in corners:
            complaints.append((index, f"{name}: no readable bndbox (xmin, ymin, xmax, ymax): left out", True))
            continue
        x1, y1, x2, y2 = (corner for corner in corners if corner is not None)
        shown = f"{name} at {x1:g} {y1:g} {x2:g} {y2:g}"
        if x2 - x1 + 1 < 0 or y2 - y1 + 1 < 0:
            complaints.append((index, f"{shown} is inverted: corners swapped", False))
            x1, y1, x2, y2 = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        if x2 - x1 + 1 == 0 or y2 - y1 + 1 == 0:
            complaints.append((index, f"{shown} is empty: left out", True))
            continue
        if width and (x2 < 1 or y2 < 1 or x1 > width or y1 > height):
            complaints.append((index, f"{shown} is outside the image ({width:g} x {height:g}): left out", True))
            continue
        if width and (x1 < 1 or y1 < 1 or x2 > width or y2 > height):
            complaints.append((index, f"{shown} is partly outside the image ({width:g} x {height:g}): kept", False))
        texts = [(element.findtext(tag) or "").strip() for tag in _TAGS]
        lacks = sum(1 << bit for bit, text in enumerate(texts) if not text)
        for tag, text in zip(_TAGS[:2], texts):
            if text and _number(text) is None:
                complaints.append((index, f"{name}: <{tag}> is {text!r}, not 0 or 1: taken as 0", False))
        rows.append(_Row(name, (x1, y1, x2, y2), bool(_number(texts[0])), bool(_number(texts[1])), lacks))
    return (width, height), rows, complaints


def _object_lines(data: bytes) -> list[int]:
    """The line of each `<object>` tag; the parser keeps none, and a search is enough to lead the eye."""
    return [data.count(b"\n", 0, match.start()) + 1 for match in re.finditer(rb"<object[\s>]", data)]


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _listed(file: Path) -> list[tuple[str, tuple[Path, int]]]:
    """The image ids of an image set file, with file and line; without the -1, 0 or 1 that car_test.txt has behind."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the image set {file}: {error}") from None
    ids = [line.strip() for line in lines]
    if all(re.search(r"\s(-1|0|1)$", name) for name in ids if name):
        ids = [name.rsplit(maxsplit=1)[0] if name else "" for name in ids]
    if not any(ids):
        raise UserError(f"the image set {file} is empty")
    return [(stem, (file, number)) for number, stem in enumerate(ids, 1) if stem]


def _held_out(stems: Iterable[str]) -> set[str]:
    """A tenth of the images, at least one: those whose names have the smallest checksums, the same on every machine."""
    ordered = sorted(set(stems), key=lambda stem: (zlib.crc32(stem.encode()), stem))
    return set(ordered[: max(1, len(ordered) // 10)])


def _unique_ids(images: Sequence[tuple[Path, str]]) -> list[str]:
    """The stem of each image, with as much of its folder in front as tells images of one name apart."""
    count = Counter(stem for _, stem in images)
    short = [f"{root.name}/{stem}" if count[stem] > 1 else stem for root, stem in images]
    count = Counter(short)
    return [f"{root.parent.name}/{name}" if count[name] > 1 else name for name, (root, _) in zip(short, images)]


def _class_names(classes: str | Path | Sequence[str] | None, years: Iterable[_Year]) -> tuple[str, ...]:
    if classes is None:
        names = {name for year in years for name in year.listed_names()}
        if not names:
            raise UserError("the development kit holds no object; give classes= if that is meant")
        return VOC_CLASSES if names <= set(VOC_CLASSES) else tuple(sorted(names))
    if isinstance(classes, str | Path) and is_file(as_path(classes)):
        try:
            given = [line.strip() for line in as_path(classes).read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"classes={classes}: can't be read ({error})") from None
    else:
        given = _comma_separated(classes) if isinstance(classes, str | Path) else [str(name) for name in classes]
    names_given = tuple(name for name in given if name)
    twice = [name for name, count in Counter(names_given).items() if count > 1]
    if twice or not names_given:
        raise UserError(f"classes: {twice[0]} is named twice" if twice else f"classes={classes}: names no class")
    return names_given


def _comma_separated(value: str | Path) -> list[str]:
    return [part.strip() for part in str(value).split(",") if part.strip()]


def _years(year: str | int | Sequence[str | int]) -> list[str]:
    parts = [year] if isinstance(year, str | int) else list(year)
    years = [name.removeprefix("VOC") for part in parts for name in _comma_separated(str(part))]
    if not years:
        raise UserError("year=: names no year")
    return list(dict.fromkeys(years))


def _files_by_stem(folders: Iterable[Path]) -> dict[str, Path]:
    """The image files of some folders by name without suffix; the first folder wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            for name in sorted(os.listdir(folder)):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in IMAGE_SUFFIXES:
                    found.setdefault(stem, folder / name)
    return found
