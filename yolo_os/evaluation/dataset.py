"""Make an Ultralytics data set of a VOCdevkit, and find the VOCdevkit of a data set.

A 1-based inclusive box from x1 to x2 covers the continuous stretch from x1 - 1 to x2 of the image, so its centre is
(x1 - 1 + x2) / 2 and its width x2 - x1 + 1. (Ultralytics' own conversion of VOC has the centre half a pixel too far
to the left and top, and the width a pixel too small.)

Splits are the devkit's own: `train` to train, `val` to choose the checkpoint, `test` for the final number. What a
devkit lacks is left out, but for `val`, which every training run needs: see `read_devkit`. Difficult objects are left
out of the labels; evaluation finds them in the XML files, whose place `data.yaml` records.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from yolo_os import __version__
from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import (
    Annotations,
    Problem,
    cache_folder,
    class_names,
    find_roots,
    fingerprint,
    image_set,
    read_roots,
)
from yolo_os.files import FULL, as_path, is_dir, is_file, remove_leftovers, temporary_prefix
from yolo_os.plain_yaml import read_yaml

SPLITS = ("train", "val", "test")
_FORMAT = 1
_MANIFEST = ".files.json"  # of a data set made here: its files with sizes and times, so that it knows them again
_OWN = {"data.yaml", "images", "labels", "problems.txt", _MANIFEST}  # all that a data set made here holds


@dataclass(frozen=True, eq=False)
class Dataset:
    """An Ultralytics data set made of a development kit.

    Attributes:
        yaml: path of `data.yaml`.
        splits: the annotations behind each split, without the images that were left out.
        problems: what was wrong, in order.
        linked: "symlink", "hard link" or "copy": how the images came there.
    """

    yaml: Path
    splits: dict[str, Annotations]
    problems: tuple[Problem, ...]
    linked: str

    def __str__(self) -> str:
        """A line for each split and one for the file."""
        lines = []
        for name, split in self.splits.items():
            difficult = int(split.difficult.sum())
            lines.append(f"{name:<6}{len(split.images):>7} images {len(split.box) - difficult:>7} boxes")
            lines[-1] += f" ({difficult} difficult objects left out)" if difficult else ""
        if "train" not in self.splits:
            lines.append("no image set to train on: for evaluation only")
        return "\n".join([*lines, f"images by {self.linked}; use data={self.yaml}"])


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
            raise UserError(
                f"split={split}: the data set has {', '.join(name for name in self.parts if self.parts[name])}"
            )
        return read_roots(self.parts[split], self.classes, self.image_folders)


def make_dataset(
    devkit: str | Path | Sequence[str | Path],
    out: str | Path,
    year: str | int | Sequence[str | int] | None = "2007",
    classes: str | Path | Sequence[str] | None = None,
    copy: bool = False,
) -> Path:
    """Make an Ultralytics data set in the folder `out` and return the path of its `data.yaml`; see `convert`."""
    return convert(devkit, out, year, classes, copy).yaml


def convert(
    devkit: str | Path | Sequence[str | Path],
    out: str | Path,
    year: str | int | Sequence[str | int] | None = "2007",
    classes: str | Path | Sequence[str] | None = None,
    copy: bool = False,
    cache: bool = False,
) -> Dataset:
    """Make an Ultralytics data set of a development kit in the folder `out`: it appears whole or not at all.

    Args:
        devkit, year, classes: as for `read_devkit`.
        out: a new or empty folder, or a data set made here before, which is replaced.
        copy: copy the images; otherwise link them, symbolically, else by hard link, else copy.
        cache: `out` is a folder of ours, where nobody keeps anything.

    Raises:
        UserError: as `read_devkit`, or if `out` holds something else, or there is no more room.
    """
    roots = find_roots(devkit, year)
    names = class_names(roots, classes)
    out = as_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(out)
        if not cache:
            _refuse_foreign(out)
        building = Path(tempfile.mkdtemp(prefix=temporary_prefix(out), dir=out.parent))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"out={out}: cannot write there ({getattr(error, 'strerror', None) or error})") from None
    try:
        building.chmod(0o755)  # mkdtemp makes it private
        dataset = _fill(building, roots, names, copy)
        _note_files(building)
        _move_into_place(building, out)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(f"out={out}: cannot write there ({error.strerror})") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return replace(dataset, yaml=out / "data.yaml")


def dataset_for(
    devkit: str | Path | Sequence[str | Path],
    year: str | int | Sequence[str | int] | None = None,
    classes: str | Path | Sequence[str] | None = None,
) -> Path:
    """The `data.yaml` of a development kit, made in its cache folder when it is new or anything in it changed.

    Args:
        devkit, year, classes: as for `read_devkit`.

    Raises:
        UserError: as `make_dataset`, or if no folder can be written.
    """
    roots = find_roots(devkit, year)
    names = class_names(roots, classes)
    cache = cache_folder(roots[0])
    if cache is None:
        raise UserError(
            f"devkit={roots[0]}: neither it nor the user's cache folder can be written; use yolo-os voc out="
        )
    choice = hashlib.sha256(repr((roots, names)).encode()).hexdigest()[:12]
    folder = cache / f"dataset-{choice}"
    wanted = _fingerprint(roots, names)
    if _fingerprint_of(folder) != wanted:
        try:
            convert(roots, folder, None, names, cache=True)
        except UserError:
            if _fingerprint_of(folder) != wanted:  # unless another process, of a training on two GPUs, was first
                raise
    return folder / "data.yaml"


def is_devkit(path: str | Path) -> bool:
    """Whether a path is a VOCdevkit folder, or a folder such as `VOC2007`, rather than a data.yaml."""
    folder = as_path(path)
    return is_dir(folder) and (
        (folder / "Annotations").is_dir()
        or any(folder.glob("VOC*/Annotations"))
        or any(folder.glob("VOCdevkit/VOC*/Annotations"))
    )


def devkit_of(data_yaml: str | Path) -> Source:
    """Find the XML files behind a `data.yaml` made here, or behind one laid out as Ultralytics' VOC.yaml.

    The second kind lists folders such as `images/test2007` and has the devkit in `images/VOCdevkit`.

    Args:
        data_yaml: a file, or the name of one that Ultralytics ships, such as `VOC.yaml`.

    Raises:
        UserError: if the file is missing or no data.yaml, or no VOCdevkit is found behind it.
    """
    file = _find_yaml(as_path(data_yaml))
    try:
        data = read_yaml(file)
        names = data["names"]
        classes = tuple(str(names[key]) for key in sorted(names)) if isinstance(names, dict) else tuple(map(str, names))
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"data={file}: is no data.yaml of a data set ({type(error).__name__}: {error})") from None

    record = data.get("voc")
    if isinstance(record, dict) and "devkit" in record:
        if not isinstance(record["devkit"], list):
            raise UserError(f"data={file}: its record of the development kit is damaged; make it again")
        roots = [Path(str(root)) for root in record["devkit"]]
        gone = [root for root in roots if not is_dir(root / "Annotations")]
        if gone:
            raise UserError(f"data={file}: was made from {gone[0]}, which is not there any more; make it again")
        return Source({split: _with_split(roots, split) for split in SPLITS}, classes)

    base = _dataset_folder(data, file)
    folders = {split: _as_list(data.get(split)) for split in SPLITS}
    devkits = [base / "images" / "VOCdevkit", base / "VOCdevkit", base.parent / "VOCdevkit"]
    parts = {split: _parts_of(folders[split], devkits) for split in SPLITS}
    if not any(parts.values()):
        looked = ", ".join(str(devkit) for devkit in devkits)
        raise UserError(
            f"data={file}: no VOC annotations belong to it (looked for folders such as images/test2007 and for"
            f" {looked}); give devkit=, or make a data set with yolo-os voc"
        )
    return Source(parts, classes, tuple(base / name for names in folders.values() for name in names))


def _fill(folder: Path, roots: list[Path], names: tuple[str, ...], copy: bool) -> Dataset:
    """Write a whole data set into an empty folder."""
    splits: dict[str, Annotations] = {}
    problems: list[Problem] = []
    entries: dict[str, list[str]] = {}
    place = _Placer("copy" if copy else "symlink")
    for split in SPLITS:
        parts = _with_split(roots, split)
        if not parts:
            continue
        annotations = read_roots(parts, names)
        kept, faults = _write_split(folder, split, annotations, place)
        problems += [*annotations.problems, *faults]
        splits[split] = _only(annotations, kept)
        entries[split] = [f"images/{name}" for name in _folder_names(split, annotations.roots)]
    if not splits:
        raise UserError(f"{', '.join(map(str, roots))}: no train, val, trainval or test in ImageSets/Main")
    empty = [split for split, annotations in splits.items() if not annotations.images]
    if empty:
        raise UserError(f"no image of {', '.join(empty)} could be used; first problem: {problems[0]}")
    record = {
        "made_by": f"yolo-os {__version__}",
        "devkit": [str(root) for root in roots],
        "year": [root.name.removeprefix("VOC") for root in roots],
        "fingerprint": _fingerprint(roots, names),
    }
    entries = {"train": [], "val": [], **entries}  # Ultralytics wants both keys, also of a test set alone
    content = {**entries, "names": dict(enumerate(names)), "voc": record}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    head = (
        "# Made by yolo-os voc. Difficult objects are not in the labels; evaluation reads them from the devkit below.\n"
    )
    (folder / "data.yaml").write_text(head + text, encoding="utf-8")
    problems = list(dict.fromkeys(problems))
    if problems:
        (folder / "problems.txt").write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")
    return Dataset(folder / "data.yaml", splits, tuple(problems), place.how)


def _write_split(
    folder: Path, split: str, annotations: Annotations, place: _Placer
) -> tuple[NDArray[np.bool_], list[Problem]]:
    """Images and labels of one split; returns which images are there, and what was wrong with the others."""
    folders = _folder_names(split, annotations.roots)
    for name in folders:
        (folder / "images" / name).mkdir(parents=True)
        (folder / "labels" / name).mkdir(parents=True)
    kept = np.ones(len(annotations.images), dtype=bool)
    problems = []
    objects = np.flatnonzero(~annotations.difficult)
    objects = objects[np.argsort(annotations.image[objects], kind="stable")]
    bounds = np.searchsorted(annotations.image[objects], np.arange(len(annotations.images) + 1))
    for index, (stem, image) in enumerate(zip(annotations.stems, annotations.image_files)):
        mine = objects[bounds[index] : bounds[index + 1]]
        size = annotations.size[index] if image.is_file() else None
        if size is not None and not size.all():
            size = _measure(image)
        if size is None:
            kept[index] = False
            problems.append(Problem(image, 0, "the image is missing or cannot be read: left out", True))
            continue
        name = folders[annotations.root[index]]
        place(image, folder / "images" / name / image.name)
        lines = _label_lines(annotations.class_index[mine], annotations.box[mine], size)
        (folder / "labels" / name / f"{stem}.txt").write_text(lines)
    return kept, problems


def _label_lines(class_index: NDArray[np.int64], box: NDArray[np.float64], size: NDArray[np.float64]) -> str:
    """YOLO label text: class, centre and size as fractions of the image, of 1-based inclusive pixel boxes.

    Ten digits put a box within a millionth of a pixel. Boxes are clipped to the image.
    """
    near = np.maximum(box[:, :2] - 1, 0) / size
    far = np.minimum(box[:, 2:], size) / size
    rows = np.concatenate([(near + far) / 2, far - near], axis=1).tolist()
    return "".join(
        f"{label} {x:.10g} {y:.10g} {w:.10g} {h:.10g}\n" for label, (x, y, w, h) in zip(class_index.tolist(), rows)
    )


class _Placer:
    """Puts an image into the data set the cheapest way that works here, and remembers which way that was."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, source: Path, target: Path) -> None:
        if self.how == "symlink":
            try:
                return os.symlink(source, target)
            except OSError:
                self.how = "hard link"  # no right to make links (Windows), or a file system without them
        if self.how == "hard link":
            try:
                return os.link(source, target)
            except OSError:
                self.how = "copy"  # another disk
        shutil.copyfile(source, target)
        return None


