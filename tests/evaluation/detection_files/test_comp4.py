import numpy as np
import pytest
from builders import comp4, write_devkit

from yolo_os.errors import UserError
from yolo_os.voc import (
    Detections,
    evaluate_detections,
    read_detections,
    read_devkit,
    write_coco_json,
    write_comp4,
)

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
    with pytest.raises(UserError, match="is a CSV table"):
        read_detections(tmp_path / "x.csv", truth)


@pytest.mark.parametrize(
    "prefix",
    [
        "comp3_det_",
        "comp4-44503_det_",
        "comp4_1b2c3d4e-11aa-22bb-33cc-0123456789ab_det_",
        "compid_det_",
        "comp4_a_b_det_",
    ],
)
def test_names_of_files_with_the_mark_of_a_run(truth, tmp_path, prefix):
    files = {f"{prefix}test_{name}": GOOD[f"comp4_det_test_{name}"] for name in ("cat", "dog")}
    assert_same(
        read_detections(comp4(tmp_path / "m", **files), truth), read_detections(comp4(tmp_path / "d", **GOOD), truth)
    )


def test_image_sets_and_classes_with_underscores(tmp_path):
    kit = write_devkit(tmp_path, {"a": [("small_car", (1, 1, 9, 9)), ("car", (1, 1, 9, 9))]}, {"test": "a"})
    truth = read_devkit(kit)
    line = ["a 0.9 1 1 9 9"]
    found = read_detections(comp4(tmp_path / "d", comp4_det_test_small_car=line, comp4_det_test_car=[]), truth)
    assert found.class_index.tolist() == [truth.classes.index("small_car")]
    both = {"comp4_det_test_small_small_car": line, "comp4_det_test_small_car": line * 2}
    found = read_detections(comp4(tmp_path / "s", **both), truth, split="test_small")
    assert sorted(found.class_index.tolist()) == [truth.classes.index("car")] * 2 + [truth.classes.index("small_car")]


@pytest.mark.parametrize("name", ["car/truck", "N/A", "50%", "a:b", "what?", "%2F"])
def test_names_of_classes_that_are_no_file_names(tmp_path, name):
    kit = write_devkit(tmp_path / "kit", {"a": [(name, (1, 1, 9, 9)), ("cat", (1, 1, 9, 9))]}, {"test_small": "a"})
    truth = read_devkit(kit, split="test_small")
    found = Detections(truth.classes, truth.images, *np.array([[0, 0], [0, 1]]), np.ones((2, 4)), np.array([0.5, 0.4]))
    files = write_comp4(found, tmp_path / "out", "test_small")
    assert all(file.parent == tmp_path / "out" for file in files)
    assert_same(read_detections(tmp_path / "out", truth, split="test_small"), found)
    plain = comp4(tmp_path / "plain", cat=[]) / f"{name}.txt"
    if "/" not in name:  # files of other tools, on systems that take such a name
        plain.write_text("a 0.5 1 1 9 9\n")
        assert read_detections(plain.parent, truth).class_index.tolist() == [truth.classes.index(name)]


def test_marks_encodings_and_other_ways_to_write_an_image(tmp_path):
    kit = write_devkit(
        tmp_path / "kit", {"图像 1": [("cat", (1, 1, 9, 9))], "cam/m\u00fc": []}, {"test": ["图像 1", "cam/m\u00fc"]}
    )
    truth = read_devkit(kit, classes="cat")
    folder = comp4(tmp_path / "d", cat=[])
    for text, encoding, image in (
        ("图像 1", "utf-8-sig", 0),
        ("图像 1", "gbk", 0),
        ("JPEGImages/图像 1.jpg", "utf-8", 0),
        ("cam/mu\u0308.png", "utf-8", 1),
    ):
        (folder / "cat.txt").write_bytes(f"{text} 0.5 1 1 9 9\n".encode(encoding))
        assert read_detections(folder, truth).image.tolist() == [image]
