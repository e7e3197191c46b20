"""Differences over seeds and images, against hand-made numbers, known tests, and simulation."""

from __future__ import annotations

import math
import runpy

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from yolo_os.comparison.statistics import Difference, Spread, holm, mean_of, paired, seeds_needed, verdict, word
from yolo_os.evaluation.intervals import Evidence


def rows_of(*by_seed):
    """Differences of seeds that are the same on all drawn image sets."""
    return np.repeat(np.array(by_seed, float)[:, None], 10, axis=1)


def of_boxes(boxes, images=10**6):
    """A test set of one class, in so many images that their number does not matter."""
    return Evidence(np.array([boxes]), np.array([images]), images)


MANY = of_boxes(10**9)  # one box is worth nothing


def made(value=0.01, error=0.001, seeds=3, corrected=None):
    """A difference that is normal."""
    return Difference(value, seeds, 10, 0.0, 0.0, 0.0, 0.0, (Spread(error**2, 1e7),), (value,) * seeds, 1, corrected)


def with_p(p):
    return made(stats.norm.isf(p / 2), 1.0)


def test_by_hand():
    """Two seeds, two draws: s^2 = 2, C = cov((1, 3), (2, 6)) = 4, so the variance is 1 + 4 and df = 25."""
    found = paired(np.array([[1.0, 1.0, 3.0], [3.0, 2.0, 6.0]]) / 100, MANY)
    assert found.value == pytest.approx(0.02)
    assert (found.seed_part, found.image_part) == pytest.approx((2e-4, 4e-4), rel=1e-5)
    assert found.widest.error == pytest.approx(5**0.5 / 100)
    assert found.widest.freedom == pytest.approx(25, rel=1e-4)
    assert found.high - 0.02 == pytest.approx(5**0.5 / 100 * stats.t.ppf(0.975, 25), rel=1e-5)
    assert found.p == pytest.approx(2 * stats.t.sf(2 / 5**0.5, 25), rel=1e-5)


def test_few_images():
    """Three of them: C = 4 by 3 / 2, V - C = 1 by 3 / 2, over the images alone 0.75 + 6, each with df 2."""
    found = paired(np.array([[1.0, 1.0, 3.0], [3.0, 2.0, 6.0]]) / 100, of_boxes(10**9, 3))
    assert found.image_part == pytest.approx(6e-4)
    assert (found.widest.error, found.widest.freedom) == pytest.approx(
        (6.75**0.5 / 100, 6.75**2 / (0.75**2 / 2 + 36 / 2))
    )


def test_of_one_image_nothing_is_known():
    found = paired(rows_of(0.4, 0.4, 0.4), of_boxes(10, 1))
    assert (found.low, found.high) == (-1, 1)
    assert word(found) == "no evidence"
    assert paired(rows_of(0.9, 0.9), of_boxes(1, 1)).high == 1


def test_a_class_in_one_image_spreads_as_the_others_do():
    """Classes in 2, 4 and 1 images: 1 / 2 and 1 / 4 of the variance are seen, of 1 / 2 + 1 / 4 + 1."""
    differences = np.array([[0.0, 0.01, -0.01]] * 2)
    known, found = (
        paired(differences, Evidence(np.full(len(images), 10**9), np.array(images), 6))
        for images in ([2, 4], [2, 4, 1])
    )
    assert found.image_part == pytest.approx(known.image_part * 1.75 / 0.75)


def test_without_the_images_it_is_the_paired_t_test():
    by_seed = np.array([0.3, 0.1, 0.5, 0.2])
    found = paired(rows_of(*by_seed), MANY)
    known = stats.ttest_1samp(by_seed, 0)
    low, high = known.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, known.pvalue))


def test_images_that_pull_seeds_apart_add_nothing():
    found = paired(np.array([[0.0, 1.0, -1.0], [0.0, -1.0, 1.0]]), MANY)  # covariance below 0
    assert found.image_part == 0


