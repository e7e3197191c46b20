"""Text of files that other tools wrote: its encoding, and names that are the same in spite of how they are written.

Accented and Korean letters have two forms in Unicode, of one or of several code points; file systems and tools differ
in which they use. Names are compared in the form NFC everywhere.
"""

from __future__ import annotations

import codecs
import contextlib
import unicodedata
from collections.abc import Callable, Collection
from pathlib import Path

from yolo_os.errors import UserError
from yolo_os.files import read_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What tools write where they don't write UTF-8: Chinese, Japanese, Korean and Western European ones.
_OTHERS = ("gb18030", "cp950", "cp932", "euc_jp", "cp949", "cp1252")


def nfc(text: str) -> str:
    """The text in the form NFC."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def marked(data: bytes) -> str | None:
    """The text of a file that begins with a byte order mark; None if there is none.

    Raises:
        UnicodeDecodeError: if it isn't in the encoding that the mark says.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    return None


def read_text(file: Path, plausible: Callable[[str], bool]) -> str:
    """The text of a file: in UTF-8, in what its byte order mark says, or in what else its maker may have used.

    Args:
        file: to read.
        plausible: says of a text whether it names something that is there: several encodings fit most files, and the
            first that gives such a text is meant.

    Raises:
        UserError: if the file can't be read, or its encoding can't be told.
    """
    try:
        data = read_bytes(file)
        text = marked(data)
        return nfc(data.decode() if text is None else text)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        pass
    for encoding in _OTHERS:
        with contextlib.suppress(UnicodeDecodeError):
            text = nfc(data.decode(encoding))
            if plausible(text):
                return text
    raise UserError(
        f"cannot read {file}: it is not UTF-8, and names nothing known in any other encoding: save it as UTF-8"
    )


def find_id(text: str, known: Collection[str]) -> str | None:
    """The id that a text means: itself, or what is left without quotes, suffix and leading folders; None if unknown."""
    if text in known:
        return text
    whole = text.strip().strip("\"'").replace("\\", "/")
    for name in (unsuffixed(whole), whole):  # with the suffix where two images differ in nothing else
        parts = name.split("/")
        found = next((tail for start in range(len(parts)) if (tail := "/".join(parts[start:])) in known), None)
        if found is not None:
            return found
    return None


def unsuffixed(name: str) -> str:
    """A file name without the suffix of an image or an XML file."""
    return next((name[: -len(end)] for end in (*IMAGE_SUFFIXES, ".xml") if name.lower().endswith(end)), name)
