"""What seeds and images say of a difference: one model for both.

Two trainings are compared on the same seeds and the same test images, like two tests read by the same readers on the
same cases. The model is that of Obuchowski and Rockette for such multi-reader, multi-case studies, with the degrees of
freedom of Hillis (2007): seeds are the readers, images the cases, both drawn from a population. Of the differences d_s
of the S seeds

    Var(mean d) = s^2 / S + I,    I = n / (n - 1) max(C, 0) / v + b^2 / S^2
    df = (s^2 / S + I)^2 / ((s^2 / S)^2 / (S - 1) + I^2 / (n - 1))

where s^2 is their variance over the seeds (the luck of training, and how it meets the images), and C the covariance of
two seeds' differences over drawn sets of the n images (what all seeds owe to these images). C does not shrink with more
seeds. b is what one box is worth: arms that hardly differ, such as a detector and its shift, may differ on other images
where they do not on these, and neither s^2 nor C knows of it (see `evaluation.intervals`).
With more variance come more degrees of freedom, so that b may make an interval narrower, or p smaller; and seeds that
agree by luck make s^2 small. So all is computed with b and without, and with s^2 and with V - C in its place, where V
is the mean over seeds of the variance over drawn sets (which leaves the interval over the images alone): the widest
interval and the largest p hold. v, 1 but for classes that lie in a single image, is how much of the variance the drawn
images show; where it is 0 nothing is known, and the interval is -1 to 1.
With one seed the variance over the images alone is left, and nothing can be said of the luck of training.

Coverage by simulation: `benchmarks/compare_coverage.py`, and docs/compare.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy import special

from yolo_os.comparison.plan import MARGIN
from yolo_os.evaluation.arrays import Floats
from yolo_os.evaluation.intervals import Evidence

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000
_INFINITE = 1e7  # degrees of freedom
_NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True)
class Spread:
    """A variance of a mean difference, with the degrees of freedom that it is known with."""

    variance: float
    freedom: float

    @classmethod
    def of(cls, parts: Sequence[tuple[float, float]]) -> Spread:
        """Of independent parts, each a variance and its degrees of freedom, by Satterthwaite."""
        total = sum(variance for variance, _ in parts)
        doubt = sum(variance**2 / freedom for variance, freedom in parts)
        return cls(total, min(total**2 / doubt, _INFINITE) if doubt else _INFINITE)

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.variance)

    @property
    def half(self) -> float:
        """How far the interval reaches to each side."""
        return float(special.stdtrit(self.freedom, (1 + LEVEL) / 2)) * self.error

    def p(self, value: float) -> float:
        """Two-sided, of a difference."""
        if not self.error:
            return 1.0 if value == 0 else 0.0  # where nothing varies
        return min(1.0, 2 * float(special.stdtr(self.freedom, -abs(value) / self.error)))

    def smallest(self, arms: int = 1) -> float:
        """The true difference that would be found in POWER of all comparisons like this one, at Holm's first step."""
        return _noncentrality(self.freedom, arms) * self.error


