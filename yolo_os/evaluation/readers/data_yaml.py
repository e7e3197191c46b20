"""The ground truth behind a `data.yaml`: VOC's annotations where it has any, else its own labels.

VOC's annotations belong to a data set made here, and to one laid out as Ultralytics' VOC.yaml, which lists folders such
as `images/test2007` and has the devkit in `images/VOCdevkit`. They know which objects are difficult; labels do not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.readers.devkit import read_roots, with_split
from yolo_os.evaluation.readers.yolo_labels import read_labels
from yolo_os.evaluation.text import nfc
from yolo_os.files import as_path, is_dir, is_file
from yolo_os.plain_yaml import read_yaml

SPLITS = ("train", "val", "test")
RECORD = "voc"  # the key of data.yaml under which a data set made here says where it came from


@dataclass(frozen=True, eq=False)
class Source:
    """Where the ground truth of a data set lies.

    Attributes:
        parts: for each split, the folders such as `VOC2007` and the image sets of them that make it up.
        classes: the data set's classes, in its order.
        image_folders: where images may be besides `JPEGImages`.
    """

    parts: dict[str, tuple[tuple[Path, str], ...]]
    classes: tuple[str, ...]
    image_folders: tuple[Path, ...] = ()

    def read(self, split: str = "test") -> Annotations:
        """The annotations of a split.

        Raises:
            UserError: if the data set has no such split.
        """
        if not self.parts.get(split):
            there = ", ".join(name for name in self.parts if self.parts[name])
            raise UserError(f"split={split}: the data set has {there}")
        return read_roots(self.parts[split], self.classes, self.image_folders)


def recognises(source: str | Path) -> bool:
    """Whether a path is a YAML file, or a folder with a data.yaml."""
    path = as_path(source)
    return path.suffix in (".yaml", ".yml") or is_file(path / "data.yaml")


def read(
    source: str | Path,
    split: str,
    year: str | None = None,
    classes: str | Path | Sequence[str] | None = None,
    images: str | Path | None = None,
) -> Annotations:
    """The annotations of a split of a data set."""
    if year or classes or images:
        raise UserError(f"data={source} says its years, classes and images itself: leave out year=, classes=, images=")
    return read_data_yaml(source, split)


def read_data_yaml(data_yaml: str | Path, split: str = "test") -> Annotations:
    """Read a split of an Ultralytics data set: VOC's annotations where they belong to it, else its labels.

    Paths are resolved as Ultralytics does: folders of images, lists of images, or lists of these. Labels know no
    difficult objects; `notes` says so.

    Args:
        data_yaml: a file, a folder with a `data.yaml`, or the name of a file that Ultralytics ships.
        split: train, val or test.

    Raises:
        UserError: if there is no such data set or split, or no image of it can be used.
    """
    file, data, classes = open_data_yaml(data_yaml)
    source = _voc_source(file, data, classes)
    if source is not None:
        return source.read(split)
    entries = {name: _as_list(data.get(name)) for name in SPLITS}
    if not entries["val"]:
        entries["val"] = _as_list(data.get("validation"))
    if not entries.get(split):
        there = [name for name, listed in entries.items() if listed]
        raise UserError(f"split={split}: {file} has {', '.join(there) or 'no split'}")
    base = _dataset_folder(data, file)
    points = data.get("kpt_shape") or [0, 0]
    try:
        columns = int(points[0]) * int(points[1])
    except (TypeError, ValueError, IndexError, KeyError):
        raise UserError(f"data={file}: kpt_shape is {points!r:.40}, and two numbers are meant") from None
    sources = [_resolved(base, entry) for entry in entries[split]]
    try:
        return read_labels(sources, classes, (base.resolve(), split), columns)
    except UserError as error:
        if all(source.exists() for source in sources):
            raise
        raise UserError(f"data={file}: {error}{path_hint(file)}") from None


def path_hint(file: Path) -> str:
    """What to add to an error of a data.yaml whose images are not there, if its `path:` is a relative one."""
    try:
        path = str(read_yaml(file / "data.yaml" if is_dir(file) else file).get("path") or "")
        if not path or as_path(path).is_absolute():
            return ""
    except (UserError, AttributeError, TypeError):  # which is said where the file is read
        return ""
    start = "the folder that you are in" if is_dir(as_path(path)) else "Ultralytics' datasets_dir"
    return f" (`path: {path}` starts from {start}, as for Ultralytics; without `path:` the folder of the YAML is meant)"


def devkit_of(data_yaml: str | Path) -> Source:
    """Find the XML files behind a `data.yaml` made here, or behind one laid out as Ultralytics' VOC.yaml.

    Args:
        data_yaml: a file, or the name of one that Ultralytics ships, such as `VOC.yaml`.

    Raises:
        UserError: if the file is missing or no data.yaml, or no VOCdevkit is found behind it.
    """
    file, data, classes = open_data_yaml(data_yaml)
    source = _voc_source(file, data, classes)
    if source is None:
        looked = ", ".join(str(devkit) for devkit in _devkits(_dataset_folder(data, file)))
        raise UserError(
            f"data={file}: no VOC annotations belong to it (looked for folders such as images/test2007 and for"
            f" {looked}); give devkit=, or make a data set with yolo-os voc"
        )
    return source


def open_data_yaml(data_yaml: str | Path) -> tuple[Path, dict[str, Any], tuple[str, ...]]:
    """The file that is meant, what it says, and the names of the classes.

    Raises:
        UserError: if the file is missing or no data.yaml.
    """
    file = _find_yaml(as_path(data_yaml))
    try:
        data = read_yaml(file)
        if not isinstance(data, dict):
            raise UserError("it holds no dictionary of settings")
        if data.get("names") is None and "nc" in data:
            data["names"] = [f"class_{number}" for number in range(int(data["nc"]))]
        classes = tuple(nfc(str(name)) for name in _in_order(data["names"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # UserError is a ValueError
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"data={file}: is no data.yaml of a data set ({why})") from None
    if not classes:
        raise UserError(f"data={file}: names no classes")
    return file, data, classes


def _voc_source(file: Path, data: dict[str, Any], classes: tuple[str, ...]) -> Source | None:
    """Where the VOC annotations of a data set lie; None if none belong to it.

    Raises:
        UserError: if it was made of a devkit that is not there any more.
    """
    record = data.get(RECORD)
    if isinstance(record, dict) and "devkit" in record:
        if not isinstance(record["devkit"], list):
            raise UserError(f"data={file}: its record of the development kit is damaged; make it again")
        roots = [Path(str(root)) for root in record["devkit"]]
        gone = [root for root in roots if not is_dir(root / "Annotations")]
        if gone:
            raise UserError(f"data={file}: was made from {gone[0]}, which is not there any more; make it again")
        return Source({split: with_split(roots, split) for split in SPLITS}, classes)
    base = _dataset_folder(data, file)
    folders = {split: _as_list(data.get(split)) for split in SPLITS}
    parts = {split: _parts_of(folders[split], _devkits(base)) for split in SPLITS}
    if not any(parts.values()):
        return None
    return Source(parts, classes, tuple(base / name for names in folders.values() for name in names))


def _devkits(base: Path) -> list[Path]:
    """Where the devkit of a data set laid out as Ultralytics' VOC.yaml may be."""
    return [base / "images" / "VOCdevkit", base / "VOCdevkit", base.parent / "VOCdevkit"]


