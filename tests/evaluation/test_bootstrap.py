import importlib
from dataclasses import replace

import numpy as np
import pytest

from yolo_os.errors import UserError
from yolo_os.evaluation import resampling
from yolo_os.evaluation.intervals import holm, p_text, student
from yolo_os.evaluation.voc import average_precisions
from yolo_os.voc import Difference, bootstrap, evaluate_voc

module = importlib.import_module("yolo_os.evaluation.bootstrap")  # the package has its function under that name
IMAGES, CLASSES = 30, 4


def weights_of(count, seed, images=IMAGES):
    """How often each image is drawn, (images, replicates)."""
    return np.concatenate(list(resampling.draws(images, count, seed)(7)), axis=1)


def drawn_aps(result, weights, images=IMAGES):
    """AP and AP07, (2, replicates, classes), of image sets that are drawn."""
    score = module.voc_score(module.RECALL_POINTS[result.recall_points])
    rankings = module.voc_rankings(result, np.arange(images))
    return np.stack([each.figures(weights, score, 2)[0] for each in rankings], axis=-1)


def scene(seed=0, noise=0.0):
    """Ground truth of one seed, and detections that find most of it, with scores spoilt by `noise`."""
    random = np.random.default_rng(seed)
    m = 90
    start = random.integers(1, 60, (m, 2))
    boxes = np.concatenate([start, start + random.integers(5, 30, (m, 2))], axis=1).astype(float)
    gt = (random.integers(0, IMAGES, m), random.integers(0, CLASSES - 1, m), boxes, random.random(m) < 0.2)
    source = random.integers(0, m, 240)
    near = boxes[source] + random.normal(0, 2.5, (240, 4))
    label = np.where(random.random(240) < 0.8, gt[1][source], random.integers(0, CLASSES, 240))
    score = random.random(240).round(2)  # ties
    score = score + noise * np.random.default_rng(seed + 1).normal(size=240)
    return gt, (gt[0][source], label, near, score)


def evaluate(gt, det, **options):
    return evaluate_voc(*gt, *det, num_classes=CLASSES, **{"images": np.arange(IMAGES), **options})


def replicate(gt, det, weights):
    """The same scene with image i standing there weights[i] times under new names, copies side by side."""

    def copies(columns):
        count = weights[columns[0]]
        rows = np.repeat(np.arange(len(count)), count)
        number = np.concatenate([np.arange(c) for c in count]) if len(rows) else np.zeros(0, int)
        return (columns[0][rows] * 1000 + number, *(column[rows] for column in columns[1:]))

    return evaluate_voc(*copies(gt), *copies(det), num_classes=CLASSES)


@pytest.mark.parametrize("points", ["numpy", "matlab"])
def test_a_replicate_is_the_evaluation_of_the_drawn_images(points):
    gt, det = scene()
    result = evaluate(gt, det, recall_points=points)
    weights = weights_of(40, 3)
    assert weights.sum(axis=0).tolist() == [IMAGES] * 40
    values = drawn_aps(result, weights)
    for index, drawn in enumerate(weights.T):
        explicit = replicate(gt, det, drawn)
        np.testing.assert_allclose(values[0, index], explicit.ap, rtol=0, atol=1e-12)
        if points == "numpy":
            np.testing.assert_allclose(values[1, index], explicit.ap07, rtol=0, atol=1e-12)


def test_a_class_whose_boxes_are_not_drawn_is_undefined_in_that_replicate():
    gt = (np.array([0, 1]), np.array([0, 1]), np.array([[1, 1, 9, 9]] * 2), np.array([0, 0]))
    det = (np.array([0, 1]), np.array([0, 1]), np.array([[1, 1, 9, 9]] * 2), np.array([0.9, 0.8]))
    result = evaluate_voc(*gt, *det, num_classes=2)
    values = drawn_aps(result, np.array([[2, 1], [0, 1]], np.uint8), 2)
    np.testing.assert_array_equal(values[0], [[1, np.nan], [1, 1]])


