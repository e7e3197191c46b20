import itertools

import torch
from ultralytics.utils import nms

from yolo_os.integration.runtime import unhurried


def test_a_slow_machine_drops_no_detections(monkeypatch):
    clock = itertools.count(step=10.0)
    monkeypatch.setattr(nms.time, "time", lambda: next(clock))
    predictions = torch.zeros(3, 4 + 2, 20)
    predictions[:, :5, 0] = torch.tensor([20.0, 20.0, 10.0, 10.0, 0.9])
    found = [len(each) for each in nms.non_max_suppression(predictions.clone())]
    assert found == [1, 0, 0]  # what it does by itself
    with unhurried():
        found = [len(each) for each in nms.non_max_suppression(predictions.clone())]
    assert found == [1, 1, 1]
    assert [len(each) for each in nms.non_max_suppression(predictions.clone())] == [1, 0, 0]
