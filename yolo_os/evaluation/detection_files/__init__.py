"""Files that detectors leave: a module for each format, and the list of them.

A new format is a module with `recognises` and `read`, and a line in `FORMATS`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.detection_files import coco_json, comp4, yolo_txt
from yolo_os.evaluation.detection_files.gather import Reading
from yolo_os.evaluation.detections import Detections
from yolo_os.evaluation.images import files_in
from yolo_os.files import as_path, is_dir, is_file


class Format(Protocol):
    """What the module of a format has."""

    def recognises(self, path: Path) -> bool:
        """Whether a path is of this format, by its name and kind."""

    def read(self, path: Path, annotations: Annotations, how: Reading) -> Detections:
        """The detections."""


FORMATS: tuple[Format, ...] = (yolo_txt, comp4, coco_json)


def read_detections(
    path: str | Path,
    annotations: Annotations,
    split: str = "test",
    strict: bool = True,
    pixel_offset: float = 1.0,
    first_category: int | None = None,
) -> Detections:
    """Read a folder of comp4 text files, a COCO result file, or a folder of YOLO text files with confidences.

    Args:
        path: the folder, or the JSON file. What a program holds in memory is for `as_detections`.
        annotations: of the image set the detector ran on.
        split: its name, to choose among the files of a folder that holds several.
        strict: refuse an image or class that the annotations do not have, as the devkit does; otherwise such
            detections are left out and counted.
        pixel_offset: 1 where boxes of the annotations are inclusive pixels, 0 where they are continuous; JSON boxes
            are turned into that.
        first_category: the `category_id` of the first class in a JSON file without `categories`, 0 or 1; None where
            the ids show it.

    Raises:
        UserError: for a format that is not read, which it names, a file that cannot be read, a number that is not
            finite, where no detection belongs to the annotations, and, if `strict`, an image or class that is unknown;
            it names file and line, or file and entry.
    """
    path = as_path(path)
    found = format_of(path).read(path, annotations, Reading(split, strict, pixel_offset, first_category))
    unknown = {reason: count for reason, count in found.dropped.items() if reason.startswith("of unknown")}
    if unknown and not len(found.score):
        why = ", ".join(f"{count} {reason}" for reason, count in unknown.items())
        raise UserError(f"detections={path}: none belongs to the ground truth ({why}): is it of the same data?")
    return found


def format_of(path: str | Path) -> Format:
    """The format of a path.

    Raises:
        UserError: if it is of none that is read, which it names.
    """
    path = as_path(path)
    other = _other_format(path)
    form = None if other else next((form for form in FORMATS if form.recognises(path)), None)
    if form is None:
        wanted = (
            "a folder of comp4_det_test_CLASS.txt files, a COCO result file (.json) or a folder of YOLO text files"
            " (save_txt=True save_conf=True) is needed"
        )
        raise UserError(f"detections={path}: {other or 'is not there'}; {wanted}")
    return form


_OTHERS = {
    ".csv": "a CSV table", ".tsv": "a table", ".parquet": "a Parquet table", ".xml": "XML", ".yaml": "YAML",
    ".npy": "an array (in Python: as_detections)", ".npz": "arrays (in Python: as_detections)",
    ".pkl": "a pickle, which may run code (in Python: as_detections)", ".pickle": "a pickle, which may run code",
    ".pt": "a file of torch (a checkpoint is given as model=)", ".pth": "a file of torch",
    ".onnx": "a model (run it, and give its detections)", ".zip": "an archive (unpack it)",
    ".txt": "a single text file (give its folder)", ".jsonl": "JSON by lines", ".ndjson": "JSON by lines",
}  # fmt: skip


def _other_format(path: Path) -> str | None:
    """What a path is that is not read, by its name or that of the files in it; None if it may be read."""
    if is_file(path):
        return None if path.suffix.lower() == ".json" else f"is {_OTHERS.get(path.suffix.lower(), 'no such thing')}"
    if not is_dir(path):
        return None
    suffixes = Counter(Path(name).suffix.lower() for name, _ in files_in(path))
    if ".txt" in suffixes or not suffixes:
        return None
    most = max(suffixes, key=suffixes.__getitem__)
    if most == ".json":
        return "is a folder of JSON files (one COCO result file is read)"
    return f"is a folder of {most or 'other'} files, which are not read"
