"""AP of one detector on drawn image sets: COCO's AP50-95 and VOC's two, for the same draws.

What a detection is matched with lies within its image, so matching is done once (see `evaluation.bootstrap`). A
replicate is a column of weights, how often each image was drawn; the first is the image set itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.evaluation.arrays import Floats, Integers
from yolo_os.evaluation.bootstrap import interpolated
from yolo_os.evaluation.coco_matching import AREAS, Boxes, match_coco
from yolo_os.evaluation.resampling import Counts, Ranking, Weights
from yolo_os.evaluation.voc import RECALL_POINTS, evaluate_voc
from yolo_os.files import written_whole

METRICS = {"ap": "AP50-95", "map07": "VOC07 mAP", "map10": "VOC10 mAP"}  # the first is the main figure
_COCO_POINTS = tuple(np.linspace(0.0, 1.0, 101).tolist())
_VOC_POINTS = tuple(RECALL_POINTS["numpy"].tolist())
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
    random = np.random.default_rng(seed)
    made = np.ones((images, 1 + replicates), dtype=np.uint8)
    for column in range(1, 1 + replicates):
        drawn = np.bincount(random.integers(0, images, images), minlength=images)
        made[:, column] = np.minimum(drawn, 255)
    return made


def resample(truth: Truth, found: Found, weights: Weights) -> Replicates:
    """AP of a detector on each of the image sets that `draws` made."""
    coco, voc = _rank_coco(truth, found), _rank_voc(truth, found)
    size = max(1, _TABLE // max(1, *(len(each.boxes) for each in coco)))
    parts = []
    for start in range(0, weights.shape[1], size):
        block = np.ascontiguousarray(weights[:, start : start + size])
        precise = np.stack([each.figures(block, _coco_score, 1)[:, 0].mean(axis=0) for each in coco], axis=-1)
        area, eleven = np.stack([each.figures(block, _voc_score, 2)[0] for each in voc], axis=-1)
        parts.append((precise, area, eleven))
    by_class, area, eleven = (np.concatenate(each) for each in zip(*parts))
    return Replicates({"ap": _mean(by_class), "map07": _mean(eleven), "map10": _mean(area)}, by_class)


def image_scores(truth: Truth, found: Found, least: float = 0.25) -> Integers:
    """Of each image, detections of at least a score that are true (IoU 0.5) less those that are not."""
    kept = found.score >= least
    matches = _voc(truth, Found(*(getattr(found, name)[kept] for name in Found.__dataclass_fields__))).matches
    return np.bincount(matches.det_image, weights=np.where(matches.det_true, 1, -1), minlength=len(truth.files)).astype(
        np.int64
    )


def _voc(truth: Truth, found: Found) -> Any:
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


def _rank_voc(truth: Truth, found: Found) -> list[Ranking]:
    matches = _voc(truth, found).matches
    return [
        Ranking(
            matches.det_image[here],
            matches.det_true[here][None],
            None,
            matches.gt_image[matches.gt_class == index],
        )
        for index, here in enumerate(map(matches.of_class, range(len(truth.classes))))
    ]


def _rank_coco(truth: Truth, found: Found) -> list[Ranking]:
    kept = ~truth.difficult  # COCO has none
    boxes = Boxes(truth.image[kept], truth.class_index[kept], _sides(truth.box[kept]))
    detections = Boxes(found.image, found.class_index, _sides(found.box))
    crowd = np.zeros(len(boxes.label), dtype=bool)
    matches = match_coco(boxes, boxes.size, crowd, detections, found.score, len(truth.files), AREAS["all"])
    bounds = np.searchsorted(found.class_index[matches.row], np.arange(len(truth.classes) + 1)).tolist()
    rankings = []
    for label, (start, stop) in enumerate(itertools.pairwise(bounds)):
        wanted = boxes.image[boxes.label == label]
        rankings.append(Ranking(found.image[matches.row[start:stop]], matches.true[:, start:stop], None, wanted))
    return rankings


def _sides(box: Floats) -> Floats:
    """x, y, width, height in continuous pixels."""
    corner = box[:, :2] - 1
    return np.concatenate([corner, box[:, 2:] - corner], axis=1)


def _coco_score(found: Counts, envelope: Floats, positives: Counts) -> Floats:
    return interpolated(found, envelope, positives, _COCO_POINTS)[None]


def _voc_score(found: Counts, envelope: Floats, positives: Counts) -> Floats:
    """The area, and the mean at eleven recalls."""
    area = (envelope * np.diff(found, axis=0, prepend=np.int32(0))).sum(axis=0) / positives
    return np.stack([area, interpolated(found, envelope, positives, _VOC_POINTS)])


def _mean(values: Floats) -> Floats:
    """Mean of each row over what is defined in it."""
    defined = ~np.isnan(values)
    count = np.maximum(defined.sum(axis=1), 1)
    mean = np.where(defined, values, 0.0).sum(axis=1) / count
    return np.asarray(np.where(defined.any(axis=1), mean, np.nan))


def _save(path: Path, **arrays: Any) -> None:
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
