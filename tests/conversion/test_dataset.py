import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders import write_devkit, write_picture, xml

import yolo_os.conversion.dataset as module
from yolo_os.conversion.dataset import convert
from yolo_os.conversion.labels import Placer
from yolo_os.errors import UserError
from yolo_os.voc import dataset_for, devkit_of, make_dataset


@pytest.fixture
def kit(tmp_path):
    images = {
        "a": [("cat", (1, 1, 100, 80)), ("dog", (5, 5, 8, 9), {"difficult": "1"})],
        "b": [("dog", (10, 20, 10, 40.5))],
        "c": [],
        "d": [("cat", (0, 3, 120, 50))],
    }
    return write_devkit(tmp_path / "kit", images, {"train": "ab", "val": "c", "test": "d"})


def labels(data_yaml, split, stem):
    text = (data_yaml.parent / "labels" / split / f"{stem}.txt").read_text()
    return [[float(value) for value in line.split()] for line in text.splitlines()]


def test_makes_an_ultralytics_data_set(kit, tmp_path):
    file = make_dataset(kit, tmp_path / "new" / "out", classes="cat,dog")
    data = yaml.safe_load(file.read_text())
    assert file == tmp_path / "new" / "out" / "data.yaml"
    assert (data["train"], data["val"], data["test"]) == (["images/train2007"], ["images/val2007"], ["images/test2007"])
    assert data["names"] == {0: "cat", 1: "dog"}
    assert data["voc"]["devkit"] == [str(kit / "VOC2007")]
    assert data["voc"]["year"] == ["2007"]
    images = {p.parent.name + "/" + p.name for p in (file.parent / "images").glob("*/*")}
    assert images == {"train2007/a.jpg", "train2007/b.jpg", "val2007/c.jpg", "test2007/d.jpg"}
    assert (file.parent / "images/train2007/a.jpg").is_symlink()
    assert os.stat(file.parent).st_mode & 0o077 == 0o055
    assert sorted(p.name for p in file.parent.parent.iterdir()) == ["out"]  # no temporary folder is left


def test_labels_are_exact_to_the_pixel_and_without_difficult_objects(kit, tmp_path):
    file = make_dataset(kit, tmp_path / "out", classes="cat,dog")
    assert labels(file, "train2007", "a") == [[0, 0.5, 0.5, 1, 1]]  # 1..100 of 100 is the whole width
    ((label, x, y, w, h),) = labels(file, "train2007", "b")
    assert label == 1
    # 10..10 covers 9 to 10, 20..40.5 covers 19 to 40.5
    np.testing.assert_allclose([(x - w / 2) * 100, (x + w / 2) * 100], [9, 10], rtol=0, atol=1e-6)
    np.testing.assert_allclose([(y - h / 2) * 80, (y + h / 2) * 80], [19, 40.5], rtol=0, atol=1e-6)
    assert labels(file, "val2007", "c") == []
    np.testing.assert_allclose(labels(file, "test2007", "d"), [[0, 0.5, 26 / 80, 1, 48 / 80]])  # clipped


def test_ultralytics_reads_those_boxes(kit, tmp_path):
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(str(make_dataset(kit, tmp_path / "out")))
    dataset = YOLODataset(data["train"], data=data, imgsz=32)
    assert [Path(file).name for file in dataset.im_files] == ["a.jpg", "b.jpg"]
    x, y, w, h = dataset.labels[1]["bboxes"][0] * [100, 80, 100, 80]
    np.testing.assert_allclose([x - w / 2, y - h / 2, x + w / 2, y + h / 2], [9, 19, 10, 40.5], rtol=0, atol=1e-4)
    assert data["names"][dataset.labels[1]["cls"].item()] == "dog"


@pytest.mark.parametrize("fails", [(), ("symlink",), ("symlink", "link")])
def test_images_are_linked_the_best_way_that_works(kit, tmp_path, monkeypatch, fails):
    def refuse(*args):
        raise OSError("not here")

    for name in fails:
        monkeypatch.setattr(os, name, refuse)
    dataset = convert(kit, tmp_path / "out")
    image = tmp_path / "out/images/train2007/a.jpg"
    assert dataset.linked == ["symlink", "hard link", "copy"][len(fails)]
    assert image.is_symlink() == (not fails)
    assert image.samefile(kit / "VOC2007/JPEGImages/a.jpg") == (len(fails) < 2)
    assert image.read_bytes() == (kit / "VOC2007/JPEGImages/a.jpg").read_bytes()


