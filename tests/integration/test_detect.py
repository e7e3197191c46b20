"""Boxes, labels and loss of any data set, through Ultralytics' validator."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from builders import digits_subset, labelled_batch, small_model

from yolo_os.errors import UserError
from yolo_os.evaluation.detections import evaluate_boxes
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.detect import Validation, _Kept, detect


@pytest.fixture(scope="module")
def model(request):
    return load_checkpoint(request.getfixturevalue("detector")).model


@pytest.fixture(scope="module")
def data(request, tmp_path_factory):
    return digits_subset(tmp_path_factory.mktemp("few"), request.getfixturevalue("digits"), train=4, val=12)


def test_labels_come_in_pixels_of_the_original_image(model, data):
    found = Validation(data, model, split="val", imgsz=96).run(model)
    assert len(found.truth) == 12
    for file, boxes in found.truth.items():
        import cv2

        height, width = cv2.imread(file).shape[:2]
        label = file.replace("/images/", "/labels/").replace(".jpg", ".txt")
        rows = np.loadtxt(label, ndmin=2)
        centre, size = rows[:, 1:3] * [width, height], rows[:, 3:5] * [width, height]
        wanted = np.column_stack([centre - size / 2, centre + size / 2, rows[:, 0]])
        assert np.allclose(boxes, wanted, atol=1e-3)
    assert found.loss == {}


def test_its_map_is_that_of_the_devkit_without_difficult_objects(model, digits):
    from yolo_os.evaluation.detections import from_boxes
    from yolo_os.evaluation.voc import evaluate_voc
    from yolo_os.voc import read_devkit

    names = tuple(model.names.values())
    found = detect(model, digits, split="val", imgsz=160)
    mine = evaluate_boxes(found.boxes, found.truth, names)
    truth = read_devkit(digits, split="val", classes=names)
    boxes = from_boxes(found.boxes, found.names, truth)
    easy = ~truth.difficult
    theirs = evaluate_voc(
        truth.image[easy], truth.class_index[easy], truth.box[easy], truth.difficult[easy],
        boxes.image, boxes.class_index, boxes.box, boxes.score, len(names),
    )  # fmt: skip
    assert mine.npos.tolist() == theirs.npos.tolist()
    assert mine.map == pytest.approx(theirs.map, abs=2e-3)  # labels and boxes are rounded on their way, in float32


def test_the_loss_is_the_models_own(model, data):
    from yolo_os.loss import training_loss

    validation = Validation(data, model, split="val", imgsz=96, batch=12, device="cpu")
    first = validation.run(model, loss=True)
    assert {"total", "box", "cls", "dfl"} == first.loss.keys()
    (batch,) = list(validation._batches)
    with torch.no_grad(), training_loss(model) as loss:
        batch["img"] = batch["img"].float() / 255
        wanted = loss(batch, model(batch["img"]))
    assert first.loss["total"] == pytest.approx(float(wanted["total"]), rel=1e-5)
    again = validation.run(model, loss=True)
    assert again.loss == first.loss
    assert all(np.array_equal(again.boxes[file], boxes) for file, boxes in first.boxes.items())


@pytest.mark.parametrize("name", ["yolo26n", "yolov10n", "rtdetr-l", "yolo11n-pose", "yolo11n-seg"])
def test_every_head_family_gives_its_loss_and_is_left_unfused(name, data, monkeypatch):
    model = small_model(name)
    model.names = dict(enumerate(map(str, range(model.model[-1].nc))))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    validation = Validation(data, model, split="val", imgsz=128 if "rtdetr" in name else 64, device="cpu")
    if "pose" in name or "seg" in name:  # the digits have neither points nor outlines
        batch = labelled_batch(model, images=2)
        facts = {"im_file": ["a.jpg", "b.jpg"], "ori_shape": [(64, 64)] * 2, "ratio_pad": [((1.0, 1.0), (0, 0))] * 2}
        validation._batches = _Kept(Loader([{**batch, "img": (batch["img"] * 255).byte(), **facts}]))
        validation.described["kpt_shape"] = (17, 3)
        monkeypatch.setattr("ultralytics.engine.validator.check_det_dataset", lambda *_, **__: validation.described)
    found = validation.run(model, loss=True)
    assert found.loss["total"] > 0
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Loader(list):
    """As much of a data loader as the validator looks at."""

    batch_size, sampler, dataset = 2, (0, 1), (0, 1)


def test_batches_that_do_not_fit_are_read_again(model, data, monkeypatch):
    monkeypatch.setattr(_Kept, "LIMIT", 1000)
    validation = Validation(data, model, split="val", imgsz=96, batch=4)
    first, again = validation.run(copy.deepcopy(model)), validation.run(model)
    assert validation._batches._batches is None
    assert all(np.array_equal(again.boxes[file], boxes) for file, boxes in first.boxes.items())


def test_a_device_that_is_not_there_is_no_fault_of_the_data(model, data):
    with pytest.raises(UserError, match=r"^device=cuda:99: "):
        Validation(data, model, split="val", imgsz=64, device="cuda:99")
