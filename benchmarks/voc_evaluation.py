"""Measure the evaluator: its speed, how its figures differ from `yolo val`'s, and how good its error bars are.

    python benchmarks/voc_evaluation.py speed       # of VOC's figures, against plain loops
    python benchmarks/voc_evaluation.py coco        # COCO's numbers: whether they are pycocotools', time and memory
    python benchmarks/voc_evaluation.py causes      # from the devkit's mAP to that of yolo val, one cause at a time
    python benchmarks/voc_evaluation.py coverage    # how often a 95 % interval holds the figure of the whole set

All run on a made-up workload the size of the VOC2007 test set (4,952 images, 15,000 boxes, 300,000 detections, 20
classes); all but `speed` also take real ones: detections=FOLDER devkit=VOCdevkit [year= split=]. Coverage against a
truth that is known exactly, and the error of p-values: benchmarks/intervals.py.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from yolo_os.evaluation.coco import coco_bootstrap, coco_evaluation, coco_numbers, coco_result, error_types
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
    """The least processor time of several runs, which other programs on the machine lengthen little."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
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
    print(f"{work.images:,} images, {len(work.gt_box):,} boxes, {len(work.det_box):,} detections; processor time")
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

    second = noisy(work).evaluate()
    gain, (_, bars) = timed(lambda: bootstrap(result, second))
    print(
        f"1,000 paired replicates   {bars * 1000:9.1f} ms   {bars / ours:6.1f} times as long, exchanges included"
        f"   {gain.map}"
    )


def as_coco(work: Workload, crowds: bool = False) -> tuple[Any, Any]:
    """Ground truth and detections as yolo_os.evaluation.coco takes them; `crowds` makes every seventh object one."""
    truth = SimpleNamespace(
        image=work.gt_image,
        class_index=work.gt_class,
        box=work.gt_box,
        difficult=work.gt_difficult.astype(bool),
        crowd=np.arange(len(work.gt_box)) % 7 == 0 if crowds else np.zeros(len(work.gt_box), bool),
        area=(work.gt_box[:, 2:] - work.gt_box[:, :2] + 1).prod(axis=1),
        images=range(work.images),
        classes=tuple(map(str, range(work.classes))),
    )
    columns = {"image": work.det_image, "class_index": work.det_class, "box": work.det_box, "score": work.det_score}
    return truth, SimpleNamespace(**columns)


def noisy(work: Workload) -> Workload:
    """A second detector: the scores with noise."""
    noise = np.random.default_rng(1).normal(0, 0.02, len(work.det_score))
    return replace(work, det_score=work.det_score + noise)


def coco(work: Workload) -> None:
    """All bars of COCO's numbers in one run."""
    print(f"{work.images:,} images, {len(work.gt_box):,} boxes, {len(work.det_box):,} detections")
    used = subprocess.run([sys.executable, __file__, "memory"], capture_output=True, text=True, check=True)
    print(f"memory of numbers, errors and 1,000 paired replicates of the made-up workload: {used.stdout.strip()}")
    given = as_coco(work)
    adversarial = select(work, 400)
    adversarial = replace(
        adversarial, det_score=adversarial.det_score.round(1), det_box=(adversarial.det_box / 8).round() * 8 + 1
    )
    for name, truth, found in (
        ("this workload", *given),
        ("400 images of it, boxes on a grid, equal scores, a seventh crowds", *as_coco(adversarial, crowds=True)),
    ):
        print(f"largest difference to pycocotools, {name}: {largest_difference(truth, found):.0e}")

    numbers, seconds = timed(lambda: coco_numbers(*given))
    print(f"12 numbers by hotcoco       {seconds[0]:8.2f} s ({seconds[1]:.2f} s of processor)   AP {numbers['AP']:.4f}")
    results, seconds = timed(lambda: [coco_result(*as_coco(each)) for each in (work, noisy(work))])
    print(f"matches of two detectors    {seconds[0]:8.2f} s ({seconds[1]:.2f} s)")
    gain, ours = timed(lambda: coco_bootstrap(*results))
    print(
        f"1,000 paired replicates     {ours[0]:8.2f} s ({ours[1]:.2f} s)   AP {gain['AP'].mean}, AP50 and AP75,"
        f" of the mean and {work.classes} classes"
    )
    theirs = [hotcoco_evaluated(each) for each in (work, noisy(work))]
    _, seconds = timed(lambda: importlib.import_module("hotcoco").compare(*theirs, n_bootstrap=50))
    print(
        f"hotcoco's compare, 50       {seconds[0]:8.2f} s ({seconds[1]:.2f} s); times 20 for 1,000:"
        f" {20 * seconds[0] / ours[0]:.0f} times ours ({20 * seconds[1] / ours[1]:.0f} of processor time)"
    )