def test_copies_on_request(kit, tmp_path):
    file = make_dataset(kit, tmp_path / "out", copy=True)
    assert not (file.parent / "images/train2007/a.jpg").is_symlink()
    shutil.rmtree(kit)
    assert (file.parent / "images/train2007/a.jpg").stat().st_size > 0


def test_years_go_into_folders_of_their_own(kit, tmp_path):
    write_devkit(kit, {"a": [("cat", (1, 1, 2, 2))]}, {"trainval": "a", "train": "a"}, year="2012")
    (kit / "VOC2012/ImageSets/Main/val.txt").write_text("a\n")
    other = write_devkit(tmp_path / "second", {"a": [("cat", (1, 1, 3, 3))]}, {"train": "a", "val": "a"})
    file = make_dataset([kit, other], tmp_path / "out", year="2007,2012")
    data = yaml.safe_load(file.read_text())
    assert data["train"] == ["images/train2007", "images/train2012", "images/train2007-2"]
    assert data["test"] == ["images/test2007"]
    assert labels(file, "train2007-2", "a")[0][3:] == [0.03, 0.0375]
    found = devkit_of(file).read("train")
    assert len(found.images) == 4


def test_val_comes_out_of_trainval_never_out_of_test(tmp_path):
    ids = [f"{i:02d}" for i in range(20)]
    kit = write_devkit(
        tmp_path / "kit", {stem: [("cat", (1, 1, 9, 9))] for stem in [*ids, "t"]}, {"trainval": ids, "test": "t"}
    )
    dataset = convert(kit, tmp_path / "out")
    val, train = set(dataset.splits["val"].images), set(dataset.splits["train"].images)
    assert (len(val), val | train, val & train) == (2, set(ids), set())
    assert dataset.splits["test"].images == ("t",)
    assert set(devkit_of(dataset.yaml).read("val").images) == val


def test_a_test_set_alone_is_for_evaluation_only(tmp_path):
    kit = write_devkit(tmp_path / "kit", {"a": [("cat", (1, 1, 9, 9))]}, {"test": "a"})
    dataset = convert(kit, tmp_path / "out")
    data = yaml.safe_load(dataset.yaml.read_text())
    assert (data["train"], data["val"], data["test"]) == ([], [], ["images/test2007"])
    assert "for evaluation only" in str(dataset)


def test_missing_images_and_sizes(kit, tmp_path):
    (kit / "VOC2007/JPEGImages/a.jpg").unlink()
    (kit / "VOC2007/Annotations/b.xml").write_text(xml([("dog", (1, 1, 25, 30))], size=None))
    write_picture(kit / "VOC2007/JPEGImages/b.jpg", (50, 60))
    dataset = convert(kit, tmp_path / "out", classes="cat,dog")
    assert dataset.splits["train"].images == ("b",)
    assert [problem.lost for problem in dataset.problems if problem.file.name == "a.jpg"] == [True]
    assert labels(dataset.yaml, "train2007", "b") == [[1, 0.25, 0.25, 0.5, 0.5]]
    assert "a.jpg: the image is missing" in (tmp_path / "out/problems.txt").read_text()
    assert str(dataset).splitlines()[0].split()[1] == "1"


def test_only_its_own_data_set_is_replaced(kit, tmp_path):
    out = tmp_path / "out"
    make_dataset(kit, out)
    (kit / "VOC2007/ImageSets/Main/train.txt").write_text("a\n")
    make_dataset(kit, out)
    assert [p.name for p in (out / "images/train2007").iterdir()] == ["a.jpg"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which yolo-os voc did not make"):
        make_dataset(kit, out)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "data.yaml").write_text("train: x\n")
    with pytest.raises(UserError, match="holds something that yolo-os voc did not make"):
        make_dataset(kit, foreign)
    with pytest.raises(UserError, match="is a file"):
        make_dataset(kit, out / "notes.txt")
    (tmp_path / "empty").mkdir()
    assert make_dataset(kit, tmp_path / "empty").is_file()


