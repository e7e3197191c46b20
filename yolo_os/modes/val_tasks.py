"""What `yolo-os val task=` prints and writes: COCO's metric of masks, keypoints or rotated boxes, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yolo_os.evaluation.coco import CocoResult, coco_bootstrap
from yolo_os.evaluation.tasks import TaskTruth
from yolo_os.evaluation.voc import none_if_nan
from yolo_os.modes.val_coco import coco_bars
from yolo_os.terminal import counted, in_table


@dataclass(frozen=True)
class TaskRun:
    """One detector: its name, COCO's numbers, AP by class, and how many detections it has."""

    name: str
    numbers: dict[str, float]
    result: CocoResult
    detections: int


def report_task(runs: Sequence[TaskRun], truth: TaskTruth, replicates: int, options: dict[str, Any]) -> dict[str, Any]:
    """Print the figures of detectors side by side, with intervals; returns what goes into the JSON file."""
    called = truth.kind.called
    print(f"\nCOCO's AP of {called}\n{_table(runs)}")
    for run in runs:
        shown = ", ".join(f"{name} {_figure(value)}" for name, value in run.numbers.items())
        print(f"{run.name}: {shown}")
    if truth.kind.overlap == "obb":
        print("of rotated boxes there is no reference implementation: compare these figures with each other only")
    named = {"replicates": replicates, "seed": options["seed"], "min_boxes": options["min_boxes"]}
    content: dict[str, Any] = {"detectors": {run.name: _facts(run) for run in runs}, "gains": {}}
    first = runs[0]
    if len(runs) == 1:
        content = _facts(first)
        if replicates:
            bars = coco_bootstrap(first.result, **named)
            images = counted(first.result.images, "image")
            print(f"\n95% intervals from {replicates} bootstrap replicates of the {images}")
            print("\n".join(f"  {name} {each.mean}" for name, each in bars.items()))
            content["bootstrap"] = {"coco": coco_bars(bars, first.result.classes)}
    for run in runs[1:] if replicates else []:
        bars = coco_bootstrap(first.result, run.result, **named)
        images = counted(first.result.images, "image")
        print(f"\ngain of {run.name} over {first.name} on the same {images}, 95% paired intervals")
        print("\n".join(f"  {name} {each.mean}" for name, each in bars.items()))
        content["gains"][run.name] = {"over": first.name, "coco": coco_bars(bars, first.result.classes)}
    return content | {"task": options["task"]}


def _facts(run: TaskRun) -> dict[str, Any]:
    numbers = {name: none_if_nan(value) for name, value in run.numbers.items()}
    classes = {
        name: {key: none_if_nan(value) for key, value in row.items()} for name, row in run.result.by_class().items()
    }
    return {"detections": run.detections, "coco": numbers | {"classes": classes}}


def _table(runs: Sequence[TaskRun]) -> str:
    """AP of each class for each detector, and the means."""
    names, titles = [*map(in_table, runs[0].result.classes), "mean"], [in_table(run.name) for run in runs]
    width, columns = max(map(len, names)), [max(6, len(title)) for title in titles]
    counts = [len(ranking.boxes) for ranking in runs[0].result.rankings]
    rows = [f"{'':<{width}}  " + "  ".join(f"{title:>{size}}" for title, size in zip(titles, columns)) + "  objects"]
    values = [[*run.result.ap[0].tolist(), run.result.means["AP"]] for run in runs]
    for name, count, *found in zip(names, [*counts, sum(counts)], *values):
        cells = "  ".join(f"{_figure(value):>{size}}" for value, size in zip(found, columns))
        rows.append(f"{name:<{width}}  {cells}  {count:>7}")
    return "\n".join(rows)


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == value else "-"
