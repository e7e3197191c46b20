"""One XML file of a VOC development kit: the image's size, its objects, and what is wrong with them.

Boxes are kept as they are but for the cases said in `complaints`:

- broken XML: the image is left out;
- an object without a name or a readable box: the object is left out;
- an inverted box (x2 < x1 - 1): its corners are swapped;
- an empty box (x2 = x1 - 1), or one wholly outside the image: left out;
- a box partly outside the image: kept as it is (training labels are clipped);
- an image size that is missing or 0: boxes are not checked, and training needs the image itself.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import EntitiesForbidden
from defusedxml.ElementTree import fromstring

TAGS = ("difficult", "truncated", "pose")


class Row(NamedTuple):
    """One object; bit i of `lacks` says that it lacks the tag TAGS[i]."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    truncated: bool
    lacks: int


class Complaint(NamedTuple):
    """Something wrong in the file; `lost` where an object or the image is left out because of it."""

    line: int
    text: str
    lost: bool


class XMLFile(NamedTuple):
    """What one file says; `size` is 0, 0 where it has none, and nothing of it counts if it is not `readable`."""

    readable: bool
    size: tuple[float, float]
    rows: list[Row]
    complaints: list[Complaint]


def read_xml(file: Path) -> XMLFile:
    """Read one file; what is wrong with it is in the `complaints`."""
    try:
        data = file.read_bytes()
        tree = fromstring(data)
        if tree.tag != "annotation":
            raise ValueError(f"is no VOC annotation: its root is <{tree.tag}>")
    except ParseError as error:
        return _unreadable(f"broken XML ({error})", error.position[0])
    except EntitiesForbidden:
        return _unreadable("declares XML entities, which are refused")
    except (OSError, ValueError, LookupError) as error:
        return _unreadable(str(error))
    width, height = (number(tree.findtext(f"size/{side}")) or 0.0 for side in ("width", "height"))
    complaints: list[Complaint] = []
    if width <= 0 or height <= 0:
        width = height = 0.0
        complaints.append(Complaint(0, "has no image size: boxes are not checked against it", False))
    rows: list[Row] = []
    lines: list[int] = []
    for index, element in enumerate(tree.findall("object")):
        row, said = _read_object(element, width, height)
        if row is not None:
            rows.append(row)
        if said:
            lines = lines or _object_lines(data)
            line = lines[index] if index < len(lines) else 0
            complaints += [Complaint(line, text, lost) for text, lost in said]
    return XMLFile(True, (width, height), rows, complaints)


def _unreadable(text: str, line: int = 0) -> XMLFile:
    return XMLFile(False, (0.0, 0.0), [], [Complaint(line, f"{text}: image left out", True)])


def _read_object(element: Element, width: float, height: float) -> tuple[Row | None, list[tuple[str, bool]]]:
    """The object, unless it is left out, and what is to be said of it: a text, and whether something is lost."""
    name = (element.findtext("name") or "").strip()
    if not name:
        return None, [("object without a name: left out", True)]
    corners = [number(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        return None, [(f"{name}: no readable bndbox (xmin, ymin, xmax, ymax): left out", True)]
    x1, y1, x2, y2 = (corner for corner in corners if corner is not None)
    shown = f"{name} at {x1:g} {y1:g} {x2:g} {y2:g}"
    said: list[tuple[str, bool]] = []
    if x2 - x1 + 1 < 0 or y2 - y1 + 1 < 0:
        said.append((f"{shown} is inverted: corners swapped", False))
        x1, y1, x2, y2 = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    if x2 - x1 + 1 == 0 or y2 - y1 + 1 == 0:
        return None, [*said, (f"{shown} is empty: left out", True)]
    if width and (x2 < 1 or y2 < 1 or x1 > width or y1 > height):
        return None, [*said, (f"{shown} is outside the image ({width:g} x {height:g}): left out", True)]
    if width and (x1 < 1 or y1 < 1 or x2 > width or y2 > height):
        said.append((f"{shown} is partly outside the image ({width:g} x {height:g}): kept", False))
    texts = [(element.findtext(tag) or "").strip() for tag in TAGS]
    lacks = sum(1 << bit for bit, text in enumerate(texts) if not text)
    for tag, text in zip(TAGS[:2], texts):
        if text and number(text) is None:
            said.append((f"{name}: <{tag}> is {text!r}, not 0 or 1: taken as 0", False))
    return Row(name, (x1, y1, x2, y2), bool(number(texts[0])), bool(number(texts[1])), lacks), said


def _object_lines(data: bytes) -> list[int]:
    """The line of each `<object>` tag; the parser keeps none, and a search is enough to lead the eye."""
    return [data.count(b"\n", 0, match.start()) + 1 for match in re.finditer(rb"<object[\s>]", data)]


def number(text: str | None) -> float | None:
    """The finite number that a text stands for, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
