"""Make an Ultralytics data set of a VOCdevkit.

Splits are the devkit's own: `train` to train, `val` to choose the checkpoint, `test` for the final number. What a
devkit lacks is left out, but for `val`, which every training run needs: see `read_devkit`. Difficult objects are left
out of the labels; evaluation finds them in the XML files, whose place `data.yaml` records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from yolo_os._version import __version__
from yolo_os.conversion.duplicates import same_images
from yolo_os.conversion.folder import record_of, replacing
from yolo_os.conversion.labels import Placer, write_split
from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations, Problem, said_of_classes
from yolo_os.evaluation.readers.cache import cache_folder, fingerprint
from yolo_os.evaluation.readers.data_yaml import RECORD, SPLITS, folder_names
from yolo_os.evaluation.readers.devkit import class_names, find_roots, read_roots, with_split
from yolo_os.evaluation.readers.image_sets import is_empty, why_missing
from yolo_os.files import as_path

_FORMAT = 2


@dataclass(frozen=True, eq=False)
class Dataset:
    """An Ultralytics data set made of a development kit.

    Attributes:
        yaml: path of `data.yaml`.
        splits: the annotations behind each split, without the images that were left out.
        problems: what was wrong, in order.
        notes: choices made for want of a file.
        warnings: what makes figures misleading, such as an image that is in two splits.
        linked: "symlink", "hard link" or "copy": how the images came there.
    """

    yaml: Path
    splits: dict[str, Annotations]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
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
    with replacing(out, cache) as building:
        dataset = _fill(building, roots, names, copy)
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


def dataset_of(annotations: Annotations, folder: Path, split: str) -> Path:
    """The `data.yaml` of a data set made in an empty folder of any annotations, as its `val`; images are linked.

    Ultralytics resolves the paths of train, val and test only, and the image set may have any name, `split`.

    Objects that are difficult, and crowds, are left out of the labels.

    Raises:
        UserError: if no image of it is there.
    """
    hidden = replace(annotations, difficult=annotations.difficult | annotations.crowd)
    kept, faults = write_split(folder, split, hidden, Placer("symlink"))
    if not kept.any():
        raise UserError(
            f"no image of {len(kept)} can be read, the first is looked for at {faults[0].file}: say where they are"
            " with images="
        )
    names = [f"images/{name}" for name in folder_names(split, annotations.roots)]
    content = {"train": [], "val": names, "names": dict(enumerate(annotations.classes))}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return folder / "data.yaml"


def _fill(folder: Path, roots: list[Path], names: tuple[str, ...], copy: bool) -> Dataset:
    """Write a whole data set into an empty folder."""
    splits: dict[str, Annotations] = {}
    problems: list[Problem] = []
    entries: dict[str, list[str]] = {}
    place = Placer("copy" if copy else "symlink")
    for split in SPLITS:
        parts = with_split(roots, split)
        if not parts:
            continue
        annotations = read_roots(parts, names)
        kept, faults = write_split(folder, split, annotations, place)
        problems += [*annotations.problems, *faults]
        splits[split] = annotations.only(kept)
        entries[split] = [f"images/{name}" for name in folder_names(split, annotations.roots)]
    usable = {split: annotations for split, annotations in splits.items() if annotations.images}
    if not splits:
        raise UserError("; ".join(why_missing(root, "train") for root in roots))
    if not usable:
        raise UserError(f"no image of {', '.join(splits)} could be used; first problem: {problems[0]}")
    lost, notes = said_of_classes(list(usable.values()))
    problems = list(dict.fromkeys([*problems, *lost]))
    notes += [note for split in usable.values() for note in split.notes]
    notes += [f"no image of {split} could be used: left out" for split in splits.keys() - usable.keys()]
    notes += [why_missing(root, split) for root in roots for split in SPLITS if is_empty(root, split)]
    record = {
        "made_by": f"yolo-os {__version__}",
        "devkit": [str(root) for root in roots],
        "year": [root.name.removeprefix("VOC") for root in roots],
        "fingerprint": _fingerprint(roots, names),
    }
    entries = {
        "train": [],
        "val": [],
        **{split: entries[split] for split in usable},
    }  # Ultralytics wants both keys, also of a test set alone
    content = {**entries, "names": dict(enumerate(names)), RECORD: record}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    head = (
        "# Made by yolo-os voc. Difficult objects are not in the labels; evaluation reads them from the devkit below.\n"
    )
    (folder / "data.yaml").write_text(head + text, encoding="utf-8")
    if problems:
        (folder / "problems.txt").write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")
    warnings = same_images(usable)
    return Dataset(
        folder / "data.yaml", usable, tuple(problems), tuple(dict.fromkeys(notes)), tuple(warnings), place.how
    )


def _fingerprint(roots: Sequence[Path], names: tuple[str, ...]) -> str:
    """What a data set depends on: format, classes, and the annotations, image sets and images of its roots."""
    content = [fingerprint(root / "Annotations", root / "ImageSets" / "Main", root / "JPEGImages") for root in roots]
    return hashlib.sha256(repr((_FORMAT, [str(root) for root in roots], names, content)).encode()).hexdigest()


def _fingerprint_of(folder: Path) -> str | None:
    return (record_of(folder) or {}).get("fingerprint")
