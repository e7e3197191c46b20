"""Differences over seeds and images, against hand-made numbers, known tests, and simulation."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from yolo_os.comparison.statistics import Difference, holm, mean_of, paired, seeds_needed, smallest_shown, verdict, word
from yolo_os.evaluation.intervals import worth


def made(p, value=0.01, low=0.001, high=0.019, seeds=3):
    return Difference(value, low, high, seeds, 0.01, 0.0, 0.0, 0.0, 2.0, p, p, 1, seeds > 1, (value,) * seeds)


def test_by_hand():
    """Two seeds, two draws: s^2 = 2, C = cov((1, 3), (2, 6)) = 4, so the variance is 1 + 4 and df = 25."""
    found = paired(np.array([[1.0, 1.0, 3.0], [3.0, 2.0, 6.0]]))
    assert found.value == 2
    assert (found.seed_part, found.image_part) == (pytest.approx(2), pytest.approx(4))
    assert found.error == pytest.approx(5**0.5)
    assert found.freedom == pytest.approx(25)
    assert found.high - 2 == pytest.approx(5**0.5 * stats.t.ppf(0.975, 25))
    assert found.p == pytest.approx(2 * stats.t.sf(2 / 5**0.5, 25))


def test_without_the_images_it_is_the_paired_t_test():
    by_seed = np.array([0.3, 0.1, 0.5, 0.2])
    found = paired(np.repeat(by_seed[:, None], 50, axis=1))
    known = stats.ttest_1samp(by_seed, 0)
    low, high = known.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, known.pvalue))


def test_images_that_pull_seeds_apart_add_nothing():
    found = paired(np.array([[0.0, 1.0, -1.0], [0.0, -1.0, 1.0]]))  # covariance below 0
    assert found.image_part == 0


def test_one_seed_knows_its_images_only():
    drawn = np.random.default_rng(0).normal(0.01, 0.002, 4000)
    found = paired(np.append(0.01, drawn)[None])
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.002, rel=0.05)
    assert not found.over_seeds
    assert (found.smallest, found.seeds_needed, word(found)) == (None, None, "no evidence")
    assert "one seed" in verdict("a", found)


def test_no_difference_at_all():
    found = paired(np.zeros((3, 10)))
    assert (found.low, found.high, found.p) == (0, 0, 1)
    assert word(found) == "no difference"


def test_arms_that_did_not_differ_may_do_so_by_one_box():
    alike = np.zeros((4, 10))
    found = paired(alike, box=0.02)
    assert (found.high, found.low) == pytest.approx((1.96 * 0.005, -1.96 * 0.005), rel=1e-3)
    assert found.p == 1
    assert paired(alike[:1], box=0.02).high == pytest.approx(1.96 * 0.02, rel=1e-3)
    spread = np.array([[0.0, 0.0, 0.0], [0.1, 0.1, 0.1]])  # all of it luck of the seed: one degree of freedom
    assert paired(spread, box=0.02) == paired(spread)
    assert worth([10, 10]) == pytest.approx(1 / 20)  # of 20 boxes
    assert worth([1, 100]) == pytest.approx((1.01 / 101) ** 0.5 / 2)


def test_holm_by_hand():
    found = holm({"a": made(0.04), "b": made(0.01), "c": made(0.03)})
    assert [found[name].p_holm for name in "abc"] == pytest.approx([0.06, 0.03, 0.06])
    assert {each.arms for each in found.values()} == {3}


def test_the_mean_over_data_sets():
    parts = [paired(np.array([[1.0, 1.0, 3.0], [3.0, 2.0, 6.0]])), paired(np.array([[2.0, 2.0, 2.0], [4.0, 4.0, 4.0]]))]
    found = mean_of(parts)  # variances 5 with df 25, and 1 with df 1
    assert found.value == pytest.approx(2.5)
    assert found.error == pytest.approx((6 / 4) ** 0.5)
    assert found.freedom == pytest.approx(1.5**2 / (1.25**2 / 25 + 0.25**2 / 1))
    assert found.by_seed == pytest.approx((1.5, 3.5))
    assert mean_of(parts[:1]) is parts[0]


def test_what_would_have_been_seen_is_seen_four_times_in_five():
    """With the images out of it: paired t-tests of five seeds whose true mean is the smallest that is shown."""
    random = np.random.default_rng(0)
    effect = smallest_shown(1 / 5**0.5, 4)
    drawn = random.normal(effect, 1, (20000, 5))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert smallest_shown(1, 4, arms=5) > smallest_shown(1, 4) > smallest_shown(1, 100)


def test_seeds_needed():
    needed = seeds_needed(1.0, 1.0, 0.0, 0.0)  # a paired t-test with an effect of one standard deviation: ten pairs
    assert needed == 10
    assert seeds_needed(0.5, 1.0, 0.0, 0.0) == 34
    assert seeds_needed(0.5, 1.0, 0.01, 0.0) > 34
    assert seeds_needed(0.5, 1.0, 1.0, 0.0) is None  # the images alone leave too much open
    assert seeds_needed(0.0, 1.0, 0.0, 0.0) is None


def test_what_one_box_is_worth_shrinks_with_more_seeds():
    box = 0.02
    found = paired(np.full((2, 10), 0.004), box)
    assert found.error == pytest.approx(box / 2)
    enough = (NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) * box  # times 1 / S is to be 0.004
    assert found.seeds_needed == math.ceil(enough / 0.004)


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (made(0.001), "helps"),
        (made(0.001, -0.01, -0.019, -0.001), "hurts"),
        (made(0.5, 0.001, -0.002, 0.004), "no difference"),
        (made(0.5, 0.001, -0.002, 0.009), "no evidence"),
        (replace(made(0.04), p_holm=0.2), "no evidence"),
    ],
)
def test_verdicts(difference, said):
    assert word(difference) == said
    assert said in verdict("x", difference)
    assert "larger than 0.0040" in verdict("x", made(0.5, 0.001, -0.002, 0.004))


@pytest.mark.slow
def test_coverage_by_simulation():
    """Intervals hold the true difference about 95 times in 100, whatever varies; those over images alone do not."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "compare_coverage.py"))
    random = np.random.default_rng(1)
    weights = script["draws"](200, 300)
    for name, parts in script["MEANS"].items():
        for seeds in (2, 3, 5):
            held, _ = script["coverage"](script["of_means"], parts, seeds, 600, weights, random)
            assert 0.91 < held[0] <= 1, (name, seeds, held)
    held, _ = script["coverage"](script["of_means"], script["MEANS"]["seeds and images alike"], 2, 600, weights, random)
    assert held[1] < 0.9
    weights = script["draws"](60, 200)
    held, _ = script["coverage"](script["of_ap"], script["AP"]["AP, luck of the seed"], 3, 150, weights, random)
    assert held[0] > 0.89
