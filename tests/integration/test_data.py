"""Calibration images: what is drawn, in whose class order, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import write_devkit

from yolo_os import ShiftRecipe, shift_
from yolo_os.conversion.dataset import make_dataset
from yolo_os.errors import UserError
from yolo_os.evaluation.readers.devkit import read_devkit
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.data import (
    calibration_batches,
    class_names_of,
    class_order,
    describe,
    numbers_in_model,
)


@pytest.fixture(scope="module")
def model(request):
    return load_checkpoint(request.getfixturevalue("detector")).model


def files(batches):
    return [file for batch in batches for file in batch["im_file"]]


def test_images_are_drawn_once_and_the_same_again(model, digits):
    recipe = ShiftRecipe(images=20, held_out=10)
    used, held_out = calibration_batches(model, digits, recipe, batch=8)
    assert (used.images, held_out.images) == (20, 10)
    assert len(used) == 3
    drawn = files(used) + files(held_out)
    assert len(set(drawn)) == 30
    assert files(used) == files(used)
    again, _ = calibration_batches(model, digits, recipe, batch=8)
    assert files(again) == files(used)
    other, _ = calibration_batches(model, digits, recipe.replace(seed=1), batch=8)
    assert files(other) != files(used)


def test_a_small_split_holds_out_a_quarter(model, digits):
    used, held_out = calibration_batches(model, digits, ShiftRecipe(images=1000, held_out=500))
    assert (used.images, held_out.images) == (225, 75)
    used, held_out = calibration_batches(model, digits, ShiftRecipe(images=100, held_out=500))
    assert (used.images, held_out.images) == (100, 200)


def test_labels_of_a_devkit_are_numbered_as_the_model_numbers_them(model, digits):
    """A devkit's XML names classes and leaves their order open: alphabetical order would train the wrong digits."""
    names = class_names_of(model)
    assert names != sorted(names)
    used, _ = calibration_batches(model, digits, ShiftRecipe(images=8, held_out=0))
    truth = read_devkit(digits, split="train")
    for batch in used:
        for index, file in enumerate(batch["im_file"]):
            stem = file.rsplit("/", 1)[-1].split(".")[0].split("_")[-1]
            image = list(truth.images).index(stem)
            at = (truth.image == image) & ~truth.difficult
            wanted = sorted(truth.classes[c] for c in truth.class_index[at])
            found = batch["cls"][batch["batch_idx"] == index].long().flatten().tolist()
            assert sorted(names[c] for c in found) == wanted


def test_a_data_set_with_the_classes_in_another_order_is_refused(model, digits, tmp_path):
    other = make_dataset(digits, tmp_path / "other", classes=sorted(class_names_of(model)))
    with pytest.raises(UserError, match="the model's classes in another order"):
        describe(other, "train", class_names_of(model))


def test_boxes_are_those_of_the_annotations(model, digits):
    """Through conversion, loading and letterboxing, to half a pixel of the original."""
    used, _ = calibration_batches(model, digits, ShiftRecipe(images=16, held_out=0))
    truth = read_devkit(digits, split="train")
    for batch in used:
        for index, file in enumerate(batch["im_file"]):
            image = list(truth.images).index(file.rsplit("/", 1)[-1].split(".")[0].split("_")[-1])
            at = (truth.image == image) & ~truth.difficult
            height, width = batch["ori_shape"][index]
            size = batch["img"].shape[-1]
            gain = min(size / height, size / width)
            pad = np.array([(size - width * gain) / 2, (size - height * gain) / 2])
            box = batch["bboxes"][batch["batch_idx"] == index].numpy() * size
            corners = np.concatenate([box[:, :2] - box[:, 2:] / 2 - pad, box[:, :2] + box[:, 2:] / 2 - pad], 1) / gain
            corners[:, :2] += 1  # 1-based inclusive, as the devkit has them
            wanted = truth.box[at]
            np.testing.assert_allclose(corners[np.lexsort(corners.T)], wanted[np.lexsort(wanted.T)], atol=0.51)


def test_shift_takes_a_name_or_a_folder(model, digits):
    import copy

    report = shift_(copy.deepcopy(model), digits, ShiftRecipe(images=12, held_out=4), imgsz=96)
    assert report.calibration.images == 12
    assert report.held_out.images == 4
    assert report.held_out.before["total"] < 10  # in the wrong class order it is above


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"split": "test", "data": "val_only.yaml"}, "no split 'test'"),
        ({"imgsz": 100}, "a multiple of the model's stride"),
        ({"data": "none"}, "data=none"),
    ],
)
def test_what_cannot_be_used_is_said(model, digits, tmp_path, words, message):
    (tmp_path / "images").mkdir()
    (tmp_path / "val_only.yaml").write_text(
        f"path: {tmp_path}\ntrain: images\nval: images\nnames: {list('0123456789')}\n"
    )
    data = words.get("data", digits)
    if str(data).endswith(".yaml"):
        data = tmp_path / data
    settings = {key: value for key, value in words.items() if key != "data"}
    with pytest.raises(UserError, match=message):
        calibration_batches(model, data, ShiftRecipe(), **settings)


def test_batches_come_without_augmentation(model, digits):
    used, _ = calibration_batches(model, digits, ShiftRecipe(images=4, held_out=0))
    first, second = next(iter(used)), next(iter(used))
    assert torch.equal(first["img"], second["img"])
    assert first["img"].dtype == torch.uint8
    assert first["img"].shape[-2:] == (160, 160)


@pytest.mark.parametrize(
    ("found", "known", "every", "order"),
    [
        (["a", "b"], ["b", "a"], False, ["b", "a"]),
        (["a", "b"], ["c", "b", "a"], False, ["b", "a"]),
        (["a", "b"], ["c", "b", "a"], True, ["c", "b", "a"]),
        (["a", "b"], ["b", "c"], True, ["a", "b"]),
        (["a", "b"], [], True, ["a", "b"]),
    ],
)
def test_classes_of_a_devkit_stand_in_the_models_order_where_it_knows_them_all(found, known, every, order):
    assert class_order(found, known, every) == order


def test_a_devkit_of_another_year_needs_no_year(tmp_path):
    kit = write_devkit(tmp_path, {"a": [("zebra", (1, 1, 9, 9))]}, {"train": "a", "val": "a"}, year="2012")
    assert describe(kit, "train", ["dog", "zebra"])["names"] == {0: "dog", 1: "zebra"}


def test_classes_of_the_data_are_numbered_as_a_model_that_has_them_all_numbers_its_own():
    known = ["person", "tv", "dining table", "airplane"]
    assert numbers_in_model({0: "tvmonitor", 1: "aeroplane"}, known) == [1, 3]
    assert numbers_in_model({0: "Dining-Table", 1: "person"}, known) == [2, 0]
    assert numbers_in_model(dict(enumerate(known)), known) is None  # the same numbers
    assert numbers_in_model({0: "person", 1: "cat"}, known) is None  # one that it lacks
    assert numbers_in_model({0: "tv", 1: "tvmonitor"}, known) is None  # two that are one class to it
