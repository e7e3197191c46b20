"""Error bars of average precision: the bootstrap over images, and the paired permutation test.

An image set is a sample of the images a detector could meet. Drawing as many images from it, with replacement, and
scoring again, a thousand times, shows how far AP would move with another set (`resampling`); `intervals` makes an
interval of that.

The difference of two detectors is taken in each replicate on the same drawn images: what makes images hard is common
to both and cancels, so the interval of the difference is far narrower than those of the detectors. Its p-value comes
from exchanging the two detectors' results image by image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.arrays import Floats
from yolo_os.evaluation.intervals import Difference, Evidence, Interval, difference, holm, mean_of, row_means, single
from yolo_os.evaluation.resampling import Counts, Ranking, Score, draws, exchanges, replicates
from yolo_os.evaluation.voc import RECALL_POINTS, VOCResult, mean_defined

__all__ = ["MIN_BOXES", "Bars", "Bootstrap", "Difference", "Interval", "bootstrap"]

_MOST_IMAGES = 5000
MIN_BOXES = 10  # a class with fewer is marked, and left out of the second mean


@dataclass(frozen=True, eq=False)
class Bars:
    """Error bars of one figure, of one detector, or of the difference of two (then all entries are `Difference`s).

    Attributes:
        mean: over the classes where the figure is defined.
        many: over those of them with `min_boxes` boxes or more; undefined if there are none.
        classes: of each class.
    """

    mean: Interval
    many: Interval
    classes: tuple[Interval, ...]

    @property
    def holm(self) -> tuple[float, ...]:
        """Of a difference: each class's p-value, corrected for the number of classes."""
        return holm([each.p for each in self.classes if isinstance(each, Difference)])


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Error bars of VOC AP, of one detector or of the difference of two (then every entry is a `Difference`).

    Attributes:
        map, map07: of the means over classes.
        ap, ap07: of each class.
        replicates: how many image sets were drawn.
        seed: of the draws.
        images: how many images each holds.
        many, many07: of the means over classes with `min_boxes` boxes or more.
        min_boxes: see there.
        holm: of a difference, the p-value of each class's AP corrected for the number of classes; else none.
    """

    map: Interval
    map07: Interval
    ap: tuple[Interval, ...]
    ap07: tuple[Interval, ...]
    replicates: int
    seed: int
    images: int
    many: Interval
    many07: Interval
    min_boxes: int
    holm: tuple[float, ...]

    def __str__(self) -> str:
        """Both means with their intervals."""
        return (
            f"mAP07 {self.map07}; mAP10 {self.map} ({self.map.level:.0%}, {self.replicates} bootstrap replicates"
            f" of {self.images} images)"
        )

    def to_dict(self) -> dict[str, Any]:
        """`{"map": {"value", "low", "high", ...}, "map07": ..., "ap": [...], "ap07": [...], ...}`, nan as None."""
        return {
            "map": self.map.to_dict(),
            "map07": self.map07.to_dict(),
            "ap": class_dicts(self.ap, self.holm),
            "ap07": class_dicts(self.ap07, ()),
            "map_min_boxes": self.many.to_dict(),
            "map07_min_boxes": self.many07.to_dict(),
            "min_boxes": self.min_boxes,
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
    min_boxes: int = MIN_BOXES,
) -> Bootstrap:
    """Bootstrap intervals over images of one result, or the paired one of the gain `other - result`.

    In a replicate without any box of a class, its AP is undefined and left out of that replicate's mean.

    Args:
        result: of `evaluate_voc`, with `images=` given if some images have neither boxes nor detections.
        other: of a second detector on the same images and boxes; the intervals are then of its gain over `result`.
        replicates: how many image sets to draw, and how often to exchange the results of two detectors.
        level: nominal coverage of the intervals.
        seed: of the draws.
        min_boxes: classes with fewer boxes are left out of the second mean.

    Raises:
        UserError: if the results are not of the same boxes, thresholds and classes, or a setting is out of range.
    """
    results = [result] if other is None else [result, other]
    image_ids = np.unique(np.concatenate([each.matches.image_ids for each in results]))
    check_settings(replicates, level, len(image_ids))
    if other is not None:
        _check_paired(result, other)
    plan = Plan(len(image_ids), replicates, level, seed, min_boxes)
    points = RECALL_POINTS[result.recall_points]
    figures = Figures(voc_score(points), 2, lambda scores: scores[0], (0.0, 1 / len(points)))
    classes, values = voc_rankings(result, image_ids), np.array([result.ap, result.ap07])
    if other is None:
        ap, ap07 = bars_of_one(classes, values, figures, plan)
    else:
        gain = np.array([other.ap, other.ap07]) - values
        ap, ap07 = bars_of_gain(classes, voc_rankings(other, image_ids), gain, figures, plan)
    return Bootstrap(
        map=ap.mean,
        map07=ap07.mean,
        ap=ap.classes,
        ap07=ap07.classes,
        replicates=replicates,
        seed=seed,
        images=len(image_ids),
        many=ap.many,
        many07=ap07.many,
        min_boxes=min_boxes,
        holm=ap.holm,
    )


@dataclass(frozen=True)
class Plan:
    """How to draw: `replicates` times from `images` images; the others as in `bootstrap`."""

    images: int
    replicates: int
    level: float
    seed: int
    min_boxes: int


@dataclass(frozen=True)
class Figures:
    """What is computed of drawn images.

    Attributes:
        score: what comes of one IoU threshold.
        number: how many scores that is.
        combine: makes scores in replicates, shape (thresholds, number, replicates, classes), the figures, shape
            (figures, replicates, classes); linear.
        steps: of each figure, the least by which a class's can rise.
    """

    score: Score
    number: int
    combine: Callable[[Floats], Floats]
    steps: tuple[float, ...]


def bars_of_one(classes: Sequence[Ranking], values: Floats, figures: Figures, plan: Plan) -> list[Bars]:
    """Error bars of figures of one detector, whose values, shape (figures, classes), are given."""
    drawn = replicates([classes], draws(plan.images, plan.replicates, plan.seed), figures.score, figures.number)
    samples = np.concatenate([figures.combine(each) for (each,) in drawn], axis=1)
    boxes = np.array([len(ranking.boxes) for ranking in classes])
    images = np.array([len(np.unique(ranking.boxes)) for ranking in classes])

    def bars(value: Floats, sample: Floats) -> Bars:
        defined = ~np.isnan(value)

        def mean(chosen: NDArray[np.bool_]) -> Interval:
            counts = boxes[chosen].tolist(), images[chosen].tolist()
            return mean_of(value[chosen], sample[:, chosen], plan.level, *counts)

        each = zip(value.tolist(), sample.T, boxes.tolist(), images.tolist())
        alone = tuple(single(at, rows, plan.level, found, n) for at, rows, found, n in each)
        return Bars(mean(defined), mean(defined & (boxes >= plan.min_boxes)), alone)

    return [bars(*each) for each in zip(values, samples)]


def bars_of_gain(
    first: Sequence[Ranking], second: Sequence[Ranking], values: Floats, figures: Figures, plan: Plan
) -> list[Bars]:
    """Error bars of the gain in figures of the second detector over the first."""
    drawn = replicates([first, second], draws(plan.images, plan.replicates, plan.seed), figures.score, figures.number)
    samples = np.concatenate([figures.combine(new) - figures.combine(old) for old, new in drawn], axis=1)
    # An exchange and its reverse differ in the sign: half of them are computed.
    half = (plan.replicates + 1) // 2
    swaps = exchanges(first, second, plan.images, half, plan.seed, figures.score, figures.number)
    swapped = np.concatenate([figures.combine(each) for each in swaps], axis=1)
    swapped = np.concatenate([swapped, -swapped], axis=1)[:, : plan.replicates]
    holding = [ranking.boxes for ranking in first]
    enough = np.array([len(each) >= plan.min_boxes for each in holding])

    def mean(value: Floats, sample: Floats, swap: Floats, chosen: NDArray[np.bool_], step: float) -> Difference:
        evidence = Evidence.of([holding[index] for index in np.flatnonzero(chosen)])
        means = row_means(sample[:, chosen]), row_means(swap[:, chosen])
        return difference(mean_defined(value[chosen]), *means, level=plan.level, evidence=evidence, step=step)

    def bars(value: Floats, sample: Floats, swap: Floats, step: float) -> Bars:
        defined = ~np.isnan(value)
        alone = tuple(
            difference(at, rows, swaps, plan.level, Evidence.of([where]), step)
            for at, rows, swaps, where in zip(value.tolist(), sample.T, swap.T, holding)
        )
        many = mean(value, sample, swap, defined & enough, step)
        return Bars(mean(value, sample, swap, defined, step), many, alone)

    return [bars(*each) for each in zip(values, samples, swapped, figures.steps)]


def image_changes(result: VOCResult, other: VOCResult) -> Floats:
    """What each image adds to the gain in mAP10 of `other` over `result`, shape (images,), in the order of `image_ids`.

    It is half of what the gain changes when the two exchange their results of that image alone. Of more than 5,000
    images it is known of those that differ most in the precision that their true positives earn; of others it is 0.
    """
    _check_paired(result, other)
    image_ids = result.matches.image_ids
    if not np.array_equal(image_ids, other.matches.image_ids):
        raise UserError("the two results are not of the same images: give evaluate_voc all of them (images=)")
    images, score = len(image_ids), voc_score(RECALL_POINTS[result.recall_points])
    merged = [
        one.merged(two, images) for one, two in zip(voc_rankings(result, image_ids), voc_rankings(other, image_ids))
    ]
    earned = _earned(other) - _earned(result)
    looked_at = np.argsort(-np.abs(earned), kind="stable")[:_MOST_IMAGES]
    gain, changes = mean_defined(other.ap - result.ap), np.zeros(images)
    for start in range(0, len(looked_at), 500):
        some = looked_at[start : start + 500]
        alone = np.zeros((images, len(some)), np.uint8)  # the images whose results are exchanged
        alone[some, np.arange(len(some))] = 1
        weights = np.concatenate([1 - alone, alone])
        swapped = np.stack([ranking.exchanged(weights, score, 2)[0, 0] for ranking in merged], axis=-1)
        changes[some] = (gain - row_means(swapped)) / 2
    return changes


def _earned(result: VOCResult) -> Floats:
    """The share of mAP10, times the number of classes, that each image's true positives earn."""
    earned = np.zeros(len(result.matches.image_ids))
    for index in np.flatnonzero(result.npos).tolist():
        here = result.matches.of_class(index)
        true = result.matches.det_true[here]
        precision = result.curve(index).precision
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        np.add.at(earned, result.matches.det_image[here][true], envelope[true] / result.npos[index])
    return earned