def _measure(image: Path) -> NDArray[np.float64] | None:
    """Width and height of an image file whose XML does not say; None if it cannot be read."""
    import cv2

    pixels = cv2.imread(str(image))
    return None if pixels is None else np.array([pixels.shape[1], pixels.shape[0]], dtype=np.float64)


def _only(annotations: Annotations, kept: NDArray[np.bool_]) -> Annotations:
    """The annotations of some of the images."""
    if kept.all():
        return annotations
    number = np.cumsum(kept) - 1
    objects = kept[annotations.image]
    chosen = np.flatnonzero(kept).tolist()
    return replace(
        annotations,
        images=tuple(annotations.images[index] for index in chosen),
        stems=tuple(annotations.stems[index] for index in chosen),
        size=annotations.size[kept],
        root=annotations.root[kept],
        image=number[annotations.image[objects]],
        class_index=annotations.class_index[objects],
        box=annotations.box[objects],
        difficult=annotations.difficult[objects],
        truncated=annotations.truncated[objects],
    )


def _folder_names(split: str, roots: Sequence[Path]) -> list[str]:
    """`train2007`, as Ultralytics' VOC.yaml has it, for each root; told apart by a number where years are the same."""
    names: list[str] = []
    for root in roots:
        name = split + root.name.removeprefix("VOC")
        twin = sum(other.split("-")[0] == name for other in names)
        names.append(f"{name}-{twin + 1}" if twin else name)
    return names


