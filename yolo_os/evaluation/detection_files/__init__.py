"""Files that detectors leave: a module for each format, and the list of them.

A new format is a module with `recognises` and `read`, and a line in `FORMATS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.detection_files import coco_json, comp4
from yolo_os.evaluation.detection_files.gather import Reading
from yolo_os.evaluation.detections import Detections
from yolo_os.files import as_path, is_file


class Format(Protocol):
    """What the module of a format has."""

    def recognises(self, path: Path) -> bool:
        """Whether a path is of this format, by its name and kind."""

    def read(self, path: Path, annotations: Annotations, how: Reading) -> Detections:
        """The detections."""


FORMATS: tuple[Format, ...] = (comp4, coco_json)


def read_detections(
    path: str | Path,
    annotations: Annotations,
    split: str = "test",
    strict: bool = True,
    pixel_offset: float = 1.0,
    first_category: int | None = None,
) -> Detections:
    """Read a folder of comp4 text files, or a COCO result file.

    Args:
        path: the folder, or the JSON file.
        annotations: of the image set the detector ran on.
        split: its name, to choose among the files of a folder that holds several.
        strict: refuse an image or class that the annotations do not have, as the devkit does; otherwise such
            detections are left out and counted.
        pixel_offset: 1 where boxes of the annotations are inclusive pixels, 0 where they are continuous; JSON boxes
            are turned into that.
        first_category: the `category_id` of the first class in a JSON file without `categories`, 0 or 1; None where
            the ids show it.

    Raises:
        UserError: for a file that cannot be read, a number that is not finite, and, if `strict`, an image or class
            that is unknown; it names file and line, or file and entry.
    """
    path = as_path(path)
    for form in FORMATS:
        if form.recognises(path):
            return form.read(path, annotations, Reading(split, strict, pixel_offset, first_category))
    wanted = "a folder of comp4_det_test_CLASS.txt files or a COCO result file (.json) is needed"
    raise UserError(f"detections={path}: {'is neither' if is_file(path) else 'is not there'}; {wanted}")
