"""A folder of images with VOC XML files in any layout, as LabelImg, CVAT and Roboflow leave them: no image sets.

An XML file lies beside its image, or in another folder below the one given (`images` and `annotations`, say): they
have one name. Where folders are named train, val (valid, validation) and test, these are the splits; else all is one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations, Problem
from yolo_os.evaluation.images import files_in, images_by_stem
from yolo_os.evaluation.readers.devkit import VOC_CLASSES, named_classes
from yolo_os.evaluation.readers.listed import Item, ListedImage, annotations_of
from yolo_os.evaluation.readers.sizes import settle_sizes
from yolo_os.evaluation.readers.voc_xml import TAGS, XMLFile
from yolo_os.evaluation.readers.xml_folder import parse
from yolo_os.files import as_path, is_dir, is_file
from yolo_os.terminal import counted

_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip


def recognises(source: str | Path) -> bool:
    """Whether a path is a folder that holds XML files, and neither a development kit nor a data.yaml."""
    folder = as_path(source)
    if not is_dir(folder) or is_file(folder / "data.yaml") or (folder / "ImageSets").is_dir():
        return False
    if any(folder.glob("VOC*/Annotations")) or any(folder.glob("VOCdevkit/VOC*/Annotations")):
        return False
    return any(name.lower().endswith(".xml") for name, _ in files_in(folder))


def read(
    source: str | Path,
    split: str,
    year: str | None = None,
    classes: str | Path | Sequence[str] | None = None,
    images: str | Path | None = None,
) -> Annotations:
    """The annotations of a split, or of all where the folder has none."""
    if year:
        raise UserError(f"data={source} is a folder of XML files: year= is for a VOCdevkit")
    return read_xml_images(source, split, classes, images)


def read_xml_images(
    folder: str | Path,
    split: str = "test",
    classes: str | Path | Sequence[str] | None = None,
    images: str | Path | None = None,
) -> Annotations:
    """Read a folder of VOC XML files, with or without their images.

    Args:
        folder: holds XML files, itself or in folders below.
        split: train, val or test, looked at where folders are named so.
        classes: as for `read_devkit`.
        images: where images are, if it is not below `folder`.

    Raises:
        UserError: if no XML file can be used, or the folder has other splits.
    """
    root = as_path(folder)
    if images is not None and not is_dir(as_path(images)):
        raise UserError(f"images={images}: no such folder")
    parsed = parse(root)
    stems = _of_split(parsed, split)
    if not stems:
        there = ", ".join(sorted({found for stem in parsed if (found := _split_of(stem))}))
        raise UserError(f"split={split}: {root} has {there}")
    pictures = images_by_stem([root, *([as_path(images)] if images else [])])
    paired = _paired(stems, pictures)
    files = settle_sizes({stem: parsed[stem] for stem in stems}, paired)
    problems = [Problem(root / file.name, *said) for file in files.values() for said in file.complaints]
    kept = [file for file in files.values() if file.readable]
    if not kept:
        raise UserError(f"data={root}: no XML file in it can be used; first problem: {problems[0]}")
    names = _class_names(root, kept, classes)
    items: list[Item] = []
    missing, others = Counter(dict.fromkeys(TAGS, 0)), Counter[str]()
    for number, file in enumerate(kept):
        for row in file.rows:
            if row.name not in names:
                others[row.name] += 1
                continue
            x1, y1, x2, y2 = row.box
            area = (x2 - x1 + 1) * (y2 - y1 + 1)
            items.append(Item(number, names.index(row.name), row.box, area, False, row.difficult, row.truncated))
            missing.update(tag for bit, tag in enumerate(TAGS) if row.lacks >> bit & 1)
    annotations = annotations_of(
        names,
        [ListedImage(Path(file.image or root / file.name), file.size, file.image_readable) for file in kept],
        items,
        (root.resolve(), split if any(map(_split_of, parsed)) else "all"),
        problems,
        _notes(stems, parsed, paired, pictures, split),
        [root / file.name for file in files.values() if not file.readable],
        continuous=False,
        missing=missing,
    )
    return replace(annotations, unnamed=dict(others), ordered=classes is not None)


def _of_split(stems: Iterable[str], split: str) -> list[str]:
    """Those of some paths that lie in a folder of the split; all where no folder is named as a split."""
    by_split: dict[str | None, list[str]] = defaultdict(list)
    for stem in stems:
        by_split[_split_of(stem)].append(stem)
    return by_split[split] if any(by_split) else by_split[None]


def _split_of(stem: str) -> str | None:
    """The split that the folders of a path name."""
    return next((_SPLITS[part.lower()] for part in stem.split("/")[:-1] if part.lower() in _SPLITS), None)


def _paired(stems: Iterable[str], pictures: Mapping[str, str]) -> dict[str, str]:
    """The image of each XML file: of its path, else of its name, and then in folders that are named most alike."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        by_name[picture.rpartition("/")[2]].append(picture)
    found = {}
    for stem in stems:
        folders = stem.split("/")[:-1]
        alike = [(len({*folders} & {*each.split("/")[:-1]}), each) for each in by_name[stem.rpartition("/")[2]]]
        best = [each for score, each in alike if score == max(alike)[0]]
        if stem in pictures:
            found[stem] = pictures[stem]
        elif len(best) == 1:
            found[stem] = pictures[best[0]]
    return found


def _class_names(root: Path, files: Iterable[XMLFile], classes: str | Path | Sequence[str] | None) -> tuple[str, ...]:
    """The classes given, else VOC's 20 where all objects are of those, else those of the objects, sorted."""
    there = {row.name for file in files for row in file.rows}
    if classes is not None:
        return named_classes(classes, lambda text: not there.isdisjoint(map(str.strip, text.splitlines())))
    if not there:
        raise UserError(f"data={root}: its XML files hold no object; give classes= if that is meant")
    return VOC_CLASSES if there <= set(VOC_CLASSES) else tuple(sorted(there))


def _notes(
    stems: Sequence[str],
    parsed: Mapping[str, XMLFile],
    paired: Mapping[str, str],
    pictures: Mapping[str, str],
    split: str,
) -> list[str]:
    """What is to be said of how the folder was understood."""
    notes = []
    if not any(map(_split_of, parsed)):
        notes.append(f"no folder is named train, val or test: all XML files ({len(stems)}) are taken as {split}")
    unlabelled = len({pictures[each] for each in _of_split(pictures, split)} - set(paired.values()))
    if unlabelled:
        notes.append(f"{counted(unlabelled, 'image')} without an XML file: left out")
    return notes
