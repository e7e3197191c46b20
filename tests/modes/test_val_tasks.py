"""`yolo-os val task=`: masks, keypoints and rotated boxes, through the command line."""

import json
import math

import numpy as np
import pytest
import yaml
from builders import small_model, write_picture

from yolo_os.cli import main

# Polygons (clockwise corners of a rectangle) in pixels of images of 100 x 80, by image; the class goes first.
OBJECTS = {
    "a": [("cat", (10, 20), (30, 20), (30, 40), (10, 40)), ("dog", (50, 50), (60, 55), (55, 65), (45, 60))],
    "b": [("dog", (5, 5), (95, 5), (95, 75), (5, 75))],
    "c": [("cat", (40, 40), (60, 40), (60, 60), (40, 60))],
}
NAMES = ["cat", "dog"]
FIELDS = {"segment": "segmentation", "pose": "keypoints", "obb": "obb"}


def content(task, corners):
    points = np.array(corners, float)
    if task == "segment":
        return [points.ravel().tolist()]
    if task == "pose":
        return np.column_stack([points[:3], np.full(3, 2.0)]).ravel().tolist()
    side, other = points[1] - points[0], points[2] - points[1]
    return [*points.mean(0), math.hypot(*side), math.hypot(*other), math.atan2(side[1], side[0])]


def line(task, name, corners):
    points = np.array(corners, float) / (100, 80)
    numbers = points.ravel().tolist()
    if task == "pose":
        near, far = points.min(0), points.max(0)
        numbers = [*((near + far) / 2), *(far - near), *np.column_stack([points[:3], [2, 2, 2]]).ravel()]
    return " ".join(map(str, [NAMES.index(name), *numbers])) + "\n"


def data_set(folder, task):
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for stem, objects in OBJECTS.items():
        write_picture(folder / f"images/{stem}.jpg", (100, 80))
        (folder / f"labels/{stem}.txt").write_text("".join(line(task, name, corners) for name, *corners in objects))
    described = {"path": str(folder), "train": "images", "val": "images", "names": NAMES}
    described |= {"kpt_shape": [3, 3]} if task == "pose" else {}
    (folder / "data.yaml").write_text(yaml.safe_dump(described))
    return folder / "data.yaml"


