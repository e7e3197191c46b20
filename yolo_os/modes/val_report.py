"""What `yolo-os val` prints and writes of its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.bootstrap import Bootstrap, Difference, bootstrap, image_changes
from yolo_os.evaluation.coco import coco_bootstrap
from yolo_os.evaluation.detection_files import comp4
from yolo_os.evaluation.detections import Detections
from yolo_os.evaluation.intervals import Interval, p_text
from yolo_os.evaluation.voc import VOCResult, mean_defined, none_if_nan
from yolo_os.files import file_name
from yolo_os.modes.val_coco import (
    Coco,
    Parts,
    coco_bars,
    coco_facts,
    coco_line,
    errors_change,
    errors_table,
    report_parts,
    voc_bars,
)
from yolo_os.plots.contact_sheet import Found, Sheet, plot_contact_sheet
from yolo_os.plots.evaluation import plot_compared_curves, plot_curves, plot_differences
from yolo_os.terminal import counted, in_table

_SHEETS = 5  # images on a contact sheet


@dataclass(frozen=True)
class Run:
    """One detector: its name, what it found, its figures."""

    name: str
    came_as_comp4: bool
    detections: Detections
    result: VOCResult
    coco: Coco | None
    ultralytics_map50: float | None


def report_one(run: Run, replicates: int, parts: Parts, options: dict[str, Any]) -> dict[str, Any]:
    """Print the figures of one detector; returns what goes into the JSON file."""
    content = run.result.to_dict() | _facts(run)
    settings = {"replicates": replicates, "seed": options["seed"], "min_boxes": options["min_boxes"]}
    if replicates:
        bars = bootstrap(run.result, **settings)
        print(f"\n{_table_with_bars(run.result, bars)}")
        print(f"95% intervals from {bars.replicates} bootstrap replicates of the {bars.images} images")
        content["bootstrap"] = voc_bars(bars, run.result.names)
    else:
        print(f"\n{run.result}")
    _print_remarks([run], options["min_boxes"])
    print(coco_line(run.coco))
    if replicates and run.coco:
        drawn = coco_bootstrap(run.coco.result, **settings)
        content["bootstrap"]["coco"] = coco_bars(drawn, run.result.names)
        print("\n".join(f"  {name:<5} {each.mean}" for name, each in drawn.items()))
    _print_parts([run], parts, settings, content)
    return content


def report_several(
    runs: Sequence[Run], replicates: int, parts: Parts, options: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Print detectors side by side, and the gain of each over the first; returns what goes into the JSON file."""
    first = runs[0]
    settings = {"replicates": replicates, "seed": options["seed"], "min_boxes": options["min_boxes"]}
    gains = [bootstrap(first.result, run.result, **settings) for run in runs[1:]] if replicates else []
    print(f"\n{_side_by_side(runs, options['min_boxes'], gains[0] if len(gains) == 1 else None)}")
    _print_remarks(runs, options["min_boxes"])
    for run in runs:
        print(f"{run.name}: {coco_line(run.coco)}")
    content: dict[str, Any] = {"detectors": {run.name: run.result.to_dict() | _facts(run) for run in runs}}
    content["gains"] = {}
    for run, gain in zip(runs[1:], gains):
        print(f"\ngain of {run.name} over {first.name} on the same {gain.images} images, 95% paired intervals")
        print(f"  mAP07 {gain.map07}\n  mAP10 {gain.map}")
        if first.result.few(gain.min_boxes) and gain.many.value == gain.many.value:
            print(f"  mAP10 {gain.many}, of the {_enough(first.result, gain.min_boxes)}")
        entry = {"over": first.name} | voc_bars(gain, first.result.names)
        coco_gain = None
        if first.coco and run.coco:
            coco_gain = coco_bootstrap(first.coco.result, run.coco.result, **settings)
            print("\n".join(f"  COCO's {name} {each.mean}" for name, each in coco_gain.items()))
            entry["coco"] = coco_bars(coco_gain, first.result.names)
            if errors := errors_change(first.coco, run.coco):
                entry["errors"] = errors
        print(f"  {_sure_classes(first.result, gain)}")
        content["gains"][run.name] = entry
        if options["plots"]:
            title = f"{run.name} against {first.name}"
            npos, coco = first.result.npos.tolist(), coco_gain["AP"] if coco_gain else None
            plot_differences(first.result.names, gain, title, folder / f"{_label(run)}_gain.png", npos, coco)
    _print_parts(runs, parts, settings, content)
    print()
    return content


