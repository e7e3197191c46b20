"""The data of a comparison: splits settled once, parts drawn by the seed, nothing in two places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml
from builders import listed_dataset

from yolo_os import UserError
from yolo_os.comparison.arms import read_arms
from yolo_os.comparison.plan import Config
from yolo_os.comparison.resampling import Truth
from yolo_os.integration import compare_data
from yolo_os.integration.compare_data import files_of, prepare, read_truth, train_yaml
from yolo_os.integration.data import read_description
from yolo_os.voc import make_dataset, read_devkit

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PARTS = {"train": ("train", slice(0, 20)), "val": ("val", slice(0, 4)), "test": ("test", slice(0, 6))}


@pytest.fixture(scope="module")
def digits_set(digits, tmp_path_factory):
    return make_dataset(digits, tmp_path_factory.mktemp("compare") / "digits")


def settle(data, folder, **changes):
    config = replace(Config("m.pt", (str(data),), read_arms("stock,sos"), (0,)), **changes)
    return prepare(config, next(iter(config.names())), folder, NAMES, "detect")


def images(prepared, split, yaml_file=None):
    file = yaml_file or prepared.train_yaml
    return files_of(read_description(file, file), split, "detect")


def test_a_test_split_is_used_as_it_is(digits_set, tmp_path):
    data = listed_dataset(digits_set, tmp_path / "a.yaml", PARTS)
    prepared = settle(data, tmp_path / "x")
    assert (prepared.test_split, prepared.test_images, prepared.train_images) == ("test", 6, 20)
    assert prepared.train_yaml == prepared.test_yaml == str(data)
    assert prepared.warnings == (
        f"{data}: 6 images to test on: intervals are wide, and what so few hold by chance is in every difference; 50 or"
        " more say more",
    )
    enough = listed_dataset(digits_set, tmp_path / "b.yaml", {**PARTS, "test": ("test", slice(0, 50))})
    assert settle(enough, tmp_path / "z").warnings == ()


def test_without_one_a_part_of_train_is_drawn_off_once(digits_set, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_data, "LEAST_TRAIN", 20)
    data = listed_dataset(digits_set, tmp_path / "a.yaml", {name: PARTS[name] for name in ("train", "val")})
    prepared = settle(data, tmp_path / "x", held_out=0.25)
    train, test = images(prepared, "train"), images(prepared, "test")
    assert (len(train), len(test), set(train) & set(test)) == (15, 5, set())
    assert images(prepared, "val") == files_of(read_description(data, data), "val", "detect")
    assert "drawn off" in prepared.warnings[0]
    assert Truth.load(prepared.truth).files == tuple(test)
    again = settle(data, tmp_path / "y", held_out=0.25)
    assert images(again, "test") == test
    part = images(prepared, "train", train_yaml(prepared, 6, 1, "detect"))
    assert len(part) == 6
    assert not set(part) & set(test)


def test_too_little_to_draw_from_is_evaluated_on_val_with_a_warning(digits_set, tmp_path):
    data = listed_dataset(digits_set, tmp_path / "a.yaml", {name: PARTS[name] for name in ("train", "val")})
    prepared = settle(data, tmp_path / "x")
    assert prepared.test_split == "val"
    assert "too good" in prepared.warnings[0]
    assert settle(data, tmp_path / "y", test="train").test_images == 4


def test_a_test_split_that_chooses_is_none(digits_set, tmp_path, monkeypatch):
    """As in Ultralytics' VOC.yaml, whose val is test2007."""
    data = listed_dataset(digits_set, tmp_path / "a.yaml", PARTS)
    content = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump({**content, "test": content["val"]}))
    monkeypatch.setattr(compare_data, "LEAST_TRAIN", 20)
    prepared = settle(data, tmp_path / "x")
    assert prepared.test_images == 4
    assert "its test split is its val" in prepared.warnings[0]
    with pytest.raises(UserError, match="its val or train"):
        settle(data, tmp_path / "y", test="test")


def test_images_in_train_and_test_are_refused(digits_set, tmp_path):
    parts = {**PARTS, "test": ("train", slice(15, 25))}
    with pytest.raises(UserError, match="5 images are in both train and test"):
        settle(listed_dataset(digits_set, tmp_path / "a.yaml", parts), tmp_path / "x")


def test_parts_are_drawn_by_the_seed_and_lie_within_each_other(digits_set, tmp_path):
    prepared = settle(listed_dataset(digits_set, tmp_path / "a.yaml", PARTS), tmp_path / "x")
    small, large = (set(images(prepared, "train", train_yaml(prepared, part, 0, "detect"))) for part in (4, 0.5))
    other = set(images(prepared, "train", train_yaml(prepared, 4, 1, "detect")))
    assert (len(small), len(large)) == (4, 10)
    assert small < large
    assert other != small
    assert train_yaml(prepared, 1.0, 0, "detect") == prepared.train_yaml
    with pytest.raises(UserError, match="has 20 images"):
        train_yaml(prepared, 21, 0, "detect")


def test_the_truth_of_a_devkit_has_its_difficult_objects(digits, digits_set):
    truth = read_truth(str(digits_set), "test", "detect")
    annotations = read_devkit(digits, split="test", classes=list(truth.classes))
    assert truth.difficult.sum() == annotations.difficult.sum() > 0
    mine = sorted(map(tuple, np.column_stack([truth.class_index, truth.box]).tolist()))
    assert mine == sorted(map(tuple, np.column_stack([annotations.class_index, annotations.box]).tolist()))


def test_the_truth_of_labels_is_that_of_the_devkit_without_them(digits_set, tmp_path):
    data = listed_dataset(digits_set, tmp_path / "a.yaml", {**PARTS, "test": ("test", slice(0, 300))})
    labels, xml = read_truth(str(data), "test", "detect"), read_truth(str(digits_set), "test", "detect")
    easy = ~xml.difficult
    assert len(labels.box) == easy.sum()
    mine = sorted(map(tuple, np.column_stack([labels.class_index, labels.box]).round(3).tolist()))
    assert mine == sorted(map(tuple, np.column_stack([xml.class_index, xml.box])[easy].tolist()))
