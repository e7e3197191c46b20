import contextlib
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from builders import comp4
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_os.errors import UserError
from yolo_os.evaluation import coco
from yolo_os.evaluation.coco import COCO_NAMES, coco_bootstrap, coco_numbers, coco_result, error_types
from yolo_os.evaluation.resampling import draws
from yolo_os.voc import evaluate_detections, read_detections


def scene(seed=0, images=12, classes=3, boxes=40, found=120, crowds=0.1, grid=False):
    """Ground truth and detections in continuous pixels, as `coco` looks at them; on a grid IoUs are often equal."""
    random = np.random.default_rng(seed)

    def rounded(values):
        return np.round(values / 4) * 4 if grid else values

    start = random.uniform(0, 100, (boxes, 2))
    box = rounded(np.concatenate([start, start + np.exp(random.uniform(1.5, 5, (boxes, 2)))], axis=1))
    box[:, 2:] = np.maximum(box[:, 2:], box[:, :2] + 1)
    source = random.integers(0, max(1, boxes), found) if boxes else np.zeros(found, int)
    base = box[source] if boxes else random.uniform(0, 50, (found, 4))
    size = np.tile(base[:, 2:] - base[:, :2], 2)
    near = rounded(base + size * random.normal(0, 0.12, (found, 4)))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    image, label = random.integers(0, images, boxes), random.integers(0, classes, boxes)
    truth = SimpleNamespace(
        images=tuple(map(str, range(images))),
        classes=tuple(f"c{index}" for index in range(classes)),
        image=image,
        class_index=label,
        box=box,
        difficult=np.zeros(boxes, dtype=bool),
        crowd=random.random(boxes) < crowds,
        area=(box[:, 2:] - box[:, :2]).prod(axis=1) * random.choice([1.0, 0.6], boxes),  # a mask's is smaller
    )
    right = random.random(found) < 0.85
    detections = SimpleNamespace(
        image=image[source] if boxes else random.integers(0, images, found),
        class_index=np.where(right, label[source] if boxes else 0, random.integers(0, classes, found)),
        box=near,
        score=random.random(found).round(1 if grid else 4),
    )
    return truth, detections


