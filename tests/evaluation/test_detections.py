import numpy as np
import pytest
from builders import write_devkit

from yolo_os.errors import UserError
from yolo_os.evaluation.detections import Detections, from_boxes, seen_only, suspect_offset
from yolo_os.voc import read_devkit


def test_model_boxes_become_the_pixels_they_cover(truth):
    boxes = {
        "000007": np.array([[9, 19, 30, 40, 0.9, 3], [0, 0, 5, 5, 0.4, 1]], float),
        "000012": np.zeros((0, 6)),
    }
    found = from_boxes(boxes, {1: "zebra", 3: "Cat"}, truth)
    assert found.box.tolist() == [[10, 20, 30, 40]]
    assert (found.image.tolist(), found.class_index.tolist(), found.score.tolist()) == ([0], [0], [0.9])
    assert found.dropped == {"of classes that the annotations lack": 1}
    assert "no class for dog" in found.notes[0]
    with pytest.raises(UserError, match=r"knows none of the classes cat, dog, but zebra"):
        from_boxes(boxes, {1: "zebra", 3: "gnu"}, truth)
    with pytest.raises(UserError, match="saw no image 000012"):
        from_boxes({"000007": boxes["000007"]}, {3: "cat"}, truth)


def shifted(truth, by, count=8):
    """Detections clipped at the image's border, counted from 1 + by."""
    box = np.tile(np.array([[1, 1, 50, 80]], float) + by, (count, 1))
    return Detections(truth.classes, truth.images, np.zeros(count, int), np.zeros(count, int), box, np.ones(count))


def test_mixed_bases_are_suspected_with_the_evidence(truth):
    assert suspect_offset(truth, shifted(truth, 0)) is None
    warning = suspect_offset(truth, shifted(truth, -1))
    assert "look 0-based" in warning
    assert "8 boxes start at exactly 0 and 0 at 1" in warning
    assert "8 end at the last pixel counted from 0" in warning
    assert suspect_offset(truth, shifted(truth, -1, count=3)) is None  # too few to say


def test_one_based_detections_on_a_zero_based_devkit_are_suspected(tmp_path):
    objects = [("cat", (0, 0, 50, 50))] * 6
    kit = write_devkit(tmp_path / "kit", {"a": objects, "b": []}, {"test": "ab"}, pictures=False)
    truth = read_devkit(kit, classes="cat,dog")
    assert "look 1-based" in suspect_offset(truth, shifted(truth, 0))
    assert suspect_offset(truth, shifted(truth, -1)) is None


def test_images_of_one_name_are_told_by_the_folder_of_the_data_set(tmp_path):
    images = {"x": [("cat", (1, 1, 9, 9))]}
    kit = write_devkit(write_devkit(tmp_path, images, {"test": "x"}), images, {"test": "x"}, year="2012")
    truth = read_devkit(kit, "2007,2012", classes="cat")
    row = np.array([[0, 0, 9, 9, 0.5, 0]])
    found = from_boxes({"d/images/test2012/x.jpg": row, "d/images/test2007/x.jpg": row[:0]}, {0: "cat"}, truth)
    assert found.image.tolist() == [1]
    with pytest.raises(UserError, match=r"saw no image VOC2007/x, VOC2012/x \(2 of 2\)"):
        from_boxes({"x": row}, {0: "cat"}, truth)


def test_images_that_a_model_did_not_see_are_left_out(truth):
    seen = seen_only(
        truth, [{"000007": np.zeros((0, 6)), "000012": np.zeros((0, 6))}, {"a/000012.jpg": np.zeros((0, 6))}]
    )
    assert seen.images == ("000012",)
    assert seen.box.tolist() == [[1, 1, 100, 80]]
    assert "000007.jpg: the image is missing: left out" in str(seen.lost[-1])
    with pytest.raises(UserError, match="no image of the set can be read"):
        seen_only(truth, [{}])
