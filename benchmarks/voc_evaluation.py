"""Measure the VOC evaluator: its speed, how its figures differ from `yolo val`'s, and how good its error bars are.

    python benchmarks/voc_evaluation.py speed       # against pycocotools and plain loops, about a minute
    python benchmarks/voc_evaluation.py causes      # from the devkit's mAP to that of yolo val, one cause at a time
    python benchmarks/voc_evaluation.py coverage    # how often a 95 % interval holds what it should

All run on a made-up workload the size of the VOC2007 test set (4,952 images, 15,000 boxes, 300,000 detections, 20
classes); `causes` and `coverage` also take real ones: detections=FOLDER devkit=VOCdevkit [year= split=].
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from yolo_os.evaluation.coco import coco_evaluation
from yolo_os.voc import VOCResult, bootstrap, evaluate_voc, read_detections, read_devkit


@dataclass(frozen=True)
class Workload:
    """Ground truth and detections of an image set, as `evaluate_voc` takes them."""

    images: int
    classes: int
    gt_image: np.ndarray
    gt_class: np.ndarray
    gt_box: np.ndarray
    gt_difficult: np.ndarray
    det_image: np.ndarray
    det_class: np.ndarray
    det_box: np.ndarray
    det_score: np.ndarray

    def columns(self) -> tuple[np.ndarray, ...]:
        """All arrays, in the order of `evaluate_voc`."""
        return (*self.truth(), self.det_image, self.det_class, self.det_box, self.det_score)

    def truth(self) -> tuple[np.ndarray, ...]:
        """The arrays of the ground truth."""
        return self.gt_image, self.gt_class, self.gt_box, self.gt_difficult

    def evaluate(self) -> VOCResult:
        """VOC AP."""
        return evaluate_voc(*self.columns(), num_classes=self.classes, images=np.arange(self.images))


def made_up(images: int = 4952, boxes: int = 15_000, detections: int = 300_000, classes: int = 20) -> Workload:
    """Two fifths of the detections scatter around true boxes and score higher; the rest lie anywhere."""
    random = np.random.default_rng(0)

    def anywhere(count: int) -> np.ndarray:
        size = np.exp(random.uniform(np.log(20), np.log(400), (count, 2)))
        start = 1 + random.random((count, 2)) * (500 - size)
        return np.concatenate([start, start + size - 1], axis=1)

    gt_image, gt_class = random.integers(0, images, boxes), random.integers(0, classes, boxes)
    gt_box, gt_difficult = np.round(anywhere(boxes)), random.random(boxes) < 0.2
    near = detections * 2 // 5
    source = random.integers(0, boxes, near)
    spread = np.tile(gt_box[source, 2:] - gt_box[source, :2], 2) * random.normal(0, 0.12, (near, 4))
    right = random.random(near) < 0.85
    det_class = np.where(right, gt_class[source], random.integers(0, classes, near))
    quality = np.clip(
        1 - np.abs(spread).sum(axis=1) / np.tile(gt_box[source, 2:] - gt_box[source, :2] + 1, 2).sum(axis=1), 0, 1
    )
    score = np.clip(0.75 * quality * right + random.normal(0.1, 0.12, near), 0.001, 1)
    rest = detections - near
    shuffle = random.permutation(detections)
    return Workload(
        images,
        classes,
        gt_image,
        gt_class,
        gt_box,
        gt_difficult,
        np.concatenate([gt_image[source], random.integers(0, images, rest)])[shuffle],
        np.concatenate([det_class, random.integers(0, classes, rest)])[shuffle],
        np.concatenate([gt_box[source] + spread, anywhere(rest)])[shuffle],
        np.concatenate([score, random.beta(1, 12, rest)])[shuffle],
    )


def real(detections: str, devkit: str, year: str | None = None, split: str = "test") -> Workload:
    truth = read_devkit(devkit, year, split)
    found = read_detections(detections, truth, split)
    return Workload(
        len(truth.images), len(truth.classes), truth.image, truth.class_index, truth.box, truth.difficult,
        found.image, found.class_index, found.box, found.score,
    )  # fmt: skip


def best_of(times: int, run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def speed(work: Workload) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from voc_oracle import loop_voc

    result = work.evaluate()
    ours = best_of(15, lambda: evaluate_voc(*work.columns(), num_classes=work.classes))
    tracemalloc.start()
    evaluate_voc(*work.columns(), num_classes=work.classes)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(f"{work.images:,} images, {len(work.gt_box):,} boxes, {len(work.det_box):,} detections")
    print(f"evaluate_voc              {ours * 1000:9.1f} ms   mAP07 {result.map07:.4f}, mAP10 {result.map:.4f}")
    print(f"  memory over the arrays  {peak:9.1f} MB")

    names = np.array([f"{index:06d}" for index in range(work.images)])
    named = replace(work, gt_image=names[work.gt_image], det_image=names[work.det_image])
    text = best_of(5, lambda: evaluate_voc(*named.columns(), num_classes=work.classes))
    print(f"  with images as text     {text * 1000:9.1f} ms")

    gt = list(zip(*(column.tolist() for column in work.truth())))
    det = list(zip(*(column.tolist() for column in work.columns()[4:])))
    loops = best_of(2, lambda: loop_voc(gt, det, work.classes))
    difference = np.abs(np.array(loop_voc(gt, det, work.classes)[:2]) - [result.ap, result.ap07]).max()
    print(
        f"plain loops               {loops * 1000:9.1f} ms   {loops / ours:6.1f} times as long"
        f" (largest difference of an AP: {difference:.0e})"
    )

    other = replace(work, det_score=work.det_score + np.random.default_rng(1).normal(0, 0.02, len(work.det_score)))
    second = other.evaluate()
    start = time.perf_counter()
    gain = bootstrap(result, second)
    bars = time.perf_counter() - start
    print(f"1,000 paired replicates   {bars * 1000:9.1f} ms   {bars / ours:6.1f} times as long   {gain.map}")

    coco = coco_seconds(work)
    print(f"pycocotools' 12 numbers   {coco * 1000:9.1f} ms   {coco / ours:6.1f} times as long")


def coco_seconds(work: Workload) -> float:
    """Seconds of evaluate, accumulate and summarize; loading is not counted."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = {"images": range(work.images), "classes": range(work.classes)}
    image, label, box, difficult = work.truth()
    truth: Any = SimpleNamespace(image=image, class_index=label, box=box, difficult=difficult, **names)
    columns = {"image": work.det_image, "class_index": work.det_class, "box": work.det_box, "score": work.det_score}
    found: Any = SimpleNamespace(**columns)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = coco_evaluation(truth, found, 1.0, COCO, COCOeval)
        start = time.perf_counter()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return time.perf_counter() - start


