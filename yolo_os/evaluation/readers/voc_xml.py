"""One XML file of a VOC development kit: the image's size, its objects, and what is wrong with them.

What is done about it is said in `complaints`:

- broken XML: the image is left out;
- an object without a name or a readable box, or with several names: the object is left out;
- several boxes in one object: each is an object;
- an inverted box (x2 < x1 - 1): its corners are swapped;
- an empty box (x2 = x1 - 1): left out;
- bytes that are not of the encoding that the file declares: ignored, but for an object whose name holds some.
"""

from __future__ import annotations

import codecs
import math
import re
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import EntitiesForbidden
from defusedxml.ElementTree import fromstring

from yolo_os.evaluation.text import marked, nfc
from yolo_os.files import read_bytes

TAGS = ("difficult", "truncated", "pose")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*\sencoding\s*=\s*["']([\w.:-]+)""")
# Encodings that are declared where their supersets are meant.
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "cp950", "shift_jis": "cp932", "euc_kr": "cp949"}
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Row(NamedTuple):
    """One object; bit i of `lacks` says that it lacks the tag TAGS[i]."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    truncated: bool
    lacks: int
    line: int


class Complaint(NamedTuple):
    """Something wrong in the file; `lost` where an object or the image is left out because of it."""

    line: int
    text: str
    lost: bool


class XMLFile(NamedTuple):
    """What one file says.

    Attributes:
        name: its path below `Annotations`.
        readable: whether it can be used; if not, the image is left out.
        size: width and height of the image, 0, 0 where it has none.
        rows: its objects.
        complaints: what is wrong.
        image: path of its image, empty where there is none.
        image_readable: whether the header of the image can be read.
    """

    name: str
    readable: bool
    size: tuple[float, float]
    rows: list[Row]
    complaints: list[Complaint]
    image: str = ""
    image_readable: bool = False


def read_xml(folder: Path, name: str) -> XMLFile:
    """Read one file below `Annotations`; what is wrong with it is in the `complaints`."""
    try:
        text = _decode(read_bytes(folder / name))
        tree = fromstring(text)
        if tree.tag != "annotation":
            raise ValueError(f"is no VOC annotation: its root is <{tree.tag}>")
    except ParseError as error:
        return _unreadable(name, f"broken XML ({error})", error.position[0])
    except EntitiesForbidden:
        return _unreadable(name, "declares XML entities, which are refused")
    except (OSError, ValueError, LookupError) as error:
        return _unreadable(name, str(error))
    width, height = (number(tree.findtext(f"size/{side}")) or 0.0 for side in ("width", "height"))
    complaints = [Complaint(0, "is not in the encoding that it declares, or UTF-8", False)] if _BROKEN in text else []
    rows: list[Row] = []
    elements = tree.findall("object")
    # The parser keeps no lines, and a search is enough to lead the eye.
    lines = [text.count("\n", 0, match.start()) + 1 for match in re.finditer(r"<object[\s>]", text)]
    for element, line in zip(elements, [*lines, *[0] * len(elements)]):
        found, said = _read_object(element, line)
        rows += found
        complaints += [Complaint(line, what, lost) for what, lost in said]
    return XMLFile(name, True, (width, height) if width > 0 and height > 0 else (0.0, 0.0), rows, complaints)


def within(file: XMLFile, size: tuple[float, float]) -> XMLFile:
    """The file with the size of its image known, and without the boxes that lie outside it."""
    width, height = size
    if not width:
        complaint = Complaint(0, "has no image size: boxes are not checked against it", False)
        return file._replace(complaints=[*file.complaints, complaint])
    rows, complaints = [], list(file.complaints)
    for row in file.rows:
        x1, y1, x2, y2 = row.box
        shown = f"{row.name} at {x1:g} {y1:g} {x2:g} {y2:g}"
        if x2 < 1 or y2 < 1 or x1 > width or y1 > height:
            text = f"{shown} is outside the image ({width:g} x {height:g}): left out"
            complaints.append(Complaint(row.line, text, True))
            continue
        if x1 < 1 or y1 < 1 or x2 > width or y2 > height:
            text = f"{shown} is partly outside the image ({width:g} x {height:g}): kept"
            complaints.append(Complaint(row.line, text, False))
        rows.append(row)
    return file._replace(size=size, rows=rows, complaints=complaints)


def left_out(file: XMLFile, why: str) -> XMLFile:
    """The file as one that can't be used."""
    complaints = [*file.complaints, Complaint(0, f"{why}: image left out", True)]
    return file._replace(readable=False, rows=[], complaints=complaints)


