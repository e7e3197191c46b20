"""All XML files of a folder such as `VOC2007`.

Reading 10,000 files takes seconds, so what was read is cached and used again as long as names, sizes and times of all
files stay.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from yolo_os.errors import UserError
from yolo_os.evaluation.readers.cache import cache_folder, fingerprint
from yolo_os.evaluation.readers.voc_xml import Complaint, Row, XMLFile, read_xml
from yolo_os.files import written_whole

_CACHE_FORMAT = 2


def read_xml_folder(root: Path) -> dict[str, XMLFile]:
    """The XML files of a folder such as `VOC2007` by name without suffix, from the cache if nothing changed since."""
    folder = root / "Annotations"
    key = f"{_CACHE_FORMAT} {fingerprint(folder)}"
    cache = cache_folder(root)
    if cache and (cached := _load(cache / "annotations.json", key)) is not None:
        return cached
    files = _parse(sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml"))
    if cache:
        with contextlib.suppress(OSError, UserError), written_whole(cache / "annotations.json") as temporary:
            temporary.write_text(json.dumps([key, files]), encoding="utf-8")  # a full disk costs the cache only
    return files


def _parse(paths: Iterable[Path]) -> dict[str, XMLFile]:
    files: dict[str, XMLFile] = {}
    for path in paths:
        if path.stem in files:
            complaint = Complaint(0, f"{path.name} is a second file of that name: ignored", False)
            files[path.stem].complaints.append(complaint)
        else:
            files[path.stem] = read_xml(path)
    return files


def _load(cache: Path, key: str) -> dict[str, XMLFile] | None:
    """What the cache holds; None if there is none yet, or it is of other files, or damaged."""
    try:
        found, files = json.loads(cache.read_text(encoding="utf-8"))
        if found != key:
            return None
        return {
            stem: XMLFile(readable, size, [Row(*row) for row in rows], [Complaint(*each) for each in complaints])
            for stem, (readable, size, rows, complaints) in files.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return None
