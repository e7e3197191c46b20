import shutil

import pytest
from builders import write_devkit

from yolo_os.errors import UserError
from yolo_os.evaluation.readers.devkit import class_names
from yolo_os.voc import VOC_CLASSES, read_devkit

CAT, DOG = ("cat", (10, 20, 30, 40)), ("dog", (1, 1, 100, 80))


def test_reads_objects_in_order(kit):
    found = read_devkit(kit)
    assert found.classes == VOC_CLASSES
    assert found.images == ("a", "b", "c")
    assert [found.classes[index] for index in found.class_index] == ["cat", "dog", "dog"]
    assert found.box.tolist() == [[10, 20, 30, 40], [5, 5, 8.5, 9], [1, 1, 100, 80]]
    assert found.image.tolist() == [0, 0, 1]
    assert found.difficult.tolist() == found.truncated.tolist() == [False, True, False]
    assert found.size.tolist() == [[100, 80]] * 3
    assert found.missing == {"difficult": 0, "truncated": 0, "pose": 0}
    assert found.problems == ()
    assert [file.name for file in found.image_files] == ["a.jpg", "b.jpg", "c.jpg"]
    assert str(found) == "3 images, 3 objects (1 difficult) of 20 classes"


def test_classes_found_given_or_listed_in_a_file(tmp_path):
    kit = write_devkit(
        tmp_path, {"a": [("zebra", (1, 1, 2, 2)), CAT], "b": [("ant", (1, 1, 2, 2))]}, {"test": "a", "train": "b"}
    )
    assert read_devkit(kit).classes == ("ant", "cat", "zebra")  # of all image sets, so that test and train agree
    only = read_devkit(kit, classes="zebra, ant")
    assert only.classes == ("zebra", "ant")
    assert only.class_index.tolist() == [0]
    (tmp_path / "labels.txt").write_text("cat\n\nzebra\n")
    assert read_devkit(kit, classes=tmp_path / "labels.txt").classes == ("cat", "zebra")
    with pytest.raises(UserError, match="cat is named twice"):
        read_devkit(kit, classes=["cat", "cat"])


def test_years_and_devkits_together(tmp_path):
    one = write_devkit(tmp_path / "one", {"x": [CAT], "y": [CAT]}, {"test": "xy"})
    write_devkit(tmp_path / "one", {"x": [DOG]}, {"test": "x"}, year="2012")
    two = write_devkit(tmp_path / "two", {"x": [DOG], "z": [DOG]}, {"test": "xz"})
    assert read_devkit(one, "2007").images == ("x", "y")
    both = read_devkit(one, "2007,2012")
    assert both.images == ("VOC2007/x", "y", "VOC2012/x")
    assert both.image.tolist() == [0, 1, 2]
    all_three = read_devkit([one, two], ["2007", 2012])
    assert all_three.images == ("one/VOC2007/x", "y", "VOC2012/x", "two/VOC2007/x", "z")
    assert [all_three.classes[index] for index in all_three.class_index] == ["cat", "cat", "dog", "dog", "dog"]
    assert [file.parent.parent.parent.name for file in all_three.image_files] == ["one"] * 3 + ["two"] * 2
    assert read_devkit(f"{one},{two}").images == all_three.images[:2] + all_three.images[3:]
    assert read_devkit([one, one]).images == ("x", "y")


def test_devkit_may_be_named_at_three_depths(kit):
    inside = kit.parent / "outer" / "VOCdevkit"
    inside.parent.mkdir()
    shutil.copytree(kit, inside)
    for path in (kit, kit / "VOC2007", inside.parent, str(inside)):
        assert read_devkit(path).images == ("a", "b", "c")


def test_year_none_takes_the_only_one_and_asks_otherwise(tmp_path):
    kit = write_devkit(tmp_path, {"a": [CAT]}, {"test": "a"}, year="2012")
    assert read_devkit(kit, None).images == ("a",)
    with pytest.raises(UserError, match="has no VOC2007; year= one of 2012"):
        read_devkit(kit)
    write_devkit(tmp_path, {"a": [CAT]}, {"test": "a"}, year="Mine")
    with pytest.raises(UserError, match="say which of its years"):
        read_devkit(kit, None)
    with pytest.raises(UserError, match="no devkit given has VOC2020"):
        read_devkit(kit, "2012,2020")


