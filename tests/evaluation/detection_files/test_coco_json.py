import json

import pytest

from yolo_os.errors import UserError
from yolo_os.voc import read_detections

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
