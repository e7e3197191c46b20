"""Masks, keypoints and rotated boxes: COCO's own metric of each, by hotcoco, with AP of each class for error bars.

Rotated boxes have no reference implementation: their figures are comparable among themselves only.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.coco import COCO_NAMES, CocoResult, result_of
from yolo_os.evaluation.detections import image_numbers
from yolo_os.evaluation.json_file import identity, read_json
from yolo_os.evaluation.names import match_names, some
from yolo_os.evaluation.readers.coco_json import read_coco_json
from yolo_os.evaluation.readers.coco_json import recognises as is_coco_json
from yolo_os.evaluation.readers.data_yaml import open_data_yaml, read_data_yaml
from yolo_os.evaluation.readers.data_yaml import recognises as is_data_yaml
from yolo_os.evaluation.readers.yolo_labels import label_file
from yolo_os.evaluation.resampling import Ranking
from yolo_os.files import as_path, is_file

_KEYPOINT_NAMES = (
    "AP", "AP50", "AP75", "AP medium", "AP large", "AR 20", "AR50", "AR75", "AR medium", "AR large",
)  # fmt: skip
_AREA_OF_POSE = 0.53  # of the box, as Ultralytics takes it where labels know no area of the person


@dataclass(frozen=True)
class Kind:
    """A task: COCO's name of its overlap, the field of an entry that it is of, what people call it, its numbers."""

    overlap: str
    field: str
    called: str
    names: tuple[str, ...]


TASKS = {
    "segment": Kind("segm", "segmentation", "masks", COCO_NAMES),
    "pose": Kind("keypoints", "keypoints", "keypoints", _KEYPOINT_NAMES),
    "obb": Kind("obb", "obb", "rotated boxes", COCO_NAMES),
}


@dataclass(frozen=True, eq=False)
class TaskTruth:
    """The ground truth of a task.

    Attributes:
        kind: of the task.
        annotations: the images, classes, and what is to be said of them.
        objects: as COCO has them; images and categories are numbered from 1.
        sigmas: of keypoints, as COCO has them; None for COCO's 17.
    """

    kind: Kind
    annotations: Annotations
    objects: list[dict[str, Any]]
    sigmas: list[float] | None = None


def read_task_truth(source: str | Path, task: str, split: str = "test", images: str | Path | None = None) -> TaskTruth:
    """Read masks, keypoints or rotated boxes from COCO's JSON or the labels of an Ultralytics data set.

    Raises:
        UserError: if it is neither, or its objects have none.
    """
    kind = TASKS[task]
    if is_coco_json(source):
        return _of_json(as_path(source), kind, images)
    if is_data_yaml(source):
        return _of_labels(source, task, split)
    raise UserError(f"data={source}: {kind.called} are read from COCO's JSON and from the labels of a data.yaml")


def read_task_detections(path: str | Path, truth: TaskTruth) -> list[dict[str, Any]]:
    """Read a COCO result file with the field of the task (`rbox` of Ultralytics is `obb`), for `evaluate_task`.

    Raises:
        UserError: naming the entry that lacks something, or is of an unknown image or class.
    """
    file = as_path(path)
    if not is_file(file) or file.suffix.lower() != ".json":
        raise UserError(f"detections={path}: {truth.kind.called} are read from a COCO result file (.json)")
    entries = read_json(file)
    if not isinstance(entries, list):
        raise UserError(f"{file}: holds no list of detections")
    annotations = truth.annotations
    labels = {given: label for label, given in enumerate(annotations.category_ids or _from_one(annotations.classes))}
    names = [str(each.get("file_name", each.get("image_id"))) for each in entries if isinstance(each, Mapping)]
    places: dict[int | str, int] = {}
    places |= {int(name): place for place, name in enumerate(annotations.images) if name.isdecimal()}
    places.update(image_numbers(dict.fromkeys(names), annotations))
    places |= {number: place for place, number in enumerate(annotations.image_ids)}
    rows = []
    for row, entry in enumerate(entries):
        try:
            number = identity(entry["image_id"]) if "image_id" in entry else ""
            name = str(entry.get("file_name", number))
            place = places.get(number, places.get(name))
            label = labels.get(identity(entry["category_id"]))
            content = _content(entry, truth.kind)
            score = float(entry["score"])
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            detail = f"lacks {error}" if isinstance(error, KeyError) else f"is not as it should be ({error})"
            needed = f"image_id, category_id, score, {truth.kind.field}"
            raise UserError(f"{file}: entry {row} {detail}; needs {needed}") from None
        if place is None or label is None:
            what = f"image {name}" if place is None else f"category_id {entry['category_id']}"
            raise UserError(f"{file}: entry {row} is of {what}, which the ground truth does not have")
        rows.append({"image_id": place + 1, "category_id": label + 1, "score": score, truth.kind.field: content})
    return rows