def _print_parts(runs: Sequence[Run], parts: Parts, settings: dict[str, int], content: dict[str, Any]) -> None:
    """Kinds of errors, and parts of the image set."""
    if table := errors_table([run.name for run in runs], [run.coco.errors if run.coco else None for run in runs]):
        print(f"\n{table}")
    text, content["slices"] = report_parts([run.name for run in runs], parts, **settings)
    if text:
        print(f"\n{text}")


def not_yolo_val(runs: Sequence[Run]) -> str:
    """One short line, since it comes on every run: these figures differ from `yolo val`'s, and where to read why."""
    known = [f"{run.ultralytics_map50:.4f}" for run in runs if run.ultralytics_map50 is not None]
    figure = f" ({', '.join(known)} here)" if known else ""
    return f"yolo val's mAP50 of the same detections{figure} is another number: docs/evaluation.md says why"


def draw_compared(runs: Sequence[Run], annotations: Annotations, folder: Path) -> None:
    """Curves of all detectors in one figure, and the images on which each differs most from the first."""
    plot_compared_curves({run.name: run.result for run in runs}, folder / "pr_curves.png")
    first = runs[0]
    for run in runs[1:]:
        changes = image_changes(first.result, run.result)
        most = np.argsort(-np.abs(changes), kind="stable")[:_SHEETS]
        chosen = [index for index in most.tolist() if changes[index]]
        if not chosen:
            continue
        sheets = [_sheet(annotations, (first, run), index, changes[index]) for index in chosen]
        title = f"where {run.name} differs most from {first.name}: share of the gain in mAP10"
        path = folder / f"{_label(run)}_images.png"
        plot_contact_sheet(sheets, (first.name, run.name), title, path)


def _sheet(annotations: Annotations, runs: Sequence[Run], index: int, change: float) -> Sheet:
    """An image with what each detector finds on it at the score at which its F1 is best."""
    found = []
    for run in runs:
        matches, least = run.result.matches, _best_score(run.result)
        rows = np.flatnonzero((matches.det_image == index) & (matches.det_score >= least))
        given = matches.det_row[rows]
        names = [run.result.names[label] for label in matches.det_class[rows]]
        texts = tuple(f"{name} {score:.2f}" for name, score in zip(names, matches.det_score[rows]))
        found.append(Found(run.detections.box[given], texts, matches.det_true[rows]))
    here = (annotations.image == index) & ~annotations.difficult & ~annotations.crowd
    size = float(annotations.size[index, 0]), float(annotations.size[index, 1])
    title = f"{annotations.images[index]}: {change:+.5f}"
    return Sheet(annotations.image_files[index], title, size, annotations.box[here], tuple(found))


def _best_score(result: VOCResult) -> float:
    """The score from which on detections of all classes together have the best F1."""
    order = np.argsort(-result.matches.det_score, kind="stable")
    if not len(order):
        return 0.0
    found = np.cumsum(result.matches.det_true[order])
    f1 = 2 * found / (np.arange(1, len(order) + 1) + result.npos.sum())
    return float(result.matches.det_score[order[np.argmax(f1)]])


def leave_files(runs: Sequence[Run], folder: Path, options: dict[str, Any]) -> None:
    """Precision-recall plots, and the devkit's text files of what did not come as such."""
    for run in runs:
        label = _label(run)
        if options["plots"]:
            plot_curves(run.result, folder / ("pr_curves.png" if len(runs) == 1 else f"{label}_pr_curves.png"))
        if not run.came_as_comp4:
            comp4.write(
                run.detections, folder / "comp4" if len(runs) == 1 else folder / "comp4" / label, options["split"]
            )


def _label(run: Run) -> str:
    """A detector's name as a part of file names."""
    return file_name(run.name.replace("/", "_"))


def _facts(run: Run) -> dict[str, Any]:
    """What the JSON file says besides the figures."""
    facts: dict[str, Any] = {"detections": len(run.detections.score), "left_out": run.detections.dropped}
    if run.coco:
        facts |= coco_facts(run.coco)
    if run.ultralytics_map50 is not None:
        facts["yolo_val_map50"] = none_if_nan(run.ultralytics_map50)
    return facts


def _sure_classes(result: VOCResult, gain: Bootstrap) -> str:
    """The classes whose gain is not by chance, however many were looked at."""
    p_least = gain.map.least if isinstance(gain.map, Difference) else 0.0
    defined = [p for p in gain.holm if p == p]
    sure = [
        f"{in_table(name)} {each.value:+.4f} (p {p_text(p, p_least)}{_few_mark(npos, gain.min_boxes)})"
        for name, each, p, npos in sorted(
            zip(result.names, gain.ap, gain.holm, result.npos), key=lambda row: -abs(row[1].value)
        )
        if p <= 0.05
    ]
    corrected = f"p corrected for {counted(len(defined), 'class', 'es')} (Holm)"
    text = f"classes whose AP10 differs, {corrected}: {', '.join(sure) or 'none'}"
    needed = math.ceil(2 * len(defined) / 0.05)
    if gain.replicates < needed and not sure:
        text += f" (bootstrap={needed} or more can tell of a single one)"
    return text


