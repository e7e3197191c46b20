"""What a pass refuses of its first batch, before the model takes it for something else."""

import numpy as np
import pytest
import torch
from builders import labelled_batch, small_model

from yolo_os import shift_
from yolo_os.errors import UserError


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (torch.rand(3, 64, 64), r"images of shape \(3, 64, 64\): this model takes \(B, 3, H, W\); images\[None\]"),
        (torch.rand(2, 64, 64, 3), r"permute\(0, 3, 1, 2\) brings the channels forward"),
        (torch.rand(2, 1, 64, 64), r"images of shape \(2, 1, 64, 64\): this model takes \(B, 3, H, W\)"),
        (torch.rand(2, 3, 64, 64) * 255, "floats are taken in 0..1, so divide by 255"),
        ((torch.rand(2, 3, 64, 64), torch.zeros(2)), "a batch is a tuple: takes tensors"),
        (np.zeros((2, 3, 64, 64), np.uint8), r"a batch is a ndarray: .*numpy arrays go through torch.from_numpy"),
        ("photo.jpg", r"a batch is a str: .*image files into a data YAML"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(model, batch, said):
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(UserError, match=said):
        shift_(model, [batch])
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


@pytest.mark.parametrize("label", [80, -1])
def test_a_label_of_a_class_that_the_model_lacks_is_refused(model, label):
    batch = labelled_batch(model)
    batch["cls"][0] = label
    with pytest.raises(UserError, match=r"a label is of class .*, and the model has classes 0 to 79"):
        shift_(model, [batch])


def test_images_a_little_above_one_are_floats_in_0_to_1(model):
    """As resizing with a sharp kernel leaves them."""
    assert shift_(model, [torch.rand(2, 3, 64, 64) * 1.1], {"max_loss_rise": None}).moved