def test_what_is_said_of_the_replicates():
    gt, det = scene()
    result = evaluate(gt, det)
    bars = bootstrap(result, replicates=200, seed=5)
    maps = np.nanmean(drawn_aps(result, weights_of(200, 5))[0], axis=1)
    assert bars.map.value == result.map
    assert bars.map.bias == pytest.approx(maps.mean() - result.map, abs=1e-12)
    assert bars.map.stderr == pytest.approx(maps.std(), abs=1e-12)
    assert bars.map.low < result.map < bars.map.high
    assert np.isnan(bars.ap[3].value)
    assert bars.to_dict()["ap"][3]["low"] is None


def test_interval_of_a_class_that_every_replicate_finds_whole_is_that_of_a_proportion():
    """Wilson's of 5 in 5 with Student's t: all replicates are 1, the truth need not be."""
    boxes = np.tile([[1, 1, 9, 9]], (5, 1))
    result = evaluate_voc(range(5), [0] * 5, boxes, [0] * 5, range(5), [0] * 5, boxes, [0.9] * 5, 1)
    interval = bootstrap(result, replicates=50).ap[0]
    assert (interval.value, interval.high, interval.stderr) == (1, 1, 0)
    assert interval.low == pytest.approx(1 / (1 + student(0.95, 5) ** 2 / 5))


@pytest.mark.parametrize(("images", "t"), [(2, 12.7062), (3, 4.3027), (4, 3.1824), (11, 2.2281), (1001, 1.9623)])
def test_student_quantiles_are_those_of_tables(images, t):
    assert student(0.95, images) == pytest.approx(t * np.sqrt(images / (images - 1)), rel=0.006)


def test_level_widens_and_seed_repeats():
    result = evaluate(*scene())
    narrow, wide = bootstrap(result, replicates=100, level=0.5), bootstrap(result, replicates=100, level=0.99)
    assert wide.map.low < narrow.map.low < narrow.map.high < wide.map.high
    assert str(bootstrap(result, replicates=100)) == str(bootstrap(result, replicates=100))
    assert bootstrap(result, replicates=100, seed=1).map.low != bootstrap(result, replicates=100).map.low


def test_intervals_of_ap_stay_within_0_and_1():
    gt, det = scene()
    few = tuple(column[:5] for column in det)
    bars = bootstrap(evaluate(gt, few), replicates=200)
    assert bars.ap[0].low == 0 < bars.ap[0].value < bars.ap[0].high < 1


def test_blocks_do_not_change_the_figures(monkeypatch):
    first, second = evaluate(*scene()), evaluate(*scene(noise=0.3))
    whole = bootstrap(first, second, replicates=50)
    monkeypatch.setattr(resampling, "_columns", lambda detectors: 7)
    monkeypatch.setattr(resampling, "_GATHERED", 3)
    again = bootstrap(first, second, replicates=50)
    for one, other in zip((again.map, again.many07, *again.ap), (whole.map, whole.many07, *whole.ap)):
        assert list(vars(one).values()) == pytest.approx(list(vars(other).values()), abs=1e-12, nan_ok=True)