def _resolved(base: Path, entry: str) -> Path:
    """The folder or list that an entry of a split means."""
    path = (base / entry).resolve()
    return (base / entry[3:]).resolve() if entry.startswith("../") and not path.exists() else path


def folder_names(split: str, roots: Sequence[Path]) -> list[str]:
    """`train2007`, as Ultralytics' VOC.yaml has it, for each root; told apart by a number where they are the same."""
    names: list[str] = []
    for root in roots:
        name = split + root.name.removeprefix("VOC")
        twins = (f"{name}-{number}" for number in range(2, len(roots) + 2))
        names.append(name if name not in names else next(twin for twin in twins if twin not in names))
    return names


def _find_yaml(file: Path) -> Path:
    if is_dir(file):
        file = file / "data.yaml"
    if is_file(file):
        return file
    package = importlib.util.find_spec("ultralytics")  # finds it without importing it
    if package and package.origin:
        shipped = Path(package.origin).parent / "cfg" / "datasets" / file.name
        if len(file.parts) == 1 and is_file(shipped):
            return shipped
    raise UserError(f"data={file}: no such file")


def _in_order(names: Any) -> list[Any]:
    """The names of a data.yaml, a list or by number."""
    return [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else list(names)


def _dataset_folder(data: dict[str, Any], file: Path) -> Path:
    """The folder that the paths of a data.yaml start from, found as Ultralytics finds it."""
    path = as_path(str(data.get("path") or file.parent))
    if path.is_absolute() or is_dir(path):
        return path
    home = Path.home()
    by_system = {"win32": home / "AppData" / "Roaming", "darwin": home / "Library" / "Application Support"}
    config = by_system.get(sys.platform, Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config"))
    settings = Path(os.environ.get("YOLO_CONFIG_DIR") or config) / "Ultralytics" / "settings.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return Path(json.loads(settings.read_text(encoding="utf-8"))["datasets_dir"]) / path
    return file.parent / path


def _parts_of(folders: list[str], devkits: list[Path]) -> tuple[tuple[Path, str], ...]:
    """The image sets that folders such as `images/test2007` stand for, where the devkit has them."""
    parts = []
    for folder in folders:
        named = re.fullmatch(r"(trainval|train|val|test)(\d{4})", Path(folder).name)
        for devkit in devkits if named else []:
            root = devkit / f"VOC{named[2]}" if named else devkit
            if named and is_file(root / "ImageSets" / "Main" / f"{named[1]}.txt"):
                parts.append((root.resolve(), named[1]))
                break
    return tuple(parts)


def _as_list(value: Any) -> list[str]:
    return [] if value is None else [str(item) for item in value] if isinstance(value, list) else [str(value)]
