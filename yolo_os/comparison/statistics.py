"""What seeds and images say of a difference: one model for both.

Two trainings are compared on the same seeds and the same test images, like two tests read by the same readers on the
same cases. The model is that of Obuchowski and Rockette for such multi-reader, multi-case studies, with the degrees of
freedom of Hillis (2007): seeds are the readers, images the cases, both drawn from a population. Of the differences d_s
of the S seeds

    Var(mean d) = s^2 / S + I,    df = (s^2 / S + I)^2 / ((s^2 / S)^2 / (S - 1)),    I = max(C, 0) + b^2 / S^2

where s^2 is their variance over the seeds (the luck of training, and how it meets the images), and C the covariance of
two seeds' differences over drawn image sets (what all seeds owe to these images). C does not shrink with more seeds.
b is what one box is worth: arms that hardly differ, such as a detector and its shift, may differ on other images where
they do not on these, and neither s^2 nor C knows of it (see `evaluation.intervals`). It is left out where the interval
would be narrower for it, which its degrees of freedom can do.
With one seed the variance over the images alone is left, and nothing can be said of the luck of training.

Coverage by simulation: `benchmarks/compare_coverage.py`, and docs/compare.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from yolo_os.comparison.plan import MARGIN
from yolo_os.evaluation.arrays import Floats

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000
_INFINITE = 1e7  # degrees of freedom


@dataclass(frozen=True)
class Difference:
    """A mean difference to the reference with its interval.

    Attributes:
        value: mean over seeds.
        low, high: of the interval.
        seeds: how many both arms have.
        error: standard error, of seeds and images together.
        seed_part: variance over the seeds, s^2.
        image_part: max(C, 0), the variance that the images leave however many seeds there are.
        box_part: b^2, the variance that one box may be worth in one seed; 0 where it is left out.
        freedom: degrees of freedom.
        p: two-sided, of this comparison alone.
        p_holm: by Holm over all arms; that of this comparison alone until it is known.
        arms: how many arms are compared with the reference.
        over_seeds: whether the luck of training is in the interval, for which it takes two seeds.
        by_seed: of each seed.
    """

    value: float
    low: float
    high: float
    seeds: int
    error: float
    seed_part: float
    image_part: float
    box_part: float
    freedom: float
    p: float
    p_holm: float
    arms: int
    over_seeds: bool
    by_seed: tuple[float, ...]

    def __str__(self) -> str:
        """Value and interval."""
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def smallest(self) -> float | None:
        """The smallest difference that this number of seeds would have shown four times out of five; None for one."""
        if not self.over_seeds:
            return None
        return smallest_shown(self.error, self.freedom, self.arms)

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds would show a difference as large as the observed one four times out of five; None: none."""
        if not self.over_seeds:
            return None
        return seeds_needed(self.value, self.seed_part, self.image_part, self.box_part, self.arms)

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**named, "by_seed": list(self.by_seed), "smallest": self.smallest, "seeds_needed": self.seeds_needed}


def paired(differences: Floats, box: float = 0.0) -> Difference:
    """The mean difference of one arm to the reference.

    Args:
        differences: shape (seeds, 1 + replicates); of each seed, on the image set and on drawn ones. The replicates of
            all seeds are of the same draws.
        box: what one box is worth (`evaluation.intervals.worth`).
    """
    by_seed, drawn = differences[:, 0], differences[:, 1:]
    seeds = len(by_seed)
    if seeds == 1:
        of_seeds, of_images = 0.0, float(drawn[0].var(ddof=1))
    else:
        covariance = np.cov(drawn)
        shared = (covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1))
        of_seeds, of_images = float(by_seed.var(ddof=1)), max(float(shared), 0.0)
    either = [_interval(by_seed, of_seeds, of_images, of_box) for of_box in (0.0, box**2)]
    # With more variance come more degrees of freedom, which would at times make the interval narrower.
    return max(either, key=lambda each: each.high - each.low)