def test_paired_difference_is_taken_on_the_same_images():
    gt, det = scene()
    _, spoilt = scene(noise=0.3)
    first, second = evaluate(gt, det), evaluate(gt, spoilt)
    gain = bootstrap(first, second, replicates=100, seed=2)
    drawn = weights_of(100, 2).T
    explicit = [np.nanmean(replicate(gt, spoilt, w).ap - replicate(gt, det, w).ap) for w in drawn]
    assert isinstance(gain.map, Difference)
    assert gain.map.value == pytest.approx(second.map - first.map, abs=1e-12)
    assert gain.map.stderr == pytest.approx(np.std(explicit), abs=1e-12)
    assert gain.map.bias == pytest.approx(np.mean(explicit) - gain.map.value, abs=1e-12)
    wider = student(0.95, len(np.unique(gt[0][~gt[3]]))) / 1.959964
    low, high = gain.map.value + wider * (np.quantile(explicit, [0.025, 0.975]) - gain.map.value)
    boxes = first.npos[~np.isnan(first.ap)]
    box = np.sqrt((1 / boxes).sum() / boxes.sum()) / len(boxes)
    reach = wider * 1.959964 * np.hypot(np.std(explicit), box)
    bias = 3 * (np.mean(explicit) - gain.map.value)
    expected = min(low, gain.map.value - reach) - max(bias, 0), max(high, gain.map.value + reach) - min(bias, 0)
    assert (gain.map.low, gain.map.high) == pytest.approx(expected, abs=1e-6)
    back = bootstrap(second, first, replicates=100, seed=2)
    assert (back.map.low, back.map.high) == pytest.approx((-gain.map.high, -gain.map.low), abs=1e-12)


def test_an_exchange_is_the_evaluation_of_exchanged_results():
    """Detections are merged by rank, so both detectors' scores are made ranks first."""
    gt, det = scene()
    _, spoilt = scene(noise=0.3)
    results = [evaluate(gt, det), evaluate(gt, spoilt)]
    score = module.voc_score(module.RECALL_POINTS["numpy"])
    rankings = [module.voc_rankings(each, np.arange(IMAGES)) for each in results]
    (values,) = resampling.exchanges(*rankings, IMAGES, 25, 4, score, 2)
    random = np.random.default_rng(4)
    chosen = np.stack([random.integers(0, 2, IMAGES, np.uint8) for _ in range(25)])
    for index, first in enumerate(chosen.astype(bool)):
        aps = []
        for swapped in (False, True):
            parts = []
            for number, result in enumerate(results):
                matches = result.matches
                rank = np.concatenate(
                    [np.arange(matches.of_class(c).stop - matches.of_class(c).start) for c in range(4)]
                )
                keep = first[matches.det_image] == (number == swapped)
                turn = np.array([one._content() <= two._content() for one, two in zip(*rankings)])
                turn = (turn if number else ~turn)[
                    matches.det_class
                ]  # of equal ranks the second's come later, or first
                parts.append([each[keep] for each in (turn, rank, matches.det_true, matches.det_class)])
            turn, rank, true, label = map(np.concatenate, zip(*parts))
            order = np.lexsort((turn, rank, label))
            matches = replace(results[0].matches, det_true=true[order], det_class=label[order])
            aps.append(average_precisions(matches, module.RECALL_POINTS["numpy"]))
        np.testing.assert_allclose(values[0, :, index], np.subtract(aps[1], aps[0]), rtol=0, atol=1e-12)


def test_equal_and_clearly_unequal_detectors():
    gt, det = scene()
    same = bootstrap(evaluate(gt, det), evaluate(gt, det), replicates=50)
    assert (same.map.value, same.map.p) == (0, 1)
    for label, gain in enumerate(same.ap[:-1]):  # on other images one of them may find a box more
        counted = (gt[1] == label) & ~gt[3]
        reach = student(0.95, len(np.unique(gt[0][counted]))) / counted.sum()
        assert (gain.low, gain.high) == pytest.approx((-reach, reach))
    none = tuple(column[:0] for column in det)
    clear = bootstrap(evaluate(gt, none), evaluate(gt, det), replicates=1000)
    assert clear.map.p == pytest.approx(2 / 1001)
    assert str(clear.map).endswith("p < 0.002")
    assert clear.map.low > 0
    back = bootstrap(evaluate(gt, det), evaluate(gt, none), replicates=1000)
    assert back.map.p == clear.map.p


