import math
import tarfile
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voc_oracle import THRESHOLDS, loop_voc

from yolo_os.errors import UserError
from yolo_os.evaluation.voc import RECALL_POINTS
from yolo_os.voc import evaluate_detections, evaluate_voc, read_detections, read_devkit


def evaluate(gt, det, num_classes=1, **options):
    """`evaluate_voc` of lists of (image, class, box, difficult) and (image, class, box, score)."""
    gt_columns = [list(column) for column in zip(*gt)] or [[], [], [], []]
    det_columns = [list(column) for column in zip(*det)] or [[], [], [], []]
    return evaluate_voc(*gt_columns, *det_columns, num_classes=num_classes, **options)


def assert_as_oracle(gt, det, num_classes, threshold=0.5, offset=1.0, points="numpy"):
    result = evaluate(gt, det, num_classes, iou_threshold=threshold, pixel_offset=offset, recall_points=points)
    ap, ap07, npos = loop_voc(gt, det, num_classes, threshold, offset, points)
    np.testing.assert_allclose(result.ap, ap, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.ap07, ap07, rtol=0, atol=1e-9)
    assert result.npos.tolist() == npos
    return result


# Few places for boxes, few scores: ties, duplicates, identical boxes and an IoU of exactly the threshold are common.
corner = st.integers(1, 5)
box = st.tuples(corner, corner, st.integers(0, 4), st.integers(0, 4)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
image, label = st.integers(0, 2), st.integers(0, 2)
truth = st.lists(st.tuples(image, label, box, st.booleans()), max_size=14)
found = st.lists(st.tuples(image, label, box, st.sampled_from([0.1, 0.2, 0.3, 0.4, 1 / 3])), max_size=24)


@settings(max_examples=400, deadline=None)
@given(
    truth,
    found,
    st.sampled_from([0.5, 0.3, 0.75, 1.0, 1e-9]),
    st.sampled_from([1.0, 0.0, 0.5]),
    st.sampled_from(["numpy", "matlab"]),
)
def test_agrees_with_the_loops_where_ties_are_common(gt, det, threshold, offset, points):
    assert_as_oracle(gt, det, 3, threshold, offset, points)


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_the_loops_on_random_crowds(seed):
    random = np.random.default_rng(seed)

    def boxes(count):
        start = random.uniform(1, 60, (count, 2))
        return np.concatenate([start, start + random.uniform(0, 40, (count, 2))], axis=1)

    m, k = int(random.integers(1, 120)), int(random.integers(1, 400))
    truth_boxes = boxes(m)
    near = truth_boxes[random.integers(0, m, k)] + random.normal(0, 4, (k, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
    gt = list(zip(random.integers(0, 4, m), random.integers(0, 3, m), truth_boxes.tolist(), random.random(m) < 0.3))
    det = list(zip(random.integers(0, 5, k), random.integers(0, 3, k), near.tolist(), random.random(k).round(1)))
    assert_as_oracle(gt, det, 3)


A, B, FAR = (1, 1, 10, 10), (30, 30, 39, 39), (70, 70, 79, 79)


def test_perfect_detection():
    result = evaluate([("a", 0, A, 0), ("b", 0, B, 0)], [("a", 0, A, 0.9), ("b", 0, B, 0.8)])
    assert (result.map, result.map07, result.npos.tolist()) == (1.0, 1.0, [2])


def test_half_found_behind_a_false_one():
    # precision 0, 1/2 at recall 0, 1/2: area 1/2 * 1/2; six of the eleven recalls (0 to 0.5) have 1/2
    result = evaluate([(0, 0, A, 0), (0, 0, B, 0)], [(0, 0, FAR, 0.9), (0, 0, A, 0.8)])
    assert result.ap[0] == 0.25
    assert result.ap07[0] == pytest.approx(6 * 0.5 / 11, abs=1e-15)


def test_a_second_hit_is_false_even_where_another_box_is_free():
    # both detections overlap best with the first box; the second box stays unfound though it overlaps enough
    near_both = (1, 1, 10, 12)
    gt = [(0, 0, (1, 1, 10, 10), 0), (0, 0, (1, 3, 10, 14), 0)]
    det = [(0, 0, (1, 1, 10, 10), 0.9), (0, 0, (1, 1, 10, 11), 0.8), (0, 0, near_both, 0.7)]
    result = assert_as_oracle(gt, det, 1)
    assert result.matches.det_true.tolist() == [True, False, False]


def test_hits_on_a_difficult_box_count_neither_way():
    gt = [(0, 0, A, 1), (0, 0, B, 0)]
    det = [(0, 0, A, 0.9), (0, 0, A, 0.8), (0, 0, B, 0.7)]
    result = assert_as_oracle(gt, det, 1)
    assert result.ap[0] == 1.0
    assert len(result.matches.det_true) == 1


def test_difficult_box_that_overlaps_more_shields():
    gt = [(0, 0, (1, 1, 10, 10), 0), (0, 0, (1, 1, 10, 12), 1)]
    result = assert_as_oracle(gt, [(0, 0, (1, 1, 10, 12), 0.9)], 1)
    assert result.ap[0] == 0.0
    assert result.npos.tolist() == [1]


def test_first_of_two_equal_overlaps_is_taken():
    gt = [(0, 0, A, 1), (0, 0, A, 0)]
    assert assert_as_oracle(gt, [(0, 0, A, 0.9)], 1).ap[0] == 0.0
    assert assert_as_oracle(gt[::-1], [(0, 0, A, 0.9)], 1).ap[0] == 1.0


def test_equal_scores_keep_the_order_given():
    gt = [(0, 0, A, 0)]
    hit, miss = (0, 0, A, 0.5), (0, 0, FAR, 0.5)
    assert evaluate(gt, [hit, miss]).ap[0] == 1.0
    assert evaluate(gt, [miss, hit]).ap[0] == 0.5


def test_iou_of_exactly_the_threshold_matches():
    gt, det = [(0, 0, (1, 1, 10, 10), 0)], [(0, 0, (1, 1, 10, 5), 0.9)]  # 50 of 100 pixels
    assert assert_as_oracle(gt, det, 1).ap[0] == 1.0
    assert assert_as_oracle(gt, det, 1, threshold=np.nextafter(0.5, 1)).ap[0] == 0.0


def test_pixel_offset_decides_one_pixel_boxes():
    gt, det = [(0, 0, (3, 3, 3, 3), 0)], [(0, 0, (3, 3, 3, 3), 0.9)]
    assert assert_as_oracle(gt, det, 1).ap[0] == 1.0
    assert assert_as_oracle(gt, det, 1, offset=0.0).ap[0] == 0.0  # no area, no overlap
    # 2 x 1 pixels against 1: IoU 1/2 inclusive
    assert evaluate(gt, [(0, 0, (3, 3, 4, 3), 0.9)]).ap[0] == 1.0


@pytest.mark.parametrize("points", ["numpy", "matlab"])
@pytest.mark.parametrize("hits", range(11))
def test_recall_of_exactly_tenths(hits, points):
    gt = [(i, 0, A, 0) for i in range(10)]
    det = [(i, 0, A, 0.9) for i in range(hits)] + [(i, 0, FAR, 0.5) for i in range(3)]
    result = assert_as_oracle(gt, det, 1, points=points)
    reached = sum(hits / 10 >= point for point in THRESHOLDS[points])
    assert result.ap07[0] == pytest.approx(reached / 11 if hits else 0.0, abs=1e-15)


def test_recall_points_differ_at_six_and_seven_tenths_only():
    assert RECALL_POINTS["numpy"].tolist() == THRESHOLDS["numpy"]
    assert RECALL_POINTS["matlab"].tolist() == THRESHOLDS["matlab"]
    assert np.flatnonzero(RECALL_POINTS["numpy"] != RECALL_POINTS["matlab"]).tolist() == [6, 7]


def test_a_class_without_boxes_is_undefined_and_left_out_of_the_mean():
    result = evaluate([(0, 0, A, 0), (0, 1, A, 1)], [(0, 0, A, 0.9), (0, 1, A, 0.9), (0, 2, A, 0.9)], 3)
    np.testing.assert_array_equal(result.ap, [1.0, math.nan, math.nan])
    assert result.map == result.map07 == 1.0
    assert result.npos.tolist() == [1, 0, 0]


def test_nothing_at_all():
    nothing = evaluate([], [], 2)
    assert math.isnan(nothing.map)
    assert evaluate([(0, 0, A, 0)], [], 1).ap.tolist() == [0.0]
    assert np.isnan(evaluate([], [(0, 0, A, 0.5)], 1).ap).all()


def test_images_as_text_or_as_numbers_far_apart_give_the_same():
    gt = [(0, 0, A, 0), (1, 0, B, 0), (2, 0, A, 0)]
    det = [(2, 0, A, 0.9), (0, 0, FAR, 0.8), (1, 0, B, 0.7), (3, 0, A, 0.6)]
    plain = evaluate(gt, det)
    names = [
        lambda i: f"{i:06d}",
        lambda i: "x" * i,
        lambda i: f"{i} \u00e9 " + "".join(map(chr, range(50 + i, 90 + i))),
    ]
    for rename in [*names, lambda i: f"{i}".encode(), lambda i: -(10**15) * (i - 1)]:
        other = evaluate([(rename(i), *rest) for i, *rest in gt], [(rename(i), *rest) for i, *rest in det])
        assert (other.map, other.map07) == (plain.map, plain.map07)
        assert other.matches.image_ids.tolist() == sorted(rename(i) for i in range(4))


def test_curves_are_those_of_the_detections_that_count():
    gt = [(0, 0, A, 0), (1, 0, B, 1), (2, 0, A, 0)]
    det = [(2, 0, A, 0.3), (0, 0, A, 0.9), (1, 0, B, 0.8), (0, 0, FAR, 0.5)]
    curve = evaluate(gt, det).curve(0)
    assert curve.score.tolist() == [0.9, 0.5, 0.3]
    assert curve.recall.tolist() == [0.5, 0.5, 1.0]
    assert curve.precision.tolist() == [1.0, 0.5, 2 / 3]


def test_result_as_table_dict_and_picture(tmp_path):
    result = evaluate([(0, 0, A, 0), (0, 1, B, 0)], [(0, 0, A, 0.9)], 3, classes=("cat", "a long name", "none"))
    assert result.to_dict() == {
        "map": 0.5,
        "map07": 0.5,
        "classes": {
            "cat": {"ap": 1.0, "ap07": 1.0, "npos": 1},
            "a long name": {"ap": 0.0, "ap07": 0.0, "npos": 1},
            "none": {"ap": None, "ap07": None, "npos": 0},
        },
    }
    rows = [line.split() for line in str(result).splitlines()]
    assert rows[1] == ["cat", "1.0000", "1.0000", "1"]
    assert rows[3] == ["none", "-", "-", "0"]
    assert rows[-1] == ["mean", "0.5000", "0.5000", "2"]
    assert result.plot(tmp_path / "pr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gt_box": [[1, 1, 5]]}, "gt_box has shape"),
        ({"det_score": [0.5, 0.4]}, "det_score has shape"),
        ({"gt_difficult": [0, 0]}, "gt_difficult has shape"),
        ({"det_score": [math.nan]}, r"det_score\[0\] is nan"),
        ({"det_box": [[1, 1, math.inf, 5]]}, r"det_box\[0\]"),
        ({"gt_class": [2]}, r"gt_class\[0\] is 2; classes run from 0 to 1"),
        ({"det_class": [-1]}, r"det_class\[0\] is -1"),
        ({"det_class": [0.5]}, r"det_class\[0\] is 0.5"),
        ({"det_class": ["cat"]}, "det_class must hold class indices"),
        ({"det_image": ["0"]}, "image ids of two kinds"),
        ({"det_image": [0.5]}, "det_image: image ids must be"),
        ({"images": [1, 2]}, r"gt_image\[0\] is 0, which is not among the images"),
        ({"images": [0], "det_image": [7]}, r"det_image\[0\] is 7"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"iou_threshold": 0.0}, "iou_threshold=0.0"),
        ({"iou_threshold": 1.5}, "iou_threshold=1.5"),
        ({"recall_points": "octave"}, "recall_points=octave"),
        ({"classes": ("one",)}, "num_classes=2"),
    ],
)
def test_bad_input_is_named(change, says):
    good = {
        "gt_image": [0],
        "gt_class": [0],
        "gt_box": [A],
        "gt_difficult": [0],
        "det_image": [0],
        "det_class": [1],
        "det_box": [A],
        "det_score": [0.5],
        "num_classes": 2,
    }
    evaluate_voc(**good)
    with pytest.raises(UserError, match=says):
        evaluate_voc(**{**good, **change})