def _few_mark(npos: int, min_boxes: int) -> str:
    return f"; only {counted(npos, 'box', 'es')}" if npos < min_boxes else ""


def _enough(result: VOCResult, min_boxes: int) -> str:
    number = int((result.npos >= max(1, min_boxes)).sum())
    return f"{number} {'class' if number == 1 else 'classes'} of {min_boxes} boxes or more"


def _print_remarks(runs: Sequence[Run], min_boxes: int) -> None:
    """What makes the mean over classes say less than it seems to."""
    result = runs[0].result
    if few := result.few(min_boxes):
        many = result.npos >= max(1, min_boxes)
        print(f"* fewer than {min_boxes} boxes: {', '.join(map(in_table, few))}")
        means = [f"{in_table(run.name)} {mean_defined(run.result.ap[many]):.4f}" for run in runs]
        if many.any():
            figures = means[0].split()[-1] if len(runs) == 1 else ", ".join(means)
            print(f"mean AP10 of the {_enough(result, min_boxes)}: {figures}")
    for run in runs:
        if run.result.unfound:
            who = "" if len(runs) == 1 else f"{in_table(run.name)}: "
            names = ", ".join(map(in_table, run.result.unfound))
            print(f"{who}no detection that counts, so an AP of 0 in the mean: {names}")


def _table_with_bars(result: VOCResult, bars: Bootstrap) -> str:
    names = [*map(in_table, result.names), "mean"]
    width = max(map(len, names))
    rows = [f"{'class':<{width}}  {'AP07':<24}  {'AP10':<24}  npos"]
    entries = zip(names, (*bars.ap07, bars.map07), (*bars.ap, bars.map), (*result.npos, result.npos.sum()))
    few = result.few(bars.min_boxes)
    marks = ["*" if name in few else "" for name in result.names]
    for (name, ap07, ap, npos), mark in zip(entries, [*marks, ""]):
        rows.append(f"{name:<{width}}  {ap07!s:<24}  {ap!s:<24}  {npos:>4}{mark}")
    if few and bars.many.value == bars.many.value:
        many = f"of {_enough(result, bars.min_boxes)}"
        rows.append(f"{'mean':<{width}}  {bars.many07!s:<24}  {bars.many!s:<24}  {many}")
    return "\n".join(rows).replace("nan [nan, nan]", "-             ")


def _side_by_side(runs: Sequence[Run], min_boxes: int, gain: Bootstrap | None) -> str:
    """AP10 of each class for each detector, with the gain of the second where there are two, and both means."""
    first = runs[0].result
    names, titles = [*map(in_table, first.names)], [in_table(run.name) for run in runs]
    width = max(map(len, (*names, "mean AP10")))
    columns = [max(6, len(title)) for title in titles]
    bars = [*(gain.ap if gain else ()), *((gain.map, gain.map07) if gain else ())]
    gains = [f"  {_in_brackets(each):<25}" if gain else "" for each in bars] or [""] * (len(names) + 2)
    head = f"  {'gain, 95% interval':<25}" if gain else ""
    head += "    npos"
    rows = [f"{'AP10':<{width}}  " + "  ".join(f"{title:>{size}}" for title, size in zip(titles, columns)) + head]
    for index, name in enumerate(names):
        values = "  ".join(f"{_figure(run.result.ap[index]):>{size}}" for run, size in zip(runs, columns))
        mark = "*" if 0 < first.npos[index] < min_boxes else ""
        rows.append(f"{name:<{width}}  {values}{gains[index]}  {first.npos[index]:>6}{mark}")
    for label, means, bar in (
        ("mean AP10", [run.result.map for run in runs], gains[-2]),
        ("mean AP07", [run.result.map07 for run in runs], gains[-1]),
    ):
        values = "  ".join(f"{_figure(mean):>{size}}" for mean, size in zip(means, columns))
        rows.append(f"{label:<{width}}  {values}{bar}".rstrip())
    return "\n".join(rows)


def _in_brackets(gain: Interval) -> str:
    """A gain with its interval, without p: of one class alone it says less than it seems to."""
    return "-" if gain.value != gain.value else f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == value else "-"
