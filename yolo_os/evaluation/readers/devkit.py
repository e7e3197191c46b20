"""A PASCAL VOC development kit: folders such as `VOC2007` with `Annotations`, `ImageSets/Main` and `JPEGImages`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations, Problem
from yolo_os.evaluation.names import some
from yolo_os.evaluation.readers.image_sets import (
    STANDARD,
    Entry,
    filled_lists,
    has_set,
    image_set,
    read_list,
    why_missing,
)
from yolo_os.evaluation.readers.voc_xml import TAGS, Row, XMLFile
from yolo_os.evaluation.readers.xml_folder import read_xml_folder
from yolo_os.evaluation.text import nfc, read_text
from yolo_os.files import as_path, is_dir, is_file

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def recognises(source: str | Path) -> bool:
    """Whether a path is a VOCdevkit folder, or a folder such as `VOC2007`, rather than a data.yaml."""
    folder = as_path(source)
    return is_dir(folder) and (
        (folder / "Annotations").is_dir()
        or any(folder.glob("VOC*/Annotations"))
        or any(folder.glob("VOCdevkit/VOC*/Annotations"))
    )


def read(
    source: str | Path | Sequence[str | Path],
    split: str,
    year: str | None = None,
    classes: str | Path | Sequence[str] | None = None,
    images: str | Path | None = None,
) -> Annotations:
    """The annotations of a split: `read_devkit`, as a reader."""
    if images:
        raise UserError(f"data={source} is a VOCdevkit, whose images are in JPEGImages: leave out images=")
    return read_devkit(source, year, split, classes)


def read_devkit(
    devkit: str | Path | Sequence[str | Path],
    year: str | int | Sequence[str | int] | None = "2007",
    split: str = "test",
    classes: str | Path | Sequence[str] | None = None,
) -> Annotations:
    """Read one image set of a development kit, or of several together.

    Args:
        devkit: the folder that holds `VOC2007` (or holds `VOCdevkit`), or such a folder itself; or several.
        year: "2007", "2007,2012" or a list, the part of the folder's name after `VOC`; None for 2007 where there is
            one, else the only year there is. Not looked at where `devkit` is itself a folder with `Annotations`.
        split: the image set, the name of a file of `ImageSets/Main`. A devkit without `trainval` has it as train and
            val together; one without `val` has a tenth of its training images as `val` and the rest as `train`,
            chosen by a checksum of their names, which is said in `notes`.
        classes: names, or the path of a text file with one a line. By default the 20 of VOC where all objects are
            of those, else the sorted names of all objects of the devkit's image sets.

    Returns:
        The annotations. What is wrong in single files is in their `problems`; reading goes on.

    Raises:
        UserError: if a folder, a year or an image set is not there (naming those that are), or no image is left.
    """
    return read_roots([(root, split) for root in find_roots(devkit, year)], classes)


def read_roots(
    parts: Sequence[tuple[Path, str]],
    classes: str | Path | Sequence[str] | None = None,
    image_folders: Sequence[Path] = (),
) -> Annotations:
    """Read image sets of folders such as `VOC2007`, each given with the name of the set; see `read_devkit`.

    Images are looked for in `JPEGImages`, then in the `image_folders`.
    """
    folders = {root: read_xml_folder(root, image_folders) for root, _ in parts}
    problems: list[Problem] = []
    notes: list[str] = []
    warnings: list[str] = []
    wanted: dict[tuple[Path, str], Entry] = {}
    for root, split in parts:
        entries, said = image_set(root, split, folders[root])
        notes += said
        warnings += _listed_elsewhere(root, split, {entry.stem for entry in entries}, folders[root])
        for entry in entries:
            first = wanted.setdefault((root, entry.stem), entry)
            if first is not entry:
                text = f"{entry.stem} is listed again (first in line {first.line}): ignored"
                problems.append(Problem(entry.file, entry.line, text, False))

    kept: list[tuple[Path, str]] = []
    left_out: list[tuple[Path, str]] = []
    for (root, stem), entry in wanted.items():
        xml = folders[root].get(stem)
        if xml is None:
            text = f"{stem} has no XML file in Annotations: image left out"
            problems.append(Problem(entry.file, entry.line, text, True))
        elif xml.complaints:
            problems += [Problem(root / "Annotations" / xml.name, *complaint) for complaint in xml.complaints]
        (kept if xml is not None and xml.readable else left_out).append((root, stem))
    if not kept:
        where = ", ".join(f"{split} of {root}" for root, split in parts)
        raise UserError(f"no image of {where} can be used; first problem: {problems[0]}")

    names = _class_names(classes, lambda: folders, dict(parts))
    class_of = {name: index for index, name in enumerate(names)}
    others = Counter(row.name for root, stem in kept for row in folders[root][stem].rows if row.name not in class_of)
    named = {row.name for files in folders.values() for row in _rows(files)} if others else set(names)
    rows = [
        (image, class_of[row.name], row)
        for image, (root, stem) in enumerate(kept)
        for row in folders[root][stem].rows
        if row.name in class_of
    ]
    ids = _unique_ids([*kept, *left_out])
    box = np.array([row.box for _, _, row in rows], dtype=np.float64).reshape(-1, 4)
    roots = tuple(folders)
    files = [(root, stem, folders[root][stem]) for root, stem in kept]
    return Annotations(
        classes=names,
        images=tuple(ids[: len(kept)]),
        size=np.array([xml.size for _, _, xml in files], dtype=np.float64),
        image=np.array([image for image, _, _ in rows], dtype=np.int64),
        class_index=np.array([label for _, label, _ in rows], dtype=np.int64),
        box=box,
        difficult=np.array([row.difficult for _, _, row in rows], dtype=bool),
        truncated=np.array([row.truncated for _, _, row in rows], dtype=bool),
        missing={tag: sum(row.lacks >> bit & 1 for _, _, row in rows) for bit, tag in enumerate(TAGS)},
        problems=tuple(problems),
        notes=tuple(notes),
        left_out=frozenset(ids[len(kept) :]),
        roots=roots,
        sets=tuple(split for _, split in parts),
        root=np.array([roots.index(root) for root, _ in kept], dtype=np.int64),
        stems=tuple(stem for _, stem in kept),
        image_files=tuple(Path(xml.image or f"{root}/JPEGImages/{stem}.jpg") for root, stem, xml in files),
        image_readable=np.array([xml.image_readable for _, _, xml in files], dtype=bool),
        crowd=np.zeros(len(rows), dtype=bool),
        area=(box[:, 2:] - box[:, :2] + 1).prod(axis=1),
        warnings=tuple(warnings),
        unnamed=dict(others),
        absent=tuple(name for name in names if name not in named),
        ordered=classes is not None,
    )


def find_roots(
    devkit: str | Path | Sequence[str | Path], year: str | int | Sequence[str | int] | None = "2007"
) -> list[Path]:
    """The folders `VOC2007`, ... of the development kits given, each once.

    Raises:
        UserError: if a devkit is no folder, or has none of the years, or a year is in none of the devkits.
    """
    given = [devkit] if isinstance(devkit, str | Path) else list(devkit)
    whole = [[item] if is_dir(as_path(item)) else _comma_separated(item) for item in given]
    devkits = [as_path(item) for items in whole for item in items]
    years = None if year is None else _years(year)
    roots: list[Path] = []
    found_years: set[str] = set()
    for folder in devkits:
        if not is_dir(folder):
            raise UserError(f"devkit={folder}: no such folder")
        if (folder / "Annotations").is_dir():
            roots.append(folder.resolve())
            continue
        inner = folder if any(folder.glob("VOC*/Annotations")) else folder / "VOCdevkit"
        there = sorted(path.parent.name[3:] for path in inner.glob("VOC*/Annotations"))
        if not there:
            raise UserError(f"devkit={folder}: holds no folder like VOC2007 with Annotations in it")
        if years is None and "2007" not in there and len(there) > 1:
            raise UserError(f"devkit={folder}: say which of its years with year=: {', '.join(there)}")
        wanted = years or (["2007"] if "2007" in there else there)
        mine = [name for name in wanted if name in there]
        if not mine:
            raise UserError(f"devkit={folder}: has no VOC{', VOC'.join(wanted)}; year= one of {', '.join(there)}")
        found_years.update(mine)
        roots += [(inner / f"VOC{name}").resolve() for name in mine]
    absent = [name for name in years or [] if name not in found_years]
    if absent and found_years:
        raise UserError(f"year={','.join(absent)}: no devkit given has VOC{', VOC'.join(absent)}")
    if not roots:
        raise UserError("devkit=: no folder given")
    return list(dict.fromkeys(roots))


def with_split(roots: Sequence[Path], split: str) -> tuple[tuple[Path, str], ...]:
    """The roots that have an image set, or can make it, each with its name."""
    return tuple((root, split) for root in roots if has_set(root, split))


def class_names(roots: Iterable[Path], classes: str | Path | Sequence[str] | None = None) -> tuple[str, ...]:
    """The classes of some folders such as `VOC2007`, as `read_devkit` chooses them.

    Raises:
        UserError: if no class is named, one is named twice, or there is no object to take them from.
    """
    return _class_names(classes, lambda: {root: read_xml_folder(root) for root in roots}, {})


def _class_names(
    classes: str | Path | Sequence[str] | None,
    folders: Callable[[], Mapping[Path, Mapping[str, XMLFile]]],
    read: Mapping[Path, str],
) -> tuple[str, ...]:
    """The classes given, or those of the objects in the standard image sets and in those that are read."""

    def there() -> set[str]:
        return {row.name for files in folders().values() for row in _rows(files)}

    if classes is None:
        names: set[str] = set()
        for root, files in folders().items():
            names.update(row.name for row in _rows(_in_sets(root, files, read.get(root))))
        if not names:
            raise UserError(_why_no_object(folders(), read))
        return VOC_CLASSES if names <= set(VOC_CLASSES) else tuple(sorted(names))
    return named_classes(classes, lambda text: not there().isdisjoint(map(str.strip, text.splitlines())))


def named_classes(
    classes: str | Path | Sequence[str], plausible: Callable[[str], bool] = lambda text: True
) -> tuple[str, ...]:
    """The classes that a user names: in a list, in a text with commas, or in a text file with one a line.

    Args:
        classes: as given.
        plausible: says of the text of a file whether it is read in the right encoding.

    Raises:
        UserError: if no class is named, or one is named twice.
    """
    if isinstance(classes, str | Path) and is_file(as_path(classes)):
        given = [line.strip() for line in read_text(as_path(classes), plausible).splitlines()]
    else:
        if str(classes).endswith(".txt"):
            raise UserError(f"classes={classes}: no such file")
        given = _comma_separated(classes) if isinstance(classes, str | Path) else [str(name) for name in classes]
    names_given = tuple(nfc(name) for name in given if name)
    twice = [name for name, count in Counter(names_given).items() if count > 1]
    if twice or not names_given:
        raise UserError(f"classes: {twice[0]} is named twice" if twice else f"classes={classes}: names no class")
    return names_given


def _in_sets(root: Path, files: Mapping[str, XMLFile], read: str | None) -> dict[str, XMLFile]:
    """The XML files of the images that the standard image sets list, and the set that is read."""
    lists = filled_lists(root)
    listed = [read_list(lists[name], files) for name in (*STANDARD, *([read] if read else [])) if name in lists]
    return {entry.stem: files[entry.stem] for each in listed for entry in each.entries if entry.stem in files}


def _why_no_object(folders: Mapping[Path, Mapping[str, XMLFile]], read: Mapping[Path, str]) -> str:
    """The reason why there is no object to take the classes from."""
    for root, files in folders.items():
        if not any(has_set(root, name) for name in (*STANDARD, *read.values())):
            return f"{why_missing(root, 'train')} (nor is there val, trainval or test)"
        found = _in_sets(root, files, read.get(root))
        if not found:
            file = next(file for name, file in filled_lists(root).items() if name in (*STANDARD, *read.values()))
            first, some_file = read_list(file, files).entries[0].stem, next(iter(files), "none")
            return (
                f"no image that the image sets of {root} list has an XML file in Annotations: {file.name} lists"
                f" '{first}', and Annotations holds '{some_file}'"
            )
        said = [Problem(root / "Annotations" / xml.name, *each) for xml in found.values() for each in xml.complaints]
        lost = [problem for problem in said if problem.lost]
        if lost:
            what = "object" if any(xml.readable for xml in found.values()) else "XML file"
            return f"no {what} of {root} can be read ({len(lost)} problems); first problem: {lost[0]}"
    return "the development kit holds no object; give classes= if that is meant"


def _rows(files: Mapping[str, XMLFile]) -> Iterator[Row]:
    return (row for xml in files.values() for row in xml.rows)


def _listed_elsewhere(root: Path, split: str, stems: set[str], files: Mapping[str, XMLFile]) -> list[str]:
    """A warning where images to be tested on are among those to train on."""
    lists = filled_lists(root)
    others = {"test": ("train", "val", "trainval"), "val": ("train",)}.get(split, ())
    for other in others:
        both = sorted(stems & {e.stem for e in read_list(lists[other], files).entries}) if other in lists else []
        if both:
            return [f"{len(both)} of the images of {split} are in {other} too ({some(both)}): figures on them flatter"]
    return []


def _unique_ids(images: Sequence[tuple[Path, str]]) -> list[str]:
    """The stem of each image, with as much of its folder in front as tells images of one name apart."""
    ids = [stem for _, stem in images]
    for depth in range(max((len(root.parts) for root, _ in images), default=0)):
        count = Counter(ids)
        if len(count) == len(ids):
            break
        ids = [
            f"{root.parts[-1 - depth]}/{name}" if count[name] > 1 and depth < len(root.parts) else name
            for name, (root, _) in zip(ids, images)
        ]
    return ids


def _years(year: str | int | Sequence[str | int]) -> list[str]:
    parts = [year] if isinstance(year, str | int) else list(year)
    years = [name.removeprefix("VOC") for part in parts for name in _comma_separated(str(part))]
    if not years:
        raise UserError("year=: names no year")
    return list(dict.fromkeys(years))


def _comma_separated(value: str | Path) -> list[str]:
    return [part.strip() for part in str(value).split(",") if part.strip()]
