"""Segmentation, pose, oriented boxes, RT-DETR, end-to-end heads."""

import json

import cv2
import numpy as np
import pytest
import yaml
from trainings import TINY, Trained
from ultralytics import RTDETR, YOLO

from yolo_os.integration.callback import SOS


def write_data(folder, task):
    """Four pictures of noise with two objects each, labelled as the task wants it."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(4):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), generator.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        lines = []
        for kind, (x, y) in enumerate(((0.3, 0.3), (0.6, 0.7))):
            corners = [x - 0.2, y - 0.2, x + 0.2, y - 0.2, x + 0.2, y + 0.2, x - 0.2, y + 0.2]
            points = [x - 0.1, y, 2, x + 0.1, y, 2]
            label = {"detect": [], "pose": points}.get(task)
            values = corners if label is None else [x, y, 0.4, 0.4, *label]
            lines.append(" ".join(map(str, [kind, *values])))
        (folder / "labels" / f"{number}.txt").write_text("\n".join(lines))
    settings = {"path": str(folder), "train": "images", "val": "images", "names": {0: "a", 1: "b"}}
    settings |= {"kpt_shape": [2, 3], "flip_idx": [0, 1]} if task == "pose" else {}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings))
    return folder / "data.yaml"


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("yolo11n-seg", {"box", "cls", "mask"}),
        pytest.param("yolo26n", {"box", "cls"}, marks=pytest.mark.slow),
        pytest.param("yolo26n-seg", {"box", "cls", "mask"}, marks=pytest.mark.slow),
        pytest.param("yolo11n-pose", {"box", "cls", "keypoint"}, marks=pytest.mark.slow),
        pytest.param("yolo26n-pose", {"box", "cls", "keypoint"}, marks=pytest.mark.slow),
        pytest.param("yolo11n-obb", {"box", "cls", "angle"}, marks=pytest.mark.slow),
        pytest.param("yolo26n-obb", {"box", "cls", "angle"}, marks=pytest.mark.slow),
        pytest.param("rtdetr-l", {"box", "cls"}, marks=pytest.mark.slow),
    ],
)
def test_every_task_is_shifted_during_training_and_at_its_end(name, roles, tmp_path):
    rtdetr = name.startswith("rtdetr")
    model = (RTDETR if rtdetr else YOLO)(f"{name}.yaml")
    data = write_data(tmp_path / "data", model.task)
    SOS(every=1, start=0).attach(model)
    given = {**TINY, "epochs": 2, "batch": 2, "nbs": 2, "imgsz": 128 if rtdetr else 64}
    model.train(data=str(data), project=str(tmp_path), name="run", **given)
    run = Trained(model, tmp_path / "run")
    assert {row["role"] for row in run.shifts} == roles
    assert {int(row["step"]) for row in run.shifts} == {1, 2, 3, 4}
    assert all(float(row["loss_before"]) > 0 for row in run.shifts)
    report = json.loads((run.folder / "os" / "best" / "report.json").read_text())
    assert report["keep"] <= 1
    assert YOLO(run.folder / "weights" / "best.pt").task == model.task