def by_pycocotools(truth, found, area="all"):
    """The twelve numbers, and AP, AP50 and AP75 of each class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = coco.coco_evaluation(truth, found, 0.0, COCO, COCOeval)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, list(coco.AREAS).index(area), -1]
    precision = np.where(precision < 0, np.nan, precision).mean(axis=1)
    numbers = dict(zip(COCO_NAMES, np.where(evaluation.stats < 0, np.nan, evaluation.stats)))
    return numbers, np.stack([precision.mean(axis=0), precision[0], precision[5]])


def same(truth, found):
    numbers, classes = by_pycocotools(truth, found)
    assert list(coco_numbers(truth, found, 0.0).values()) == pytest.approx(
        list(numbers.values()), abs=1e-9, nan_ok=True
    )
    for area, title in (("all", "AP"), ("small", "AP small"), ("medium", "AP medium"), ("large", "AP large")):
        result = coco_result(truth, found, 0.0, area)
        if area != "all":
            classes = by_pycocotools(truth, found, area)[1]
        np.testing.assert_allclose(result.ap, classes, rtol=0, atol=1e-9)
        assert result.means["AP"] == pytest.approx(numbers[title], abs=1e-9, nan_ok=True)
    assert coco_result(truth, found, 0.0).means["AP75"] == pytest.approx(numbers["AP75"], abs=1e-9, nan_ok=True)


@given(
    st.builds(
        scene,
        seed=st.integers(0, 10_000),
        images=st.integers(1, 6),
        classes=st.integers(1, 3),
        boxes=st.integers(1, 60),
        found=st.integers(1, 150),
        crowds=st.sampled_from([0.0, 0.2, 0.9]),
        grid=st.booleans(),
    )
)
@settings(max_examples=40, deadline=None)
def test_figures_are_those_of_pycocotools(made):
    same(*made)


def test_figures_are_those_of_pycocotools_where_more_than_a_hundred_detections_meet():
    same(*scene(images=2, classes=2, boxes=60, found=900, grid=True))


def test_figures_are_those_of_pycocotools_for_the_digits(digits):
    from yolo_os.voc import read_devkit

    truth = read_devkit(digits, split="test")
    random = np.random.default_rng(0)
    source = random.integers(0, len(truth.box), 3000)
    found = SimpleNamespace(
        image=truth.image[source],
        class_index=np.where(random.random(3000) < 0.8, truth.class_index[source], 0),
        box=truth.box[source] + random.normal(0, 2, (3000, 4)),
        score=random.random(3000).astype(np.float32).astype(np.float64),
    )
    found.box[:, 2:] = np.maximum(found.box[:, 2:], found.box[:, :2] + 1)
    same(truth, found)


def test_pycocotools_stands_in_where_hotcoco_is_missing(monkeypatch):
    truth, found = scene()
    expected = coco_numbers(truth, found, 0.0)
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert coco_numbers(truth, found, 0.0) == pytest.approx(expected, abs=1e-12)
    assert error_types(truth, found, 0.0) is None


def test_a_replicate_is_the_evaluation_of_the_drawn_images():
    truth, found = scene(seed=3, crowds=0.2)
    result = coco_result(truth, found, 0.0)
    weights = np.concatenate(list(draws(12, 5, 1)(5)), axis=1)
    scores = np.stack([each.figures(weights, coco.coco_score, 1) for each in result.rankings], axis=-1)
    values = coco._combine(scores)
    for index, drawn in enumerate(weights.T):
        again = coco_result(*copied(truth, found, drawn), 0.0)
        np.testing.assert_allclose(values[:, index], again.ap, rtol=0, atol=1e-12)


def copied(truth, found, counts):
    """The scene with image i standing there counts[i] times, copies side by side."""
    starts = np.cumsum(counts) - counts

    def rows(image):
        row = np.repeat(np.arange(len(image)), counts[image])
        which = np.concatenate([np.arange(counts[each]) for each in image]).astype(int)
        return row, (starts[image[row]] + which).astype(int)

    def chosen(columns, names):
        row, image = rows(columns.image)
        return SimpleNamespace(**{name: getattr(columns, name)[row] for name in names}, image=image)

    new = chosen(truth, ("class_index", "box", "difficult", "crowd", "area"))
    new.images, new.classes = tuple(map(str, range(int(counts.sum())))), truth.classes
    return new, chosen(found, ("class_index", "box", "score"))


def test_intervals_of_one_detector_and_of_a_gain():
    truth, found = scene(boxes=80, found=200)
    _, other = scene(boxes=80, found=200)
    other.score = found.score + np.random.default_rng(5).normal(0, 0.4, 200)
    first, second = coco_result(truth, found, 0.0), coco_result(truth, other, 0.0)
    alone, gain = coco_bootstrap(first, replicates=60), coco_bootstrap(first, second, replicates=60)
    for row, name in enumerate(("AP", "AP50", "AP75")):
        assert alone[name].mean.value == first.means[name]
        assert alone[name].mean.low < first.means[name] < alone[name].mean.high
        assert gain[name].mean.value == pytest.approx(second.means[name] - first.means[name], abs=1e-12)
        values = [each.value for each in gain[name].classes]
        np.testing.assert_allclose(values, second.ap[row] - first.ap[row], atol=1e-12)
        assert gain[name].mean.low < gain[name].mean.value < gain[name].mean.high
    equal = coco_bootstrap(first, first, replicates=20)["AP"].mean
    assert equal.low == -equal.high < equal.value == 0
    assert equal.p == 1
    with pytest.raises(UserError, match="not of the same images"):
        coco_bootstrap(first, coco_result(*scene(seed=1), 0.0))
    with pytest.raises(UserError, match="area=tiny"):
        coco_result(truth, found, 0.0, "tiny")


def test_no_detection_is_a_clear_zero():
    truth, found = scene()
    none = SimpleNamespace(**{name: getattr(found, name)[:0] for name in ("image", "class_index", "box", "score")})
    assert coco_numbers(truth, none, 0.0)["AP"] == 0
    result = coco_result(truth, none, 0.0)
    assert result.means == {"AP": 0, "AP50": 0, "AP75": 0}
    assert coco_bootstrap(result, coco_result(truth, found, 0.0), replicates=20)["AP"].mean.value > 0
    assert error_types(truth, none, 0.0) is None


def test_kinds_of_errors():
    """A hit, a second one of the same box, one beside it, a wrong class, and one of nothing; and a box missed."""
    box = np.array([[0, 0, 40, 40], [100, 100, 140, 140.0], [200, 0, 240, 40]])
    truth = SimpleNamespace(
        images=("a",), classes=("x", "y"), image=np.zeros(3, int), class_index=np.array([0, 0, 1]), box=box,
        difficult=np.zeros(3, bool), crowd=np.zeros(3, bool), area=np.full(3, 1600.0),
    )  # fmt: skip
    boxes = np.array([box[0], box[0] + 1, [20, 0, 60, 40], box[2], [300, 300, 340, 340.0]])
    found = SimpleNamespace(
        image=np.zeros(5, int), class_index=np.zeros(5, int), box=boxes, score=np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    )
    kinds = error_types(truth, found, 0.0)
    counts = {name: kind["count"] for name, kind in kinds.items()}
    assert counts == {"localisation": 1, "class": 1, "both": 0, "duplicate": 1, "background": 1, "missed": 1}
    assert kinds["missed"]["AP50"] > 0


def test_coco_numbers_leave_difficult_objects_out(truth, tmp_path):
    folder = comp4(
        tmp_path / "d",
        comp4_det_test_cat=["000007 0.9 10 20 30 40"],
        comp4_det_test_dog=["000012 0.8 1 1 100 80", "000007 0.9 50 50 60 60"],
    )
    found = read_detections(folder, truth)
    numbers = coco_numbers(truth, found)
    # the hit on the difficult dog stands before the true one: precision 1/2 for dog, 1 for cat
    assert numbers["AP50"] == pytest.approx(0.75, abs=1e-6)
    assert numbers["AP"] == pytest.approx(0.75, abs=1e-6)
    assert np.isnan(numbers["AP large"])
    assert evaluate_detections(truth, found).map == 1.0
