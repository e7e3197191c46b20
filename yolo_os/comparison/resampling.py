"""AP of one detector on drawn image sets: COCO's AP50-95 and VOC's two, for the same draws.

What a detection is matched with lies within its image, so matching is done once (see `evaluation.bootstrap`). A
replicate is a row of weights, how often each image was drawn; the first row is the image set itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.evaluation.arrays import Floats, Integers
from yolo_os.evaluation.voc import RECALL_POINTS, evaluate_voc
from yolo_os.files import written_whole

COCO_IOUS = np.linspace(0.5, 0.95, 10)
COCO_POINTS = np.linspace(0.0, 1.0, 101)
COCO_MOST = 100  # detections of an image and class that COCO looks at
METRICS = {"ap": "AP50-95", "map07": "VOC07 mAP", "map10": "VOC10 mAP"}  # the first is the main figure
_BLOCK = 4_000_000  # weights gathered at once


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


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Detections of one class by falling score: their images, which are true at each threshold, and the boxes."""

    images: Integers
    true: tuple[Integers, ...]
    boxes: Integers


def draws(images: int, replicates: int, seed: int = 0) -> NDArray[np.int32]:
    """How often each image is in each image set, shape (1 + replicates, images): the set itself, then drawn ones."""
    random = np.random.default_rng(seed)
    made = np.ones((1 + replicates, images), dtype=np.int32)
    for row in made[1:]:
        row[:] = np.bincount(random.integers(0, images, images), minlength=images)
    return made


def resample(truth: Truth, found: Found, weights: NDArray[np.int32]) -> Replicates:
    """AP of a detector on each of the image sets that `draws` made."""
    coco = [_points_mean(each, weights, COCO_POINTS)[1] for each in _rank_coco(truth, found)]
    voc = [_points_mean(each, weights, RECALL_POINTS["numpy"]) for each in _rank_voc(truth, found)]
    area, eleven = (np.stack([each[index] for each in voc], axis=1) for index in (0, 1))
    by_class = np.stack(coco, axis=1)
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


def _rank_voc(truth: Truth, found: Found) -> list[_Ranked]:
    matches = _voc(truth, found).matches
    made = []
    for index in range(len(truth.classes)):
        here = matches.of_class(index)
        true = np.flatnonzero(matches.det_true[here])
        made.append(_Ranked(matches.det_image[here], (true,), matches.gt_image[matches.gt_class == index]))
    return made


def _rank_coco(truth: Truth, found: Found) -> list[_Ranked]:
    """Matched as COCOeval does: best score first, each to the free box that it overlaps most."""
    kept = ~truth.difficult  # COCO has none
    made = []
    order = np.lexsort((-found.score, found.image))  # by image, best first, stable
    for index in range(len(truth.classes)):
        rows = order[found.class_index[order] == index]
        rows = rows[_place(found.image[rows]) < COCO_MOST]
        boxes = np.flatnonzero(kept & (truth.class_index == index))
        true = np.zeros((len(COCO_IOUS), len(rows)), dtype=bool)
        starts = np.searchsorted(found.image[rows], np.arange(len(truth.files) + 1))
        for image in np.unique(truth.image[boxes]).tolist():
            here = slice(starts[image], starts[image + 1])
            if here.stop > here.start:
                overlaps = _overlaps(found.box[rows[here]], truth.box[boxes[truth.image[boxes] == image]])
                true[:, here] = _greedy(overlaps)
        falling = np.argsort(-found.score[rows], kind="stable")
        true = true[:, falling]
        made.append(
            _Ranked(found.image[rows[falling]], tuple(np.flatnonzero(each) for each in true), truth.image[boxes])
        )
    return made


def _place(image: Integers) -> Integers:
    """Of values in order, how many equal ones stand before each."""
    starts = np.flatnonzero(np.append(True, image[1:] != image[:-1])) if len(image) else image
    return np.arange(len(image)) - np.repeat(starts, np.diff(np.append(starts, len(image))))


def _overlaps(found: Floats, truth: Floats) -> Floats:
    """IoU of each pair of boxes, 1-based and inclusive."""
    low = np.maximum(found[:, None, :2], truth[None, :, :2])
    high = np.minimum(found[:, None, 2:], truth[None, :, 2:])
    inter = np.clip(high - low + 1, 0, None).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2] + 1).prod(axis=1) for each in (found, truth)]
    union = areas[0][:, None] + areas[1][None, :] - inter
    shares: Floats = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return shares


def _greedy(overlaps: Floats) -> NDArray[np.bool_]:
    """Which detections are true at each threshold."""
    true = np.zeros((len(COCO_IOUS), len(overlaps)), dtype=bool)
    candidates = np.flatnonzero((overlaps >= COCO_IOUS[0]).any(axis=1)).tolist()
    for place, threshold in enumerate(COCO_IOUS.tolist()):
        free = np.ones(overlaps.shape[1], dtype=bool)
        for row in candidates:
            best, chosen = min(threshold, 1 - 1e-10), -1
            for column in np.flatnonzero(free).tolist():
                if overlaps[row, column] >= best:  # the last of equals, as COCOeval has it
                    best, chosen = overlaps[row, column], column
            if chosen >= 0:
                free[chosen] = False
                true[place, row] = True
    return true


def _points_mean(ranked: _Ranked, weights: NDArray[np.int32], points: Floats) -> tuple[Floats, Floats]:
    """AP on each image set, shape (sets,): the area, and the mean at the recall points; means over the thresholds."""
    last = max((each[-1] + 1 for each in ranked.true if len(each)), default=0)
    images = ranked.images[:last]  # what comes after the last true detection counts nowhere
    rows = max(1, _BLOCK // max(1, len(images), len(ranked.boxes)))
    parts = [_block(ranked, images, weights[start : start + rows], points) for start in range(0, len(weights), rows)]
    area, mean = np.concatenate(parts, axis=1)
    return area, mean


def _block(ranked: _Ranked, images: Integers, weights: NDArray[np.int32], points: Floats) -> Floats:
    positives = weights[:, ranked.boxes].sum(axis=1)
    sums = np.zeros((2, len(weights)))
    counted = np.cumsum(weights[:, images], axis=1)
    for true in ranked.true:
        if not len(true):
            continue
        drawn = weights[:, images[true]]
        found = np.cumsum(drawn, axis=1)
        # COCOeval's own precision, down to the term that keeps it from dividing by zero.
        precision = found / np.maximum(counted[:, true], 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = found / np.maximum(positives, 1)[:, None]
        reached = np.searchsorted(points, recall, side="right")
        sums[0] += (envelope * drawn).sum(axis=1) / np.maximum(positives, 1)
        sums[1] += (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(points)
    return np.asarray(np.where(positives > 0, sums / len(ranked.true), np.nan))


def _mean(values: Floats) -> Floats:
    """Mean of each row over what is defined in it."""
    defined = ~np.isnan(values)
    count = np.maximum(defined.sum(axis=1), 1)
    mean = np.where(defined, values, 0.0).sum(axis=1) / count
    return np.asarray(np.where(defined.any(axis=1), mean, np.nan))


def _save(path: Path, **arrays: Any) -> None:
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
