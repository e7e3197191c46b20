"""From replicates of a figure to its interval, and to the p-value of a difference.

Each rule here is the one that held its error in a simulation with known truth (`benchmarks/intervals.py`; the figures
are in docs/results.md):

- *One detector, one class.* AP is a proportion of boxes, so its interval is Wilson's, which widens near 0 and 1 where
  replicates all agree, for as many boxes as would spread a proportion as far as the replicates spread AP (the
  effective sample size of survey statistics; Korn and Graubard), with Student's t for the images that hold the class.
- *One detector, a mean over classes.* The classes' distances add up in squares, times how much more (never less) the
  replicates' mean spreads than it would if the classes were independent (the method of variance estimates recovery).
- AP of a few boxes is on average too high. The bootstrap sees a third to a half of that; the interval reaches down by
  `UNSEEN` times what it sees.
- *A difference.* The replicates' percentiles around the difference, wider by Student's t for few images; at least t
  standard deviations to each side, which matters where the figure jumps, as AP07 does; and wider on one side against
  `UNSEEN` times the bias seen. Nothing is taken off: of two detectors that differ in a few images most replicates are
  exactly 0, and a shift would move all of them to one side. To the standard deviation that of one box more, found by
  one detector alone, is added in squares: detectors that are much alike differ in few boxes, in these images perhaps
  in none, and of what they differ in on others the replicates know nothing (as one adds a success and a failure to a
  proportion that is near 0; Agresti and Coull).
- *p* is of the paired permutation test: exchanging the two detectors' results image by image says how large a
  difference chance makes between equal detectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from yolo_os.evaluation.arrays import Floats, Integers

UNSEEN = 3.0  # how far an interval reaches down, in biases that the bootstrap sees
_ENOUGH = 5.0  # boxes that could be found or not, as n p (1 - p)
_ROUNDING = 1e-12  # differences of averages that are equal but for the order of their sums


@dataclass(frozen=True, eq=False)
class Interval:
    """A figure with its interval, within 0 and 1.

    Attributes:
        value: the figure on the image set itself.
        low, high: the interval; nan where the figure is undefined.
        level: its nominal coverage, such as 0.95.
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
        """Value and interval; a dash where the figure is undefined."""
        if np.isnan(self.value):
            return "-"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def to_dict(self) -> dict[str, Any]:
        """All attributes, nan as None."""
        return {name: None if np.isnan(value) else float(value) for name, value in vars(self).items()}


@dataclass(frozen=True, eq=False)
class Difference(Interval):
    """A difference of two detectors on the same images, with its interval.

    Attributes:
        p: two-sided, of the paired permutation test, at most 1.
        least: the least p that so many permutations can give.
    """

    p: float
    least: float = 0.0

    def __str__(self) -> str:
        """Difference, interval and p-value; a dash where the difference is undefined."""
        if np.isnan(self.value):
            return "-"
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}], p {p_text(self.p, self.least)}"


def p_text(p: float, least: float) -> str:
    """`= 0.034`, or `< 0.002` where it is the least that could come out (rounded up)."""
    if p > least:
        return f"= {p:.3g}"
    digit = 10.0 ** math.floor(math.log10(least))
    return f"< {math.ceil(least / digit) * digit:.1g}"


@dataclass(frozen=True, eq=False)
class Evidence:
    """How much a test set holds of the classes that a figure is the mean over; classes without boxes left out.

    Attributes:
        boxes: how many each class has.
        images: how many images hold boxes of each.
        together: how many images hold boxes of any.
    """

    boxes: Integers
    images: Integers
    together: int

    @classmethod
    def of(cls, holding: Sequence[Integers]) -> Evidence:
        """Of the images, one number for each box, of each class."""
        holding = [each for each in holding if len(each)]
        images = [np.unique(each) for each in holding]
        together = len(np.unique(np.concatenate(images))) if images else 0
        return cls(np.array(list(map(len, holding)), int), np.array(list(map(len, images)), int), together)

    def worth(self, step: float = 0.0) -> float:
        """What one box is worth in the figure, as the root of its mean square.

        Args:
            step: the least by which AP of a class can rise, 1 / 11 where it is read at eleven recalls: then most boxes
                are worth nothing, and one in n * step is worth that much.
        """
        if not len(self.boxes):
            return math.nan
        squares = np.maximum(1 / self.boxes, step)  # of each class, times its number of boxes
        return math.sqrt(squares.sum() / self.boxes.sum()) / len(self.boxes)

    @property
    def seen(self) -> float:
        """The share of the figure's variance over images that drawn images show, 0 to 1.

        AP of a class in n images spreads as 1 / n if all spread alike, image for image; but drawn images show nothing
        of a class that lies in a single one.
        """
        parts = 1 / self.images
        return float(parts[self.images > 1].sum() / parts.sum()) if len(parts) else 0.0


def single(value: float, samples: Floats, level: float, boxes: int, images: int) -> Interval:
    """The interval of one class of one detector.

    Args:
        value, samples: the figure, and its replicates.
        level: as in `Interval`.
        boxes: how many there are to be found.
        images: how many images hold them.
    """
    down, up = _reach(value, samples, level, boxes, images)
    return _interval(value, samples, level, down, up)


