"""Error bars of VOC AP: the bootstrap over images.

An image set is a sample of the images a detector could meet. Drawing as many images from it, with replacement, and
scoring again, a thousand times, shows how far AP would move with another set. What a detection is matched with lies
within its image and does not change, so matching is done once; a replicate only counts each image's detections and
boxes as many times as it was drawn.

The difference of two detectors is taken in each replicate on the same drawn images: what makes images hard is common
to both and cancels, so the interval of the difference is far narrower than those of the detectors.

AP of a drawn set is on average a little higher than that of the set it is drawn from (repeated images make the
precision, of which AP takes the best from each recall on, more uneven). That bias would move the plain percentile
interval upwards, at worst past the figure itself; it is estimated by the replicates' mean, reported, and taken off.
Measured coverage is in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.arrays import Floats
from yolo_os.evaluation.voc import RECALL_POINTS, VOCResult, mean_defined

_BLOCK = 1_000_000  # weights gathered at once, a byte each; small enough for the processor's cache


@dataclass(frozen=True, eq=False)
class Interval:
    """A figure with its interval: the replicates' percentiles, with their bias taken off, within 0 and 1.

    Attributes:
        value: the figure on the image set itself.
        low, high: the interval; nan where the figure is undefined.
        level: how much of the replicates it holds, such as 0.95.
        stderr: standard deviation over the replicates.
        bias: mean of the replicates less the value.
    """

    value: float
    low: float
    high: float
    level: float
    stderr: float
    bias: float

    def __str__(self) -> str:
        """Value and interval."""
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, eq=False)
class Difference(Interval):
    """A difference of two detectors, taken on the same drawn images, with its interval.

    Attributes:
        p: two-sided: twice the share of replicates, their bias taken off, on the rarer side of 0, as
            (1 + count) / (1 + replicates), at most 1.
    """

    p: float

    def __str__(self) -> str:
        """Difference, interval and p-value."""
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}], p = {self.p:.3g}"


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Error bars of one detector, or of the difference of two (then every entry is a `Difference`).

    Attributes:
        map, map07: of the means over classes.
        ap, ap07: of each class.
        replicates: how many image sets were drawn.
        seed: of the draws.
        images: how many images each holds.
    """

    map: Interval
    map07: Interval
    ap: tuple[Interval, ...]
    ap07: tuple[Interval, ...]
    replicates: int
    seed: int
    images: int

    def __str__(self) -> str:
        """Both means with their intervals."""
        return (
            f"mAP07 {self.map07}; mAP10 {self.map} ({self.map.level:.0%}, {self.replicates} bootstrap replicates"
            f" of {self.images} images)"
        )

    def to_dict(self) -> dict[str, Any]:
        """`{"map": {"value", "low", "high", ...}, "map07": ..., "ap": [...], "ap07": [...], ...}`, nan as None."""
        return {
            "map": _plain(self.map),
            "map07": _plain(self.map07),
            "ap": [_plain(interval) for interval in self.ap],
            "ap07": [_plain(interval) for interval in self.ap07],
            "replicates": self.replicates,
            "seed": self.seed,
            "images": self.images,
        }


