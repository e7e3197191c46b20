import json

import numpy as np
import pytest
from builders import comp4, write_devkit

from yolo_os.errors import UserError
from yolo_os.evaluation.coco import coco_numbers
from yolo_os.evaluation.detections import (
    Detections,
    evaluate_detections,
    from_boxes,
    match_names,
    read_detections,
    suspect_offset,
    write_coco_json,
    write_comp4,
)
from yolo_os.voc import read_devkit

CLASSES = "cat,dog"


@pytest.fixture
def truth(tmp_path):
    images = {
        "000007": [("cat", (10, 20, 30, 40)), ("dog", (50, 50, 60, 60), {"difficult": "1"})],
        "000012": [("dog", (1, 1, 100, 80))],
        "bad": "<annotation>",
    }
    kit = write_devkit(tmp_path / "kit", images, {"test": list(images)}, pictures=False)
    return read_devkit(kit, classes=CLASSES)


GOOD = {
    "comp4_det_test_cat": ["000007 0.9 10 20 30 40", "", "000012 1e-3 1.5 2 3 4"],
    "comp4_det_test_dog": ["000012 0.8 1 1 100 80"],
}


def assert_same(one, other):
    assert (one.classes, one.images) == (other.classes, other.images)
    for name in ("image", "class_index", "box", "score"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_reads_comp4_files(truth, tmp_path):
    found = read_detections(comp4(tmp_path / "d", **GOOD, readme=["not detections"]), truth)
    assert found.image.tolist() == [0, 1, 1]
    assert found.class_index.tolist() == [0, 0, 1]
    assert found.score.tolist() == [0.9, 0.001, 0.8]
    assert found.box.tolist() == [[10, 20, 30, 40], [1.5, 2, 3, 4], [1, 1, 100, 80]]
    result = evaluate_detections(truth, found)
    assert result.ap.tolist() == [1, 1]
    assert result.names == ("cat", "dog")


def test_reads_files_named_by_class_alone(truth, tmp_path):
    plain = comp4(tmp_path / "p", cat=GOOD["comp4_det_test_cat"], dog=GOOD["comp4_det_test_dog"])
    assert_same(read_detections(plain, truth), read_detections(comp4(tmp_path / "d", **GOOD), truth))


def test_written_files_read_back_to_the_last_bit(truth, tmp_path):
    random = np.random.default_rng(0)
    boxes, scores = random.uniform(1, 60, (50, 4)), random.random(50).astype(np.float32).astype(float)
    label, image = np.sort(random.integers(0, 2, 50)), random.integers(0, 2, 50)
    found = Detections(truth.classes, truth.images, image, label, boxes, scores)
    files = write_comp4(found, tmp_path / "out")
    assert [file.name for file in files] == ["comp4_det_test_cat.txt", "comp4_det_test_dog.txt"]
    assert_same(read_detections(tmp_path / "out", truth), found)
    write_coco_json(found, tmp_path / "out.json")
    again = read_detections(tmp_path / "out.json", truth)
    np.testing.assert_allclose(again.box, boxes, rtol=0, atol=1e-12)
    assert (again.image.tolist(), again.class_index.tolist()) == (image.tolist(), label.tolist())


def test_a_class_without_detections_gets_an_empty_file(truth, tmp_path):
    none = Detections(truth.classes, truth.images, *(np.zeros(0, int),) * 2, np.zeros((0, 4)), np.zeros(0))
    assert [file.read_text() for file in write_comp4(none, tmp_path / "out")] == ["", ""]


def test_splits_in_one_folder(truth, tmp_path):
    folder = comp4(tmp_path / "d", **GOOD, comp4_det_val_cat=["nonsense 1"])
    assert len(read_detections(folder, truth).score) == 3
    with pytest.raises(UserError, match="holds files of test, val, none of train"):
        read_detections(folder, truth, split="train")
    only = read_detections(comp4(tmp_path / "only", **GOOD), truth, split="minival")
    assert "detections of 'test', taken as those of 'minival'" in only.notes[0]


def test_a_missing_file_is_noted(truth, tmp_path):
    found = read_detections(comp4(tmp_path / "d", comp4_det_test_cat=GOOD["comp4_det_test_cat"]), truth)
    assert "has no file for dog: taken as no detections" in found.notes[0]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("000099 0.9 1 1 2 2", r"comp4_det_test_cat.txt:2: image '000099' is not in the image set test of .*VOC2007"),
        ("000007 0.9 1 1 2", r"cat.txt:2: '000007 0.9 1 1 2' is not of the form"),
        ("000007 0.9 1 1 2 x", r"cat.txt:2: .* is not of the form"),
        ("000007 nan 1 1 2 2", r"cat.txt:2: score and box must be finite"),
        ("000007 0.9 1 1 2 inf", r"cat.txt:2: score and box must be finite"),
    ],
)
def test_bad_lines_are_named(truth, tmp_path, line, says):
    with pytest.raises(UserError, match=says):
        read_detections(comp4(tmp_path / "d", comp4_det_test_cat=["000007 0.9 10 20 30 40", line]), truth)