def test_seeds_that_agree_by_luck_make_nothing_surer_than_the_images_alone():
    """Two seeds that are equal on these images, and independent of each other over drawn ones."""
    drawn = np.random.default_rng(0).normal(0.03, 0.02, (2, 4000))
    found = paired(np.concatenate([[[0.03], [0.03]], drawn], axis=1), MANY)
    assert found.seed_part == 0
    assert found.high - 0.03 == pytest.approx(1.96 * 0.02 / 2**0.5, rel=0.05)
    assert found.p == pytest.approx(2 * stats.norm.sf(0.03 / (0.02 / 2**0.5)), rel=0.2)


def test_one_seed_knows_its_images_only():
    drawn = np.random.default_rng(0).normal(0.01, 0.002, 4000)
    found = paired(np.append(0.01, drawn)[None], MANY)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.002, rel=0.05)
    assert not found.over_seeds
    assert (found.smallest, found.seeds_needed, word(found)) == (None, None, "no evidence")
    assert "one seed" in verdict("a", found)


def test_no_difference_at_all():
    found = paired(np.zeros((3, 10)), MANY)
    assert (found.low, found.high) == pytest.approx((0, 0), abs=1e-8)
    assert found.p == 1
    assert word(found) == "no difference"


def test_arms_that_did_not_differ_may_do_so_by_one_box():
    alike = np.zeros((4, 10))
    found = paired(alike, of_boxes(50))
    assert (found.high, found.low) == pytest.approx((1.96 * 0.005, -1.96 * 0.005), rel=1e-3)
    assert found.p == 1
    assert paired(alike[:1], of_boxes(50)).high == pytest.approx(1.96 * 0.02, rel=1e-3)
    assert paired(alike, of_boxes(50), runs=2).high == pytest.approx(1.96 * 0.0025, rel=1e-3)


def test_what_one_box_is_worth():
    def worth(*boxes, step=0.0):
        return Evidence(np.array(boxes), np.array(boxes), sum(boxes)).worth(step)

    assert worth(10, 10) == pytest.approx(1 / 20)  # of 20 boxes
    assert worth(1, 100) == pytest.approx((1.01 / 101) ** 0.5 / 2)
    assert worth(110, step=1 / 11) == pytest.approx((1 / 11 / 110) ** 0.5)  # one in ten is worth 1 / 11
    assert worth(5, step=1 / 11) == pytest.approx(1 / 5)
    assert math.isnan(worth())


@pytest.mark.parametrize("by_seed", [(0.0195, 0.0205), (0.0043, 0.005, 0.0051), (0.0, 0.1), (0.01, 0.01, 0.0101)])
@pytest.mark.parametrize("boxes", [10, 120, 1000])
def test_the_box_makes_nothing_surer(by_seed, boxes):
    """It brings degrees of freedom: by itself it would narrow some intervals, and more so at Holm's levels."""
    without, found = paired(rows_of(*by_seed), MANY), paired(rows_of(*by_seed), of_boxes(boxes))
    assert found.low <= without.low + 1e-9 and found.high >= without.high - 1e-9
    assert found.p >= without.p * (1 - 1e-6)
    assert found.smallest >= without.smallest * (1 - 1e-6)
    assert (found.seeds_needed or 10**6) >= (without.seeds_needed or 10**6)
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    other = paired(rows_of(*[0.018, 0.022, 0.02][: len(by_seed)]), MANY)
    both, neither = mean_of([found, other]), mean_of([without, other])
    assert both.low <= neither.low + 1e-9 and both.p >= neither.p * (1 - 1e-6)


def test_holm_by_hand():
    found = holm({"a": with_p(0.04), "b": with_p(0.01), "c": with_p(0.03)})
    assert [found[name].p_holm for name in "abc"] == pytest.approx([0.06, 0.03, 0.06], rel=1e-4)
    assert {each.arms for each in found.values()} == {3}


