"""Ground truth from files: a module for each annotation format, and the list of them.

A new format is a module with `recognises` and `read`, and a line in `READERS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.readers import coco_json, data_yaml, devkit, xml_images
from yolo_os.files import as_path, is_dir, is_file


class Reader(Protocol):
    """What the module of a format has."""

    def recognises(self, source: str | Path) -> bool:
        """Whether a path is of this format; only its layout is looked at."""

    def read(
        self,
        source: str | Path,
        split: str,
        year: str | None = None,
        classes: str | Path | Sequence[str] | None = None,
        images: str | Path | None = None,
    ) -> Annotations:
        """The annotations of a split.

        Raises:
            UserError: if they can't be read, or the format does not leave the choice of `year`, `classes` or `images`.
        """


READERS: tuple[Reader, ...] = (xml_images, devkit, data_yaml, coco_json)


def reader_of(source: str | Path) -> Reader:
    """The reader of a format.

    Raises:
        UserError: if a path is of no format that is read, which it names.
    """
    found = next((reader for reader in READERS if reader.recognises(source)), None)
    if found:
        return found
    path = as_path(source)
    wanted = "a data.yaml, a VOCdevkit, COCO's JSON or a folder with VOC XML files is needed"
    if is_dir(path):
        raise UserError(f"data={source}: the folder holds neither a data.yaml nor VOC XML files; {wanted}")
    raise UserError(f"data={source}: {'is none that is read' if is_file(path) else 'no such file'}; {wanted}")


def read_annotations(
    source: str | Path,
    split: str = "test",
    year: str | None = None,
    classes: str | Path | Sequence[str] | None = None,
    images: str | Path | None = None,
) -> Annotations:
    """The ground truth of a split, from any format that is read.

    Args:
        source: a `data.yaml`, a VOCdevkit folder, COCO's annotation file, or a folder of VOC XML files.
        split: train, val or test; of COCO's file it is not looked at.
        year, classes, images: see the function of each format (`read_devkit`, `read_coco_json`, `read_xml_images`).

    Raises:
        UserError: if it is of no format that is read, or can't be read.
    """
    return reader_of(source).read(source, split, year, classes, images)
