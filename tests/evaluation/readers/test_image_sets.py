import shutil

import pytest
from builders import write_devkit

from yolo_os.errors import UserError
from yolo_os.voc import read_devkit

CAT = ("cat", (10, 20, 30, 40))


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


LINES = {
    "suffix": ("a.jpg", "a"),
    "path": ("JPEGImages/a.jpg", "a"),
    "two paths": ("JPEGImages/a.jpg Annotations/a.xml", "a"),
    "two paths with spaces": ("./JPEGImages/my photo.jpg ./Annotations/my photo.xml", "my photo"),
    "Windows": ("D:\\data\\JPEGImages\\a.jpg", "a"),
    "quotes": ('"my photo"', "my photo"),
    "quotes and folder": ('"cam1/f 1"', "cam1/f 1"),
    "quotes and flag": ('"my photo" -1', "my photo"),
}


@pytest.mark.parametrize("kind", LINES)
def test_what_tools_write_in_place_of_ids_is_read_and_said(tmp_path, kind):
    line, stem = LINES[kind]
    kit = write_devkit(tmp_path, {"a": [CAT], "my photo": [CAT], "cam1/f 1": [CAT]}, {"test": [line]})
    found = read_devkit(kit)
    assert found.images == (stem,)
    assert found.image_files == (tmp_path / f"VOC2007/JPEGImages/{stem}.jpg",)
    assert f"'{line}' is read as '{stem}'" in found.notes[0]


def test_an_id_may_end_in_0_or_1(tmp_path):
    kit = write_devkit(tmp_path, {"cam 0": [CAT], "cam 1": [CAT]}, {"test": ["cam 0", "cam 1"]})
    assert read_devkit(kit).images == ("cam 0", "cam 1")
    (kit / "VOC2007/Annotations/cam 1.xml").unlink()
    found = read_devkit(kit)
    assert (found.images, found.left_out) == (("cam 0",), {"cam 1"})
    kit = write_devkit(tmp_path, {"cam": [CAT]}, {"cat_test": ["cam 0 -1", "cam  1"]})
    assert read_devkit(kit, split="cat_test").images == ("cam 0", "cam")


def test_other_encodings_of_lists(tmp_path):
    kit = write_devkit(tmp_path, {"图像": [CAT], "車両": [CAT]}, {"test": []})
    file = kit / "VOC2007/ImageSets/Main/test.txt"
    for stem, encoding in (("图像", "gbk"), ("車両", "shift_jis"), ("車両", "utf-16"), ("图像", "utf-8-sig")):
        file.write_bytes(f"{stem}\n".encode(encoding))
        assert read_devkit(kit).images == (stem,)


def test_two_forms_of_one_letter_are_one(tmp_path):
    kit = write_devkit(tmp_path, {"mu\u0308de": [CAT]}, {"test": ["m\u00fcde"]})
    found = read_devkit(kit)
    assert found.images == ("m\u00fcde",)
    assert found.image_readable.all()


def test_an_empty_list_is_as_none_and_said(tmp_path):
    kit = write_devkit(tmp_path, {"a": [CAT], "b": [CAT]}, {"train": "ab", "val": [], "test": []})
    assert "1 of the 2 images of train are used as val" in read_devkit(kit, split="val").notes[0]
    with pytest.raises(UserError, match=r"test\.txt is empty: no image set 'test'; there is train"):
        read_devkit(kit)


def test_images_of_the_test_set_that_are_trained_on_bring_a_warning(tmp_path):
    kit = write_devkit(tmp_path, {"a": [CAT], "b": [CAT]}, {"train": "a", "test": "ab"})
    assert "1 of the images of test are in train too (a)" in read_devkit(kit).warnings[0]
    assert read_devkit(kit, split="train").warnings == ()