def test_the_mean_over_data_sets():
    first = np.array([[1.0, 1.0, 3.0], [3.0, 2.0, 6.0]]) / 100
    parts = [paired(first, MANY), paired(rows_of(0.02, 0.04), MANY)]
    found = mean_of(parts)  # variances 5 with df 25, and 1 with df 1
    assert found.value == pytest.approx(0.025)
    assert found.widest.error == pytest.approx((6 / 4) ** 0.5 / 100)
    assert found.widest.freedom == pytest.approx(1.5**2 / (1.25**2 / 25 + 0.25**2 / 1), rel=1e-4)
    assert found.by_seed == pytest.approx((0.015, 0.035))
    assert mean_of(parts[:1]) is parts[0]


def test_what_would_have_been_seen_is_seen_four_times_in_five():
    """With the images out of it: paired t-tests of five seeds whose true mean is the smallest that is shown."""
    random = np.random.default_rng(0)
    effect = Spread(1 / 5, 4).smallest()
    drawn = random.normal(effect, 1, (20000, 5))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert Spread(1, 4).smallest(arms=5) > Spread(1, 4).smallest() > Spread(1, 100).smallest()


def test_seeds_needed():
    many = 10**6
    needed = seeds_needed(1.0, 1.0, images=many)  # a paired t-test, an effect of one standard deviation: ten pairs
    assert needed == 10
    assert seeds_needed(0.5, 1.0, images=many) == 34
    assert seeds_needed(0.5, 1.0, image_part=0.01, images=many) > 34
    assert seeds_needed(0.5, 1.0, image_part=1.0, images=many) is None  # the images alone leave too much open
    assert seeds_needed(0.0, 1.0, images=many) is None


def test_what_one_box_is_worth_shrinks_with_more_seeds():
    found = paired(np.full((2, 10), 0.004), of_boxes(50))
    assert found.widest.error == pytest.approx(0.02 / 2)
    enough = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 0.02  # times 1 / S is to be 0.004
    assert found.seeds_needed == math.ceil(enough / 0.004)


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (made(0.01), "helps"),
        (made(-0.01), "hurts"),
        (made(0.001, 0.0015), "no difference"),
        (made(0.001, 0.004), "no evidence"),
        (made(0.01, corrected=0.2), "no evidence"),
    ],
)
def test_verdicts(difference, said):
    assert word(difference) == said
    assert said in verdict("x", difference)
    assert "larger than 0.0039" in verdict("x", made(0.001, 0.0015))


@pytest.mark.slow
def test_coverage_by_simulation():
    """Intervals hold the true difference about 95 times in 100, whatever varies; those over images alone do not."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "compare_coverage.py"))
    random = np.random.default_rng(1)
    means, weights = script["of_means"], script["draws"](200, 300)
    for name, parts in script["MEANS"].items():
        for seeds in (2, 3, 5):
            held, _ = script["coverage"](means, parts, seeds, 600, weights, random)
            assert 0.91 < held[0] <= 1, (name, seeds, held)
    held, _ = script["coverage"](means, script["MEANS"]["seeds and images alike"], 2, 600, weights, random)
    assert held[1] < 0.9
    weights = script["draws"](60, 200)
    held, _ = script["coverage"](script["of_ap"], script["AP"]["AP, luck of the seed"], 3, 150, weights, random)
    assert held[0] > 0.89


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["ap", "map07"])
def test_coverage_of_arms_that_hardly_differ(metric):
    script = runpy.run_path(str(ROOT / "benchmarks" / "compare_coverage.py"))
    random, weights = np.random.default_rng(1), script["draws"](60, 200)
    parts = script["AP"]["AP, hardly different, 1 in 20"]
    true = script["truth"](parts, weights, random, 1500, metric)
    held, _ = script["coverage"](script["of_ap"], parts, 3, 150, weights, random, true, metric)
    assert held[0] > 0.89
