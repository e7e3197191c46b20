"""The loss along a line and over a plane."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from yolo_os.flatness.operator import Objective
from yolo_os.flatness.sharpness import sharpness
from yolo_os.flatness.surface import across_line, along_line, over_plane


def bowl():
    """The squared distance of a matrix and a vector to 0, with weights 1 and 10."""
    tensors = {"matrix": nn.Parameter(torch.tensor([[3.0, 4.0], [1.0, 0.0]])), "vector": nn.Parameter(torch.ones(2))}

    def predict(batch):
        return tensors["matrix"].square().sum() + 10 * tensors["vector"].square().sum()

    return tensors, Objective(tensors, [1.0], predict, lambda batch, made: made)


def test_the_line_goes_from_before_at_0_to_after_at_1():
    tensors, objective = bowl()
    before = {"matrix": tensors["matrix"]}
    losses = along_line(objective, before, {"matrix": torch.zeros(2, 2)}, (-1.0, 0.0, 0.5, 1.0, 2.0))
    assert losses == pytest.approx([4 * 26 + 20, 26 + 20, 26 / 4 + 20, 20, 26 + 20])
    assert tensors["matrix"].tolist() == [[3.0, 4.0], [1.0, 0.0]]


def test_the_plane_holds_both_models_and_steps_by_the_norm_of_each_filter():
    tensors, objective = bowl()
    before, after = {"matrix": tensors["matrix"]}, {"matrix": torch.tensor([[3.0, 0.0], [1.0, 0.0]])}
    direction = across_line(objective.parameters, before, after, 0)
    assert list(direction) == ["matrix"]
    torch.testing.assert_close(direction["matrix"].norm(dim=1), torch.tensor([5.0, 1.0]))
    assert float(direction["matrix"][0, 1]) == pytest.approx(0, abs=1e-6)  # across the line, filter by filter
    rows = over_plane(objective, before, after, direction, (0.0, 1.0), (0.0, 1.0))
    assert rows[0] == pytest.approx([46, 30])
    moved = tensors["matrix"].detach() + direction["matrix"]
    assert rows[1][0] == pytest.approx(float(moved.square().sum()) + 20)


def test_the_worst_loss_in_a_ball_is_found_on_its_surface():
    tensors, objective = bowl()
    with torch.no_grad():
        tensors["matrix"].zero_()
        tensors["vector"].copy_(torch.tensor([0.6, 0.8]))
    assert sharpness(objective, radius=0.5).rise == pytest.approx(10 * (1.5**2 - 1), rel=1e-5)
    assert sharpness(objective, radius=0.5, relative=True).rise == 0  # filters of no norm don't move, nor do vectors
    assert tensors["vector"].tolist() == pytest.approx([0.6, 0.8])


def test_the_relative_ball_measures_each_filter_by_its_norm():
    _, objective = bowl()
    found = sharpness(objective, radius=0.1, relative=True, steps=20)
    # of a change r_f |w_f| along each filter, sum r_f^2 = 2 * 0.1^2, the worst is all of it on the largest
    share = 0.1 * 2**0.5
    assert found.rise == pytest.approx(25 * ((1 + share) ** 2 - 1), rel=2e-3)
