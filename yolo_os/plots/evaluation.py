"""Plots of VOC results. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo_os.plots.style import BLUE, GREY, ORANGE, SEVERAL, new_figure, save_figure
from yolo_os.terminal import counted, in_table

if TYPE_CHECKING:
    from yolo_os.evaluation.bootstrap import Bars, Bootstrap
    from yolo_os.evaluation.intervals import Interval
    from yolo_os.evaluation.voc import VOCResult

_MOST = 60  # classes drawn: those with the most boxes
_DARK = "#444444"  # text in a panel


def plot_curves(result: VOCResult, path: Path) -> Path:
    """A small precision-recall plot for each class that has boxes to be found, best AP first.

    The line is what the detections gave; the shade under it is the monotone precision whose area is AP.
    """
    defined = [index for index in np.argsort(-result.npos, kind="stable").tolist() if result.npos[index]]
    classes = sorted(defined[:_MOST], key=lambda index: -result.ap[index])
    columns = min(5, max(1, len(classes)))
    rows = max(1, -(-len(classes) // columns))
    figure, axes = new_figure(rows, columns, (2.3 * columns + 0.6, 2.2 * rows + 0.9), grid="both", squeeze=False)
    for axis, index in zip(axes.flat, classes):
        curve = result.curve(index)
        envelope = np.maximum.accumulate(np.append(curve.precision, 0.0)[::-1])[::-1]
        steps = np.append(0.0, curve.recall), np.append(envelope[0], envelope[:-1])
        axis.fill_between(*steps, step="pre", color=BLUE, alpha=0.15, linewidth=0)
        axis.plot(curve.recall, curve.precision, color=BLUE, linewidth=1.2)
        axis.set_title(_label(result.names[index]), fontsize=9, pad=3)
        _write(
            axis,
            result.ap[index],
            [
                (f"AP10 {result.ap[index]:.3f}", _DARK),
                (f"AP07 {result.ap07[index]:.3f}", _DARK),
                (counted(result.npos[index], "box", "es", thousands=True), _DARK),
            ],
        )
    _finish_panels(figure, axes, len(classes))
    shown = f" ({_MOST} of {len(defined)} classes)" if len(defined) > _MOST else ""
    figure.suptitle(f"PASCAL VOC: mAP07 {result.map07:.4f}, mAP10 {result.map:.4f}{shown}", fontsize=11)
    return save_figure(figure, path)


def plot_compared_curves(results: Mapping[str, VOCResult], path: Path) -> Path:
    """The precision-recall curves of several detectors, named, in one small plot for each class with boxes."""
    first = next(iter(results.values()))
    defined = [index for index in np.argsort(-first.npos, kind="stable").tolist() if first.npos[index]]
    classes = defined[:_MOST]
    columns = min(5, max(1, len(classes)))
    rows = max(1, -(-len(classes) // columns))
    figure, axes = new_figure(rows, columns, (2.3 * columns + 0.6, 2.2 * rows + 1.3), grid="both", squeeze=False)
    lines = {}
    for axis, index in zip(axes.flat, classes):
        texts = []
        for (name, result), colour in zip(results.items(), SEVERAL):
            curve = result.curve(index)
            (lines[name],) = axis.plot(curve.recall, curve.precision, color=colour, linewidth=1.2, alpha=0.85)
            texts.append((f"{result.ap[index]:.3f}", colour))
        texts.append((f"AP10, {counted(first.npos[index], 'box', 'es', True)}", _DARK))
        _write(axis, max(result.ap[index] for result in results.values()), texts)
        axis.set_title(_label(first.names[index]), fontsize=9, pad=3)
    _finish_panels(figure, axes, len(classes))
    shown = f" ({_MOST} of {len(defined)} classes)" if len(defined) > _MOST else ""
    titles = [f"{_label(name)}: mAP10 {results[name].map:.4f}" for name in lines]
    legend = {"loc": "outside upper center", "ncols": min(3, len(lines)), "fontsize": 9}
    figure.legend(lines.values(), titles, title=f"PASCAL VOC: precision and recall{shown}", **legend)
    return save_figure(figure, path)


def plot_differences(
    names: Sequence[str],
    difference: Bootstrap,
    title: str,
    path: Path,
    npos: Sequence[int],
    coco: Bars | None = None,
) -> Path:
    """The gain in AP10 of each class (the 60 largest) and of the mean, with its value and number of boxes.

    Grey where the interval holds 0. A class of fewer boxes than `difference.min_boxes` has an open mark, and
    does not set the width of the axis: what reaches beyond ends in an arrow. Where all classes are such, their values
    count for the width, and not their intervals. With `coco`, the gain in COCO's AP lies under each, lighter.
    """
    known = [index for index, each in enumerate(difference.ap) if not np.isnan(each.value)]
    known = sorted(known, key=lambda index: -abs(difference.ap[index].value))[:_MOST]
    known.sort(key=lambda index: difference.ap[index].value)
    entries = [("mean", difference.map, coco.mean if coco else None, int(sum(npos)), False)]
    if any(0 < count < difference.min_boxes for count in npos) and not np.isnan(difference.many.value):
        many = sum(count for count in npos if count >= difference.min_boxes)
        label = f"mean, {difference.min_boxes}+ boxes"
        entries.append((label, difference.many, coco.many if coco else None, many, False))
    means = len(entries)
    entries += [
        (names[index], difference.ap[index], coco.classes[index] if coco else None, npos[index],
         npos[index] < difference.min_boxes)
        for index in known
    ]  # fmt: skip
    solid = [bar for _, *bars, _, few in entries if not few for bar in bars if bar is not None]
    edges = [0.0, *(edge for bar in solid for edge in (bar.low, bar.high) if not np.isnan(edge))]
    if all(few for *_, few in entries[means:]):
        edges += [bar.value for _, *bars, _, _ in entries for bar in bars if bar is not None and bar.value == bar.value]
    margin = 0.06 * (max(edges) - min(edges) or 0.01)
    left, right = min(edges) - margin, max(edges) + margin
    step = 0.26 if coco is None else 0.36
    figure, axis = new_figure(1, 1, (7.2, step * len(entries) + 1.6), grid="both")
    axis.set_xlim(left, right)
    for place, (_, voc, other, _, few) in enumerate(entries):
        shift = 0.0 if other is None else 0.17
        _draw_gain(axis, voc, place + shift, few, "D" if place < means else "o", 1.0, (left, right))
        if other is not None and not np.isnan(other.value):
            _draw_gain(axis, other, place - shift, few, "s", 0.45, (left, right))
    axis.axvline(0, color="black", linewidth=0.8)
    axis.axhline(means - 0.5, color="#999999", linewidth=0.6, linestyle=":")
    marks = ["*" if few else "" for *_, few in entries]
    axis.set_yticks(range(len(entries)), [_label(name) + mark for (name, *_), mark in zip(entries, marks)], fontsize=8)
    axis.set_ylim(-0.6, len(entries) - 0.4)
    side = axis.secondary_yaxis("right")
    texts = [f"{each.value:+.4f}  {counted(count, 'box', 'es', True):>12}" for _, each, _, count, _ in entries]
    side.set_yticks(range(len(entries)), texts, fontsize=7)
    side.tick_params(length=0)
    side.spines["right"].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)
    under = "" if coco is None else "; lighter: COCO's AP"
    few_text = f"\n* fewer than {difference.min_boxes} boxes" if any(marks) else ""
    axis.set_xlabel(
        f"gain in AP10, {difference.map.level:.0%} paired interval (grey: holds 0{under}){few_text}", fontsize=9
    )
    axis.set_title(_label(title), fontsize=10)
    return save_figure(figure, path)


def _draw_gain(
    axis: Any, interval: Interval, place: float, few: bool, mark: str, alpha: float, limits: tuple[float, float]
) -> None:
    """An interval and its value; an arrow where it reaches beyond the axis."""
    sure = interval.low > 0 or interval.high < 0
    colour = (BLUE if interval.value > 0 else ORANGE) if sure else GREY
    low, high = max(interval.low, limits[0]), min(interval.high, limits[1])
    axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", alpha=alpha)
    for edge, beyond, arrow in ((low, interval.low < limits[0], "<"), (high, interval.high > limits[1], ">")):
        if beyond:
            axis.plot(edge, place, arrow, color=colour, markersize=5, clip_on=False, alpha=alpha)
    face = "white" if few else colour
    if limits[0] <= interval.value <= limits[1]:
        axis.plot(interval.value, place, mark, color=colour, markerfacecolor=face, markersize=4.5, alpha=alpha)


def _write(axis: Any, ap: float, texts: Sequence[tuple[str, str]]) -> None:
    """Coloured lines of text in the corner of a panel where its curves are not: below high ones, else above."""
    high = ap > 0.5
    for place, (text, colour) in enumerate(reversed(texts) if high else texts):
        x, y, side = (0.05, 0.05 + 0.09 * place, "left") if high else (0.97, 0.9 - 0.09 * place, "right")
        axis.text(x, y, text, fontsize=7, color=colour, horizontalalignment=side)


def _finish_panels(figure: Any, axes: Any, used: int) -> None:
    """The axes of small precision-recall plots."""
    for axis in axes.flat:
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axis.tick_params(labelsize=7)
        axis.label_outer()
    for axis in list(axes.flat)[used:]:
        axis.axis("off")
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision", fontsize=9)


def _label(name: str) -> str:
    """A name as matplotlib takes it for text, not for mathematics."""
    return in_table(name).replace("$", r"\$")
