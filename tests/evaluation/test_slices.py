import numpy as np
import pytest
from builders import comp4, write_devkit, xml

from yolo_os.errors import UserError
from yolo_os.evaluation.slices import by_group, by_size, of_images, read_groups
from yolo_os.voc import evaluate_detections, read_detections, read_devkit


@pytest.fixture
def scene(tmp_path):
    """Three images of one cat each, small, medium and large; the detector misses that of the second."""
    images = {"a": [("cat", (1, 1, 20, 20))], "b": [("cat", (1, 1, 60, 60))], "c": [("cat", (1, 1, 100, 99))]}
    kit = write_devkit(
        tmp_path / "kit",
        {name: xml(objects, size=(200, 200)) for name, objects in images.items()},
        {"test": "abc"},
        pictures=False,
    )
    truth = read_devkit(kit, split="test")
    lines = ["a 0.9 1 1 20 20", "b 0.8 100 100 160 160", "c 0.7 1 1 100 99"]
    return truth, read_detections(comp4(tmp_path / "d", comp4_det_test_cat=lines), truth)


def test_objects_by_size(scene):
    truth, found = scene
    parts = by_size(truth, [found])
    assert [part.name for part in parts] == ["small", "medium", "large"]
    assert [part.boxes for part in parts] == [1, 1, 1]
    # of small objects the others' detections count neither way
    assert [part.coco[0].means["AP50"] for part in parts] == pytest.approx([1, 0, 1])


def test_images_by_group(scene, tmp_path):
    truth, found = scene
    file = tmp_path / "groups.csv"
    file.write_text("image,light\na.jpg,day\nsome/folder/b,night\nc,day\nc,rain\n")
    groups, notes = read_groups(file, truth)
    assert {name: kept.tolist() for name, kept in groups.items()} == {
        "day": [True, False, True],
        "night": [False, True, False],
        "rain": [False, False, True],
    }
    assert notes == []
    day, night, _ = by_group(truth, [found], groups)
    assert (day.images, day.boxes, day.voc[0].map, day.coco[0].means["AP"]) == (2, 2, 1, pytest.approx(1))
    assert (night.voc[0].map, night.coco[0].means["AP"]) == (0, 0)
    rest = of_images(found, groups["day"])
    assert evaluate_detections(truth.only(groups["day"]), rest).npos.sum() == 2
    assert rest.images == ("a", "c")
    np.testing.assert_array_equal(rest.image, [0, 1])


def test_what_groups_leave_open_is_said(scene, tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text("a,day\nx,day\n\n")
    groups, notes = read_groups(file, scene[0])
    assert list(groups) == ["day"]
    assert f"{file}: 1 of its images are not in the set: x (line 2)" in notes
    assert f"{file}: 2 of the 3 images are in no group" in notes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a;day\n", ":1: a line has to be image,group"),
        ("a,day,x\n", ":1: a line has to be image,group"),
        ("image,group\na,\n", ":2: a line has to be image,group"),
        ("x,day\n", "none of its 1 lines names an image of the set"),
        ("", "none of its 0 lines"),
    ],
)
def test_groups_that_are_none(scene, tmp_path, text, says):
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        read_groups(tmp_path / "groups.csv", scene[0])


def test_no_file(scene, tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_groups(tmp_path / "none.csv", scene[0])
