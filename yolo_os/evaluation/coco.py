"""COCO's numbers of detections, with error bars; and which kinds of errors cost how much.

The twelve numbers are computed by hotcoco, which equals pycocotools bit for bit, or by pycocotools where it is not
installed. AP, AP50 and AP75 of each class, which error bars are made of, come from matches of our own
(`coco_matching`), which give the same figures (`tests/evaluation/test_coco.py`): those of hotcoco are a dictionary for
each image and class, 3 GB of them for the images of VOC2007's test set.

COCO has no difficult objects: they are left out of the ground truth, and a detection that hits one is a false positive
here, as in Ultralytics' figures.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.arrays import Flags, Floats
from yolo_os.evaluation.bootstrap import (
    MIN_BOXES,
    Bars,
    Figures,
    Plan,
    bars_of_gain,
    bars_of_one,
    check_settings,
    interpolated,
)
from yolo_os.evaluation.coco_matching import AREAS, IOU_THRESHOLDS, Boxes, match_coco
from yolo_os.evaluation.detections import Detections
from yolo_os.evaluation.resampling import Counts, Ranking
from yolo_os.evaluation.voc import mean_defined

COCO_NAMES = (
    "AP", "AP50", "AP75", "AP small", "AP medium", "AP large",
    "AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large",
)  # fmt: skip
WITH_BARS = ("AP", "AP50", "AP75")
# As TIDE names them, and hotcoco in its keys.
ERROR_TYPES = {
    "localisation": "Loc",
    "class": "Cls",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}
_RECALL_POINTS = tuple(np.linspace(0.0, 1.0, 101).tolist())
COCO_STEP = 1 / len(_RECALL_POINTS)  # the least by which a class's AP at one threshold can rise


@dataclass(frozen=True, eq=False)
class CocoResult:
    """COCO's average precision of a detector on one image set.

    Attributes:
        ap: shape (3, classes); AP, AP50 and AP75 of each class, nan for a class without a box to be found.
        classes: names of the classes.
        images: how many images there are.
        rankings: of each class; `coco_bootstrap` resamples them.
    """

    ap: Floats
    classes: tuple[str, ...]
    images: int
    rankings: tuple[Ranking, ...]

    @property
    def means(self) -> dict[str, float]:
        """AP, AP50 and AP75: the means over the classes where they are defined."""
        return {name: mean_defined(row) for name, row in zip(WITH_BARS, self.ap)}

    def by_class(self) -> dict[str, dict[str, float]]:
        """AP, AP50 and AP75 of each class by name."""
        return {name: dict(zip(WITH_BARS, column.tolist())) for name, column in zip(self.classes, self.ap.T)}


def coco_result(
    annotations: Annotations, detections: Detections, pixel_offset: float = 1.0, area: str = "all"
) -> CocoResult:
    """AP, AP50 and AP75 of each class; `area` is all, small, medium or large."""
    if area not in AREAS:
        raise UserError(f"area={area}: use one of {', '.join(AREAS)}")
    truth, areas, crowd = _truth(annotations, pixel_offset)
    found = Boxes(detections.image, detections.class_index, sides(detections.box, pixel_offset))
    images, classes = len(annotations.images), annotations.classes
    given = truth, areas, crowd, found, detections.score
    return result_of(coco_rankings(*given, images, len(classes), AREAS[area]), classes, images)


def coco_rankings(
    truth: Boxes,
    area: Floats,
    crowd: Flags,
    found: Boxes,
    score: Floats,
    images: int,
    classes: int,
    limits: tuple[float, float] = AREAS["all"],
) -> list[Ranking]:
    """The ranking of each class, by COCO's rules; `classes` is how many there are, the others as for `match_coco`."""
    matches = match_coco(truth, area, crowd, found, score, images, limits)
    bounds = np.searchsorted(found.label[matches.row], np.arange(classes + 1)).tolist()
    ignored = matches.ignored if matches.ignored.any() else None
    return [
        Ranking(
            found.image[matches.row[start:stop]],
            matches.true[:, start:stop],
            None if ignored is None else ignored[:, start:stop],
            truth.image[matches.wanted & (truth.label == label)],
        )
        for label, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def result_of(rankings: Sequence[Ranking], classes: tuple[str, ...], images: int) -> CocoResult:
    """AP, AP50 and AP75 of each class from its ranking, whatever kind of overlap made it."""
    once = np.ones((images, 1), np.uint8)
    scores = np.stack([ranking.figures(once, coco_score, 1) for ranking in rankings], axis=-1)
    return CocoResult(_combine(scores)[:, 0], classes, images, tuple(rankings))


def coco_bootstrap(
    result: CocoResult,
    other: CocoResult | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    min_boxes: int = MIN_BOXES,
) -> dict[str, Bars]:
    """Error bars of AP, AP50 and AP75, or of the gain `other - result`; see `bootstrap`."""
    check_settings(replicates, level, result.images)
    plan = Plan(result.images, replicates, level, seed, min_boxes)
    figures = Figures(coco_score, 1, _combine, (COCO_STEP,) * len(WITH_BARS))
    if other is None:
        return dict(zip(WITH_BARS, bars_of_one(result.rankings, result.ap, figures, plan)))
    same = zip(result.rankings, other.rankings)
    if result.classes != other.classes or not all(np.array_equal(one.boxes, two.boxes) for one, two in same):
        raise UserError("the two results are not of the same images and ground truth: evaluate both on one image set")
    return dict(zip(WITH_BARS, bars_of_gain(result.rankings, other.rankings, other.ap - result.ap, figures, plan)))


def coco_numbers(annotations: Annotations, detections: Detections, pixel_offset: float = 1.0) -> dict[str, float]:
    """The twelve numbers of COCOeval, nan where it has none."""
    if not len(detections.score) or annotations.difficult.all():
        return dict.fromkeys(COCO_NAMES, float("nan") if annotations.difficult.all() else 0.0)
    evaluation = _evaluated(annotations, detections, pixel_offset)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        evaluation.accumulate()
        evaluation.summarize()
    stats = [float(value) for value in evaluation.stats[:12]]
    return {name: value if value >= 0 else float("nan") for name, value in zip(COCO_NAMES, stats)}


def error_types(
    annotations: Annotations, detections: Detections, pixel_offset: float = 1.0
) -> dict[str, dict[str, float]] | None:
    """What each kind of error costs: by how much AP50 would rise if there were none of it, and how many there are.

    The kinds are TIDE's (Bolya et al. 2020), as hotcoco counts them: `localisation`, the right class with an IoU of
    0.1 to 0.5; `class`, the wrong one with an IoU of 0.5; `both`; `duplicate`, a second hit of a box; `background`,
    no box within 0.1; `missed`, a box that no detection and no other error meets. None without hotcoco.
    """
    if not len(detections.score) or annotations.difficult.all():
        return None
    evaluation = _evaluated(annotations, detections, pixel_offset)
    if not hasattr(evaluation, "tide_errors"):
        return None
    found = evaluation.tide_errors()
    return {
        name: {"AP50": float(found["delta_ap"][key]), "count": int(found["counts"][key])}
        for name, key in ERROR_TYPES.items()
    }


def coco_evaluation(
    annotations: Annotations, detections: Detections, pixel_offset: float, coco: Any, evaluator: Any
) -> Any:
    """A loaded `COCOeval` of hotcoco or pycocotools; `coco` is the `COCO` that belongs to it."""
    truth, area, crowd = _truth(annotations, pixel_offset)
    images = [{"id": index + 1} for index in range(len(annotations.images))]
    categories = [{"id": index + 1, "name": str(name)} for index, name in enumerate(annotations.classes)]
    box = sides(detections.box, pixel_offset)
    rows = np.column_stack([detections.image + 1, box, detections.score, detections.class_index + 1])
    if hasattr(coco, "from_arrays"):
        data = coco.from_arrays(
            images, categories, truth.image + 1, truth.label + 1, truth.box, area=area, iscrowd=crowd
        )
        return evaluator(data, data.load_res(rows), "bbox")
    columns = (truth.image + 1, truth.label + 1, truth.box, area, crowd.astype(int))
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    objects = zip(*(column.tolist() for column in columns))
    data = coco()
    data.dataset = {
        "images": images,
        "categories": categories,
        "annotations": [{"id": number, **dict(zip(names, each))} for number, each in enumerate(objects, 1)],
    }
    data.createIndex()
    return evaluator(data, data.loadRes(rows), "bbox")


def _evaluated(annotations: Annotations, detections: Detections, pixel_offset: float) -> Any:
    try:
        engine = importlib.import_module("hotcoco")
        pair = engine.COCO, engine.COCOeval
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        pair = COCO, COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = coco_evaluation(annotations, detections, pixel_offset, *pair)
        evaluation.evaluate()
    return evaluation


def _truth(annotations: Annotations, pixel_offset: float) -> tuple[Boxes, Floats, Flags]:
    """The objects that are not difficult, their areas, and which are crowds."""
    kept = ~annotations.difficult
    box = sides(annotations.box[kept], pixel_offset)
    return (
        Boxes(annotations.image[kept], annotations.class_index[kept], box),
        annotations.area[kept],
        annotations.crowd[kept],
    )


def sides(box: Floats, pixel_offset: float) -> Floats:
    """x, y, width, height in continuous pixels."""
    corner = box[:, :2] - pixel_offset
    return np.concatenate([corner, box[:, 2:] - corner], axis=1)


def coco_score(found: Counts, envelope: Floats, positives: Counts) -> Floats:
    """COCO's AP at one threshold: the mean at its 101 recalls."""
    return interpolated(found, envelope, positives, _RECALL_POINTS)[None]


def _combine(scores: Floats) -> Floats:
    """AP, AP50 and AP75 from the averages at all thresholds, shape (thresholds, 1, replicates, classes)."""
    at = {round(100 * float(threshold)): index for index, threshold in enumerate(IOU_THRESHOLDS)}
    return np.stack([scores[:, 0].mean(axis=0), scores[at[50], 0], scores[at[75], 0]])