@dataclass(frozen=True)
class Difference:
    """A mean difference to the reference with its interval.

    Attributes:
        value: mean over seeds.
        seeds: how many both arms have.
        images: how many hold boxes that count.
        seed_part: variance over the seeds, s^2.
        own_part: V - C, what of it the images explain by themselves.
        image_part: the variance that the images leave however many seeds there are.
        box_part: b^2, the variance that one box may be worth in one seed.
        spreads: of the mean, over seeds and images and over the images alone, each without b and with it.
        by_seed: of each seed.
        arms: how many arms are compared with the reference.
        corrected: p by Holm over these arms, where it is known.
    """

    value: float
    seeds: int
    images: int
    seed_part: float
    own_part: float
    image_part: float
    box_part: float
    spreads: tuple[Spread, ...]
    by_seed: tuple[float, ...]
    arms: int = 1
    corrected: float | None = None

    def __str__(self) -> str:
        """Value and interval."""
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def widest(self) -> Spread:
        """That of the interval."""
        return max(self.spreads, key=lambda each: each.half)

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return max(self.value - self.widest.half, -1.0)

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return min(self.value + self.widest.half, 1.0)

    @property
    def p(self) -> float:
        """Two-sided, of this comparison alone; below 0.05 where the interval leaves 0 out."""
        return max(each.p(self.value) for each in self.spreads)

    @property
    def p_holm(self) -> float:
        """p by Holm over all arms; that of this comparison alone until it is known."""
        return self.p if self.corrected is None else self.corrected

    @property
    def over_seeds(self) -> bool:
        """Whether the luck of training is in the interval, for which it takes two seeds."""
        return self.seeds > 1

    @property
    def smallest(self) -> float | None:
        """The smallest difference that this number of seeds would have shown four times out of five; None for one."""
        return max(each.smallest(self.arms) for each in self.spreads) if self.over_seeds else None

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds would show a difference as large as the observed one four times out of five; None: none."""
        if not self.over_seeds:
            return None
        parts = self.seed_part, self.own_part, self.image_part, self.box_part
        return seeds_needed(self.value, *parts, images=self.images, arms=self.arms)

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        plain = ("value", "low", "high", "seeds", "seed_part", "own_part", "image_part", "box_part")
        more = ("p", "p_holm", "arms", "over_seeds", "smallest", "seeds_needed")
        made = {name: getattr(self, name) for name in (*plain, *more)}
        return made | {"error": self.widest.error, "freedom": self.widest.freedom, "by_seed": list(self.by_seed)}


def defined(differences: Floats) -> Floats:
    """Differences, shape (seeds, 1 + replicates), without the drawn sets that hold no box to tell one by."""
    return differences[:, ~np.isnan(differences).any(axis=0)]


def paired(differences: Floats, evidence: Evidence, step: float = 0.0, runs: int = 1) -> Difference:
    """The mean difference of one arm to the reference.

    Args:
        differences: shape (seeds, 1 + replicates); of each seed, on the image set and on drawn ones. The replicates of
            all seeds are of the same draws.
        evidence: of the classes that the figure is the mean over.
        step: the least by which AP of one of them can rise (`Evidence.worth`).
        runs: how many runs of a seed each row is the mean of.
    """
    by_seed, drawn = differences[:, 0], differences[:, 1:]
    seeds, images = len(by_seed), evidence.together
    if seeds == 1:
        of_seeds, own, shared = 0.0, 0.0, float(drawn[0].var(ddof=1))
    else:
        covariance = np.cov(drawn)
        of_seeds = float(by_seed.var(ddof=1))
        shared = max(float((covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1))), 0.0)
        own = max(float(np.trace(covariance)) / seeds - shared, 0.0)
    more = images / (images - 1) / evidence.seen if evidence.seen else 1.0
    own *= more
    of_images = shared * more if evidence.seen else 1 / _NORMAL**2
    of_box = (evidence.worth(step) / runs) ** 2
    return Difference(
        value=float(by_seed.mean()),
        seeds=seeds,
        images=images,
        seed_part=of_seeds,
        own_part=own,
        image_part=of_images,
        box_part=of_box,
        spreads=_spreads(of_seeds, own, of_images, of_box, seeds, images),
        by_seed=tuple(by_seed.tolist()),
    )


def mean_of(differences: Sequence[Difference]) -> Difference:
    """The mean over data sets, whose trainings and images are independent of each other, of the same seeds."""
    if len(differences) == 1:
        return differences[0]
    count = len(differences)

    def part(name: str) -> float:
        return float(sum(getattr(each, name) for each in differences)) / count**2

    return Difference(
        value=float(np.mean([each.value for each in differences])),
        seeds=differences[0].seeds,
        images=min(each.images for each in differences),
        seed_part=part("seed_part"),
        own_part=part("own_part"),
        image_part=part("image_part"),
        box_part=part("box_part"),
        spreads=tuple(
            Spread.of([(each.variance / count**2, each.freedom) for each in same])
            for same in zip(*(each.spreads for each in differences))
        ),
        by_seed=tuple(np.mean([each.by_seed for each in differences], axis=0).tolist()),
    )


def holm(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """The same with p-values by Holm: smallest first, times the number of those left, never falling."""
    order = sorted(differences, key=lambda name: differences[name].p)
    made, least = {}, 0.0
    for place, name in enumerate(order):
        least = max(least, min(1.0, differences[name].p * (len(order) - place)))
        made[name] = replace(differences[name], corrected=least, arms=len(order))
    return {name: made[name] for name in differences}


def seeds_needed(
    value: float,
    seed_part: float,
    own_part: float = 0.0,
    image_part: float = 0.0,
    box_part: float = 0.0,
    *,
    images: int,
    arms: int = 1,
) -> int | None:
    """The number of seeds from 2 on at which a true difference of this size would be found in POWER of all cases.

    None where no number does (MOST_SEEDS are tried): the images alone leave too much open.
    """
    if value == 0:
        return None

    def enough(seeds: int) -> bool:
        spreads = _spreads(seed_part, own_part, image_part, box_part, seeds, images)
        return all(abs(value) >= each.smallest(arms) for each in spreads)

    if not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS  # more seeds never show less
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def verdict(name: str, difference: Difference, margin: float = MARGIN) -> str:
    """What may be said of an arm, in a sentence's part."""
    said = f"{difference} over {difference.seeds} seeds and the images"
    if not difference.over_seeds:
        said = f"{difference} over the images, one seed"
        return f"{name}: no evidence either way ({said}: the luck of training is in no interval, take seeds=3 or more)"
    if difference.p_holm < 1 - LEVEL:
        return f"{name} {'helps' if difference.value > 0 else 'hurts'} ({said}, Holm p = {difference.p_holm:.2g})"
    largest = max(abs(difference.low), abs(difference.high))
    if largest <= margin:
        return f"{name}: no difference larger than {largest:.4f} ({said})"
    return f"{name}: no evidence either way ({said})"


def word(difference: Difference, margin: float = MARGIN) -> str:
    """The verdict in a word or two, for a table."""
    if difference.over_seeds and difference.p_holm < 1 - LEVEL:
        return "helps" if difference.value > 0 else "hurts"
    small = max(abs(difference.low), abs(difference.high)) <= margin
    return "no difference" if small and difference.over_seeds else "no evidence"


def _spreads(
    seed_part: float, own_part: float, image_part: float, box_part: float, seeds: int, images: int
) -> tuple[Spread, ...]:
    """Of the mean over seeds: over seeds and images and over the images alone, each without b and with it."""
    few, many = max(seeds - 1, 1), max(images - 1, 1)
    return tuple(
        Spread.of([(varying / seeds, freedom), (image_part + of_box / seeds**2, many)])
        for varying, freedom in ((seed_part, few), (own_part, many))
        for of_box in (0.0, box_part)
    )


def _noncentrality(freedom: float, arms: int) -> float:
    """How many standard errors a true difference has to be from 0 to be found in POWER of all cases."""
    limit = float(special.stdtrit(freedom, 1 - (1 - LEVEL) / (2 * arms)))
    if freedom >= 1e4:  # where the distribution is the normal one, and its inverse slow
        return limit + float(special.ndtri(POWER))
    return float(special.nctdtrinc(freedom, 1 - POWER, limit))
