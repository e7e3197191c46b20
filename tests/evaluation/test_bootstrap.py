import importlib

import numpy as np
import pytest

from yolo_os.errors import UserError
from yolo_os.voc import Difference, bootstrap, evaluate_voc

module = importlib.import_module("yolo_os.evaluation.bootstrap")  # the package has its function under that name
IMAGES, CLASSES = 30, 4


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
    detector = module._Detector(result, np.arange(IMAGES))
    weights = next(module._draws(IMAGES, 40, 40, seed=3))
    assert weights.sum(axis=1).tolist() == [IMAGES] * 40
    values = detector.average_precisions(weights)
    for index, drawn in enumerate(weights):
        explicit = replicate(gt, det, drawn)
        np.testing.assert_allclose(values[0, index], explicit.ap, rtol=0, atol=1e-12)
        if points == "numpy":
            np.testing.assert_allclose(values[1, index], explicit.ap07, rtol=0, atol=1e-12)


def test_a_class_whose_boxes_are_not_drawn_is_undefined_in_that_replicate():
    gt = (np.array([0, 1]), np.array([0, 1]), np.array([[1, 1, 9, 9]] * 2), np.array([0, 0]))
    det = (np.array([0, 1]), np.array([0, 1]), np.array([[1, 1, 9, 9]] * 2), np.array([0.9, 0.8]))
    result = evaluate_voc(*gt, *det, num_classes=2)
    values = module._Detector(result, np.arange(2)).average_precisions(np.array([[2, 0], [1, 1]], np.uint8))
    np.testing.assert_array_equal(values[0], [[1, np.nan], [1, 1]])


def test_interval_is_of_the_replicates_without_their_bias():
    gt, det = scene()
    result = evaluate(gt, det)
    bars = bootstrap(result, replicates=200, seed=5)
    detector = module._Detector(result, np.arange(IMAGES))
    weights = np.concatenate(list(module._draws(IMAGES, 200, 64, seed=5)))
    maps = np.nanmean(detector.average_precisions(weights)[0], axis=1)
    assert bars.map.value == result.map
    assert bars.map.bias == pytest.approx(maps.mean() - result.map, abs=1e-12)
    assert bars.map.stderr == pytest.approx(maps.std(), abs=1e-12)
    low, high = np.quantile(maps, [0.025, 0.975]) - bars.map.bias
    assert (bars.map.low, bars.map.high) == pytest.approx((low, high), abs=1e-12)
    assert bars.map.low < result.map < bars.map.high
    assert np.isnan(bars.ap[3].value)
    assert bars.to_dict()["ap"][3]["low"] is None


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
    detector = module._Detector(evaluate(gt, few), np.arange(IMAGES))
    raw = detector.average_precisions(np.concatenate(list(module._draws(IMAGES, 200, 200, seed=0))))[0, :, 0]
    assert np.quantile(raw, 0.025) - bars.ap[0].bias < 0
    assert bars.ap[0].low == 0


def test_blocks_do_not_change_the_figures(monkeypatch):
    first, second = evaluate(*scene()), evaluate(*scene(noise=0.3))
    whole = bootstrap(first, second, replicates=50).to_dict()
    monkeypatch.setattr(module, "_BLOCK", 7 * 240)
    assert bootstrap(first, second, replicates=50).to_dict() == whole


def test_paired_difference_is_taken_on_the_same_images():
    gt, det = scene()
    _, spoilt = scene(noise=0.3)
    first, second = evaluate(gt, det), evaluate(gt, spoilt)
    gain = bootstrap(first, second, replicates=100, seed=2)
    weights = np.concatenate(list(module._draws(IMAGES, 100, 100, seed=2)))
    explicit = [np.nanmean(replicate(gt, spoilt, w).ap - replicate(gt, det, w).ap) for w in weights]
    assert isinstance(gain.map, Difference)
    assert gain.map.value == pytest.approx(second.map - first.map, abs=1e-12)
    assert gain.map.stderr == pytest.approx(np.std(explicit), abs=1e-12)
    assert gain.map.bias == pytest.approx(np.mean(explicit) - gain.map.value, abs=1e-12)
    back = bootstrap(second, first, replicates=100, seed=2)
    assert (back.map.low, back.map.high) == pytest.approx((-gain.map.high, -gain.map.low), abs=1e-12)
    assert back.map.p == gain.map.p


def test_p_value_counts_the_replicates_on_the_rarer_side():
    gt, det = scene()
    same = bootstrap(evaluate(gt, det), evaluate(gt, det), replicates=50)
    assert (same.map.value, same.map.low, same.map.high, same.map.p) == (0, 0, 0, 1)
    none = tuple(column[:0] for column in det)
    clear = bootstrap(evaluate(gt, none), evaluate(gt, det), replicates=50)
    assert clear.map.p == pytest.approx(2 / 51)
    assert clear.map.low > 0


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