def test_another_scale_of_scores_is_no_difference():
    gt, det = scene()
    squared = (*det[:3], det[3] ** 3 / 7)
    gain = bootstrap(evaluate(gt, det), evaluate(gt, squared), replicates=50)
    assert (gain.map.value, gain.map.low, gain.map.p) == (0, -gain.map.high, 1)


def test_which_detector_comes_first_is_one_for_p():
    first, second = evaluate(*scene()), evaluate(*scene(noise=0.3))
    assert bootstrap(first, second, replicates=80).map.p == bootstrap(second, first, replicates=80).map.p


def test_one_false_hit_ranked_differently_is_no_finding():
    """8 boxes on 100 images: two detectors that differ in one image, most replicates of whose difference are 0."""
    boxes = np.tile([[1, 1, 50, 50]], (9, 1))
    boxes[8] += 200

    def with_false_hit(score):
        scores = [*np.linspace(0.9, 0.5, 8), score]
        return evaluate_voc(
            range(8), [0] * 8, boxes[:8], [0] * 8, [*range(8), 50], [0] * 9, boxes, scores, 1, images=np.arange(100)
        )

    for first, second in ((0.85, 0.6), (0.6, 0.85), (0.75, 0.7)):
        gain = bootstrap(with_false_hit(first), with_false_hit(second)).map
        assert abs(gain.value) > 0.01
        assert gain.low <= 0 <= gain.high
        assert gain.p > 0.2


def test_of_one_image_nothing_is_known():
    boxes = [[1, 1, 50, 50]]
    full = evaluate_voc([3], [0], boxes, [0], [3], [0], boxes, [0.5], 1, images=np.arange(9))
    none = evaluate_voc([3], [0], boxes, [0], [], [], [], [], 1, images=np.arange(9))
    gain = bootstrap(none, full).ap[0]
    assert (gain.value, gain.low, gain.high) == (1, -1, 1)
    assert gain.p > 0.9
    assert (bootstrap(full).ap[0].low, bootstrap(full).ap[0].high) == (0, 1)


def test_a_class_in_one_image_spreads_in_the_mean_as_the_others_do():
    """One of two classes is in one image: 1 / 40 of the variance is seen, of 1 / 40 + 1."""
    boxes = np.tile([[1, 1, 50, 50]], (41, 1))
    images, classes = np.array([*range(40), 0]), np.array([0] * 40 + [1])
    same = evaluate_voc(images, classes, boxes, [0] * 41, images, classes, boxes, np.linspace(1, 0.5, 41), 2)
    fewer = images % 8 != 1
    found = images[fewer], classes[fewer], boxes[fewer], np.linspace(1, 0.5, fewer.sum())
    some = evaluate_voc(images, classes, boxes, [0] * 41, *found, 2)
    gain, alone = bootstrap(some, same).map, bootstrap(some, same)
    assert [(each.low, each.high) for each in alone.ap[1:]] == [(-1, 1)]
    assert gain.low <= gain.value - student(0.95, 40) * gain.stderr * 41**0.5
    equal = bootstrap(same, same)
    assert equal.map.high < 0.2  # one box of 41, most in the class where it is worth a fortieth
    assert (equal.ap[1].low, equal.ap[1].high) == (-1, 1)


def test_at_eleven_recalls_one_box_may_be_worth_an_eleventh():
    boxes = np.tile([[1, 1, 50, 50]], (200, 1))
    images = np.arange(200)
    same = evaluate_voc(images, [0] * 200, boxes, [0] * 200, images, [0] * 200, boxes, np.linspace(1, 0.5, 200), 1)
    gain = bootstrap(same, same)
    deviations = student(0.95, 200)
    assert gain.map.high == pytest.approx(deviations / 200)
    assert gain.map07.high == pytest.approx(deviations / (11 * 200) ** 0.5)


