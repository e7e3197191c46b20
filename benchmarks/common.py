"""What several scripts of this folder need: the data, quiet trainings, groups of classes and their VOC mAP."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from yolo_os.heads import find_head
from yolo_os.resources import resource
from yolo_os.voc import Annotations, Detections, VOCResult, dataset_for, evaluate_voc

DETECTOR = resource("data/digits/detector.pt")
DEVKIT = resource("data/digits/VOCdevkit")
SOLID = ("car", "person", "cat", "train", "bus")  # the classes with solid counts in the VOC images at hand
# Architecture files of Ultralytics, by family.
FAMILIES = {
    "yolov5": "v5/yolov5.yaml",
    "yolov8": "v8/yolov8.yaml",
    "yolo11": "11/yolo11.yaml",
    "yolo26": "26/yolo26.yaml",
}
PLAIN = {"device": "cpu", "workers": 0, "amp": False, "plots": False, "verbose": False}  # of a training


def keep_ultralytics_here(folder: Path) -> None:
    """Keep Ultralytics from writing to the user's folder, from the network, and from more than warnings."""
    (folder / "Ultralytics").mkdir(parents=True, exist_ok=True)
    os.environ["YOLO_CONFIG_DIR"] = str(folder)
    os.environ["YOLO_OFFLINE"] = "true"
    from ultralytics.utils import LOGGER

    LOGGER.setLevel("WARNING")


def digits_training() -> dict[str, Any]:
    """Settings of a short training on the embedded data, as `YOLO.train` takes them."""
    from yolo_os.integration.checkpoint import load_checkpoint
    from yolo_os.integration.data import class_names_of

    data = dataset_for(DEVKIT, classes=class_names_of(load_checkpoint(DETECTOR).model))
    return {"data": str(data), "imgsz": 160, "batch": 16, "nbs": 16, "fliplr": 0.0, "warmup_epochs": 0, **PLAIN}


def small_architecture(family: str, folder: Path) -> Path:
    """The YAML of a family at half the width of its nano scale, ten classes, written into a folder."""
    import ultralytics

    shipped = Path(ultralytics.__file__).parent / "cfg" / "models" / FAMILIES[family]
    described = yaml.safe_load(shipped.read_text())
    described["scales"] = {"n": [0.33, 0.125, 512]}
    described["nc"] = 10
    path = folder / f"{family}n.yaml"
    path.write_text(yaml.safe_dump(described))
    return path


def changed_dataset(
    folder: Path,
    names: Sequence[str],
    splits: Mapping[str, Iterable[Path]],
    change: Callable[[np.ndarray, Path], np.ndarray],
    suffix: str = ".png",
) -> Path:
    """An Ultralytics data set of changed images, with their labels.

    Args:
        folder: made anew; its data.yaml, which is what is returned, is written last.
        names: of the classes, in the order of their numbers.
        splits: image files by split, as `images_of` gives them.
        change: of an image (BGR, uint8) and its file.
        suffix: of the images written; `.jpg` of quality 92.
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix == ".jpg" else []
    shutil.rmtree(folder, ignore_errors=True)
    for split, files in splits.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for file in files:
            target = folder / "images" / split / f"{file.stem}{suffix}"
            cv2.imwrite(str(target), change(cv2.imread(str(file)), file), quality)
            label = file.parents[2] / "labels" / file.parent.name / f"{file.stem}.txt"
            if label.exists():
                shutil.copy(label, folder / "labels" / split / label.name)
    # Ultralytics wants train and val in every file.
    listed = {split: f"images/{split if split in splits else next(iter(splits))}" for split in ("train", "val", "test")}
    text = yaml.safe_dump({"path": str(folder.resolve()), **listed, "names": dict(enumerate(names))}, sort_keys=False)
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def images_of(data: Path, split: str) -> list[Path]:
    """The image files of a split in the data set that `dataset_for` makes of a VOCdevkit."""
    return sorted((data.parent / "images" / f"{split}2007").glob("*.jpg"))


def squared_norm(model: Any) -> float:
    """Of all prediction layers together."""
    return sum(float(layer.matrix.double().square().sum()) for layer in find_head(model).layers)


def find(model: Any, data: str | Path, truth: Annotations, **settings: Any) -> Detections:
    """What a model finds on the images of an image set."""
    from yolo_os.evaluation.detections import from_boxes
    from yolo_os.integration.detect import detect

    found = detect(model, data, **settings)
    return from_boxes(found.boxes, found.names, truth)


def groups_of(truth: Annotations) -> dict[str, list[int]]:
    """Which classes each mean is over, the one that counts most first."""
    counts = np.bincount(truth.class_index[~truth.difficult], minlength=len(truth.classes))
    enough = np.flatnonzero(counts >= 5).tolist()
    few = len(enough) < np.count_nonzero(counts)
    groups = {f"{len(enough)} classes of 5 boxes or more" if few else "all classes": enough}
    if set(SOLID) <= set(truth.classes):
        groups[" ".join(SOLID)] = [truth.classes.index(name) for name in SOLID]
    return groups


def evaluate_group(truth: Annotations, found: Sequence[Detections], classes: Sequence[int]) -> VOCResult:
    """VOC AP of some classes, of several detectors at once: class c of the i-th is class c + i times their number.

    One bootstrap of the mean over all of them is then that of the mean of the detectors' mAP.
    """
    wanted = np.isin(truth.class_index, classes)
    number, many = len(truth.classes), len(found)
    return evaluate_voc(
        np.tile(truth.image[wanted], many),
        np.concatenate([truth.class_index[wanted] + number * index for index in range(many)]),
        np.tile(truth.box[wanted], (many, 1)),
        np.tile(truth.difficult[wanted], many),
        np.concatenate([each.image for each in found]),
        np.concatenate([each.class_index + number * index for index, each in enumerate(found)]),
        np.concatenate([each.box for each in found]),
        np.concatenate([each.score for each in found]),
        num_classes=number * many,
        images=np.arange(len(truth.images)),
    )