def test_a_failure_leaves_nothing_behind(kit, tmp_path, monkeypatch):
    out = make_dataset(kit, tmp_path / "out")
    before = out.read_text()
    monkeypatch.setattr(module, "write_split", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_dataset(kit, tmp_path / "out", classes="cat")
    assert out.read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kit", "out"]


def test_dataset_for_a_devkit_is_made_once_and_again_after_a_change(kit, monkeypatch):
    first = dataset_for(kit)
    calls = []
    fill = module._fill
    monkeypatch.setattr(module, "_fill", lambda *args: calls.append(args) or fill(*args))
    assert dataset_for(kit) == dataset_for(kit / "VOC2007") == first
    assert calls == []
    assert dataset_for(kit, classes="dog,cat") != first
    assert yaml.safe_load(first.read_text())["names"][0] == "aeroplane"
    write_picture(kit / "VOC2007/JPEGImages/new.jpg")
    (kit / "VOC2007/ImageSets/Main/train.txt").write_text("b\n")
    assert dataset_for(kit) == first
    assert len(calls) == 2
    assert [p.name for p in (first.parent / "images/train2007").iterdir()] == ["b.jpg"]


def test_folders_of_one_name_get_numbers(tmp_path):
    kits = [
        write_devkit(tmp_path / name, {"a": [("cat", (1, 1, 9, 9))]}, {"train": "a"}, year="my-export")
        for name in "xyz"
    ]
    roots = [kit / "VOCmy-export" for kit in kits]
    data = yaml.safe_load(make_dataset(roots, tmp_path / "out").read_text())
    assert data["train"] == ["images/trainmy-export", "images/trainmy-export-2", "images/trainmy-export-3"]


def test_images_in_folders_below(tmp_path):
    images = {f"{cam}/f 1": [("cat", (1, 1, 50, 40))] for cam in ("cam1", "cam2")}
    kit = write_devkit(tmp_path / "kit", images, {"train": ['"cam1/f 1"', "cam2/f 1"], "val": ["cam2/f 1"]})
    file = make_dataset(kit, tmp_path / "out")
    for cam in ("cam1", "cam2"):
        assert labels(file, f"train2007/{cam}", "f 1") == [[7, 0.25, 0.25, 0.5, 0.5]]
        assert (file.parent / f"images/train2007/{cam}/f 1.jpg").is_symlink()


def test_an_empty_list_leaves_its_split_out_and_says_so(tmp_path):
    kit = write_devkit(
        tmp_path / "kit", {s: [("cat", (1, 1, 9, 9))] for s in "abc"}, {"train": "ab", "val": "c", "test": []}
    )
    dataset = convert(kit, tmp_path / "out")
    assert list(dataset.splits) == ["train", "val"]
    assert "test.txt is empty" in dataset.notes[0]


def test_a_split_without_images_leaves_the_others(kit, tmp_path):
    for stem in "ab":
        (kit / f"VOC2007/JPEGImages/{stem}.jpg").unlink()
    dataset = convert(kit, tmp_path / "out")
    assert list(dataset.splits) == ["val", "test"]
    assert "no image of train could be used: left out" in dataset.notes
    assert [problem.lost for problem in dataset.problems if problem.file.suffix == ".jpg"] == [True, True]


def test_images_that_are_damaged_are_left_out(kit, tmp_path):
    (kit / "VOC2007/JPEGImages/a.jpg").write_bytes(b"")
    dataset = convert(kit, tmp_path / "out")
    assert dataset.splits["train"].images == ("b",)
    assert "a.jpg: the image can't be read" in (tmp_path / "out/problems.txt").read_text()


def test_the_same_image_in_two_splits_is_a_warning(tmp_path):
    kit = write_devkit(
        tmp_path / "kit", {s: [("cat", (1, 1, 9, 9))] for s in "abcd"}, {"train": "ab", "val": "c", "test": "bd"}
    )
    for number, stem in enumerate("abc"):
        write_picture(kit / f"VOC2007/JPEGImages/{stem}.jpg", (100, 80 + number))
    shutil.copy(kit / "VOC2007/JPEGImages/c.jpg", kit / "VOC2007/JPEGImages/d.jpg")
    by_name, by_content = convert(kit, tmp_path / "out").warnings
    assert "1 of the images of test are in train too (b.jpg)" in by_name
    assert "1 of the images of test are in val too (c.jpg = d.jpg)" in by_content


def test_objects_of_classes_that_are_not_named_are_said(kit, tmp_path):
    dataset = convert(kit, tmp_path / "out", classes="Cat,horse")
    (problem,) = (problem for problem in dataset.problems if "left out" in problem.text)
    assert (problem.text, problem.lost) == ("2 objects of 'cat' left out: the class named is 'Cat'", True)
    assert dataset.notes[:2] == (
        "2 objects are left out, of classes that are not named: 2 of dog",
        "no object is of class Cat, horse",
    )


@pytest.mark.parametrize("how", ["symlink", "hard link", "copy"])
def test_no_image_is_written_through_the_link_of_another(tmp_path, how):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text(name)
    Placer("symlink")(tmp_path / "a.jpg", tmp_path / "there.jpg")
    with pytest.raises(UserError, match=r"b\.jpg: another image is called there\.jpg"):
        Placer(how)(tmp_path / "b.jpg", tmp_path / "there.jpg")
    assert (tmp_path / "a.jpg").read_text() == "a.jpg"
