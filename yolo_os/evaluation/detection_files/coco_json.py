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
from yolo_os.evaluation.detection_files.gather import Gather, Reading
from yolo_os.evaluation.detections import Detections
from yolo_os.evaluation.names import match_names, some, written_otherwise
from yolo_os.files import is_file, read_bytes, written_whole


def recognises(path: Path) -> bool:
    """Whether it is a JSON file."""
    return is_file(path) and path.suffix == ".json"


def read(file: Path, annotations: Annotations, how: Reading) -> Detections:
    """The detections of a file, which holds those of one split.

    The image of an entry is its `file_name`, or that which the file's list of `images` has for its `image_id`; where
    neither is there, the `image_id` itself: as text, or a number that equals it (7 for 000007). For the class see
    `_classes_of`.
    """
    try:
        content = json.loads(read_bytes(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{file}: cannot be read as JSON (nested too deep)") from None
    lists = content if isinstance(content, dict) else {"annotations": content}
    entries = lists.get("annotations")
    if not isinstance(entries, list):
        raise UserError(f"{file}: holds no list of detections")
    numbers = np.zeros((len(entries), 5))
    ids: list[Any] = []
    categories: list[Any] = []
    different: set[Any] = set()
    try:
        files = {_identity(image["id"]): _text(image["file_name"]) for image in lists.get("images") or []}
        names = {_identity(each["id"]): _text(each["name"]) for each in lists.get("categories") or []}
    except (TypeError, KeyError) as error:
        raise UserError(f"{file}: its images and categories are not as they should be ({error!r})") from None
    for row, entry in enumerate(entries):
        try:
            numbers[row] = (*entry["bbox"], entry["score"])
            categories.append(_identity(entry["category_id"]))
            different.add(categories[-1])
            image = _text(entry["file_name"]) if "file_name" in entry else _identity(entry["image_id"])
            ids.append(files[image] if files and "file_name" not in entry else image)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            detail = f"lacks {error}" if isinstance(error, KeyError) else f"is not as it should be ({error})"
            raise UserError(
                f"{file}: entry {row} {detail}; needs image_id (of its list of images, if it has one), category_id,"
                " bbox (4 numbers), score"
            ) from None

    notes: list[str] = []
    if names:
        by_number: dict[Any, int] = match_names(names, annotations.classes)
        notes = written_otherwise(names, by_number, annotations.classes)
    else:
        by_number, notes = _classes_of(file, different, annotations.classes, how.first_category)
    label = np.array([by_number.get(category, -1) for category in categories], dtype=np.int64)
    offset = how.pixel_offset
    box = np.concatenate([numbers[:, :2] + offset, numbers[:, :2] + numbers[:, 2:4]], axis=1)
    gather = Gather(annotations, how.strict)
    known = label >= 0
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        category = names.get(categories[row], categories[row])
        what = f"{file}: entry {row} has category_id {category}, which is no class of {some(annotations.classes)}"
        gather.refuse("of unknown classes", what, int((~known).sum()))
    rows = np.flatnonzero(known)
    plain = {int(name): name for name in annotations.images if name.isdecimal()}
    as_text = [ids[row] if isinstance(ids[row], str) else plain.get(ids[row], str(ids[row])) for row in rows.tolist()]
    gather.add(as_text, label[rows], box[rows], numbers[rows, 4], lambda row: f"{file}: entry {rows[row]}")
    return gather.result(notes)


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


def _identity(value: Any) -> Any:
    """An id of an image or a category.

    Raises:
        TypeError: if it is neither a whole number nor text.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"an id is {value!r:.40}, neither a whole number nor text")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise TypeError("an id is a number of too many digits")
    return value


def _text(value: Any) -> str:
    """A name.

    Raises:
        TypeError: if it is no text.
    """
    if not isinstance(value, str | int | float):
        raise TypeError(f"a name is {value!r:.40}, no text")
    return str(value)


def _classes_of(
    file: Path, ids: set[Any], classes: tuple[str, ...], first: int | None
) -> tuple[dict[Any, int], list[str]]:
    """Which class each category id of a file without `categories` stands for, and notes on how that was decided.

    Ids are numbers in the order of the classes (names are understood as well), counted from 1 as COCO and Ultralytics
    do, or from 0 as others and Ultralytics before 8.3.49 did. An id 0 shows the one, an id as large as the number of
    classes the other.

    Raises:
        UserError: if the ids show neither, or both, and `first` does not say.
    """
    by_name: dict[Any, int] = {name: index for index, name in enumerate(classes)}
    if ids <= by_name.keys():
        return by_name, []
    shown = [start for start, sign in ((0, 0), (1, len(classes))) if sign in ids]
    if first is None:
        if len(shown) != 1 and all(isinstance(each, int) and each <= len(classes) for each in ids):
            reason = f"both 0 and {len(classes)} occur" if shown else f"neither 0 nor {len(classes)} occurs"
            raise UserError(
                f"{file}: it can't be told whether its category_id is counted from 0 or from 1, since {reason}:"
                " say it with first_category=0 or first_category=1"
            )
        first = shown[0] if shown else 1
        notes = [f"category_id is counted from {first}: {first} is {classes[0]}"]
    else:
        notes = []
    return {**by_name, **{first + index: index for index in range(len(classes))}}, notes