def test_reproduces_the_recorded_aps_of_a_real_detector(shared, tmp_path):
    detections = shared / "data" / "detections"
    with tarfile.open(shared / "data" / "voc2007-all-annotations.tar.gz") as tar:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and later
        tar.extractall(tmp_path, **safely)
    annotations = read_devkit(tmp_path, split="test")
    assert len(annotations.images) == 4952
    result = evaluate_detections(annotations, read_detections(detections / "yolov2_voc2007_test", annotations))
    ap07 = dict(zip(annotations.classes, result.ap07))
    lines = (detections / "recorded_voc07_ap.txt").read_text().split("\n")
    recorded = {line.split()[0]: float(line.split()[1]) for line in lines if "npts" in line}
    del recorded["person"]  # whose detections are not there
    assert len(recorded) == 19
    assert {name: ap07[name] for name in recorded} == pytest.approx(recorded, abs=1e-4)


def test_a_curve_by_the_name_of_its_class():
    gt = ([0, 1], [0, 1], [[1, 1, 9, 9]] * 2, [0, 0])
    result = evaluate_voc(*gt, [1], [1], [[1, 1, 9, 9]], [0.5], num_classes=2, classes=("cat", "dog"))
    np.testing.assert_array_equal(result.curve("dog").recall, result.curve(1).recall)
    assert result.curve(-1).recall.tolist() == [1]
    with pytest.raises(UserError, match="no class is called 'bird': the classes are cat, dog"):
        result.curve("bird")
    with pytest.raises(UserError, match="there is no class 2: classes run from 0 to 1"):
        result.curve(2)
    assert result.unfound == ("cat",)
    assert result.few(2) == ("cat", "dog")


def test_arrays_counted_from_0_under_the_1_based_default_are_noticed():
    def evaluate_from(start, det_start, **options):
        gt, det = (np.array([[at, 4, 20, 20]] * 6, float) for at in (start, det_start))
        return evaluate_voc(range(6), [0] * 6, gt, [0] * 6, range(6), [0] * 6, det, [0.5] * 6, num_classes=1, **options)

    with pytest.warns(UserWarning, match="det_box looks counted from 0: 6 boxes start at exactly 0"):
        evaluate_from(1, 0)
    with pytest.warns(UserWarning, match="gt_box looks counted from 0"):
        evaluate_from(0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_from(0, 0, pixel_offset=0)
        evaluate_from(1, 1)
