import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import write_devkit, xml

import yolo_os.evaluation.annotations as module
from yolo_os.errors import UserError
from yolo_os.voc import VOC_CLASSES, read_devkit

CAT, DOG = ("cat", (10, 20, 30, 40)), ("dog", (1, 1, 100, 80))


@pytest.fixture
def kit(tmp_path):
    """Three images in test, one in train and val each."""
    images = {
        "a": [CAT, ("dog", (5, 5, 8.5, 9), {"difficult": "1", "truncated": "1"})],
        "b": [DOG],
        "c": [],
        "d": [CAT],
        "e": [DOG],
    }
    return write_devkit(tmp_path / "kit", images, {"test": "abc", "train": "d", "val": "e"})


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


def test_missing_tags_are_zero_and_counted(tmp_path):
    none = {"pose": None, "truncated": None, "difficult": None}
    objects = [("cat", (1, 1, 5, 5), none), ("cat", (1, 1, 5, 5), {"difficult": ""}), CAT]
    found = read_devkit(write_devkit(tmp_path, {"a": objects}, {"test": "a"}))
    assert found.missing == {"difficult": 2, "truncated": 1, "pose": 1}
    assert not found.difficult.any()
    assert "2 without <difficult>" in str(found)


def test_parts_of_an_object_are_not_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    text = xml([("person", (3, 3, 9, 9))]).replace("<pose>", f"{part}<pose>")
    found = read_devkit(write_devkit(tmp_path, {"a": text}, {"test": "a"}))
    assert found.box.tolist() == [[3, 3, 9, 9]]
    assert found.classes[found.class_index[0]] == "person"


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


def test_image_set_lines(kit):
    sets = kit / "VOC2007/ImageSets/Main"
    (sets / "cat_test.txt").write_text("a  1\nb -1\nc  0\n")
    assert read_devkit(kit, split="cat_test").images == ("a", "b", "c")
    shutil.copy(kit / "VOC2007/Annotations/a.xml", kit / "VOC2007/Annotations/photo 1.xml")
    (sets / "spaced.txt").write_text("photo 1\nb\n")
    assert read_devkit(kit, split="spaced").images == ("photo 1", "b")
    (sets / "test.txt").write_text("a\nb\na\n")
    twice = read_devkit(kit)
    assert twice.images == ("a", "b")
    assert str(twice.problems[0]).endswith("test.txt:3: a is listed again (first in line 1): ignored")
    assert twice.lost == ()


def test_sets_made_of_others(tmp_path):
    ids = [f"{i:04d}" for i in range(59)]
    kit = write_devkit(tmp_path, {stem: [CAT] for stem in ids}, {"trainval": ids}, pictures=False)
    train, val = (read_devkit(kit, split=split) for split in ("train", "val"))
    assert len(val.images) == 5
    assert sorted(train.images + val.images) == ids
    assert "5 of the 59 images of trainval are used as val" in val.notes[0]
    assert read_devkit(kit, split="val").images == val.images
    sets = tmp_path / "VOC2007/ImageSets/Main"
    (sets / "val.txt").write_text("0001\n")
    assert set(read_devkit(kit, split="train").images) == set(ids) - {"0001"}
    (sets / "trainval.txt").unlink()
    (sets / "train.txt").write_text("0002\n0003\n")
    assert read_devkit(kit, split="trainval").images == ("0002", "0003", "0001")


BROKEN = {
    "cut": (xml([CAT])[:-30], 8, "broken XML", True),
    "entity": ('<!DOCTYPE a [<!ENTITY b "c">]>\n' + xml([CAT]), 0, "entities, which are refused", True),
    "other": ("<html></html>", 0, "its root is <html>", True),
    "nameless": (xml([CAT, ("", (1, 1, 2, 2))]), 10, "object without a name: left out", True),
    "text": (xml([("cat", ("one", 1, 2, 2))]), 3, "cat: no readable bndbox", True),
    "nan": (xml([("cat", ("nan", 1, 2, 2))]), 3, "cat: no readable bndbox", True),
    "inverted": (xml([("cat", (30, 40, 10, 20))]), 3, "cat at 30 40 10 20 is inverted: corners swapped", False),
    "empty": (xml([("cat", (30, 20, 29, 40))]), 3, "cat at 30 20 29 40 is empty: left out", True),
    "outside": (xml([("cat", (101, 1, 120, 9))]), 3, "is outside the image (100 x 80): left out", True),
    "above": (xml([("cat", (1, -5, 20, 0))]), 3, "is outside the image (100 x 80): left out", True),
    "partly": (xml([("cat", (0, 1, 50, 9))]), 3, "is partly outside the image (100 x 80): kept", False),
    "sizeless": (xml([("cat", (0, 1, 999, 9))], size=None), 0, "has no image size", False),
    "flag": (xml([("cat", (1, 1, 9, 9), {"difficult": "perhaps"})]), 3, "<difficult> is 'perhaps'", False),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_listed_with_its_line_and_the_rest_goes_on(tmp_path, name):
    text, line, says, lost = BROKEN[name]
    kit = write_devkit(tmp_path, {"fine": [CAT], name: text}, {"test": ["fine", name]}, pictures=False)
    for _ in range(2):  # the second time from the cache
        found = read_devkit(kit)
        (problem,) = found.problems
        assert (problem.file.name, problem.line, problem.lost) == (f"{name}.xml", line, lost)
        assert says in problem.text
        assert found.images[0] == "fine"
        assert found.box[0].tolist() == [10, 20, 30, 40]
    boxes = found.box[found.image == 1].tolist()
    kept = {
        "nameless": CAT[1],
        "inverted": (10, 20, 30, 40),
        "partly": (0, 1, 50, 9),
        "sizeless": (0, 1, 999, 9),
        "flag": (1, 1, 9, 9),
    }
    assert boxes == ([list(kept[name])] if name in kept else [])
    unreadable = name in ("cut", "entity", "other")
    assert found.left_out == (frozenset({name}) if unreadable else frozenset())


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


def test_cache_is_used_until_something_changes(kit, monkeypatch):
    first = read_devkit(kit)
    calls = []
    parse = module._parse_year
    monkeypatch.setattr(module, "_parse_year", lambda *args: calls.append(args) or parse(*args))
    again = read_devkit(kit)
    assert calls == []
    for name in ("image", "class_index", "box", "difficult", "truncated", "size"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    file = kit / "VOC2007/Annotations/a.xml"
    stat = file.stat()
    file.write_text(file.read_text().replace("<xmin>10<", "<xmin>11<"))  # same size, another time
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert read_devkit(kit).box[0, 0] == 11
    (kit / "VOC2007/Annotations/new.xml").write_text(xml([CAT]))
    read_devkit(kit)
    assert len(calls) == 2
    (kit / "VOC2007" / module.CACHE_FOLDER / "annotations.npz").write_bytes(b"damaged")
    assert read_devkit(kit).box[0, 0] == 11


def test_cache_goes_to_the_users_folder_where_the_devkit_is_read_only(kit, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    root = kit / "VOC2007"
    root.chmod(0o555)
    try:
        read_devkit(kit)
    finally:
        root.chmod(0o755)
    assert not (root / module.CACHE_FOLDER).exists()
    assert len(list(Path(tmp_path / "mine").rglob("annotations.npz"))) == 1
