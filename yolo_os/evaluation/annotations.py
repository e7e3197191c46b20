"""The ground truth of an image set, whatever file it was read from (`readers` has the formats).

Boxes are pixels, 1-based and inclusive (a box from 3 to 3 is one pixel wide), as VOC's files say them. Those of formats
whose boxes are continuous (COCO JSON, YOLO labels) have become x1 + 1, y1 + 1, x2, y2: the pixels they cover.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_os.evaluation.names import plain, some
from yolo_os.terminal import counted


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


def unusable_image(file: Path) -> Problem:
    """The problem of an image that is not there (an XML file stands for one that nothing names), or can't be read."""
    there = file.is_file() and file.suffix.lower() != ".xml"
    what = "can't be read (damaged, cut short or under 10 pixels)" if there else "is missing"
    return Problem(file, 0, f"the image {what}: left out", True)


@dataclass(frozen=True, eq=False)
class Annotations:
    """The ground truth of one image set: n images and m objects.

    Attributes:
        classes: names of the classes that are looked at.
        images: n image ids, as the image set lists them; ids that occur in more than one of the folders read are told
            apart as `VOC2012/000001`.
        size: shape (n, 2); width and height in pixels, 0 where the file does not say.
        image: shape (m,); which image each object is in.
        class_index: shape (m,); which class it is.
        box: shape (m, 4); x1, y1, x2, y2 in pixels, 1-based and inclusive.
        difficult, truncated: shape (m,).
        crowd: shape (m,); COCO's `iscrowd`, a region of many objects. COCO's numbers count neither it nor, of the
            detections that no object takes, those that lie in it for the larger part; VOC's figures treat it as
            difficult. False for formats that have no such thing.
        area: shape (m,); in square pixels, by which COCO tells small from large: what the file says (COCO's is that of
            the mask), else that of the box.
        missing: how many objects lacked a `difficult`, `truncated` or `pose` tag, which is taken as 0.
        problems: what was wrong in the files of this image set, in order.
        notes: choices made for want of a file, for the person to read.
        warnings: what makes figures misleading, such as classes that are left out.
        left_out: ids of images of the set that could not be read.
        roots: the folders that were read, such as `VOC2007`.
        sets: the image set read from each of them.
        root: shape (n,); which of the roots each image is in.
        stems: n file names without suffix.
        image_files: n image files; where there is none, the path where one is looked for first.
        image_readable: shape (n,); whether there is an image file whose header can be read.
        continuous: whether boxes were continuous in the files, so that `pixel_offset=0` is not meant for them.
        image_ids, category_ids: the ids that the file itself gives images and classes, which files of detections may
            use in their place; empty where it gives none.
        unnamed: how many objects were left out of each class that is not among `classes`.
        absent: where objects were left out, those of `classes` that no file has, of whatever image set.
        ordered: whether `classes` are in an order of the data or of the user, in which detectors may number them;
            XML files only name classes, and those are sorted.
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
    image_files: tuple[Path, ...]
    image_readable: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    continuous: bool = False
    image_ids: tuple[int | str, ...] = ()
    category_ids: tuple[int | str, ...] = ()
    warnings: tuple[str, ...] = ()
    unnamed: dict[str, int] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    ordered: bool = True

    @property
    def lost(self) -> tuple[Problem, ...]:
        """The problems because of which an image or an object was left out."""
        return tuple(problem for problem in self.problems if problem.lost)

    def only(self, kept: NDArray[np.bool_]) -> Annotations:
        """The annotations of the images where `kept`, of shape (n,), is true."""
        if kept.all():
            return self
        number = np.cumsum(kept) - 1
        objects = kept[self.image]
        chosen = np.flatnonzero(kept).tolist()
        return replace(
            self,
            images=tuple(self.images[index] for index in chosen),
            stems=tuple(self.stems[index] for index in chosen),
            image_files=tuple(self.image_files[index] for index in chosen),
            image_readable=self.image_readable[kept],
            size=self.size[kept],
            root=self.root[kept],
            image=number[self.image[objects]],
            class_index=self.class_index[objects],
            box=self.box[objects],
            difficult=self.difficult[objects],
            truncated=self.truncated[objects],
            crowd=self.crowd[objects],
            area=self.area[objects],
            image_ids=tuple(self.image_ids[index] for index in chosen) if self.image_ids else (),
        )

    def in_order(self, classes: Sequence[str]) -> Annotations:
        """The annotations with the same classes in another order."""
        place = [list(classes).index(name) for name in self.classes]
        ids = tuple(self.category_ids[self.classes.index(name)] for name in classes) if self.category_ids else ()
        numbers = np.array(place, dtype=np.int64)
        return replace(self, classes=tuple(classes), class_index=numbers[self.class_index], category_ids=ids)

    def __str__(self) -> str:
        """One line: how much there is, and what was missing or wrong."""
        crowds = int(self.crowd.sum())
        special = f"{int(self.difficult.sum())} difficult" + (f", {counted(crowds, 'crowd')}" if crowds else "")
        parts = [
            f"{counted(len(self.images), 'image')}, {counted(len(self.box), 'object')} ({special})"
            f" of {counted(len(self.classes), 'class', 'es')}"
        ]
        parts += [f"{count} without <{tag}> (taken as 0)" for tag, count in self.missing.items() if count]
        if self.problems:
            parts.append(f"{counted(len(self.problems), 'problem')}, {len(self.lost)} with something left out")
        return "; ".join(parts)


def said_of_classes(splits: Sequence[Annotations]) -> tuple[list[Problem], list[str]]:
    """What to say of objects that are left out of splits with the same classes, since theirs are not among these.

    Returns:
        Problems where only the writing of a name differs, most likely by mistake; and notes on the others.
    """
    unnamed = sum((Counter(split.unnamed) for split in splits), Counter[str]())
    classes = splits[0].classes
    named = {plain(name): name for name in classes}
    root = splits[0].roots[0]
    place = root / "Annotations" if (root / "Annotations").is_dir() else root
    problems = [
        Problem(
            place,
            0,
            f"{counted(count, 'object')} of '{name}' left out: the class named is '{named[plain(name)]}'",
            True,
        )
        for name, count in unnamed.items()
        if plain(name) in named
    ]
    others = {name: count for name, count in unnamed.items() if plain(name) not in named}
    alike = [name for name in classes if [plain(other) for other in classes].count(plain(name)) > 1]
    notes = [f"classes whose names differ in writing only are taken as several: {some(alike)}"] if alike else []
    if others:
        total = sum(others.values())
        shown = some(f"{count} of {name}" for name, count in others.items())
        notes.append(
            f"{counted(total, 'object')} {'is' if total == 1 else 'are'} left out, of classes that are not named:"
            f" {shown}"
        )
    if unnamed and splits[0].absent:
        notes.append(f"no object is of class {some(splits[0].absent)}")
    return problems, notes
