from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from yolo_os.errors import UserError
from yolo_os.voc import as_annotations, as_detections, bootstrap, evaluate_detections

CLASSES = ("cat", "dog")
# x1, y1, x2, y2, class in continuous pixels
TRUTH = {"a": [[10, 20, 30, 40, 0], [50, 50, 60, 60, 1]], "b": [[0, 0, 100, 80, 1]], "c": []}
FOUND = {name: [[*row[:4], 0.9, row[4]] for row in rows] for name, rows in TRUTH.items()}


@pytest.fixture
def truth():
    return as_annotations({name: np.array(rows) for name, rows in TRUTH.items()}, CLASSES)


def columns(rows):
    array = np.array(rows, float).reshape(-1, 6)
    return array[:, :4], array[:, 4], array[:, 5].astype(int)


def dictionary(rows):
    return dict(zip(("boxes", "scores", "labels"), columns(rows)))


def tensors(rows):
    import torch

    return {name: torch.from_numpy(value) for name, value in dictionary(rows).items()}


def of_supervision(rows):
    boxes, scores, labels = columns(rows)
    return SimpleNamespace(xyxy=boxes.astype(np.float32), confidence=scores, class_id=labels, mask=None, data={})


def of_ultralytics(rows):
    boxes, scores, labels = columns(rows)
    return SimpleNamespace(boxes=SimpleNamespace(xyxy=boxes, conf=scores, cls=labels))


FORMS = (np.array, dictionary, tensors, of_supervision, of_ultralytics, lambda rows: rows)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_program_holds_is_evaluated(truth, form):
    for found in ({name: form(rows) for name, rows in FOUND.items()}, [form(rows) for rows in FOUND.values()]):
        detections = as_detections(found, truth)
        result = evaluate_detections(truth, detections)
        assert result.ap.tolist() == [1.0, 1.0]
        assert result.npos.tolist() == [1, 2]
        assert detections.box[2].tolist() == [1, 1, 100, 80]
    assert bootstrap(result, result, replicates=50).map.value == 0.0


@pytest.mark.parametrize(("kind", "box"), [("xywh", [0, 0, 100, 80]), ("cxcywh", [50, 40, 100, 80])])
def test_boxes_in_other_forms(kind, box):
    truth = as_annotations([{"boxes": [box], "labels": [0]}], ("cat",), box_format=kind)
    assert truth.box.tolist() == [[1, 1, 100, 80]]
    assert truth.images == ("0",)
    found = as_detections([[[*box, 0.5, 0]]], truth, box_format=kind)
    assert str(found) == "1 detection on 1 of 1 image"
    assert evaluate_detections(truth, found).map == 1.0
    with pytest.raises(UserError, match="box_format=yxyx: use one of"):
        as_detections([[[*box, 0.5, 0]]], truth, box_format="yxyx")


def test_what_else_is_said_of_objects_counts():
    boxes = [[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]]
    given = {"boxes": boxes, "labels": [0, 0, 0], "iscrowd": [0, 1, 0], "difficult": [0, 0, 1], "area": [1, 2, 3]}
    truth = as_annotations({"a": given}, ("cat",), sizes={"a": (60, 60)})
    assert evaluate_detections(truth, as_detections({"a": []}, truth)).npos.tolist() == [1]
    assert truth.area.tolist() == [1, 2, 3]
    assert truth.size.tolist() == [[60, 60]]


def test_classes_are_matched_by_name(truth):
    found = {name: [[*row[:5], 7 + row[5]] for row in rows] for name, rows in FOUND.items()}
    detections = as_detections(found, truth, names={7: "Cat", 8: "dog", 9: "gnu"})
    assert evaluate_detections(truth, detections).map == 1.0
    assert "Cat is cat" in detections.notes[0]


@pytest.mark.parametrize("kind", ["supervision", "ultralytics"])
def test_names_that_stand_beside_class_numbers_are_taken(truth, kind):
    found = {}
    for name, rows in FOUND.items():  # of a detector that numbers them the other way about
        turned = [[*row[:5], 1 - row[5]] for row in rows]
        if kind == "supervision":
            item = of_supervision(turned)
            item.data = {"class_name": np.array([CLASSES[row[5]] for row in rows])} if rows else {}
        else:
            item = of_ultralytics(turned)
            item.names = {0: "dog", 1: "cat"}
        found[name] = item
    detections = as_detections(found, truth)
    assert evaluate_detections(truth, detections).map == 1.0
    assert not detections.warnings


def test_numbers_of_classes_whose_order_nobody_gave(truth):
    unordered = replace(truth, ordered=False)
    with pytest.warns(UserWarning, match="found has classes by number"):
        (warning,) = as_detections(FOUND, unordered).warnings
    assert "found has classes by number" in warning
    assert "(0 is cat, 1 is dog)" in warning
    assert not as_detections(FOUND, unordered, names=CLASSES).warnings
    assert not as_detections(FOUND, truth).warnings


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"a": [], "b": []}, r"has nothing for c \(1 of 3 images\)"),
        ({**FOUND, "z": []}, "z is no image of the ground truth"),
        ([[], []], "is of 2 images, and 3 are named"),
        ({**FOUND, "a": [[1, 2, 3, 4, 5]]}, r"found\['a'\]: has the shape \(1, 5\), and \(k, 6\)"),
        ({**FOUND, "a": [[1, 2, 3, 4, float("nan"), 1]]}, "a number is not finite"),
        ({**FOUND, "a": [[1, 2, 3, 4, 0.5, 2]]}, "class 2 has no name"),
        ({**FOUND, "a": [[1, 2, 3, 4, 0.5, 0.5]]}, "class 0.5 is no whole number"),
        ({**FOUND, "a": {"boxes": [[1, 2, 3, 4]], "scores": [1]}}, "has no 'labels', but boxes, scores"),
        ({**FOUND, "a": {"boxes": [[1, 2, 3, 4]], "scores": [1, 2], "labels": [1]}}, "1 boxes, 2 scores and 1 classes"),
        (
            {**FOUND, "a": SimpleNamespace(xyxy=np.zeros((1, 4)), confidence=None, class_id=np.zeros(1))},
            "its confidence is None",
        ),
        (
            {
                name: [[row[0] / 100, row[1] / 80, row[2] / 100, row[3] / 80, *row[4:]] for row in rows]
                for name, rows in FOUND.items()
            },
            "found: its boxes are fractions of the image, and those of the ground truth pixels",
        ),
        (
            {
                name: [[*row[:2], row[2] - row[0], row[3] - row[1], *row[4:]] for row in rows]
                for name, rows in FOUND.items()
            },
            r"found: 1 of 3 boxes would end before the beginning.* say box_format='xywh'",
        ),
        ({**FOUND, "a": object()}, "is a object; an array, a dictionary"),
        (object(), "give a dictionary by image, or a list"),
    ],
)
def test_what_is_no_detections_is_named(truth, found, says):
    with pytest.raises(UserError, match=says):
        as_detections(found, truth)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([[[1, 2, 3, 4]]], r"\(k, 5\): box, class is needed"),
        ([[[1, 2, 3, 4, 2]]], "class 2 has no name in classes="),
        ([{"boxes": [[1, 2, 3, 4]], "labels": [0, 1]}], "1 boxes and 2 labels"),
        ([{"boxes": [[50, 50, 20, 20]], "labels": [0]}], "truth: 1 of 1 box would end before the beginning"),
    ],
)
def test_what_is_no_ground_truth_is_named(given, says):
    with pytest.raises(UserError, match=says):
        as_annotations(given, CLASSES)