def causes(work: Workload) -> None:
    """From the devkit's mAP to yolo val's of the same detections; the last three steps by Ultralytics' own code."""
    devkit = work.evaluate()
    dropped = select_truth(work, ~work.gt_difficult)
    without = dropped.evaluate()
    steps = [
        ("the devkit's mAP10", devkit.map),
        ("difficult objects are no longer ignored but gone, and hits on them false", without.map),
        ("101 interpolated recalls in place of the area", ultralytics_ap(dropped, devkit_hits(without))),
        ("a second hit may take the next free box", ultralytics_ap(dropped, ultralytics_hits(dropped, shift=0.0))),
        (
            "boxes of the stock VOC labels, half a pixel off",
            ultralytics_ap(dropped, ultralytics_hits(dropped, shift=1.0)),
        ),
    ]
    print(f"the devkit's mAP07{'':<56}{devkit.map07:8.4f}")
    before = devkit.map
    for name, value in steps:
        print(f"{name:<74}{value:8.4f}  {value - before:+.4f}")
        before = value


def select_truth(work: Workload, rows: np.ndarray) -> Workload:
    image, label, box, difficult = (column[rows] for column in work.truth())
    return replace(work, gt_image=image, gt_class=label, gt_box=box, gt_difficult=difficult)


def devkit_hits(result: VOCResult) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return result.matches.det_true, result.matches.det_score, result.matches.det_class


