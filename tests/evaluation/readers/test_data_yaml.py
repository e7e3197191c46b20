import shutil

import pytest
import yaml
from builders import write_devkit

from yolo_os.errors import UserError
from yolo_os.voc import devkit_of, is_devkit, make_dataset, read_devkit


@pytest.fixture
def kit(tmp_path):
    images = {
        "a": [("cat", (1, 1, 100, 80)), ("dog", (5, 5, 8, 9), {"difficult": "1"})],
        "b": [("dog", (10, 20, 10, 40.5))],
        "c": [],
        "d": [("cat", (0, 3, 120, 50))],
    }
    return write_devkit(tmp_path / "kit", images, {"train": "ab", "val": "c", "test": "d"})


def test_which_paths_are_devkits(kit, tmp_path):
    assert all(map(is_devkit, (kit, str(kit), kit / "VOC2007")))
    assert not is_devkit(make_dataset(kit, tmp_path / "out"))
    assert not is_devkit(tmp_path / "out")
    assert not is_devkit("VOC.yaml")


def ultralytics_layout(kit, base):
    """As Ultralytics' VOC.yaml leaves it: the devkit without its images, which are moved to images/test2007."""
    shutil.copytree(kit, base / "images/VOCdevkit")
    for split, stems in (("train", "ab"), ("val", "c"), ("test", "d")):
        (base / "images" / f"{split}2007").mkdir()
        for stem in stems:
            shutil.move(
                base / f"images/VOCdevkit/VOC2007/JPEGImages/{stem}.jpg", base / f"images/{split}2007/{stem}.jpg"
            )
    return {
        "train": ["images/train2007", "images/val2007"],
        "val": ["images/test2007"],
        "test": ["images/test2007"],
        "names": {0: "dog", 1: "cat"},
    }


def test_finds_the_devkit_of_ultralytics_own_layout(kit, tmp_path):
    base = tmp_path / "datasets" / "VOC"
    file = tmp_path / "VOC.yaml"
    file.write_text(yaml.safe_dump({"path": str(base), **ultralytics_layout(kit, base)}))
    source = devkit_of(file)
    test = source.read("test")
    assert (test.images, test.classes) == (("d",), ("dog", "cat"))
    assert test.image_files == (base / "images/test2007/d.jpg",)
    assert source.read("train").images == ("a", "b", "c")
    assert source.read("val").images == ("d",)


def test_finds_a_relative_path_where_ultralytics_keeps_its_data_sets(kit, tmp_path, monkeypatch):
    base = tmp_path / "datasets" / "VOC"
    (tmp_path / "Ultralytics").mkdir()
    (tmp_path / "Ultralytics/settings.json").write_text(f'{{"datasets_dir": "{tmp_path / "datasets"}"}}')
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    ultralytics_layout(kit, base)
    assert devkit_of("VOC.yaml").read("test").images == ("d",)  # the file that Ultralytics ships


def test_data_sets_without_a_devkit(kit, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        devkit_of(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="is no data"):
        devkit_of(tmp_path / "bad.yaml")
    (tmp_path / "other.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    with pytest.raises(UserError, match=r"no VOC annotations belong to it .* give devkit="):
        devkit_of(tmp_path / "other.yaml")
    out = make_dataset(kit, tmp_path / "out")
    with pytest.raises(UserError, match="split=minival: the data set has train, val, test"):
        devkit_of(out).read("minival")
    assert devkit_of(out.parent).read("test").images == read_devkit(kit).images
    shutil.rmtree(kit)
    with pytest.raises(UserError, match=r"was made from .*VOC2007, which is not there any more"):
        devkit_of(out)