def test_unknown_images_and_classes_are_dropped_and_counted_when_not_strict(truth, tmp_path):
    folder = comp4(
        tmp_path / "d",
        comp4_det_test_cat=["000099 0.9 1 1 2 2", "000007 0.9 10 20 30 40", "bad 0.5 1 1 2 2"],
        comp4_det_test_cow=["000007 0.9 1 1 2 2"] * 3,
    )
    with pytest.raises(UserError, match=r"class 'cow' is not among cat, dog \(strict=False"):
        read_detections(comp4(tmp_path / "c", comp4_det_test_cow=["000007 0.9 1 1 2 2"]), truth)
    found = read_detections(folder, truth, strict=False)
    assert found.dropped == {
        "of unknown images": 1,
        "of images whose annotations could not be read": 1,
        "of unknown classes": 3,
    }
    assert len(found.score) == 1
    assert "3 of unknown classes left out" in str(found)


def test_images_whose_xml_is_broken_are_no_error(truth, tmp_path):
    found = read_detections(comp4(tmp_path / "d", comp4_det_test_cat=["bad 0.5 1 1 2 2"]), truth)
    assert found.dropped == {"of images whose annotations could not be read": 1}


def test_no_such_detections(truth, tmp_path):
    with pytest.raises(UserError, match="is not there"):
        read_detections(tmp_path / "none", truth)
    with pytest.raises(UserError, match="holds no file like comp4_det_test_CLASS"):
        read_detections(comp4(tmp_path / "empty"), truth)
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(UserError, match="is neither"):
        read_detections(tmp_path / "x.csv", truth)


ENTRY = {"image_id": 7, "category_id": 1, "bbox": [9, 19, 21, 21], "score": 0.9}


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ([ENTRY], 0),
        ([{**ENTRY, "image_id": "000007"}], 0),
        ([{**ENTRY, "image_id": 1234, "file_name": "images/000007.jpg"}], 0),
        ([{**ENTRY, "category_id": "dog"}], 1),
        ([{**ENTRY, "category_id": 1}, {**ENTRY, "category_id": 0, "image_id": 12}], 1),
        ({"annotations": [{**ENTRY, "category_id": 18}], "categories": [{"id": 18, "name": "Dog"}]}, 1),
    ],
)
def test_reads_coco_results_into_the_devkits_pixels(truth, tmp_path, content, label):
    (tmp_path / "r.json").write_text(json.dumps(content))
    found = read_detections(tmp_path / "r.json", truth)
    assert found.box[0].tolist() == [10, 20, 30, 40]
    assert (found.image[0], found.class_index[0], found.score[0]) == (0, label, 0.9)
    continuous = read_detections(tmp_path / "r.json", truth, pixel_offset=0.0)
    assert continuous.box[0].tolist() == [9, 19, 30, 40]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read as JSON"),
        ('{"a": 1}', "holds no list of detections"),
        (json.dumps([ENTRY, {"image_id": 7}]), "entry 1 lacks 'bbox'"),
        (json.dumps([{**ENTRY, "bbox": [1, 2, 3]}]), "entry 0 is not as it should be"),
        (json.dumps([{**ENTRY, "category_id": 3}]), "entry 0 has category_id 3, which is no class of cat, dog"),
        (json.dumps([{**ENTRY, "image_id": 8}]), "entry 0: image '8' is not in the image set"),
        (json.dumps([{**ENTRY, "score": float("nan")}]), "entry 0: score and box must be finite"),
    ],
)
def test_bad_coco_results(truth, tmp_path, text, says):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match=says):
        read_detections(tmp_path / "r.json", truth)


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


def test_names_of_coco_and_voc_meet():
    coco = ("airplane", "motorcycle", "couch", "tv", "dining table", "potted plant", "person", "zebra")
    voc = ("aeroplane", "motorbike", "sofa", "tvmonitor", "diningtable", "pottedplant", "person")
    assert match_names(dict(enumerate(coco)), voc) == {index: index for index in range(7)}
    assert match_names(dict(enumerate(voc)), coco) == {index: index for index in range(7)}
    assert match_names({0: "cat", 1: "CAT"}, ("CAT", "cat")) == {0: 1, 1: 0}  # an exact name goes first


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
    truth = read_devkit(kit, classes=CLASSES)
    assert "look 1-based" in suspect_offset(truth, shifted(truth, 0))
    assert suspect_offset(truth, shifted(truth, -1)) is None


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