def check_settings(replicates: int, level: float, images: int) -> None:
    """Refuse what can't be drawn."""
    if replicates < 2 or not 0 < level < 1:
        raise UserError(f"replicates={replicates} must be at least 2, and level={level} between 0 and 1")
    if images < 2:
        raise UserError(f"a bootstrap over {images} images says nothing: at least 2 are needed")


def class_dicts(bars: Sequence[Interval], corrected: Sequence[float]) -> list[dict[str, Any]]:
    """The classes' intervals for a JSON file, with their corrected p-values if there are some."""
    dicts = [each.to_dict() for each in bars]
    for each, p in zip(dicts, corrected):
        each["p_holm"] = None if np.isnan(p) else float(p)
    return dicts


def voc_rankings(result: VOCResult, image_ids: NDArray[Any]) -> list[Ranking]:
    """The ranking of each class, its images numbered by where they stand in `image_ids`."""
    matches = result.matches
    place = np.searchsorted(image_ids, matches.image_ids)
    return [
        Ranking(
            place[matches.det_image[here]],
            matches.det_true[here][None],
            None,
            place[matches.gt_image[matches.gt_class == index]],
        )
        for index, here in enumerate(map(matches.of_class, range(matches.num_classes)))
    ]


def voc_score(recall_points: Floats) -> Score:
    """AP and AP07, of rankings by VOC's rules."""

    def score(found: Counts, envelope: Floats, positives: Counts) -> Floats:
        drawn = np.diff(found, axis=0, prepend=np.int32(0))
        ap = np.einsum("ij,ij->j", envelope, drawn) / positives
        return np.stack([ap, interpolated(found, envelope, positives, tuple(recall_points.tolist()))])

    return score


