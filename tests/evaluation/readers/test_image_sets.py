import shutil

from builders import write_devkit

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