def _with_split(roots: Sequence[Path], split: str) -> tuple[tuple[Path, str], ...]:
    """The roots that have an image set, or can make it."""
    parts = []
    for root in roots:
        with contextlib.suppress(UserError):
            image_set(root, split)
            parts.append((root, split))
    return tuple(parts)


def _fingerprint(roots: Sequence[Path], names: tuple[str, ...]) -> str:
    """What a data set depends on: format, classes, and the annotations, image sets and images of its roots."""
    content = [fingerprint(root / "Annotations", root / "ImageSets" / "Main", root / "JPEGImages") for root in roots]
    return hashlib.sha256(repr((_FORMAT, [str(root) for root in roots], names, content)).encode()).hexdigest()


def _record(folder: Path) -> dict[str, Any] | None:
    """What `data.yaml` says about its making, or None if the folder is no data set made here."""
    try:
        data = read_yaml(folder / "data.yaml")
    except UserError:
        return None
    record = data.get("voc") if isinstance(data, dict) else None
    return record if isinstance(record, dict) and str(record.get("made_by", "")).startswith("yolo-os") else None


def _fingerprint_of(folder: Path) -> str | None:
    return (_record(folder) or {}).get("fingerprint")


def _refuse_foreign(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"out={out}: is a file; give a new folder")
    if not _record(out):
        raise UserError(f"out={out}: holds something that yolo-os voc did not make; give a new folder")
    others = sorted(path.name for path in out.iterdir() if path.name not in _OWN)
    if others:
        raise UserError(
            f"out={out}: would be replaced, but holds {others[0]}, which yolo-os voc did not make; move it away"
        )
    try:
        made = json.loads((out / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"out={out}: would be replaced, but has no list of its files any more; move it away") from None
    for name, stamp in _stamps(out):
        if name not in made and not re.fullmatch(r"labels/[^/]+\.cache", name):
            raise UserError(
                f"out={out}: would be replaced, but holds {name}, which yolo-os voc did not make; move it away"
            )
        if name in made and made[name] != stamp:
            raise UserError(f"out={out}: would be replaced, but {name} was changed since; move it away")


def _note_files(folder: Path) -> None:
    (folder / _MANIFEST).write_text(json.dumps(dict(_stamps(folder))), encoding="utf-8")


def _stamps(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """The files of a data set, but for their list itself: name, and size and time, of a link those of its own."""
    for file in sorted(folder.rglob("*")):
        if (file.is_symlink() or not file.is_dir()) and file.name != _MANIFEST:
            stat = file.lstat()
            yield file.relative_to(folder).as_posix(), [stat.st_size, stat.st_mtime_ns]


def _clean_up(out: Path) -> None:
    """Remove what killed runs left beside `out`; one killed in the middle of replacing it is put back."""
    for folder in remove_leftovers(out):
        old = folder / out.name
        if old.is_dir() and not out.exists():
            os.rename(old, out)
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(building: Path, out: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f"{temporary_prefix(out)}old-", dir=out.parent))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(out, old / out.name)
        os.rename(building, out)
    except OSError as error:  # such as another process that has just put its own there
        raise UserError(f"out={out}: cannot be replaced ({error.strerror})") from None
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _find_yaml(file: Path) -> Path:
    if is_dir(file):
        file = file / "data.yaml"
    if is_file(file):
        return file
    package = importlib.util.find_spec("ultralytics")  # finds it without importing it
    if package and package.origin:
        shipped = Path(package.origin).parent / "cfg" / "datasets" / file.name
        if len(file.parts) == 1 and shipped.is_file():
            return shipped
    raise UserError(f"data={file}: no such file")


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
            if named and (root / "ImageSets" / "Main" / f"{named[1]}.txt").is_file():
                parts.append((root.resolve(), named[1]))
                break
    return tuple(parts)


def _as_list(value: Any) -> list[str]:
    return [] if value is None else [str(item) for item in value] if isinstance(value, list) else [str(value)]
