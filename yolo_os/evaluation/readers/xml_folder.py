"""All XML files of a folder such as `VOC2007`, with the sizes of their images.

Reading 10,000 files takes seconds, so what was read is cached and used again as long as names, sizes and times of all
files and images stay.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_os.errors import UserError
from yolo_os.evaluation.images import files_in, images_by_stem
from yolo_os.evaluation.readers.cache import cache_folder, fingerprint
from yolo_os.evaluation.readers.sizes import settle_sizes
from yolo_os.evaluation.readers.voc_xml import Complaint, Row, XMLFile, read_xml
from yolo_os.evaluation.text import nfc
from yolo_os.files import written_whole

_CACHE_FORMAT = 3


def read_xml_folder(root: Path, image_folders: Sequence[Path] = ()) -> dict[str, XMLFile]:
    """The XML files of a folder such as `VOC2007` by their path below `Annotations`, without suffix.

    Images are looked for in `JPEGImages`, then in the `image_folders`. What was read before is used again if nothing
    changed since.
    """
    folder, places = root / "Annotations", (root / "JPEGImages", *image_folders)
    key = f"{_CACHE_FORMAT} {fingerprint(folder, *places)} {[str(place) for place in places]}"
    cache = cache_folder(root)
    if cache and (cached := _load(cache / "annotations.json", key)) is not None:
        return cached
    files = settle_sizes(parse(folder), images_by_stem(places))
    if cache:
        with contextlib.suppress(OSError, UserError), written_whole(cache / "annotations.json") as temporary:
            temporary.write_text(json.dumps([key, files]), encoding="utf-8")  # a full disk costs the cache only
    return files


def parse(folder: Path) -> dict[str, XMLFile]:
    """The XML files of a folder and of those below it, by their path within it without suffix."""
    files: dict[str, XMLFile] = {}
    for name in sorted(name for name, _ in files_in(folder) if name.lower().endswith(".xml")):
        stem = nfc(name[: -len(".xml")])
        if stem in files:
            complaint = Complaint(0, f"{name} is a second file of that name: ignored", False)
            files[stem].complaints.append(complaint)
        else:
            files[stem] = read_xml(folder, name)
    return files


def _load(cache: Path, key: str) -> dict[str, XMLFile] | None:
    """What the cache holds; None if there is none yet, or it is of other files, or damaged."""
    try:
        found, files = json.loads(cache.read_text(encoding="utf-8"))
        if found != key:
            return None
        return {stem: _restored(*columns) for stem, columns in files.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _restored(name: str, readable: bool, size: list[float], rows: list[Any], said: list[Any], *image: Any) -> XMLFile:
    width, height = size
    return XMLFile(name, readable, (width, height), [*map(Row._make, rows)], [*map(Complaint._make, said)], *image)
