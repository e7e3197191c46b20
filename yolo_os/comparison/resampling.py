"""AP of one detector on drawn image sets: COCO's AP50-95 and VOC's two, for the same draws.

What a detection is matched with lies within its image, so matching is done once (see `evaluation.bootstrap`). A
replicate is a column of weights, how often each image was drawn; the first is the image set itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.evaluation.arrays import Floats, Integers
from yolo_os.evaluation.bootstrap import voc_rankings, voc_score
from yolo_os.evaluation.coco import COCO_STEP, coco_rankings, coco_score, sides
from yolo_os.evaluation.coco_matching import Boxes
from yolo_os.evaluation.intervals import Evidence, row_means
from yolo_os.evaluation.resampling import Ranking, Weights
from yolo_os.evaluation.resampling import draws as evaluation_draws
from yolo_os.evaluation.voc import RECALL_POINTS, VOCResult, evaluate_voc
from yolo_os.files import written_whole

METRICS = {"ap": "AP50-95", "map07": "VOC07 mAP", "map10": "VOC10 mAP"}  # the first is the main figure
# The least by which AP of a class can rise.
STEPS = {"ap": COCO_STEP, "map07": 1 / len(RECALL_POINTS["numpy"]), "map10": 0.0}
_VOC_SCORE = voc_score(RECALL_POINTS["numpy"])
_TABLE = 2_000_000  # true positives times replicates at once


@dataclass(frozen=True, eq=False)
class Truth:
    """The ground truth of a test set, in the pixels of `Annotations`: 1-based and inclusive.

    Attributes:
        classes: names.
        files: of the images.
        image, class_index, box, difficult: of each object.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    image: Integers
    class_index: Integers
    box: Floats
    difficult: NDArray[np.bool_]

    def save(self, path: Path) -> None:
        """Write it."""
        arrays = {name: getattr(self, name) for name in ("image", "class_index", "box", "difficult")}
        _save(path, classes=np.array(self.classes), files=np.array(self.files), **arrays)

    @cached_property
    def holding(self) -> list[Integers]:
        """Of each class, the images of its boxes that are to be found, one entry for a box."""
        return [self.image[(self.class_index == index) & ~self.difficult] for index in range(len(self.classes))]

    @cached_property
    def evidence(self) -> Evidence:
        """How much there is to tell detectors apart by."""
        return Evidence.of(self.holding)

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read it."""
        with np.load(path) as kept:
            return cls(
                tuple(kept["classes"].tolist()),
                tuple(kept["files"].tolist()),
                *(kept[name] for name in ("image", "class_index", "box", "difficult")),
            )


@dataclass(frozen=True, eq=False)
class Found:
    """What a detector found on the images of a `Truth`.

    Attributes:
        image, class_index, box, score: of each detection.
    """

    image: Integers
    class_index: Integers
    box: Floats
    score: Floats

    def save(self, path: Path) -> None:
        """Write it."""
        _save(path, **{name: getattr(self, name) for name in ("image", "class_index", "box", "score")})

    @classmethod
    def load(cls, path: Path) -> Found:
        """Read it."""
        with np.load(path) as kept:
            return cls(*(kept[name] for name in ("image", "class_index", "box", "score")))


@dataclass(frozen=True, eq=False)
class Replicates:
    """AP of one run on the drawn image sets, the first of which is the image set itself.

    Attributes:
        means: by metric, shape (1 + replicates,), the mean over classes.
        classes: shape (1 + replicates, classes), AP50-95 of each class; nan where a draw has no box of it.
    """

    means: dict[str, Floats]
    classes: Floats


def draws(images: int, replicates: int, seed: int = 0) -> Weights:
    """How often each image is in each image set, shape (images, 1 + replicates): the set itself, then drawn ones."""
    itself = np.ones((images, 1), dtype=np.uint8)
    return np.concatenate([itself, *evaluation_draws(images, replicates, seed)(max(1, replicates))], axis=1)


def resample(truth: Truth, found: Found, weights: Weights) -> Replicates:
    """AP of a detector on each of the image sets that `draws` made."""
    coco, voc = _rank_coco(truth, found), voc_rankings(_voc(truth, found), np.arange(len(truth.files)))
    size = max(1, _TABLE // max(1, *(len(each.boxes) for each in coco)))
    parts = []
    for start in range(0, weights.shape[1], size):
        block = np.ascontiguousarray(weights[:, start : start + size])
        precise = np.stack([each.figures(block, coco_score, 1)[:, 0].mean(axis=0) for each in coco], axis=-1)
        area, eleven = np.stack([each.figures(block, _VOC_SCORE, 2)[0] for each in voc], axis=-1)
        parts.append((precise, area, eleven))
    by_class, area, eleven = (np.concatenate(each) for each in zip(*parts))
    means = {"ap": row_means(by_class), "map07": row_means(eleven), "map10": row_means(area)}
    return Replicates(means, by_class)


def image_scores(truth: Truth, found: Found, least: float = 0.25) -> Integers:
    """Of each image, detections of at least a score that are true (IoU 0.5) less those that are not."""
    kept = found.score >= least
    matches = _voc(truth, Found(*(getattr(found, name)[kept] for name in Found.__dataclass_fields__))).matches
    return np.bincount(matches.det_image, weights=np.where(matches.det_true, 1, -1), minlength=len(truth.files)).astype(
        np.int64
    )


def _voc(truth: Truth, found: Found) -> VOCResult:
    return evaluate_voc(
        truth.image,
        truth.class_index,
        truth.box,
        truth.difficult,
        found.image,
        found.class_index,
        found.box,
        found.score,
        num_classes=len(truth.classes),
        images=np.arange(len(truth.files)),
    )


def _rank_coco(truth: Truth, found: Found) -> list[Ranking]:
    kept = ~truth.difficult  # COCO has none
    boxes = Boxes(truth.image[kept], truth.class_index[kept], sides(truth.box[kept], 1.0))
    detections = Boxes(found.image, found.class_index, sides(found.box, 1.0))
    crowd = np.zeros(len(boxes.label), dtype=bool)
    counts = len(truth.files), len(truth.classes)
    return coco_rankings(boxes, boxes.size, crowd, detections, found.score, *counts)


def _save(path: Path, **arrays: Any) -> None:
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