def mean_of(differences: Sequence[Difference]) -> Difference:
    """The mean over data sets, whose trainings and images are independent of each other."""
    if len(differences) == 1:
        return differences[0]
    count = len(differences)
    parts = [each.error**2 / count**2 for each in differences]
    variance = sum(parts)
    spread = sum(part**2 / each.freedom for part, each in zip(parts, differences))
    seeds = min(each.seeds for each in differences)
    made = _with_error(
        float(np.mean([each.value for each in differences])),
        variance,
        variance**2 / spread if spread else _INFINITE,
    )
    by_seed = np.mean([each.by_seed[:seeds] for each in differences], axis=0)
    return replace(
        made,
        seeds=seeds,
        seed_part=sum(each.seed_part for each in differences) / count**2,
        image_part=sum(each.image_part for each in differences) / count**2,
        box_part=sum(each.box_part for each in differences) / count**2,
        over_seeds=all(each.over_seeds for each in differences),
        by_seed=tuple(by_seed.tolist()),
    )


def holm(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """The same with p-values by Holm: smallest first, times the number of those left, never falling."""
    order = sorted(differences, key=lambda name: differences[name].p)
    made, least = {}, 0.0
    for place, name in enumerate(order):
        least = max(least, min(1.0, differences[name].p * (len(order) - place)))
        made[name] = replace(differences[name], p_holm=least, arms=len(order))
    return {name: made[name] for name in differences}


def smallest_shown(error: float, freedom: float, arms: int = 1) -> float:
    """The true difference that would be found in POWER of all comparisons like this one, at Holm's first step."""
    return _noncentrality(freedom, arms) * error


def seeds_needed(value: float, seed_part: float, image_part: float, box_part: float, arms: int = 1) -> int | None:
    """The number of seeds from 2 on at which a true difference of this size would be found in POWER of all cases.

    None where no number does (MOST_SEEDS are tried): the images alone leave too much open.
    """
    if value == 0:
        return None

    def enough(seeds: int) -> bool:
        of_seeds, of_images = seed_part / seeds, image_part + box_part / seeds**2
        error = (of_seeds + of_images) ** 0.5
        return bool(abs(value) >= _noncentrality(_freedom(of_seeds, of_images, seeds), arms) * error)

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


def _interval(by_seed: Floats, seed_part: float, image_part: float, box_part: float) -> Difference:
    seeds = len(by_seed)
    of_seeds, of_images = seed_part / seeds, image_part + box_part / seeds**2
    made = _with_error(float(by_seed.mean()), of_seeds + of_images, _freedom(of_seeds, of_images, seeds))
    return replace(
        made,
        seeds=seeds,
        seed_part=seed_part,
        image_part=image_part,
        box_part=box_part,
        over_seeds=seeds > 1,
        by_seed=tuple(by_seed.tolist()),
    )


def _with_error(value: float, variance: float, freedom: float) -> Difference:
    error = variance**0.5
    half = float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * error
    certain = 1.0 if value == 0 else 0.0  # where nothing varies
    p = min(1.0, 2 * float(special.stdtr(freedom, -abs(value) / error))) if error else certain
    return Difference(value, value - half, value + half, 1, error, 0.0, variance, 0.0, freedom, p, p, 1, False, ())


def _freedom(of_seeds: float, of_images: float, seeds: int) -> float:
    if not of_seeds or seeds < 2:
        return _INFINITE
    return float(min((of_seeds + of_images) ** 2 / (of_seeds**2 / (seeds - 1)), _INFINITE))


def _noncentrality(freedom: float, arms: int) -> float:
    """How many standard errors a true difference has to be from 0 to be found in POWER of all cases."""
    limit = float(special.stdtrit(freedom, 1 - (1 - LEVEL) / (2 * arms)))
    if freedom >= 1e4:  # where the distribution is the normal one, and its inverse slow
        return limit + float(special.ndtri(POWER))
    return float(special.nctdtrinc(freedom, 1 - POWER, limit))
