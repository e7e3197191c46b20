import itertools

import pytest
import torch
from ultralytics.utils import nms, torch_utils

from yolo_os.comparison import engine
from yolo_os.integration import compare_run
from yolo_os.integration.runtime import choose_device, unhurried


@pytest.fixture
def threads(monkeypatch):
    """Threads of torch and Ultralytics, put back afterwards."""
    before = torch.get_num_threads()
    monkeypatch.setattr(torch_utils, "NUM_THREADS", 8)
    yield
    torch.set_num_threads(before)


def test_a_run_of_several_at_a_time_keeps_to_its_share_of_the_cores(threads, monkeypatch):
    begun = []

    class Ended:
        @staticmethod
        def wait():
            return 0

    def start(folders, variables):
        begun.append(variables)
        return Ended()

    class AJob:
        left = ()

    monkeypatch.setattr(engine, "start", start)
    monkeypatch.setattr(engine, "_cores", lambda: 6)
    for jobs, workers in ((1, 1), (2, 2), (9, 9), (1, 4), (0, 2)):
        list(engine.processes([AJob()] * jobs, workers, lambda job: None))
    shares = [{}, *[{engine.THREADS: "3"}] * 2, *[{engine.THREADS: "1"}] * 9, {}]
    assert begun == shares

    choose_device("cpu")
    assert torch.get_num_threads() == 8  # what Ultralytics does by itself, whatever OMP_NUM_THREADS says
    monkeypatch.setenv(engine.THREADS, "3")
    assert compare_run.main([]) == 0
    assert torch.get_num_threads() == 3
    choose_device("cpu")
    assert torch.get_num_threads() == 3


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