def test_folders_and_sets_that_are_not_there(kit, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_devkit(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no folder like VOC2007"):
        read_devkit(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no image set 'tst'; there is test, train, val"):
        read_devkit(kit, split="tst")
    (kit / "VOC2007/ImageSets/Main/test.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_devkit(kit)


def test_image_without_xml_and_a_set_of_nothing_else(kit):
    (kit / "VOC2007/Annotations/b.xml").unlink()
    found = read_devkit(kit)
    assert (found.images, found.left_out) == (("a", "c"), frozenset("b"))
    assert str(found.problems[0]).endswith("test.txt:2: b has no XML file in Annotations: image left out")
    (kit / "VOC2007/ImageSets/Main/test.txt").write_text("b\n")
    with pytest.raises(UserError, match=r"no image of test of .* can be used; first problem"):
        read_devkit(kit)


def test_problems_of_other_image_sets_are_not_listed(kit):
    (kit / "VOC2007/Annotations/d.xml").write_text("broken")
    assert read_devkit(kit).problems == ()
    assert len(read_devkit(kit, split="trainval").problems) == 1


def test_folders_of_one_name_are_told_apart_however_deep(tmp_path):
    kits = [write_devkit(tmp_path / name / "same", {"x": [CAT]}, {"test": "x"}) for name in ("one", "two")]
    assert read_devkit(kits).images == ("one/same/VOC2007/x", "two/same/VOC2007/x")


def test_an_image_set_of_any_name_has_its_classes(tmp_path):
    kit = write_devkit(tmp_path, {"a": [("zebra", (1, 1, 9, 9))]}, {"default": "a"})
    assert read_devkit(kit / "VOC2007", split="default").classes == ("zebra",)


def test_classes_that_are_not_named_are_counted(tmp_path):
    from yolo_os.evaluation.annotations import said_of_classes

    kit = write_devkit(tmp_path, {"a": [("Car", (1, 1, 9, 9)), CAT, CAT, DOG]}, {"test": "a"})
    found = read_devkit(kit, classes="caar,car,dog")
    (problem,), notes = said_of_classes([found])
    assert "1 object of 'Car' left out: the class named is 'car'" in problem.text
    assert notes == [
        "2 objects are left out, of classes that are not named: 2 of cat",
        "no object is of class caar, car",
    ]
    assert said_of_classes([read_devkit(kit)]) == ([], [])
    kit = write_devkit(tmp_path, {"a": [("Car", (1, 1, 9, 9)), ("car", (1, 1, 9, 9))]}, {"test": "a"})
    _, (note,) = said_of_classes([read_devkit(kit)])
    assert note == "classes whose names differ in writing only are taken as several: Car, car"


WHY_NO_OBJECT = {
    "no list": ({"a": [CAT]}, {}, "holds no list of images"),
    "only another list": ({"a": [CAT]}, {"default": "a"}, "no image set 'train'; there is default"),
    "other ids": ({"a": [CAT]}, {"train": ["img_1"]}, "train.txt lists 'img_1', and Annotations holds 'a'"),
    "broken files": ({"a": "<annotation>"}, {"train": "a"}, r"no XML file of .* can be read .* broken XML"),
    "no boxes": (
        {"a": [("cat", ("x", 1, 9, 9))]},
        {"train": "a"},
        r"no object of .* can be read .* no readable bndbox",
    ),
    "no object": ({"a": []}, {"train": "a"}, "holds no object"),
}


@pytest.mark.parametrize("why", WHY_NO_OBJECT)
def test_why_there_is_no_object_is_said(tmp_path, why):
    images, sets, says = WHY_NO_OBJECT[why]
    kit = write_devkit(tmp_path, images, sets)
    with pytest.raises(UserError, match=says):
        class_names([kit / "VOC2007"])


def test_a_file_of_classes_in_another_encoding(tmp_path):
    kit = write_devkit(tmp_path, {"a": [("汽车", (1, 1, 9, 9))]}, {"test": "a"})
    (tmp_path / "labels.txt").write_bytes("汽车\n".encode("gbk"))
    assert read_devkit(kit, classes=tmp_path / "labels.txt").class_index.tolist() == [0]
