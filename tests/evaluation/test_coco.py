import numpy as np
import pytest
from builders import comp4

from yolo_os.evaluation.coco import coco_numbers
from yolo_os.voc import evaluate_detections, read_detections


def test_coco_numbers_leave_difficult_objects_out(truth, tmp_path):
    folder = comp4(
        tmp_path / "d",
        comp4_det_test_cat=["000007 0.9 10 20 30 40"],
        comp4_det_test_dog=["000012 0.8 1 1 100 80", "000007 0.9 50 50 60 60"],
    )
    found = read_detections(folder, truth)
    numbers = coco_numbers(truth, found)
    # the hit on the difficult dog stands before the true one: precision 1/2 for dog, 1 for cat
    assert numbers["AP50"] == pytest.approx(0.75, abs=1e-6)
    assert numbers["AP"] == pytest.approx(0.75, abs=1e-6)
    assert np.isnan(numbers["AP large"])
    assert evaluate_detections(truth, found).map == 1.0