def task_rows(
    found: Iterable[Mapping[str, Any]], names: Mapping[int, str], truth: TaskTruth
) -> tuple[list[dict[str, Any]], int]:
    """What a model found, for `evaluate_task`, and how many are left out, of classes that the ground truth lacks.

    Args:
        found: entries with `file` (path of the image), `label` (class of the model), `score` and the task's field.
        names: the model's classes.
        truth: of the images.
    """
    entries = list(found)
    labels = match_names(names, truth.annotations.classes)
    if not labels:
        raise UserError(f"the model knows none of the classes {some(truth.annotations.classes)}")
    places = image_numbers(dict.fromkeys(str(each["file"]) for each in entries), truth.annotations)
    kept = [each for each in entries if each["label"] in labels and str(each["file"]) in places]
    rows = [
        {
            "image_id": places[str(each["file"])] + 1,
            "category_id": labels[each["label"]] + 1,
            "score": float(each["score"]),
            truth.kind.field: _content(each, truth.kind),
        }
        for each in kept
    ]
    return rows, len(entries) - len(kept)


def evaluate_task(truth: TaskTruth, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], CocoResult]:
    """COCO's numbers of a task, nan where there are none, and AP of each class, which `coco_bootstrap` takes.

    Raises:
        UserError: if hotcoco is not installed, or does not take what it is given.
    """
    try:
        engine: Any = importlib.import_module("hotcoco")
    except ImportError:
        raise UserError(
            f"{truth.kind.called} are judged by hotcoco, which is not installed: pip install hotcoco"
        ) from None
    annotations = truth.annotations
    dataset = {
        "images": [
            {"id": place + 1, "width": int(width), "height": int(height)}
            for place, (width, height) in enumerate(annotations.size.tolist())
        ],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(annotations.classes)],
        "annotations": truth.objects,
    }
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that rotated boxes have no reference implementation, which is said here
        try:
            data = engine.COCO(dataset)
            found = data.load_res([dict(row) for row in rows]) if rows else None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{truth.kind.called} can't be read: {' '.join(str(error).split())}") from None
        if found is None:
            return dict.fromkeys(truth.kind.names, 0.0), _by_class(engine, data, data.load_res([]), truth)
        evaluation = _evaluation(engine, data, found, truth)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        numbers = {name: float(value) for name, value in zip(truth.kind.names, evaluation.stats)}
        result = _by_class(engine, data, found, truth)
    return {name: value if value >= 0 else math.nan for name, value in numbers.items()}, result


def _evaluation(engine: Any, data: Any, found: Any, truth: TaskTruth) -> Any:
    evaluation = engine.COCOeval(data, found, truth.kind.overlap)
    if truth.sigmas is not None:
        evaluation.params.kpt_oks_sigmas = truth.sigmas
    return evaluation


def _by_class(engine: Any, data: Any, found: Any, truth: TaskTruth) -> CocoResult:
    """AP of each class, from hotcoco's matches of all sizes; class after class, for they take much memory."""
    rankings = []
    for label in range(len(truth.annotations.classes)):
        evaluation = _evaluation(engine, data, found, truth)
        evaluation.params.cat_ids = [label + 1]
        evaluation.params.area_rng, evaluation.params.area_rng_lbl = [[0.0, 1e10]], ["all"]
        evaluation.evaluate()
        images, scores, true, ignored, boxes = [], [], [], [], []
        for each in evaluation.eval_imgs:
            if not each:
                continue
            place = each["image_id"] - 1
            boxes += [place] * sum(not skip for skip in each["gtIgnore"])
            images += [place] * len(each["dtScores"])
            scores += each["dtScores"]
            off = np.array(each["dtIgnore"], dtype=bool).reshape(10, -1)
            ignored.append(off)
            true.append(np.array(each["dtMatched"], dtype=bool).reshape(10, -1) & ~off)
        order = np.argsort(-np.array(scores, dtype=np.float64), kind="stable")
        empty = np.zeros((10, 0), dtype=bool)
        off = np.concatenate([empty, *ignored], axis=1)[:, order]
        rankings.append(
            Ranking(
                np.array(images, dtype=np.int64)[order],
                np.concatenate([empty, *true], axis=1)[:, order],
                off if off.any() else None,
                np.array(boxes, dtype=np.int64),
            )
        )
    return result_of(rankings, truth.annotations.classes, len(truth.annotations.images))


def _content(entry: Mapping[str, Any], kind: Kind) -> Any:
    """What an entry has of the task; KeyError where it has nothing."""
    if kind.field == "obb" and "obb" not in entry and "rbox" in entry:
        return [float(value) for value in entry["rbox"]]
    value = entry[kind.field]
    if not value:
        raise ValueError(f"its {kind.field} is empty")
    return value


