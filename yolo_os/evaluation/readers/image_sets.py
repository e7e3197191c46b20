"""The image sets of a folder such as `VOC2007`: the lists `ImageSets/Main/*.txt`, and those made of others."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from yolo_os.errors import UserError

STANDARD = ("train", "val", "trainval", "test")


class Entry(NamedTuple):
    """One image of an image set, and where it is listed."""

    stem: str
    file: Path
    line: int


def image_set(root: Path, split: str) -> tuple[list[Entry], str]:
    """The images of one set of `VOC2007/ImageSets/Main`, and a note.

    `trainval`, `train` and `val` are made from the others where their own file is missing; the note says how.

    Raises:
        UserError: if there is no such set (naming those that are), or it is empty.
    """
    folder = root / "ImageSets" / "Main"
    there = sorted(path.stem for path in folder.glob("*.txt"))
    if split in there:
        return listed(folder / f"{split}.txt"), ""
    if split == "trainval" and {"train", "val"} <= set(there):
        return [*listed(folder / "train.txt"), *listed(folder / "val.txt")], ""
    pool = next((name for name in ("trainval", "train") if name in there), None)
    if split in ("train", "val") and pool:
        entries = listed(folder / f"{pool}.txt")
        if "val" in there:
            outside = {entry.stem for entry in listed(folder / "val.txt")}
            rest = [entry for entry in entries if entry.stem not in outside]
            return rest, f"{root.name}: train is {pool} without val"
        held = _held_out(entry.stem for entry in entries)
        note = f"{root.name} has no val image set: {len(held)} of the {len(entries)} images of {pool} are used as val"
        return [entry for entry in entries if (entry.stem in held) == (split == "val")], note
    names = [name for name in there if "_" not in name] or there  # car_test and the like are sets of single classes
    raise UserError(
        f"{folder / split}.txt is missing: no image set '{split}'" + (f"; there is {', '.join(names)}" if names else "")
    )


def standard_sets(root: Path) -> list[Path]:
    """The files of train, val, trainval and test that a folder such as `VOC2007` has."""
    files = (root / "ImageSets" / "Main" / f"{name}.txt" for name in STANDARD)
    return [file for file in files if file.is_file()]


def listed(file: Path) -> list[Entry]:
    """The images that an image set file lists; without the -1, 0 or 1 that car_test.txt has behind each.

    Raises:
        UserError: if it can't be read or lists none.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the image set {file}: {error}") from None
    ids = [line.strip() for line in lines]
    if all(re.search(r"\s(-1|0|1)$", name) for name in ids if name):
        ids = [name.rsplit(maxsplit=1)[0] if name else "" for name in ids]
    if not any(ids):
        raise UserError(f"the image set {file} is empty")
    return [Entry(stem, file, number) for number, stem in enumerate(ids, 1) if stem]


def _held_out(stems: Iterable[str]) -> set[str]:
    """A tenth of the images, at least one: those whose names have the smallest checksums, the same on every machine."""
    ordered = sorted(set(stems), key=lambda stem: (zlib.crc32(stem.encode()), stem))
    return set(ordered[: max(1, len(ordered) // 10)])
