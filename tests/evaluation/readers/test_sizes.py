"""Where an XML file and its image disagree on the image's size."""

import numpy as np
import pytest
from builders import write_devkit, write_picture, xml

from yolo_os.conversion.dataset import convert
from yolo_os.errors import UserError
from yolo_os.voc import read_devkit

IMAGE = (100, 80)
INSIDE, BEYOND = ("cat", (11, 21, 40, 60)), ("cat", (11, 21, 150, 60))


def kit_of(tmp_path, size, boxes=(INSIDE,), orientation=None):
    """A devkit whose image `a` of 100 x 80 pixels has an XML file that says `size`; `fine` agrees."""
    images = {"a": xml(boxes, size), "fine": xml([INSIDE], IMAGE), "fine too": xml([INSIDE], IMAGE)}
    kit = write_devkit(tmp_path / "kit", images, {"train": ["a", "fine"], "val": ["fine too"]})
    write_picture(kit / "VOC2007/JPEGImages/a.jpg", IMAGE, orientation)
    return kit


def label(dataset, stem):
    return [float(part) for part in (dataset.yaml.parent / f"labels/train2007/{stem}.txt").read_text().split()[1:]]


@pytest.mark.parametrize("size", [(200, 160), (50, 40), (80, 100), (101, 80), None])
def test_boxes_inside_the_image_are_its_pixels(tmp_path, size):
    dataset = convert(kit_of(tmp_path, size), tmp_path / "out")
    assert label(dataset, "a") == label(dataset, "fine") == [0.25, 0.5, 0.3, 0.5]
    problems = [problem for problem in dataset.problems if "boxes are taken as pixels of the image" in problem.text]
    assert [problem.file.name for problem in problems] == ([] if size is None else ["a.xml"])
    assert not any(problem.lost for problem in dataset.problems)


def test_boxes_of_an_image_that_was_resized_are_left_out_with_the_image(tmp_path):
    found = read_devkit(kit_of(tmp_path, (200, 160), [INSIDE, BEYOND]), split="train")
    assert (found.images, found.left_out) == (("fine",), {"a"})
    (problem,) = found.lost
    assert "<size> says 200 x 160, and the image is 100 x 80" in problem.text


def test_one_such_image_speaks_for_all_that_disagree(tmp_path):
    kit = kit_of(tmp_path, (200, 160))
    assert read_devkit(kit, split="train").left_out == frozenset()
    (kit / "VOC2007/Annotations/fine too.xml").write_text(xml([BEYOND], (200, 160)))
    assert read_devkit(kit, split="train").left_out == {"a"}


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_a_photo_annotated_before_it_was_turned_are_turned_with_it(tmp_path, orientation):
    from PIL import Image, ImageOps

    kit = kit_of(tmp_path, IMAGE, orientation=orientation)
    x1, y1, x2, y2 = INSIDE[1]
    pixels = np.zeros((IMAGE[1], IMAGE[0]), np.uint8)
    pixels[y1 - 1 : y2, x1 - 1 : x2] = 255
    painted = Image.fromarray(pixels)
    painted.getexif()[0x0112] = orientation
    rows, columns = np.nonzero(np.asarray(ImageOps.exif_transpose(painted)))
    found = read_devkit(kit, split="train")
    assert found.box[0].tolist() == [columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1]
    assert found.size[0].tolist() == [80, 100]
    (problem,) = found.problems
    assert f"EXIF orientation {orientation} turns the image, and <size> is that before" in problem.text


def test_boxes_that_fit_the_turned_photo_only_are_of_that(tmp_path):
    found = read_devkit(kit_of(tmp_path, IMAGE, [("cat", (1, 1, 80, 100))], orientation=6), split="train")
    assert found.box[0].tolist() == [1, 1, 80, 100]
    (problem,) = found.problems
    assert "<size> says 100 x 80, and the image is 80 x 100: boxes are taken as pixels of the image" in problem.text


def test_a_photo_annotated_as_it_is_shown_is_right(tmp_path):
    dataset = convert(kit_of(tmp_path, (80, 100), orientation=6), tmp_path / "out")
    assert label(dataset, "a") == [0.3125, 0.4, 0.375, 0.4]
    assert dataset.problems == ()


def test_a_photo_upside_down_is_said(tmp_path):
    (problem,) = read_devkit(kit_of(tmp_path, IMAGE, orientation=3), split="train").problems
    assert "EXIF orientation 3 turns the image" in problem.text
    assert not problem.lost


def test_boxes_are_checked_against_the_image(tmp_path):
    """A size that is exchanged would make a box wholly outside of one that is inside."""
    found = read_devkit(kit_of(tmp_path, (80, 100), [("cat", (90, 1, 100, 9))]), split="train")
    assert found.box.tolist() == [[90, 1, 100, 9], list(INSIDE[1])]
    assert found.lost == ()


def test_a_set_of_nothing_else_is_refused_with_the_reason(tmp_path):
    kit = kit_of(tmp_path, (200, 160), [BEYOND])
    (kit / "VOC2007/ImageSets/Main/train.txt").write_text("a\n")
    with pytest.raises(UserError, match="<size> says 200 x 160, and the image is 100 x 80"):
        convert(kit, tmp_path / "out")