def mean_of(values: Floats, samples: Floats, level: float, boxes: Sequence[int], images: Sequence[int]) -> Interval:
    """The interval of the mean over classes of one detector; the arguments as in `single`, an entry for each class."""
    number = len(values)
    reach = [_reach(*each) for each in zip(values.tolist(), samples.T, [level] * number, boxes, images)]
    means = row_means(samples)
    independent = float(np.nanvar(samples, axis=0).sum()) / max(1, number) ** 2 if number else 0.0
    together = max(1.0, float(np.nanvar(means)) / independent) if independent > 0 else 1.0
    down, up = (
        (math.sqrt(together * sum(each**2 for each in side)) / number for side in zip(*reach)) if number else (0, 0)
    )
    return _interval(float(np.mean(values)) if number else math.nan, means, level, down, up)


def difference(
    value: float, samples: Floats, exchanged: Floats, level: float, evidence: Evidence, step: float
) -> Difference:
    """The interval and p-value of a difference, of a class or of a mean.

    Args:
        value, samples: the difference, and its replicates on images drawn for both detectors.
        exchanged: the differences after exchanging the results of some images.
        level: as in `Interval`.
        evidence: of the classes that it is the mean over.
        step: the least by which AP of one of them can rise.
    """
    samples = samples[~np.isnan(samples)]
    least = 2 / (1 + len(exchanged))
    if np.isnan(value) or not len(samples):
        return Difference(math.nan, math.nan, math.nan, level, math.nan, math.nan, math.nan, least)
    low, high = -1.0, 1.0  # of one image's boxes nothing is known
    if evidence.seen:
        deviations, unseen = student(level, evidence.together), 1 / math.sqrt(evidence.seen)
        wider = unseen * deviations / NormalDist().inv_cdf((1 + level) / 2)
        reach = deviations * math.hypot(unseen * float(samples.std()), evidence.worth(step))
        low, high = (value + wider * (np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]) - value)).tolist()
        bias = UNSEEN * (float(samples.mean()) - value)
        low, high = min(low, value - reach) - max(bias, 0.0), max(high, value + reach) - min(bias, 0.0)
    rarer = min(int((exchanged >= value - _ROUNDING).sum()), int((exchanged <= value + _ROUNDING).sum()))
    return Difference(
        float(value),
        max(low, -1.0),
        min(high, 1.0),
        level,
        float(samples.std()),
        float(samples.mean()) - value,
        min(1.0, least * (1 + rarer)),
        least,
    )


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """p-values corrected for their number by Holm's steps: one below 0.05 is rarely by chance, however many there are.

    An undefined one (nan) stays so and does not count.
    """
    corrected = np.full(len(values), np.nan)
    order = [index for index in np.argsort(values, kind="stable").tolist() if not np.isnan(values[index])]
    reached = 0.0
    for rank, index in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * values[index]))
        corrected[index] = reached
    return tuple(corrected.tolist())


def student(level: float, images: int) -> float:
    """Half the width of a `level` interval in standard deviations of `images` replaced draws: Student's t, enlarged.

    A bootstrap's deviation is that of n images divided by n, not by n - 1: the root of n / (n - 1) makes up for it.
    """
    freedom = images - 1
    point = (1 + level) / 2
    if freedom < 1:
        return math.inf
    if freedom == 1:
        quantile = math.tan(math.pi * (point - 0.5))
    elif freedom == 2:
        quantile = (2 * point - 1) * math.sqrt(2 / (4 * point * (1 - point)))
    else:  # the expansion around the normal quantile; 0.5 % off at 3 degrees of freedom, less beyond
        z = NormalDist().inv_cdf(point)
        terms = (
            z,
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
            (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
        )
        quantile = sum(term / freedom**power for power, term in enumerate(terms))
    return quantile * math.sqrt(images / freedom)


def row_means(values: Floats) -> Floats:
    """Mean of each row over what is defined in it; nan where nothing is."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    sums = np.where(defined, values, 0.0).sum(axis=1)
    means: Floats = np.divide(sums, count, out=np.full(len(values), np.nan), where=count > 0)
    return means


def _reach(value: float, samples: Floats, level: float, boxes: int, images: int) -> tuple[float, float]:
    """How far below and above its value the interval of one class reaches, but for its bias."""
    samples = samples[~np.isnan(samples)]
    if images < 2 or not len(samples):
        return value, 1 - value
    variance, spread = float(samples.var()), value * (1 - value)
    # Replicates tell how far AP spreads where there is enough that could turn out otherwise; else it may by chance be
    # too little, and AP is taken to spread like the share of boxes that are found.
    most = boxes * max(1.0, boxes * spread / _ENOUGH)
    effective = min(most, spread / variance) if variance > 0 and spread > 0 else boxes
    low, high = _wilson(value, effective, student(level, images))
    return value - low, high - value


def _interval(value: float, samples: Floats, level: float, down: float, up: float) -> Interval:
    samples = samples[~np.isnan(samples)]
    if np.isnan(value) or not len(samples):
        return Interval(math.nan, math.nan, math.nan, level, math.nan, math.nan)
    bias = float(samples.mean()) - value
    low, high = max(value - down - UNSEEN * max(bias, 0.0), 0.0), min(value + up, 1.0)
    return Interval(float(value), low, high, level, float(samples.std()), bias)


def _wilson(share: float, count: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a proportion."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - reach, centre + reach