def test_a_difference_that_all_replicates_agree_on_is_not_certain():
    boxes = np.tile([[1, 1, 50, 50]], (4, 1))
    full = evaluate_voc(range(4), [0] * 4, boxes, [0] * 4, range(4), [0] * 4, boxes, [0.5] * 4, 1)
    none = evaluate_voc(range(4), [0] * 4, boxes, [0] * 4, [], [], [], [], 1, images=range(4))
    gain, loss = bootstrap(none, full).ap[0], bootstrap(full, none).ap[0]
    assert (gain.value, gain.stderr, gain.high) == (1, 0, 1)
    assert 0 < gain.low < 0.5
    assert (loss.low, loss.high) == (-gain.high, -gain.low)


def test_classes_with_few_boxes_are_left_out_of_the_second_mean():
    first, second = evaluate(*scene()), evaluate(*scene(noise=0.3))
    least = int(np.sort(first.npos)[-1])
    gain = bootstrap(first, second, replicates=40, min_boxes=least)
    chosen = first.npos >= least
    assert gain.many.value == pytest.approx((second.ap - first.ap)[chosen].mean())
    assert gain.many07.value == pytest.approx((second.ap07 - first.ap07)[chosen].mean())
    assert gain.to_dict()["map_min_boxes"]["value"] == gain.many.value
    assert bootstrap(first, replicates=40, min_boxes=least).many.value == pytest.approx(first.ap[chosen].mean())
    assert np.isnan(bootstrap(first, replicates=40, min_boxes=10_000).many.value)


def test_holm_steps_down():
    assert holm([0.04, 0.01, float("nan"), 0.03]) == pytest.approx((0.06, 0.03, float("nan"), 0.06), nan_ok=True)
    gain = bootstrap(evaluate(*scene()), evaluate(*scene(noise=2.0)), replicates=100)
    assert gain.holm == pytest.approx(holm([each.p for each in gain.ap]), nan_ok=True)
    assert gain.to_dict()["ap"][0]["p_holm"] == gain.holm[0]
    assert "p_holm" not in bootstrap(evaluate(*scene()), replicates=10).to_dict()["ap"][0]


def test_a_p_value_below_the_resolution_is_not_given_as_a_number():
    assert (p_text(2 / 1001, 2 / 1001), p_text(0.0341, 2 / 1001)) == ("< 0.002", "= 0.0341")
    assert (p_text(2 / 151, 2 / 151), p_text(2 / 801, 2 / 801), p_text(0.002, 0.002)) == (
        "< 0.02",
        "< 0.003",
        "< 0.002",
    )


def test_images_seen_by_one_detector_only_are_drawn_for_both():
    gt, det = scene()
    few = tuple(column[det[0] < 3] for column in det)
    kept = gt[0] < 3  # without images=, the ids that occur differ between the two
    truth = tuple(column[kept] for column in gt)
    first = evaluate_voc(*truth, *few, num_classes=CLASSES)
    second = evaluate_voc(*truth, *det, num_classes=CLASSES)
    gain = bootstrap(first, second, replicates=20)
    assert gain.images == len(np.unique(det[0]))
    assert gain.map.value == pytest.approx(second.map - first.map)


@pytest.mark.parametrize(("options", "says"), [({"replicates": 1}, "replicates=1"), ({"level": 1.0}, "level=1.0")])
def test_settings_out_of_range(options, says):
    with pytest.raises(UserError, match=says):
        bootstrap(evaluate(*scene()), **options)


def test_refuses_what_is_not_paired():
    gt, det = scene()
    other_gt, other_det = scene(seed=9)
    first = evaluate(gt, det)
    with pytest.raises(UserError, match="not of the same images and ground truth"):
        bootstrap(first, evaluate(other_gt, other_det))
    with pytest.raises(UserError, match="recall points"):
        bootstrap(first, evaluate(gt, det, recall_points="matlab"))
    with pytest.raises(UserError, match="1 images"):
        bootstrap(evaluate_voc([0], [0], [[1, 1, 2, 2]], [0], [], [], [], [], num_classes=1))
