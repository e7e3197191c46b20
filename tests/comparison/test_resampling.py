"""AP on drawn image sets, against COCOeval, the devkit's rules and sets that are really drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from yolo_os.comparison.resampling import Found, Truth, draws, image_scores, resample
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.coco import coco_numbers
from yolo_os.evaluation.detections import Detections
from yolo_os.evaluation.voc import evaluate_voc

CLASSES = ("cat", "dog", "none")


def scene(images=30, seed=0):
    """Boxes of two classes, some difficult, and detections near them and elsewhere; no two scores are the same."""
    random = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), 3)
    label = random.integers(0, 2, len(image))
    corner = random.integers(1, 60, (len(image), 2))
    box = np.concatenate([corner, corner + random.integers(10, 40, (len(image), 2))], axis=1).astype(float)
    truth = Truth(CLASSES, tuple(map(str, range(images))), image, label, box, random.random(len(image)) < 0.1)
    copies = random.integers(0, len(image), 5 * len(image))
    near = box[copies] + random.normal(0, 3, (len(copies), 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
    kind = np.where(random.random(len(copies)) < 0.9, label[copies], 2)
    return truth, Found(image[copies], kind, near, random.permutation(len(copies)) / len(copies))


def test_ap_is_that_of_cocoeval():
    truth, found = scene()
    annotations = Annotations(
        CLASSES,
        truth.files,
        np.full((len(truth.files), 2), 100.0),
        truth.image,
        truth.class_index,
        truth.box,
        truth.difficult,
        truth.difficult,
        crowd=np.zeros(len(truth.box), dtype=bool),
        area=(truth.box[:, 2:] - truth.box[:, :2] + 1).prod(axis=1),
        missing=0,
        problems=(),
        notes=(),
        warnings=(),
        left_out=(),
        roots=(Path("VOC2007"),),
        sets=("test",),
        root=np.zeros(len(truth.files), dtype=int),
        stems=truth.files,
        image_files=tuple(map(Path, truth.files)),
        image_readable=np.ones(len(truth.files), dtype=bool),
        unnamed={},
        absent=(),
    )
    detections = Detections(CLASSES, truth.files, found.image, found.class_index, found.box, found.score)
    mine = resample(truth, found, draws(len(truth.files), 0)).means["ap"][0]
    assert 0.2 < mine < 0.9
    assert mine == pytest.approx(coco_numbers(annotations, detections)["AP"], abs=1e-9)


def test_voc_ap_is_that_of_the_devkit():
    truth, found = scene()
    result = evaluate_voc(
        truth.image, truth.class_index, truth.box, truth.difficult,
        found.image, found.class_index, found.box, found.score, len(CLASSES),
    )  # fmt: skip
    means = resample(truth, found, draws(len(truth.files), 0)).means
    assert means["map10"][0] == pytest.approx(result.map, abs=1e-12)
    assert means["map07"][0] == pytest.approx(result.map07, abs=1e-12)


def test_a_replicate_is_the_ap_of_the_images_drawn():
    truth, found = scene(images=12)
    weights = draws(12, 5, seed=3)
    drawn = resample(truth, found, weights)
    for row in range(weights.shape[1]):
        again = [np.flatnonzero(np.repeat(np.arange(12), weights[:, row]) == image) for image in range(12)]
        parts = {name: [] for name in ("gt", "gt_at", "det", "det_at")}
        for image, places in enumerate(again):
            for place in places.tolist():
                parts["gt"].append(np.flatnonzero(truth.image == image))
                parts["gt_at"].append(np.full(len(parts["gt"][-1]), place))
                parts["det"].append(np.flatnonzero(found.image == image))
                parts["det_at"].append(np.full(len(parts["det"][-1]), place))
        gt, at, det, det_at = (np.concatenate(parts[name]) for name in parts)
        files = tuple(map(str, range(12)))
        copied = Truth(CLASSES, files, at, truth.class_index[gt], truth.box[gt], truth.difficult[gt])
        score = found.score[det]
        alone = resample(copied, Found(det_at, found.class_index[det], found.box[det], score), draws(12, 0))
        for metric, values in drawn.means.items():
            assert values[row] == pytest.approx(alone.means[metric][0], abs=1e-9), (row, metric)


def test_images_are_scored_by_true_less_false():
    box = np.array([[1.0, 1, 20, 20], [1.0, 1, 20, 20]])
    truth = Truth(("a",), ("x", "y"), np.array([0, 1]), np.array([0, 0]), box, np.zeros(2, dtype=bool))
    found = Found(
        np.array([0, 0, 1, 1]),
        np.zeros(4, dtype=int),
        np.concatenate([box[:1], box[:1] + 50, box[:1] + 50, box[:1]]),
        np.array([0.9, 0.8, 0.7, 0.1]),
    )
    assert image_scores(truth, found).tolist() == [0, -1]


def test_truth_and_detections_survive_their_files(tmp_path):
    truth, found = scene(5)
    truth.save(tmp_path / "t.npz")
    found.save(tmp_path / "f.npz")
    weights = draws(5, 3)
    again = resample(Truth.load(tmp_path / "t.npz"), Found.load(tmp_path / "f.npz"), weights)
    assert np.array_equal(again.means["ap"], resample(truth, found, weights).means["ap"])
