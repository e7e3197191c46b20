"""`shift_` with what users have for a model and a recipe."""

import numpy as np
import pytest
import torch
from builders import labelled_batch
from ultralytics import YOLO

from yolo_os import ShiftRecipe, prediction_layers, shift_


@pytest.fixture
def batches(detector):
    return [labelled_batch(YOLO(detector).model, images=2)]


def test_predictions_after_a_shift_are_those_of_the_shifted_weights(detector, batches, digits):
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    model, given = YOLO(detector), {"verbose": False, "imgsz": 96, "conf": 0.0001}
    before = model.predict(image, **given)[0].boxes.data
    shift_(model, batches, {"method": "sos", "samples": 4})
    after = model.predict(image, **given)[0].boxes.data
    fresh = YOLO(detector)
    fresh.model.load_state_dict(model.model.state_dict())
    assert not torch.equal(before[:5], after[:5])
    torch.testing.assert_close(after, fresh.predict(image, **given)[0].boxes.data, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("recipe", ["sos", {"method": "sos"}, ShiftRecipe(method="sos", sampling="foreground")])
def test_a_recipe_may_be_its_name_or_its_settings(recipe, detector, batches):
    model = YOLO(detector)
    report = shift_(model, batches, recipe)
    assert report.recipe == ShiftRecipe(method="sos")
    assert len(report.moved) == len(prediction_layers(model))
