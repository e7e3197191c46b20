"""Measure the error of intervals and p-values against known truth: how often each is wrong, in made-up populations.

    python benchmarks/intervals.py                    # all populations, 400 image sets each, a few minutes
    python benchmarks/intervals.py sets=100 images=500 replicates=400

A population is drawn anew for each image set: images that are harder or more cluttered than others, five classes with
6, 10, 15, 40 and 150 boxes on 200 images on average, and two detectors. The truth is the AP on 200,000 images.

- near-identical: the same detections, whose scores differ by 0.03 (in logits) of noise in each detector;
- alike: the same boxes are hard for both and the false alarms are the same, scores differ by noise of 0.5;
- independent: only the images are common to both;
- unlike: of equal mean AP, but the second finds more boxes and makes more false alarms (only its mean is equal);
- better: the second finds more;
- near-identical, better: alike as above, but the second finds a box more here and there.

Printed are the coverage of the 95 % intervals of one detector, of those of the difference, and, where the truth is 0,
how often p <= 0.05 (the type-I error), for each class and for the means over classes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from yolo_os.evaluation.bootstrap import bootstrap
from yolo_os.evaluation.intervals import Difference, Interval
from yolo_os.evaluation.matching import Matches
from yolo_os.evaluation.voc import RECALL_POINTS, VOCResult, average_precisions

BOXES = np.array([6.0, 10.0, 15.0, 40.0, 150.0])  # of each class on 200 images
CLASSES = len(BOXES)


@dataclass(frozen=True)
class Population:
    """What images and detectors are like.

    Attributes:
        name: of the population.
        skill: mean logit of a true positive; from -0.5 on a box is found.
        clutter: false alarms of a class on an image.
        noise: standard deviation of the scores in each detector; None: nothing but the images is common to both.
        lead: how much more skill the second detector has.
        alarms: how many times as many false alarms.
        equal: whether the classes' true differences are 0, "mean" where only their mean's is.
    """

    name: str
    skill: float
    clutter: float
    noise: float | None
    lead: float = 0.0
    alarms: float = 1.0
    equal: str = "classes"


POPULATIONS = (
    *(
        Population(f"{name}, {level}", skill, clutter, noise)
        for level, skill, clutter in (("good", 1.0, 0.3), ("near perfect", 2.5, 0.05), ("poor", 0.0, 1.0))
        for name, noise in (("near-identical", 0.03), ("alike", 0.5), ("independent", None))
    ),
    Population("alike, very poor", -1.0, 0.3, 0.5),
    Population("unlike, good", 1.0, 0.3, None, lead=0.5, alarms=4.4, equal="mean"),
    Population("better, good", 1.0, 0.3, 0.5, lead=0.5, equal="no"),
    Population("far better", 0.0, 0.3, None, lead=2.5, equal="no"),
    Population("near-identical, better, good", 1.0, 0.3, 0.03, lead=0.1, equal="no"),
    Population("near-identical, better, near perfect", 2.5, 0.05, 0.03, lead=0.1, equal="no"),
    Population("near-identical, better, poor", 0.0, 1.0, 0.03, lead=0.1, equal="no"),
)


def draw(random: np.random.Generator, images: int, kind: Population) -> tuple[VOCResult, VOCResult]:
    """An image set, and what two detectors make of it."""
    hard, clutter = random.normal(size=images), np.exp(0.6 * random.normal(size=images))
    gt_image, gt_class = _spread(random.poisson(BOXES / 200, (images, CLASSES)))
    ease = kind.skill + 0.7 * hard[gt_image] + 0.7 * random.normal(size=len(gt_image))
    alarms = _spread(random.poisson(kind.clutter * clutter[:, None] * np.ones(CLASSES)))
    scores = random.normal(-1.3, 1.0, len(alarms[0]))
    results = []
    for lead, times in ((0.0, 1.0), (kind.lead, kind.alarms)):
        noise = 0.9 if kind.noise is None else kind.noise
        logit = ease + lead + noise * random.normal(size=len(ease))
        if kind.noise is None:
            alarms = _spread(random.poisson(times * kind.clutter * clutter[:, None] * np.ones(CLASSES)))
            scores = random.normal(-1.3, 1.0, len(alarms[0]))
        false = scores + (0 if kind.noise is None else noise) * random.normal(size=len(scores))
        found = logit > -0.5
        image, label = (np.concatenate([mine[found], other]) for mine, other in zip((gt_image, gt_class), alarms))
        score, true = np.concatenate([logit[found], false]), np.arange(len(image)) < found.sum()
        order = np.lexsort((-score, label))
        image, label, score, true = (each[order] for each in (image, label, score, true))
        matches = Matches(np.arange(images), image, label, score, true, gt_image, gt_class, CLASSES)
        figures = average_precisions(matches, RECALL_POINTS["numpy"])
        results.append(VOCResult(*figures, matches.npos, matches))
    return results[0], results[1]


def _spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image and class of each of so many things."""
    image, label = np.indices(counts.shape)
    return np.repeat(image.ravel(), counts.ravel()), np.repeat(label.ravel(), counts.ravel())