def ultralytics_hits(work: Workload, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches by Ultralytics' validator, with boxes in continuous pixels.

    Its stock VOC labels turn a box x1, y1, x2, y2 into the stretch x1 - 1 to x2 - 1, where x1 - 1 to x2 is right:
    `shift` is what is taken off the far edges.
    """
    import torch
    from ultralytics.engine.validator import BaseValidator
    from ultralytics.utils.metrics import box_iou

    truth = torch.from_numpy(work.gt_box - [1, 1, shift, shift])
    found = torch.from_numpy(work.det_box - [1.0, 1.0, 0.0, 0.0])
    settings = SimpleNamespace(iouv=torch.tensor([0.5]))
    by_image = np.argsort(work.gt_image, kind="stable")
    bounds = np.searchsorted(work.gt_image[by_image], np.arange(work.images + 1))
    order = np.lexsort((-work.det_score, work.det_image))
    found_bounds = np.searchsorted(work.det_image[order], np.arange(work.images + 1))
    true = np.zeros(len(order), dtype=bool)
    label, found_label = torch.from_numpy(work.gt_class), torch.from_numpy(work.det_class)
    for image in range(work.images):
        mine = by_image[bounds[image] : bounds[image + 1]]
        rows = order[found_bounds[image] : found_bounds[image + 1]]
        if len(mine) and len(rows):
            iou = box_iou(truth[mine], found[rows])
            matched = BaseValidator.match_predictions(settings, found_label[rows], label[mine], iou)
            true[rows] = matched[:, 0].numpy()
    return true, work.det_score, work.det_class


def ultralytics_ap(work: Workload, hits: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    from ultralytics.utils.metrics import ap_per_class

    true, score, label = hits
    return float(ap_per_class(true[:, None], score, label, work.gt_class)[5].mean())


def coverage(work: Workload, images: int = 500, sets: int = 200) -> None:
    """Draw image sets, give each its 95 % interval, and count how many hold the mean over all sets of that size.

    The second detector of the paired difference is the first with noise on its scores.
    """
    random = np.random.default_rng(2)
    other = replace(work, det_score=work.det_score * (1 + random.normal(0, 0.1, len(work.det_score))))
    values, intervals, gains, gain_intervals = [], [], [], []
    for number in range(sets):
        drawn = random.integers(0, work.images, images)
        first, second = (resampled(each, drawn).evaluate() for each in (work, other))
        bars = bootstrap(first, replicates=400, seed=number)
        gain = bootstrap(first, second, replicates=400, seed=number)
        values.append((first.map, first.map07))
        gains.append((second.map - first.map, second.map07 - first.map07))
        intervals.append([(each.low, each.high) for each in (bars.map, bars.map07)])
        gain_intervals.append([(each.low, each.high) for each in (gain.map, gain.map07)])
    print(f"{sets} sets of {images} images drawn from {work.images:,}; 95 % intervals from 400 replicates")
    for name, figures, bounds in (("", values, intervals), ("difference of two ", gains, gain_intervals)):
        mean, edges = np.mean(figures, axis=0), np.array(bounds)
        held = ((edges[:, :, 0] <= mean) & (mean <= edges[:, :, 1])).mean(axis=0)
        width = (edges[:, :, 1] - edges[:, :, 0]).mean(axis=0)
        for index, figure in enumerate(("mAP10", "mAP07")):
            print(
                f"{name + figure:<24} mean {mean[index]:+.4f}, interval {width[index]:.4f} wide,"
                f" holds the mean {held[index]:.1%}"
            )


def resampled(work: Workload, drawn: np.ndarray) -> Workload:
    """The images drawn, under new numbers, with their boxes and detections."""

    def rows_of(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(image, kind="stable")
        bounds = np.searchsorted(image[order], np.arange(work.images + 1))
        parts = [order[bounds[index] : bounds[index + 1]] for index in drawn.tolist()]
        return np.concatenate(parts), np.repeat(np.arange(len(drawn)), [len(part) for part in parts])

    truth, image = rows_of(work.gt_image)
    found, found_image = rows_of(work.det_image)
    return Workload(
        len(drawn), work.classes, image, work.gt_class[truth], work.gt_box[truth], work.gt_difficult[truth],
        found_image, work.det_class[found], work.det_box[found], work.det_score[found],
    )  # fmt: skip


def main() -> None:
    modes = {"speed": speed, "causes": causes, "coverage": coverage}
    words = sys.argv[1:] or ["speed"]
    if words[0] not in modes:
        sys.exit(__doc__)
    options = dict(word.split("=", 1) for word in words[1:])
    modes[words[0]](real(**options) if "detections" in options else made_up())


if __name__ == "__main__":
    main()