def timed(run: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """What comes of a call; seconds on the clock and of the processor, all threads together."""
    start = time.perf_counter(), time.process_time()
    result = run()
    return result, (time.perf_counter() - start[0], time.process_time() - start[1])


def largest_difference(truth: Any, found: Any) -> float:
    """Of the twelve numbers, and of AP, AP50 and AP75 of our matches and of their classes, to pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = coco_evaluation(truth, found, 1.0, COCO, COCOeval)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
    result = coco_result(truth, found)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = np.where(precision < 0, np.nan, precision).mean(axis=1)
    pairs = (
        (list(coco_numbers(truth, found).values()), stats),
        (list(result.means.values()), stats[:3]),
        (result.ap, np.stack([classes.mean(axis=0), classes[0], classes[5]])),
    )
    assert all(np.array_equal(np.isnan(mine), np.isnan(theirs)) for mine, theirs in pairs)
    return max(float(np.nanmax(np.abs(np.asarray(mine) - theirs))) for mine, theirs in pairs)


def hotcoco_evaluated(work: Workload) -> Any:
    engine = importlib.import_module("hotcoco")
    evaluation = coco_evaluation(*as_coco(work), 1.0, engine.COCO, engine.COCOeval)
    evaluation.evaluate()
    return evaluation


def memory(work: Workload) -> None:
    """The largest resident size of a process that does all of COCO's figures for two detectors."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pair = [as_coco(each) for each in (work, noisy(work))]
    for each in pair:
        coco_numbers(*each)
        error_types(*each)
    coco_bootstrap(*(coco_result(*each) for each in pair))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{peak:.0f} MB, of which {before:.0f} MB Python, numpy and the arrays")


def select(work: Workload, images: int) -> Workload:
    """The first images."""
    box, det = work.gt_image < images, work.det_image < images
    truth = (column[box] for column in work.truth())
    return Workload(images, work.classes, *truth, *(column[det] for column in work.columns()[4:]))


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
    """Draw image sets, give each its 95 % interval, and count how many hold the figure of all images together.

    The second detector of the paired difference is the first with noise on its scores.
    """
    random = np.random.default_rng(2)
    other = replace(work, det_score=work.det_score * (1 + random.normal(0, 0.1, len(work.det_score))))
    whole, second_whole = work.evaluate(), other.evaluate()
    truth = np.array([whole.map, whole.map07])
    gain_truth = np.array([second_whole.map, second_whole.map07]) - truth
    intervals, gains = [], []
    for number in range(sets):
        drawn = random.integers(0, work.images, images)
        first, second = (resampled(each, drawn).evaluate() for each in (work, other))
        bars = bootstrap(first, replicates=400, seed=number)
        gain = bootstrap(first, second, replicates=400, seed=number)
        intervals.append([(each.low, each.high, each.value) for each in (bars.map, bars.map07)])
        gains.append([(each.low, each.high, each.value) for each in (gain.map, gain.map07)])
    print(f"{sets} sets of {images} images drawn from {work.images:,}; 95 % intervals from 400 replicates")
    for name, figures, at in (("", intervals, truth), ("difference of two ", gains, gain_truth)):
        low, high, value = np.moveaxis(np.array(figures), 2, 0)
        held, width = ((low <= at) & (at <= high)).mean(axis=0), (high - low).mean(axis=0)
        for index, figure in enumerate(("mAP10", "mAP07")):
            print(
                f"{name + figure:<24} of all images {at[index]:+.4f}, mean of the sets {value[:, index].mean():+.4f},"
                f" interval {width[index]:.4f} wide, holds that of all images {held[index]:.1%}"
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
    modes = {"speed": speed, "coco": coco, "memory": memory, "causes": causes, "coverage": coverage}
    words = sys.argv[1:] or ["speed"]
    if words[0] not in modes:
        sys.exit(__doc__)
    options = dict(word.split("=", 1) for word in words[1:])
    modes[words[0]](real(**options) if "detections" in options else made_up())


if __name__ == "__main__":
    main()