def number(text: str | None) -> float | None:
    """The finite number that a text stands for, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _decode(data: bytes) -> str:
    """The text of a file, which its byte order mark or its declaration says how to read; expat reads fewer encodings.

    Bytes that don't fit stand as replacement characters.
    """
    text = marked(data)
    if text is not None:
        return text
    declared = _DECLARED.match(data[:200])
    encoding = codecs.lookup(declared[1].decode()).name if declared else "utf-8"
    if encoding.startswith(("utf-16", "utf-32")):  # it would not have been found in such a file
        encoding = "utf-8"
    return data.decode(_SUPERSETS.get(encoding, encoding), errors="replace")


def _unreadable(name: str, text: str, line: int = 0) -> XMLFile:
    return XMLFile(name, False, (0.0, 0.0), [], [Complaint(line, f"{text}: image left out", True)])


def _read_object(element: Element, line: int) -> tuple[list[Row], list[tuple[str, bool]]]:
    """The boxes of an object, and what is to be said of it: a text, and whether something is left out."""
    names = list(dict.fromkeys(name for tag in element.findall("name") if (name := (tag.text or "").strip())))
    if not names:
        return [], [("object without a name: left out", True)]
    if len(names) > 1:
        return [], [(f"object with {len(names)} names ({', '.join(names)}): left out", True)]
    name = nfc(names[0])
    if _BROKEN in name:
        return [], [(f"{name}: the name is not in the encoding that the file declares: object left out", True)]
    texts = [(element.findtext(tag) or "").strip() for tag in TAGS]
    lacks = sum(1 << bit for bit, text in enumerate(texts) if not text)
    said = [
        (f"{name}: <{tag}> is {text!r}, not 0 or 1: taken as 0", False)
        for tag, text in zip(TAGS[:2], texts)
        if text and number(text) is None
    ]
    rows = []
    boxes = element.findall("bndbox")
    if len(boxes) > 1:
        said.append((f"{name}: {len(boxes)} boxes in one object: each is taken as an object", False))
    for box in boxes or [Element("none")]:
        corners, what, lost = _read_box(box)
        if what:
            said.append((f"{name}{what}", lost))
        if corners:
            rows.append(Row(name, corners, bool(number(texts[0])), bool(number(texts[1])), lacks, line))
    return rows, said


def _read_box(box: Element) -> tuple[tuple[float, float, float, float] | None, str, bool]:
    """The corners of a box, unless it is left out; what is to be said of it, and whether it is left out."""
    sides = [{number(tag.text) for tag in box.findall(side)} for side in _SIDES]
    if any(len(values) != 1 or None in values for values in sides):
        return None, ": no readable bndbox (one each of xmin, ymin, xmax, ymax): left out", True
    x1, y1, x2, y2 = (value for values in sides for value in values if value is not None)
    shown = f" at {x1:g} {y1:g} {x2:g} {y2:g}"
    width, height = x2 - x1 + 1, y2 - y1 + 1
    if width == 0 or height == 0:
        return None, f"{shown} is empty: left out", True
    if width < 0 or height < 0:
        return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), f"{shown} is inverted: corners swapped", False
    return (x1, y1, x2, y2), "", False