def bootstrap(
    result: VOCResult,
    other: VOCResult | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Bootstrap intervals over images of one result, or the paired one of the gain `other - result`.

    In a replicate without any box of a class, its AP is undefined and left out of that replicate's mean.

    Args:
        result: of `evaluate_voc`, with `images=` given if some images have neither boxes nor detections.
        other: of a second detector on the same images and boxes; the intervals are then of its gain over `result`.
        replicates: how many image sets to draw.
        level: what share of the replicates an interval holds.
        seed: of the draws.

    Raises:
        UserError: if the results are not of the same boxes, thresholds and classes, or a setting is out of range.
    """
    if replicates < 2 or not 0 < level < 1:
        raise UserError(f"replicates={replicates} must be at least 2, and level={level} between 0 and 1")
    results = [result] if other is None else [other, result]
    image_ids = np.unique(np.concatenate([each.matches.image_ids for each in results]))
    if len(image_ids) < 2:
        raise UserError(f"a bootstrap over {len(image_ids)} images says nothing: at least 2 are needed")
    if other is not None:
        _check_paired(result, other)
    detectors = [_Detector(each, image_ids) for each in results]
    rows = max(1, _BLOCK // max(1, *(detector.longest for detector in detectors), len(image_ids)))
    blocks = []
    for weights in _draws(len(image_ids), replicates, rows, seed):
        drawn = [detector.average_precisions(weights) for detector in detectors]
        blocks.append(drawn[0] if other is None else drawn[0] - drawn[1])
    ap, ap07 = np.concatenate(blocks, axis=1)  # (replicates, classes) each
    given = np.array([result.ap, result.ap07])
    if other is not None:
        given = np.array([other.ap, other.ap07]) - given

    def interval(value: float, samples: Floats) -> Interval:
        samples = samples[~np.isnan(samples)]
        if np.isnan(value) or not len(samples):
            nan = float("nan")
            unknown = (nan, nan, nan, level, nan, nan)
            return Interval(*unknown) if other is None else Difference(*unknown, p=nan)
        bias = float(samples.mean()) - value
        samples = samples - bias
        low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]).tolist()
        if other is None:
            return Interval(float(value), max(low, 0.0), min(high, 1.0), level, float(samples.std()), bias)
        rarer = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
        p = min(1.0, 2 * (1 + rarer) / (1 + len(samples)))
        return Difference(float(value), low, high, level, float(samples.std()), bias, p)

    return Bootstrap(
        map=interval(mean_defined(given[0]), _row_means(ap)),
        map07=interval(mean_defined(given[1]), _row_means(ap07)),
        ap=tuple(interval(value, ap[:, index]) for index, value in enumerate(given[0])),
        ap07=tuple(interval(value, ap07[:, index]) for index, value in enumerate(given[1])),
        replicates=replicates,
        seed=seed,
        images=len(image_ids),
    )


class _Detector:
    """The matches of one detector, arranged so that a replicate costs one pass over the detections."""

    def __init__(self, result: VOCResult, image_ids: NDArray[Any]) -> None:
        matches = result.matches
        place = np.searchsorted(image_ids, matches.image_ids)
        self.recall_points = RECALL_POINTS[result.recall_points]
        self.classes: list[
            tuple[NDArray[np.int64], ...] | None
        ] = []  # images of detections, true ones, images of boxes
        self.longest = 1
        for index in range(matches.num_classes):
            here = matches.of_class(index)
            true = np.flatnonzero(matches.det_true[here])
            boxes = place[matches.gt_image[matches.gt_class == index]]
            images = place[matches.det_image[here]][
                : true[-1] + 1 if len(true) else 0
            ]  # what comes last counts nowhere
            self.classes.append((images, true, boxes) if len(boxes) else None)
            self.longest = max(self.longest, len(images))

    def average_precisions(self, weights: NDArray[np.uint8]) -> Floats:
        """AP and AP07, shape (2, replicates, classes), of replicates given as weights (replicates, images).

        An image drawn twice stands twice among the images, so its detections count twice, one right after the other.
        Precision is only wanted after the last of such copies: within a run of true positives it only rises.
        """
        values = np.full((2, len(weights), len(self.classes)), np.nan)
        for index, columns in enumerate(self.classes):
            if columns is None:
                continue
            images, true, boxes = columns
            positives = weights.take(boxes, axis=1).sum(axis=1, dtype=np.int64)[:, None]
            defined = positives[:, 0] > 0
            values[:, defined, index] = 0
            if not len(true):
                continue
            starts = np.append(0, true[:-1] + 1)  # from behind one true positive to the next: one sum for each
            counted = np.add.reduceat(weights.take(images, axis=1), starts, axis=1, dtype=np.int32)
            drawn = weights.take(images[true], axis=1)
            found = np.cumsum(drawn, axis=1, dtype=np.int32)
            precision = found / np.maximum(np.cumsum(counted, axis=1), 1)
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            with np.errstate(invalid="ignore", divide="ignore"):
                recall = found / positives
                values[0, :, index] = (envelope * drawn).sum(axis=1) / positives[:, 0]
            ap07 = np.zeros(len(weights))
            for point in self.recall_points:
                reached = (recall < point).sum(axis=1)
                inside = np.flatnonzero(reached < len(true))
                ap07[inside] += envelope[inside, reached[inside]]
            values[1, defined, index] = ap07[defined] / len(self.recall_points)
        return values


def _draws(images: int, replicates: int, rows: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """How often each image is drawn in each replicate, some rows at a time; the same for a seed whatever `rows` is."""
    random = np.random.default_rng(seed)
    for start in range(0, replicates, rows):
        block = np.empty((min(rows, replicates - start), images), dtype=np.uint8)
        for row in block:
            row[:] = np.minimum(np.bincount(random.integers(0, images, images), minlength=images), 255)
        yield block


def _check_paired(result: VOCResult, other: VOCResult) -> None:
    def boxes(each: VOCResult) -> NDArray[Any]:
        matches = each.matches
        order = np.lexsort((matches.gt_class, matches.image_ids[matches.gt_image]))
        return np.stack([matches.image_ids[matches.gt_image][order].astype(str), matches.gt_class[order].astype(str)])

    if result.recall_points != other.recall_points or result.names != other.names:
        raise UserError("the two results are not of the same classes and recall points")
    if not np.array_equal(boxes(result), boxes(other)):
        raise UserError("the two results are not of the same images and ground truth: evaluate both on one image set")


def _row_means(values: Floats) -> Floats:
    """Mean of each row over what is defined in it; nan where nothing is."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    sums = np.where(defined, values, 0.0).sum(axis=1)
    means: Floats = np.divide(sums, count, out=np.full(len(values), np.nan), where=count > 0)
    return means


def _plain(interval: Interval) -> dict[str, float | None]:
    items = {name: getattr(interval, name) for name in ("value", "low", "high", "level", "stderr", "bias")}
    if isinstance(interval, Difference):
        items["p"] = interval.p
    return {name: None if np.isnan(value) else value for name, value in items.items()}