def truth(kind: Population, images: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    """Each detector's AP of the classes, mAP10 and mAP07; where both are alike, of both together."""
    results = draw(np.random.default_rng(0), images, kind)
    first, second = (np.array([*each.ap, each.map, each.map07]) for each in results)
    if kind.equal == "classes":
        first = second = (first + second) / 2
    elif kind.equal == "mean":
        first[CLASSES] = second[CLASSES] = (first[CLASSES] + second[CLASSES]) / 2
    return first, second


def study(kind: Population, sets: int, images: int, replicates: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Shares of the image sets, for each class, mAP10 and mAP07, nan where there is none.

    Returns:
        "single", "difference": intervals that hold the truth; "error": p <= 0.05 where the truth is 0.
    """
    true, other = truth(kind)
    held = defaultdict(list)
    random = np.random.default_rng(seed)
    for number in range(sets):
        first, second = draw(random, images, kind)
        bars = bootstrap(first, replicates=replicates, seed=number)
        gain = bootstrap(first, second, replicates=replicates, seed=number)
        held["single"].append(_holds([*bars.ap, bars.map, bars.map07], true))
        held["difference"].append(_holds([*gain.ap, gain.map, gain.map07], other - true))
        held["error"].append([_rejects(each) for each in (*gain.ap, gain.map, gain.map07)])
    shares = {name: np.nanmean(rows, axis=0) for name, rows in held.items()}
    if kind.equal != "classes":
        shares["error"][np.arange(CLASSES + 2) != (CLASSES if kind.equal == "mean" else -1)] = np.nan
    return shares


def _rejects(gain: Interval) -> float:
    assert isinstance(gain, Difference)
    return np.nan if np.isnan(gain.p) else gain.p <= 0.05


def _holds(intervals, true):
    pairs = zip(intervals, true)
    return [
        np.nan if np.isnan(each.value) else each.low <= at + 1e-12 and each.high >= at - 1e-12 for each, at in pairs
    ]


def main() -> None:
    options = {"sets": 400, "images": 200, "replicates": 400}
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        if name not in options:
            sys.exit(__doc__)
        options[name] = int(value)
    print(f"{options['sets']} sets of {options['images']} images, {options['replicates']} replicates; shares in %\n")
    titles = [f"{boxes * options['images'] / 200:.0f} boxes" for boxes in BOXES]
    head = "".join(f"{title:>11}" for title in titles)
    print(f"{'population':<38}{'':<12}{head}{'mAP10':>11}{'mAP07':>11}")
    for kind in POPULATIONS:
        shares = study(kind, **options)
        for name, row in shares.items():
            cells = "".join(f"{'-' if np.isnan(share) else f'{100 * share:.1f}':>11}" for share in row)
            print(f"{kind.name if name == 'single' else '':<38}{name:<12}{cells}", flush=True)


if __name__ == "__main__":
    main()