def _of_json(file: Path, kind: Kind, images: str | Path | None) -> TaskTruth:
    annotations = read_coco_json(file, images=images)
    places = {given: place for place, given in enumerate(annotations.image_ids)}
    labels = {given: label for label, given in enumerate(annotations.category_ids)}
    objects: list[dict[str, Any]] = []
    points = 0
    for row, entry in enumerate(read_json(file)["annotations"]):
        try:
            place, label = places[identity(entry["image_id"])], labels[identity(entry["category_id"])]
        except (TypeError, KeyError):
            continue  # which the reader of boxes has said
        try:
            content = _content(entry, kind)
        except (KeyError, ValueError):
            raise UserError(
                f"data={file}: annotation {row} has no {kind.field}: its {kind.called} can't be judged"
            ) from None
        copied = {key: entry[key] for key in ("area", "bbox", "iscrowd", "num_keypoints") if key in entry}
        if kind.field == "keypoints":
            points = len(content) // 3
            copied.setdefault("num_keypoints", sum(value > 0 for value in content[2::3]))
        objects.append(
            {
                "id": len(objects) + 1,
                "iscrowd": 0,
                **copied,
                "image_id": place + 1,
                "category_id": label + 1,
                kind.field: content,
            }
        )
    return TaskTruth(kind, annotations, objects, _sigmas(points))


def _of_labels(source: str | Path, task: str, split: str) -> TaskTruth:
    kind = TASKS[task]
    annotations = read_data_yaml(source, split)
    if not annotations.continuous:
        raise UserError(f"data={source}: VOC's annotations belong to it, which have no {kind.called}")
    shape = open_data_yaml(source)[1].get("kpt_shape")
    if task == "pose" and not shape:
        raise UserError(f"data={source}: has no kpt_shape, so its labels have no keypoints")
    objects: list[dict[str, Any]] = []
    for place, file in enumerate(annotations.image_files):
        label = label_file(file)
        lines = label.read_text(encoding="utf-8-sig").splitlines() if is_file(label) else []
        rows = dict.fromkeys(tuple(float(word) for word in line.split()) for line in lines if line.strip())
        for values in rows:
            made = _object(task, list(values[1:]), annotations.size[place].tolist(), shape)
            if made is None:
                raise UserError(
                    f"{label}: a label of {len(values)} columns has no {kind.called}: are these labels of boxes?"
                )
            number = {"id": len(objects) + 1, "image_id": place + 1, "category_id": int(values[0]) + 1, "iscrowd": 0}
            objects.append({**number, **made})
    return TaskTruth(kind, annotations, objects, _sigmas(int(shape[0])) if shape else None)


def _object(task: str, values: list[float], size: list[float], shape: Any) -> dict[str, Any] | None:
    """An object as COCO has it, of the numbers of a label behind its class; None if they are of no such label."""
    width, height = size
    if task == "pose":
        x, y, across, down = (value * side for value, side in zip(values[:4], (width, height, width, height)))
        points, columns = int(shape[0]), int(shape[1])
        if len(values) != 4 + points * columns:
            return None
        numbers = np.array(values[4:]).reshape(points, columns)
        seen = numbers[:, 2] if columns == 3 else ((numbers >= 0).all(axis=1) * 2.0)
        keypoints = np.column_stack([numbers[:, :2] * (width, height), seen])
        area = across * down
        return {
            "keypoints": keypoints.ravel().tolist(),
            "num_keypoints": int((seen > 0).sum()),
            "bbox": [x - across / 2, y - down / 2, across, down],
            "area": area * _AREA_OF_POSE,
        }
    if len(values) < 6 or len(values) % 2 or (task == "obb" and len(values) != 8):
        return None
    corners = np.array(values).reshape(-1, 2) * (width, height)
    near, far = corners.min(axis=0), corners.max(axis=0)
    box = [*near.tolist(), *(far - near).tolist()]
    ahead = np.roll(corners, -1, axis=0)
    area = abs(float((corners[:, 0] * ahead[:, 1] - ahead[:, 0] * corners[:, 1]).sum())) / 2
    if task == "segment":
        return {"segmentation": [corners.ravel().tolist()], "bbox": box, "area": area}
    side, other = corners[1] - corners[0], corners[2] - corners[1]
    turned = [
        *corners.mean(axis=0).tolist(),
        float(np.hypot(*side)),
        float(np.hypot(*other)),
        math.atan2(side[1], side[0]),
    ]
    return {"obb": turned, "bbox": box, "area": area}


def _sigmas(points: int) -> list[float] | None:
    """Of keypoints that are not COCO's 17 persons' ones all alike, as Ultralytics has them."""
    return None if points in (0, 17) else [1 / points] * points


def _from_one(classes: Sequence[str]) -> tuple[int, ...]:
    return tuple(range(1, len(classes) + 1))
