import json

import pytest

from yolo_os.errors import UserError
from yolo_os.voc import read_detections

ENTRY = {"image_id": 7, "category_id": 1, "bbox": [9, 19, 21, 21], "score": 0.9}
LAST = {**ENTRY, "category_id": 2, "score": 0.1}  # shows that classes are counted from 1


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ([ENTRY, LAST], 0),
        ([{**ENTRY, "image_id": "000007"}, LAST], 0),
        ([{**ENTRY, "image_id": 1234, "file_name": "images/000007.jpg"}, LAST], 0),
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
        (json.dumps([{**ENTRY, "image_id": 8}, LAST]), "entry 0: image '8' is not in the image set"),
        (json.dumps([{**ENTRY, "score": float("nan")}, LAST]), "entry 0: score and box must be finite"),
    ],
)
def test_bad_coco_results(truth, tmp_path, text, says):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match=says):
        read_detections(tmp_path / "r.json", truth)


def read(truth, tmp_path, content, **options):
    (tmp_path / "r.json").write_text(json.dumps(content))
    return read_detections(tmp_path / "r.json", truth, **options)


def test_the_files_own_images_say_which_is_which(truth, tmp_path):
    images = [{"id": 12, "file_name": "images/000007.jpg"}, {"id": 7, "file_name": "000012.png"}]
    categories = [{"id": 5, "name": "dog"}, {"id": 6, "name": "cat"}]
    entries = [{**ENTRY, "category_id": 6}, {**ENTRY, "image_id": 12, "category_id": 5}]
    found = read(truth, tmp_path, {"images": images, "categories": categories, "annotations": entries})
    assert found.image.tolist() == [1, 0]
    assert found.class_index.tolist() == [0, 1]
    with pytest.raises(UserError, match=r"entry 0 lacks 7; needs image_id .of its list of images"):
        read(truth, tmp_path, {"images": images[:1], "categories": categories, "annotations": entries})
    with pytest.raises(UserError, match="its images and categories are not as they should be"):
        read(truth, tmp_path, {"images": [{"id": 7}], "annotations": entries})


@pytest.mark.parametrize(
    ("ids", "first", "labels"),
    [
        ([0, 1], None, [0, 1]),
        ([1, 2], None, [0, 1]),
        ([2], None, [1]),
        ([0], None, [0]),
        ([1], None, "neither 0 nor 2 occurs: say it with first_category=0"),
        ([1], 0, [1]),
        ([1], 1, [0]),
        ([0, 2], None, "both 0 and 2 occur"),
        (["dog", "cat"], None, [1, 0]),
        ([[1]], None, "entry 0 is not as it should be"),
    ],
)
def test_where_categories_are_counted_from(truth, tmp_path, ids, first, labels):
    entries = [{**ENTRY, "category_id": each} for each in ids]
    if isinstance(labels, str):
        with pytest.raises(UserError, match=labels):
            read(truth, tmp_path, entries, first_category=first)
    else:
        assert read(truth, tmp_path, entries, first_category=first).class_index.tolist() == labels


def test_a_byte_order_mark(truth, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps([LAST]), encoding="utf-8-sig")
    assert len(read_detections(tmp_path / "r.json", truth).score) == 1