def truth_json(file, task):
    images = [{"id": 7 + n, "file_name": f"{stem}.jpg", "width": 100, "height": 80} for n, stem in enumerate(OBJECTS)]
    annotations = []
    for number, objects in enumerate(OBJECTS.values()):
        for name, *corners in objects:
            near, far = np.min(corners, 0), np.max(corners, 0)
            entry = {"image_id": 7 + number, "category_id": 1 + NAMES.index(name), "iscrowd": 0}
            entry |= {"bbox": [*near.tolist(), *(far - near).tolist()], "area": float(np.prod(far - near))}
            annotations.append({"id": len(annotations) + 1, **entry, FIELDS[task]: content(task, corners)})
    categories = [{"id": 1 + number, "name": name} for number, name in enumerate(NAMES)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def found_json(file, task, dropped=(), field=None):
    entries = [
        {"image_id": stem, "category_id": 1 + NAMES.index(name), "score": 0.9,
         field or FIELDS[task]: content(task, corners)}
        for stem, objects in OBJECTS.items() if stem not in dropped for name, *corners in objects
    ]  # fmt: skip
    file.write_text(json.dumps(entries))
    return file


@pytest.mark.parametrize("task", FIELDS)
def test_detections_of_a_task_are_judged_by_its_own_metric_with_intervals(task, in_tmp, capsys):
    data_set(in_tmp / "ds", task)
    truth_json(in_tmp / "gt.json", task)
    found_json(in_tmp / "all.json", task, field="rbox" if task == "obb" else None)
    found_json(in_tmp / "some.json", task, dropped="b")
    words = [f"task={task}", "detections=some.json,all.json", "split=val", "bootstrap=50", "json=out.json"]
    for data in ("ds/data.yaml", "gt.json"):
        assert main(["val", *words, f"data={data}"]) == 0
        figures = json.loads((in_tmp / "out.json").read_text())
        assert figures["task"] == task
        assert figures["detectors"]["all"]["coco"]["AP"] == pytest.approx(1.0)
        assert figures["detectors"]["all"]["coco"]["classes"]["dog"]["AP50"] == pytest.approx(1.0)
        lost = figures["detectors"]["some"]["coco"]["classes"]["dog"]["AP"]
        assert lost == pytest.approx(51 / 101)  # one of two found, at 101 recalls
        gain = figures["gains"]["all"]["coco"]["AP"]
        assert gain["value"] == pytest.approx((1 - lost) / 2)
        assert gain["low"] <= gain["value"] <= gain["high"]
        assert figures["made"]["command"].startswith("yolo-os val")
    out = capsys.readouterr().out
    assert "gain of all over some on the same 3 images, 95% paired intervals" in out
    assert ("there is no reference implementation" in out) == (task == "obb")


def encoded(polygon):
    """A mask as run lengths, which result files hold."""
    from pycocotools import mask

    (run_lengths,) = mask.frPyObjects([polygon.tolist()], 80, 100)
    return {**run_lengths, "counts": run_lengths["counts"].decode()}


@pytest.mark.parametrize("task", ["segment", "pose"])
def test_figures_are_those_of_pycocotools(task, in_tmp):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth_json(in_tmp / "gt.json", task)
    entries = json.loads(found_json(in_tmp / "d.json", task).read_text())
    for number, entry in enumerate(entries):  # none is exact
        entry["score"] = 0.9 - 0.1 * number
        entry["image_id"] = 7 + "abc".index(entry["image_id"])
        values = np.array(entry[FIELDS[task]], float).ravel()
        values[0] += 2 * number
        entry[FIELDS[task]] = values.tolist() if task == "pose" else encoded(values)
    (in_tmp / "d.json").write_text(json.dumps(entries))
    assert main(["val", f"task={task}", "detections=d.json", "data=gt.json", "json=out.json"]) == 0
    figures = json.loads((in_tmp / "out.json").read_text())["coco"]
    truth = COCO("gt.json")
    evaluation = COCOeval(truth, truth.loadRes("d.json"), {"segment": "segm", "pose": "keypoints"}[task])
    if task == "pose":
        for each in truth.anns.values():
            each["num_keypoints"] = 3
        evaluation.params.kpt_oks_sigmas = np.full(3, 1 / 3)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert [figures[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(evaluation.stats[:3].tolist(), abs=1e-9)
    mean = np.mean([each["AP"] for each in figures["classes"].values()])
    assert mean == pytest.approx(evaluation.stats[0], abs=1e-9)


@pytest.mark.parametrize(
    ("task", "name"), [("segment", "yolo11n-seg"), ("pose", "yolo11n-pose"), ("obb", "yolo11n-obb")]
)
def test_a_model_of_a_task_is_run(task, name, in_tmp, capsys):
    import torch

    data = data_set(in_tmp / "ds", task)
    if task == "pose":  # the architecture has 17
        described = yaml.safe_load(data.read_text()) | {"kpt_shape": [17, 3]}
        data.write_text(yaml.safe_dump(described))
        for file in (in_tmp / "ds/labels").iterdir():
            lines = [" ".join([*each.split()[:5], *["0.5 0.5 2"] * 17]) for each in file.read_text().splitlines()]
            file.write_text("\n".join(lines) + "\n")
    model = small_model({"segment": "yolo11n-seg", "pose": "yolo11n-pose", "obb": "yolo11n-obb"}[task])
    model.names = {number: NAMES[number] if number < 2 else f"c{number}" for number in range(model.model[-1].nc)}
    torch.save({"model": model.half(), "train_args": {"imgsz": 64, "task": task}}, "m.pt")
    words = ["model=m.pt", f"data={data}", "split=val", "conf=0.0001", "imgsz=64", "plots=False"]
    assert main(["val", *words, f"task={task}", "json=out.json"]) == 0
    figures = json.loads((in_tmp / "out.json").read_text())
    assert 0 <= figures["coco"]["AP"] < 0.5  # it is untrained
    assert "3 images, 4 objects" in capsys.readouterr().out
    code = main(["val", *words])
    said = capsys.readouterr().err
    if task == "obb":
        assert code == 2
        assert "yolo-os val task=obb judges what it gives" in said
    else:
        assert f"note: m: its boxes are judged; task={task} judges its" in said
    other = "pose" if task == "segment" else "segment"
    assert main(["val", *words, f"task={other}"]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["detections=d.json", "data=boxes/data.yaml"], "has no masks: are these labels of boxes?"),
        (["detections=d.json", "devkit=kit"], "give the ground truth with data="),
        (["detections=d.csv", "data=gt.json"], "masks are read from a COCO result file"),
        (["detections=e.json", "data=gt.json"], "entry 0 lacks 'segmentation'"),
        (["detections=u.json", "data=gt.json"], "entry 0 is of image z, which the ground truth does not have"),
        (["detections=d.json", "data=keypoints.json"], "annotation 0 has no segmentation: its masks can't be judged"),
    ],
)
def test_what_is_not_of_the_task_is_said(words, says, in_tmp, capsys):
    truth_json(in_tmp / "gt.json", "segment")
    truth_json(in_tmp / "keypoints.json", "pose")
    found_json(in_tmp / "d.json", "segment")
    found_json(in_tmp / "e.json", "pose")
    (in_tmp / "u.json").write_text(
        json.dumps([{"image_id": "z", "category_id": 1, "score": 1, "segmentation": [[1] * 6]}])
    )
    data_set(in_tmp / "boxes", "segment")
    for file in (in_tmp / "boxes/labels").iterdir():
        file.write_text("0 .5 .5 .2 .2\n")
    assert main(["val", "task=segment", "split=val", *words]) == 2
    assert says in capsys.readouterr().err
