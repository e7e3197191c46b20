"""Plots of VOC results. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yolo_os.plots.style import BLUE, GREY, ORANGE, new_figure, save_figure
from yolo_os.terminal import in_table

if TYPE_CHECKING:
    from yolo_os.evaluation.bootstrap import Bootstrap
    from yolo_os.evaluation.voc import VOCResult

_MOST = 60  # classes drawn: those with the most boxes


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
        axis.text(
            0.05,
            0.07,
            f"AP10 {result.ap[index]:.3f}\nAP07 {result.ap07[index]:.3f}\n{result.npos[index]:,} boxes",
            fontsize=7,
            color="#444444",
            linespacing=1.3,
        )
    for axis in axes.flat:
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axis.tick_params(labelsize=7)
        axis.label_outer()
    for axis in list(axes.flat)[len(classes) :]:
        axis.axis("off")
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision", fontsize=9)
    shown = f" ({_MOST} of {len(defined)} classes)" if len(defined) > _MOST else ""
    figure.suptitle(f"PASCAL VOC: mAP07 {result.map07:.4f}, mAP10 {result.map:.4f}{shown}", fontsize=11)
    return save_figure(figure, path)


def plot_differences(names: Sequence[str], difference: Bootstrap, title: str, path: Path) -> Path:
    """The gain in AP10 of each class (the 60 largest) and of the mean; those whose interval holds 0 are grey."""
    rows = [(name, interval) for name, interval in zip(names, difference.ap) if not np.isnan(interval.value)]
    rows = sorted(rows, key=lambda row: -abs(row[1].value))[:_MOST]
    rows = [("mean", difference.map), *sorted(rows, key=lambda row: row[1].value)]
    figure, axis = new_figure(1, 1, (6.4, 0.26 * len(rows) + 1.4), grid="both")
    for place, (_, interval) in enumerate(rows):
        sure = interval.low > 0 or interval.high < 0
        colour = (BLUE if interval.value > 0 else ORANGE) if sure else GREY
        axis.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot(interval.value, place, "D" if place == 0 else "o", color=colour, markersize=6 if place == 0 else 4.5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.axhline(0.5, color="#999999", linewidth=0.6, linestyle=":")
    axis.set_yticks(range(len(rows)), [_label(name) for name, _ in rows], fontsize=8)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel(f"gain in AP10, {difference.map.level:.0%} paired interval (grey: holds 0)", fontsize=9)
    axis.set_title(_label(title), fontsize=10)
    return save_figure(figure, path)


def _label(name: str) -> str:
    """A name as matplotlib takes it for text, not for mathematics."""
    return in_table(name).replace("$", r"\$")
