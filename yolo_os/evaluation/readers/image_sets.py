"""The image sets of a folder such as `VOC2007`: the lists `ImageSets/Main/*.txt`, and those made of others.

A line is an image id. What tools write in its place is read too, and said: file names with a suffix, paths of image and
XML file, ids in quotes. The -1, 0 or 1 behind each id of lists such as car_test.txt is no part of the id. Which of them
a line is, the XML files tell that are there.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from yolo_os.errors import UserError
from yolo_os.evaluation.text import IMAGE_SUFFIXES, find_id, read_text, unsuffixed

STANDARD = ("train", "val", "trainval", "test")
_BLANK = b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"  # spaces and byte order marks
_FLAG = re.compile(r"\s+(-1|0|1)$")


class Entry(NamedTuple):
    """One image of an image set, and where it is listed."""

    stem: str
    file: Path
    line: int


class ImageSet(NamedTuple):
    """An image set, and what is to be said of how it was read or made."""

    entries: list[Entry]
    notes: list[str]


def image_set(root: Path, split: str, stems: Collection[str]) -> ImageSet:
    """The images of one set of `VOC2007/ImageSets/Main`.

    `trainval`, `train` and `val` are made from the others where their own list is missing or empty; a note says how.

    Args:
        root: the folder such as `VOC2007`.
        split: name of the set.
        stems: ids that have an XML file, by which lines are understood.

    Raises:
        UserError: if there is no such set (naming those that are), or it is empty.
    """
    lists = filled_lists(root)
    if split in lists:
        return read_list(lists[split], stems)
    if split == "trainval" and {"train", "val"} <= lists.keys():
        parts = [read_list(lists[name], stems) for name in ("train", "val")]
        return ImageSet([*parts[0].entries, *parts[1].entries], [*parts[0].notes, *parts[1].notes])
    pool = next((name for name in ("trainval", "train") if name in lists), None)
    if split in ("train", "val") and pool:
        entries, notes = read_list(lists[pool], stems)
        if "val" in lists:
            outside = {entry.stem for entry in read_list(lists["val"], stems).entries}
            rest = [entry for entry in entries if entry.stem not in outside]
            return ImageSet(rest, [*notes, f"{root.name}: train is {pool} without val"])
        held = _held_out(entry.stem for entry in entries)
        note = f"{root.name} has no val image set: {len(held)} of the {len(entries)} images of {pool} are used as val"
        return ImageSet([entry for entry in entries if (entry.stem in held) == (split == "val")], [*notes, note])
    raise UserError(why_missing(root, split))


def has_set(root: Path, split: str) -> bool:
    """Whether there is an image set, or it can be made of others."""
    lists = filled_lists(root).keys()
    if split in lists:
        return True
    if split == "trainval":
        return {"train", "val"} <= lists
    return split in ("train", "val") and bool({"train", "trainval"} & lists)


def is_empty(root: Path, split: str) -> bool:
    """Whether a folder has a list of that name with nothing in it."""
    return (root / "ImageSets" / "Main" / f"{split}.txt").is_file() and split not in filled_lists(root)


def why_missing(root: Path, split: str) -> str:
    """Why a folder has no such image set, and which it has."""
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    names = [name for name in filled_lists(root) if "_" not in name] or list(filled_lists(root))
    if file.is_file():
        why = f"the image set {file} is empty"
    elif names:
        why = f"{file} is missing"
    else:
        why = f"{file.parent} holds no list of images (train.txt, val.txt, test.txt, ...)"
    there = f"; there is {', '.join(names)}" if names else ""  # without car_test and the like, of single classes
    return f"{why}: no image set '{split}'{there}"


def filled_lists(root: Path) -> dict[str, Path]:
    """The lists of a folder such as `VOC2007` that are not empty, by name."""
    files = sorted((root / "ImageSets" / "Main").glob("[!.]*.txt"))
    whole = [file for file in files if file.is_file()]  # no pipes, which would be waited for
    return {file.stem: file for file in whole if file.stat().st_size > 1000 or file.read_bytes().strip(_BLANK)}


def read_list(file: Path, stems: Collection[str]) -> ImageSet:
    """The images that an image set file lists.

    Raises:
        UserError: if it can't be read.
    """
    text = read_text(file, lambda text: any(find_id(line.strip(), stems) for line in text.splitlines()))
    lines = {number: line for number, line in enumerate(map(str.strip, text.splitlines()), 1) if line}
    unknown = [line for line in lines.values() if line not in stems]
    flagged = all(map(_FLAG.search, unknown))
    surely = flagged and len(unknown) == len(lines)  # no line is an id as it stands
    meant = {
        line: _id_in(line, stems, flagged) or unsuffixed((_FLAG.sub("", line) if surely else line).strip("\"'"))
        for line in unknown
    }
    entries = [Entry(meant.get(line, line), file, number) for number, line in lines.items()]
    odd = next((line for line, stem in meant.items() if stem not in (line, _FLAG.sub("", line))), None)
    notes = [] if odd is None else [f"{file} lists more than image ids: '{odd}' is read as '{meant[odd]}'"]
    return ImageSet(entries, notes)


def _id_in(line: str, stems: Collection[str], flagged: bool) -> str | None:
    """The id that a line means: all of it, without the flag behind it, or the first of several paths; None if unknown.

    Args:
        line: of a list.
        stems: the ids there are.
        flagged: whether all lines end as those with flags do.
    """
    texts = [line, _FLAG.sub("", line)] if flagged else [line]
    for space in re.finditer(r"\s+", line):
        rest = line[space.end() :].lower()
        if "/" in rest or "\\" in rest or rest.endswith((*IMAGE_SUFFIXES, ".xml")):
            texts.append(line[: space.start()])
    return next((found for text in texts if (found := find_id(text, stems)) is not None), None)


def _held_out(stems: Iterable[str]) -> set[str]:
    """A tenth of the images, at least one: those whose names have the smallest checksums, the same on every machine."""
    ordered = sorted(set(stems), key=lambda stem: (zlib.crc32(stem.encode()), stem))
    return set(ordered[: max(1, len(ordered) // 10)])