def interpolated(found: Counts, envelope: Floats, positives: Counts, recall_points: tuple[float, ...]) -> Floats:
    """Mean over recall points of the monotone precision from there on, 0 where a recall is not reached."""
    unique, which = np.unique(positives, return_inverse=True)
    tables = [_points_reached(each, recall_points) for each in unique.tolist()]
    if len(tables) > 1:
        starts = np.cumsum([0, *map(len, tables[:-1])]).astype(np.int32)
        found = found + starts[which]
    reached = np.concatenate(tables).take(found, mode="clip")  # all are inside: it only saves the check
    # Each precision counts for the points that its recall is the first to reach.
    gained = np.diff(reached, axis=0, prepend=np.int16(0))
    means: Floats = np.einsum("ij,ij->j", envelope, gained) / len(recall_points)
    return means


@lru_cache(maxsize=4096)
def _points_reached(positives: int, recall_points: tuple[float, ...]) -> NDArray[np.int16]:
    """How many recall points are reached when 0, 1, ... of the boxes are found; none before the first."""
    recall = np.arange(positives + 1) / positives
    reached = np.searchsorted(recall_points, recall, side="right").astype(np.int16)
    reached[0] = 0
    return reached


def _check_paired(result: VOCResult, other: VOCResult) -> None:
    def boxes(each: VOCResult) -> NDArray[Any]:
        matches = each.matches
        order = np.lexsort((matches.gt_class, matches.image_ids[matches.gt_image]))
        return np.stack([matches.image_ids[matches.gt_image][order].astype(str), matches.gt_class[order].astype(str)])

    if result.recall_points != other.recall_points or result.names != other.names:
        raise UserError("the two results are not of the same classes and recall points")
    if not np.array_equal(boxes(result), boxes(other)):
        raise UserError("the two results are not of the same images and ground truth: evaluate both on one image set")
