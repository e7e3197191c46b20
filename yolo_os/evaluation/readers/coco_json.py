"""COCO's annotation file: one JSON file with lists of `images`, `annotations` and `categories`.

Boxes are x, y, width, height in continuous pixels. `iscrowd` is kept as COCO has it. One file is one split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations, Problem
from yolo_os.evaluation.json_file import identity, name_of, read_json
from yolo_os.evaluation.names import some
from yolo_os.evaluation.readers.devkit import named_classes
from yolo_os.evaluation.readers.listed import Item, ListedImage, annotations_of, open_image
from yolo_os.evaluation.text import nfc
from yolo_os.files import as_path, is_dir, is_file
from yolo_os.terminal import counted

_LISTS = ("images", "annotations", "categories")


def recognises(source: str | Path) -> bool:
    """Whether a path is a JSON file."""
    path = as_path(source)
    return path.suffix.lower() == ".json" and is_file(path)


def read(
    source: str | Path,
    split: str,
    year: str | None = None,
    classes: str | Path | Sequence[str] | None = None,
    images: str | Path | None = None,
) -> Annotations:
    """The annotations of the file, whatever `split` is."""
    if year:
        raise UserError(f"data={source} is a COCO file: year= is for a VOCdevkit")
    return read_coco_json(source, classes, images)


def read_coco_json(
    file: str | Path, classes: str | Path | Sequence[str] | None = None, images: str | Path | None = None
) -> Annotations:
    """Read COCO's annotation file.

    Args:
        file: the JSON file.
        classes: names, or the path of a text file with one a line; all categories by default, in the order of their
            ids. Objects of others are left out.
        images: the folder of the images; by default they are looked for beside the file and where COCO has them
            (`annotations/instances_val2017.json` and `val2017`). Only a model that is run needs them.

    Returns:
        The annotations, without difficult objects; what is wrong with single entries is in their `problems`.

    Raises:
        UserError: if the file is no such file, or no image of it is left.
    """
    path = as_path(file)
    content = read_json(path)
    lists: list[Any] = [content.get(name) for name in _LISTS] if isinstance(content, dict) else []
    if len(lists) != 3 or not all(isinstance(each, list) for each in lists):
        what = "a list of detections" if isinstance(content, list) else "something else"
        raise UserError(
            f"data={path}: is {what}, no COCO annotation file (lists of images, annotations and categories)"
        )
    try:
        names = {identity(each["id"]): nfc(name_of(each["name"])) for each in lists[2]}
        listed = {identity(each["id"]): _Listed(each) for each in lists[0]}
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise UserError(f"data={path}: its images and categories are not as they should be ({error!r})") from None
    categories = sorted(names, key=lambda each: (isinstance(each, str), each))
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice or not names:
        raise UserError(f"data={path}: {f'two categories are named {twice[0]}' if twice else 'it names no category'}")
    chosen = named_classes(classes) if classes else tuple(names[each] for each in categories)
    unknown = [name for name in chosen if name not in names.values()]
    if unknown:
        raise UserError(f"classes: {unknown[0]} is no category of {path}, which has {some(names.values(), 20)}")

    folder = _Folder(path, None if images is None else as_path(images))
    numbers = {given: number for number, given in enumerate(listed)}
    labels = {given: chosen.index(name) for given, name in names.items() if name in chosen}
    files = [folder.image(each) for each in listed.values()]
    items, problems, others = [], [], Counter[str]()
    for row, entry in enumerate(lists[1]):
        try:
            image, category = identity(entry["image_id"]), identity(entry["category_id"])
            box, area, crowd = _box(entry)
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            detail = f"lacks {error}" if isinstance(error, KeyError) else f"is not as it should be ({error})"
            problems.append(Problem(path, 0, f"annotation {row} {detail}: left out", True))
            continue
        if image not in numbers or category not in names:
            what = f"image_id {image}" if image not in numbers else f"category_id {category}"
            problems.append(Problem(path, 0, f"annotation {row} has {what}, which the file does not list", True))
        elif category not in labels:
            others[names[category]] += 1
        else:
            items.append(Item(numbers[image], labels[category], box, area, crowd))
    ids = {name: given for given, name in names.items()}
    annotations = annotations_of(chosen, files, items, (path.resolve().parent, path.stem), problems, folder.notes())
    return replace(
        annotations,
        unnamed=dict(others),
        image_ids=tuple(listed),
        category_ids=tuple(ids[name] for name in chosen),
    )


class _Listed:
    """What the file says of an image."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.name = name_of(entry["file_name"])
        self.size = (float(entry.get("width") or 0), float(entry.get("height") or 0))
        if not all(math.isfinite(side) and side >= 0 for side in self.size):
            raise ValueError(f"the size of image {self.name} is {self.size}")


class _Folder:
    """Where the images of an annotation file lie."""

    def __init__(self, file: Path, given: Path | None) -> None:
        if given is not None and not is_dir(given):
            raise UserError(f"images={given}: no such folder")
        split = file.stem.rpartition("_")[2]  # instances_val2017, person_keypoints_val2017
        beside = (file.parent, file.parent.parent)
        places = [base / inner for base in beside for inner in (".", "images", split, f"images/{split}")]
        self.places = [given] if given is not None else [place for place in places if is_dir(place)]
        self.unsized = 0

    def image(self, listed: _Listed) -> ListedImage:
        """The image, with the size that the file gives it, or else its own."""
        names = (listed.name, Path(listed.name).name)
        found = next((place / name for name in names for place in self.places if is_file(place / name)), None)
        if all(listed.size):
            return ListedImage(found or self.places[0] / listed.name, listed.size, found is not None)
        self.unsized += 1
        return open_image(found) if found else ListedImage(self.places[0] / listed.name, (0.0, 0.0), False)

    def notes(self) -> list[str]:
        """What is to be said of the images."""
        said = ["COCO's format knows no difficult objects: every object counts, but for crowds"]
        if self.unsized:
            said.append(f"{counted(self.unsized, 'image')} without a size in the file: it is read from them")
        return said


def _box(entry: Mapping[str, Any]) -> tuple[tuple[float, float, float, float], float, bool]:
    """Box in 1-based inclusive pixels, area and crowd of an annotation."""
    x, y, width, height = (float(value) for value in entry["bbox"])
    area = float(entry["area"]) if entry.get("area") is not None else width * height
    if not all(map(math.isfinite, (x, y, width, height, area))):
        raise ValueError("its box is not finite")
    if width <= 0 or height <= 0:
        raise ValueError(f"its box is empty: {width:g} x {height:g}")
    return (x + 1, y + 1, x + width, y + height), area, bool(entry.get("iscrowd", 0))
