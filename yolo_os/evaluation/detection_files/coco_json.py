"""A COCO result file: a JSON list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.

As `yolo val save_json=True` writes it. Boxes are continuous pixels with the image's left top corner at 0, 0; they
become x + 1, y + 1, x + width, y + height, the pixels they cover.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.detection_files.gather import Gather
from yolo_os.evaluation.detections import Detections
from yolo_os.evaluation.names import match_names, some
from yolo_os.files import written_whole


def recognises(path: Path) -> bool:
    """Whether it is a JSON file."""
    return path.is_file() and path.suffix == ".json"


def read(
    file: Path, annotations: Annotations, split: str = "test", strict: bool = True, pixel_offset: float = 1.0
) -> Detections:
    """The detections of a file, which holds those of one split; see `read_detections`.

    The image of an entry is its `file_name` without folder and suffix, else its `image_id`: the id as text, or a
    number that equals it (7 for 000007). The class is its `category_id`: by the file's `categories` if it is an
    object that has them, else counted from 1 as COCO and Ultralytics do, or from 0 if a 0 occurs.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise UserError(f"{file}: holds no list of detections")
    numbers = np.zeros((len(entries), 5))
    ids: list[Any] = []
    categories: list[Any] = []
    for row, entry in enumerate(entries):
        try:
            numbers[row] = (*entry["bbox"], entry["score"])
            categories.append(entry["category_id"])
            ids.append(Path(entry["file_name"]).stem if "file_name" in entry else entry["image_id"])
        except (TypeError, ValueError, KeyError) as error:
            detail = f"lacks {error}" if isinstance(error, KeyError) else f"is not as it should be ({error})"
            raise UserError(
                f"{file}: entry {row} {detail}; needs image_id, category_id, bbox (4 numbers), score"
            ) from None

    by_number, note = _classes_of(content, categories, annotations.classes)
    label = np.array([by_number.get(category, -1) for category in categories], dtype=np.int64)
    box = np.concatenate([numbers[:, :2] + pixel_offset, numbers[:, :2] + numbers[:, 2:4]], axis=1)
    gather = Gather(annotations, strict)
    known = label >= 0
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        what = (
            f"{file}: entry {row} has category_id {categories[row]}, which is no class of {some(annotations.classes)}"
        )
        gather.refuse("of unknown classes", what, int((~known).sum()))
    rows = np.flatnonzero(known)
    plain = {int(name): name for name in annotations.images if name.isdecimal()}
    as_text = [ids[row] if isinstance(ids[row], str) else plain.get(ids[row], str(ids[row])) for row in rows.tolist()]
    gather.add(as_text, label[rows], box[rows], numbers[rows, 4], lambda row: f"{file}: entry {rows[row]}")
    return gather.result([note] if note else [])


def write(detections: Detections, file: Path, pixel_offset: float = 1.0) -> None:
    """Write a COCO result file: classes counted from 1, boxes x, y, width, height in continuous pixels.

    Raises:
        UserError: if the file cannot be written.
    """
    corner = detections.box[:, :2] - pixel_offset
    boxes = np.concatenate([corner, detections.box[:, 2:] - corner], axis=1).tolist()
    columns = zip(detections.image.tolist(), detections.class_index.tolist(), boxes, detections.score.tolist())
    entries = [
        {"image_id": detections.images[image], "category_id": label + 1, "bbox": box, "score": score}
        for image, label, box, score in columns
    ]
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(entries))


def _classes_of(content: Any, categories: list[Any], classes: tuple[str, ...]) -> tuple[dict[Any, int], str]:
    """Which class each category id stands for, and a note on how that was decided."""
    if isinstance(content, dict) and content.get("categories"):
        return match_names({item["id"]: str(item["name"]) for item in content["categories"]}, classes), ""
    names = {name: index for index, name in enumerate(classes)}
    first = 0 if 0 in categories else 1
    note = f"category_id is counted from {first}: {first} is {classes[0]}" if categories else ""
    return {**names, **{first + index: index for index in range(len(classes))}}, note
