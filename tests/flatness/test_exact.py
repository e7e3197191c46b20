"""Closed forms of prediction layers against the Hessian written out by double backward, and against probes."""

from __future__ import annotations

import pytest
import torch
from builders import labelled_batch, small_model
from torch.autograd import grad

from yolo_os.flatness.detector import chosen, detector_objective
from yolo_os.flatness.estimate import Probed, hutchinson
from yolo_os.flatness.exact import prediction_traces
from yolo_os.flatness.operator import Hessian
from yolo_os.heads import find_head


def diagonal(objective, tensor, entries):
    """Entries of the diagonal of the Hessian in one parameter, by double backward through the whole model."""
    tensor.requires_grad_(True)
    found = torch.zeros(len(entries)).double()
    for batch, weight in enumerate(objective.weights):
        [slope] = grad(objective.loss(batch), [tensor], create_graph=True)
        for index, entry in enumerate(entries):
            [row] = grad(slope.flatten()[entry], [tensor], retain_graph=True)
            found[index] += weight * float(row.flatten()[entry])
    tensor.requires_grad_(False)
    return found


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_the_closed_form_is_the_hessian_of_a_tiny_detector(name):
    model = small_model(name)
    batches = [labelled_batch(model, images=2), labelled_batch(model, images=1, seed=1)]
    layers = find_head(model).layers
    with detector_objective(model, batches, chosen(model, "head")) as objective:
        traces = prediction_traces(objective, layers)
        for layer in layers[:2] + layers[-2:]:
            bias = layer.module.bias
            whole = diagonal(objective, bias, range(len(bias)))
            torch.testing.assert_close(torch.tensor(traces[layer.name].bias).double(), whole, rtol=1e-3, atol=1e-5)
            output = int(whole.argmax())
            row = diagonal(
                objective, layer.module.weight, [output * layer.in_features + k for k in range(layer.in_features)]
            )
            assert traces[layer.name].weight[output] == pytest.approx(float(row.sum()), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo26n-pose"])
def test_the_closed_form_is_what_probes_find(name):
    model = small_model(name)
    batches = [labelled_batch(model, images=2)]
    parameters = chosen(model, "head")
    with detector_objective(model, batches, parameters) as objective:
        exact = sum(each.total for each in prediction_traces(objective, find_head(model).layers).values())
        [found] = hutchinson([Probed(Hessian(objective), {"trace": [1.0] * len(parameters)})], lambda all_: True)
    estimate = found.estimate("trace")
    assert abs(estimate.value - exact) <= 3 * estimate.stderr
    assert estimate.stderr < 0.5 * abs(exact)
