"""The embedded data set is what its script makes, and the embedded detector is small and says nothing of a machine."""

import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
VOC = DATA / "digits" / "VOCdevkit" / "VOC2007"
DETECTOR = DATA / "digits" / "detector.pt"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("make_digits")


@pytest.fixture(scope="module")
def again(script, tmp_path_factory):
    """The data set made anew: its folder and what `make` says of it."""
    out = tmp_path_factory.mktemp("digits")
    made = script.make(out)
    return out / "VOCdevkit" / "VOC2007", made


def texts(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "Annotations").iterdir(), *(folder / "ImageSets" / "Main").iterdir()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_annotations_and_image_sets_are_made_again_byte_for_byte(again):
    assert texts(again[0]) == texts(VOC)


def test_images_are_made_again_but_for_the_jpeg_encoder(again):
    names = sorted(file.name for file in (VOC / "JPEGImages").iterdir())
    assert names == sorted(file.name for file in (again[0] / "JPEGImages").iterdir())
    for name in names[::10]:
        old, new = (cv2.imread(str(folder / "JPEGImages" / name)).astype(float) for folder in (VOC, again[0]))
        assert old.shape == new.shape
        assert np.abs(old - new).mean() < 2


def test_nothing_but_the_data_set_is_left_in_the_folder(again):
    assert [path.name for path in again[0].parent.iterdir()] == ["VOC2007"]


def test_splits_draw_different_scans(again):
    train, val, test = (again[1][name].scans for name in ("train", "val", "test"))
    assert train and val and test
    assert not (train & val or train & test or val & test)


def test_annotations_say_which_scans_were_drawn(again, script):
    _, labels = script.load_scans()
    for split in again[1].values():
        for stem, items in split.images.items():
            root = ET.parse(VOC / "Annotations" / f"{stem}.xml").getroot()
            numbers = [int(word) for word in root.findtext("source/image").split()[1:]]
            assert numbers == [item.scan for item in items]
            assert [item.findtext("name") for item in root.iter("object")] == [
                script.CLASSES[labels[n]] for n in numbers
            ]


def test_boxes_lie_in_their_image_and_some_objects_are_difficult():
    difficult = []
    for file in sorted((VOC / "Annotations").iterdir()):
        root = ET.parse(file).getroot()
        height, width = cv2.imread(str(VOC / "JPEGImages" / root.findtext("filename"))).shape[:2]
        assert (root.findtext("size/width"), root.findtext("size/height")) == (str(width), str(height))
        items = list(root.iter("object"))
        assert 1 <= len(items) <= 6
        for item in items:
            x0, y0, x1, y1 = (int(item.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= x0 < x1 <= width and 1 <= y0 < y1 <= height
            touches = x0 == 1 or y0 == 1 or x1 == width or y1 == height
            assert touches or item.findtext("truncated") == "0"
            difficult.append(item.findtext("difficult") == "1")
    assert 0.05 < np.mean(difficult) < 0.1


def test_box_is_tight_around_the_ink(script):
    cover = np.zeros((9, 12))
    cover[3:6, 4:11] = 0.7
    assert script.tight(cover >= script.INK) == (4, 3, 11, 6)
    # On an even background the drawn pixels are those inside the box, out to each of its four edges.
    rng = np.random.default_rng(0)
    scans, _ = script.load_scans()
    canvas = np.full((160, 160, 3), 128.0)
    layer = script.place(rng, script.render(rng, scans[5]), 5, 160, 160)
    script.paint(rng, canvas, layer)
    x0, y0, x1, y1 = layer.box
    assert script.tight(np.abs(canvas - 128).sum(axis=2) > 0) == (x0, y0, x1, y1)


def test_image_sets_list_every_image_once_and_flag_the_classes(script):
    def lines(name: str) -> list[str]:
        return (VOC / "ImageSets" / "Main" / f"{name}.txt").read_text().splitlines()

    assert [len(lines(name)) for name in ("train", "val", "test")] == [300, 100, 300]
    assert lines("trainval") == lines("train") + lines("val")
    stems = sorted(lines("trainval") + lines("test"))
    assert stems == sorted(file.stem for file in (VOC / "Annotations").iterdir())
    for index, name in enumerate(script.CLASSES):
        flags = dict(line.split() for line in lines(f"{name}_test"))
        assert list(flags) == lines("test") and set(flags.values()) <= {"1", "0", "-1"}
        if index == 0:
            for stem, flag in flags.items():
                items = [i for i in ET.parse(VOC / "Annotations" / f"{stem}.xml").iter("object") if i[0].text == name]
                assert (flag == "-1") == (not items)
                assert (flag == "0") == bool(items and all(i.findtext("difficult") == "1" for i in items))


def test_a_foreign_data_set_is_never_replaced(script, tmp_path, capsys):
    file = tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml"
    file.parent.mkdir(parents=True)
    file.write_text("<annotation><source><database>The VOC2007 Database</database></source></annotation>")
    assert script.main(["--out", str(tmp_path)]) == 1
    assert "was not made by this script" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_data_set_is_small():
    parts = [VOC / name for name in ("Annotations", "ImageSets", "JPEGImages")]  # others may keep caches beside them
    assert sum(file.stat().st_size for part in parts for file in part.rglob("*") if file.is_file()) < 5e6


def test_labels_for_training_cover_the_same_pixels_and_leave_out_difficult_objects(tmp_path):
    load("train_detector").write_yolo(VOC, tmp_path)
    for stem in (VOC / "ImageSets" / "Main" / "val.txt").read_text().split():
        root = ET.parse(VOC / "Annotations" / f"{stem}.xml").getroot()
        width, height = (int(root.findtext(f"size/{tag}")) for tag in ("width", "height"))
        kept = [item for item in root.iter("object") if item.findtext("difficult") == "0"]
        rows = [line.split() for line in (tmp_path / "labels" / "val" / f"{stem}.txt").read_text().splitlines()]
        assert len(rows) == len(kept)
        for item, (_, x, y, w, h) in zip(kept, rows):
            x0, y0, x1, y1 = (int(item.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax"))
            x, y, w, h = float(x) * width, float(y) * height, float(w) * width, float(h) * height
            np.testing.assert_allclose(
                [x - w / 2, y - h / 2, x + w / 2, y + h / 2], [x0 - 1, y0 - 1, x1, y1], atol=1e-3
            )


def test_detector_is_small_and_names_no_folder_of_a_machine():
    assert DETECTOR.stat().st_size <= 2.2e6
    with zipfile.ZipFile(DETECTOR) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist() if "/data/" not in name)
    assert b"ultralytics" in content
    found = re.findall(rb"/(?:work|tmp|root|opt|home|Users|private|content|mnt|var)/[ -~]*|[A-Z]:\\\\[ -~]*", content)
    assert not found


def test_detector_loads_as_an_ordinary_ultralytics_checkpoint():
    import torch

    checkpoint = torch.load(DETECTOR, map_location="cpu", weights_only=False)
    assert tuple(checkpoint["model"].names.values()) == load("make_digits").CLASSES
    assert checkpoint["train_args"]["model"] == "data/digits/detector.yaml"
    assert checkpoint["train_args"]["imgsz"] == 160
    assert not any(checkpoint["git"].values())
    for value in (*checkpoint["train_args"].values(), *checkpoint["model"].args.values()):
        assert not (isinstance(value, str) and Path(value).is_absolute())
