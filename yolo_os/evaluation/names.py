"""Class names as different data sets write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from yolo_os.evaluation.text import nfc

_Number = TypeVar("_Number", int, int | str)  # what stands for a class: its number, or the id that a file gives it

# Names that COCO and VOC have for the same class; compared in lower case and without spaces, hyphens, underscores.
_ALIASES = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}


def match_names(names: Mapping[_Number, str], classes: Sequence[str]) -> dict[_Number, int]:
    """Which class each of a model's classes is: by name, or by COCO's name for a VOC class; others are missing."""
    names = {number: nfc(name) for number, name in names.items()}
    by_name = {name: index for index, name in enumerate(classes)}
    by_form = {plain(name): index for index, name in enumerate(classes)}
    found = {number: by_name.get(name, by_form.get(plain(name))) for number, name in names.items()}
    return {number: index for number, index in found.items() if index is not None}


def written_otherwise(
    names: Mapping[_Number, str], matched: Mapping[_Number, int], classes: Sequence[str]
) -> list[str]:
    """A note on the names that `match_names` found in another writing, if there are any."""
    pairs = ((names[number], classes[index]) for number, index in matched.items())
    differing = [f"{name} is {other}" for name, other in pairs if name != other]
    return [f"names of classes are written otherwise: {some(differing)}"] if differing else []


def plain(name: str) -> str:
    """A name without case, spaces, hyphens and underscores, and as VOC calls the class."""
    form = re.sub(r"[\s_-]", "", name.lower())
    return _ALIASES.get(form, form)


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few names, for a message."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
