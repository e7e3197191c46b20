"""How often the 95 % intervals of `yolo-os compare` hold the true difference, by simulation.

    python benchmarks/compare_coverage.py            # five minutes of a core
    python benchmarks/compare_coverage.py --quick    # fewer comparisons

means: the difference on image i of seed s is a sum of an effect of the seed, one of the image, and one of both, normal
and with a true mean of 0. Rows differ in which of them there is.
AP: two arms of the same kind, so that their true difference is 0. Each training is a detector that finds an object with
a chance that the seed, the image and the arm on that image have a part in, with false detections in between; AP50-95 is
taken by the code of the command. Of arms that hardly differ the second is the first one, and finds one in 100, or one
in 20, of the boxes that this misses; their true difference is the mean of many. Of these, VOC07 mAP as well.

Prints a Markdown table: share of comparisons whose interval holds the truth, and in brackets its mean width;
"images only" is the interval that leaves the seeds out, as a bootstrap over images has it.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from yolo_os.comparison.resampling import STEPS, Found, Truth, draws, resample
from yolo_os.comparison.statistics import paired
from yolo_os.evaluation.intervals import Evidence

SEEDS = (2, 3, 5)
# Standard deviations of the mean of one seed's differences that come from seeds, images, and both together.
MEANS = {
    "seeds alone": (1.0, 0.0, 0.0),
    "images alone": (0.0, 1.0, 0.0),
    "each image its own luck": (0.0, 0.0, 1.0),
    "seeds and images alike": (1.0, 1.0, 0.0),
    "all three alike": (1.0, 1.0, 1.0),
    "little of seeds": (0.3, 1.0, 0.5),
}
AP = {
    "AP, luck of the seed": (1.0, 0.3, None),
    "AP, luck of each image": (0.0, 0.8, None),
    "AP, little luck": (0.05, 0.2, None),
    "AP, hardly different, 1 in 100": (0.05, 0.2, 0.01),
    "AP, hardly different, 1 in 20": (0.05, 0.2, 0.05),
}
_IMAGES, _REPLICATES = 200, 400
_OFFSETS = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])


def of_means(parts, seeds, random, weights, metric=None):
    """Differences of some seeds, on the image set and on drawn ones."""
    of_seeds, of_images, of_both = parts
    scale = _IMAGES**0.5
    matrix = of_seeds * random.standard_normal((seeds, 1))
    matrix = matrix + of_images * scale * random.standard_normal((1, _IMAGES))
    matrix = matrix + of_both * scale * random.standard_normal((seeds, _IMAGES))
    return matrix @ weights / weights.sum(axis=0)


def of_ap(parts, seeds, random, weights, metric):
    """The same of AP of simulated detectors."""
    of_seeds, of_both, more = parts
    images = len(weights)
    image = np.repeat(np.arange(images), 2)
    corner = random.integers(1, 101, (2 * images, 2)) + np.tile([[0], [200]], (images, 1))
    box = np.concatenate([corner, corner + 39], axis=1).astype(float)
    truth = Truth(("thing",), tuple(map(str, range(images))), image, 0 * image, box, np.zeros(len(image), dtype=bool))
    hard = random.standard_normal(images)

    def detector():
        skill = 0.5 + of_seeds * random.standard_normal() - hard + of_both * random.standard_normal(images)
        hit = random.random(len(image)) < 1 / (1 + np.exp(-skill[image]))
        near = box + random.choice(_OFFSETS, (len(image), 1))
        false = random.integers(0, images, images // 2)
        aside = np.array([500.0, 500.0, 530.0, 530.0]) + np.zeros((len(false), 1))
        scores = [random.normal(0.6, 0.2, len(near)), random.normal(0.4, 0.2, len(false))]
        where = np.concatenate([image, false])
        return hit, Found(where, 0 * where, np.concatenate([near, aside]), np.concatenate(scores))

    def ap(hit, found):
        kept = np.append(hit, np.ones(len(found.image) - len(hit), dtype=bool))
        columns = (getattr(found, name)[kept] for name in Found.__dataclass_fields__)
        return resample(truth, Found(*columns), weights).means[metric]

    def difference():
        hit, found = detector()
        other = detector() if more is None else (hit | (random.random(len(hit)) < more), found)
        return ap(*other) - ap(hit, found)

    return np.array([difference() for _ in range(seeds)])


def truth(parts, weights, random, count, metric):
    """The true difference of two arms."""
    if parts[-1] is None:
        return 0.0
    return float(np.mean([of_ap(parts, 1, random, weights[:, :1], metric) for _ in range(count)]))


def coverage(simulate, parts, seeds, count, weights, random, true=0.0, metric="ap"):
    """Share of comparisons whose interval holds the truth, with both kinds of intervals, and their mean widths.

    Means are of so many boxes that one is worth nothing.
    """
    images = len(weights)
    evidence = Evidence(np.array([2 * images if simulate is of_ap else 10**9]), np.array([images]), images)
    held, widths = np.zeros(2), np.zeros(2)
    for _ in range(count):
        differences = simulate(parts, seeds, random, weights, metric)
        each = paired(differences, evidence, STEPS[metric] if simulate is of_ap else 0.0)
        half = stats.norm.ppf(0.975) * differences[:, 1:].mean(axis=0).std(ddof=1)
        held += [each.low <= true <= each.high, abs(each.value - true) <= half]
        widths += [each.high - each.low, 2 * half]
    return held / count, widths / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the comparisons")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="with commas")
    options = parser.parse_args()
    numbers = [int(each) for each in options.seeds.split(",")]
    random = np.random.default_rng(0)
    share = 10 if options.quick else 1
    print(f"| simulation | {' | '.join(f'{each} seeds | images only' for each in numbers)} |")
    print("| --- " * (2 * len(numbers) + 1) + "|")
    rows = [(name, of_means, parts, "ap") for name, parts in MEANS.items()]
    rows += [(name, of_ap, parts, "ap") for name, parts in AP.items()]
    rows += [(f"{name}, VOC07", of_ap, parts, "map07") for name, parts in AP.items() if parts[-1] is not None]
    for name, simulate, parts, metric in rows:
        many = (200 if simulate is of_ap else 1000) // share
        weights = draws(60, 200) if simulate is of_ap else draws(_IMAGES, _REPLICATES)
        true, cells = truth(parts, weights, random, 2000 // share, metric), []
        for seeds in numbers:
            held, widths = coverage(simulate, parts, seeds, many, weights, random, true, metric)
            cells += [f"{rate:.3f} ({width:.2f})" for rate, width in zip(held, widths)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
