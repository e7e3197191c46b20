"""The picture of a shift towards an origin: mAP by share. Matplotlib is imported when it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any

from yolo_os.plots.style import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure

_RETAINED = (ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")


def plot_shares(toward: Mapping[str, Any], path: Path) -> Path:
    """Draw the `toward` part of a report: mAP by share with paired intervals of the gain, and the loss below.

    Args:
        toward: as `TowardReport.to_dict` makes it.
        path: of the picture.
    """
    figure, (score, loss) = new_figure(2, 1, (7.0, 6.2), sharex=True, height_ratios=(2.4, 1))
    every = sorted([*toward["tried"], *toward["otherwise"]], key=lambda trial: -trial["share"])
    for statistics in dict.fromkeys((toward["statistics"], not toward["statistics"])):
        tried = [trial for trial in every if trial["share"] == 1 or trial["statistics"] == statistics]
        if len(tried) < 2:
            continue
        shares = [trial["share"] for trial in tried]
        style, said = ("-", "") if statistics else ("--", ", BatchNorm statistics left")
        _line(score, shares, tried, f"new data (val){said}", BLUE, style)
        _losses(loss, shares, tried, BLUE, style)
        for index, name in enumerate(tried[0]["retained"]):
            figures = [trial["retained"][name] for trial in tried]
            colour = _RETAINED[index % len(_RETAINED)]
            _line(score, shares, figures, f"retained: {'/'.join(Path(name).parts[-2:])}{said}", colour, style)
            _losses(loss, shares, figures, colour, style)
    for axis in (score, loss):
        axis.axvline(toward["share"], color=GREY, linewidth=5, alpha=0.45, zorder=0)
    taken = "nothing moved" if toward["share"] == 1 else f"taken: {toward['share']:g}"
    taken += "" if toward["statistics"] else ", BatchNorm statistics left"
    score.set_title(f"Towards {Path(toward['origin']).name}: {taken}", fontsize=11)
    score.set_ylabel("VOC mAP\n(bars: 95 % of the paired gain over share 1)", fontsize=9)
    score.legend(fontsize=8, frameon=False)
    loss.set_ylabel("training loss\nper image", fontsize=9)
    loss.set_xlabel("share of the way from the origin (0) to the model as trained (1)")
    loss.set_xlim(-0.04, 1.04)
    return save_figure(figure, path)


def _line(axis: Any, shares: list[float], figures: Any, label: str, colour: str, style: str) -> None:
    """mAP by share; the interval of a gain is drawn around the mAP that it leads to."""
    values = [_number(figure["map"]) for figure in figures]
    below, above = [], []
    for figure in figures:
        gain = figure["gain"] or {}
        value, low, high = (_number(gain.get(name, 0.0)) for name in ("value", "low", "high"))
        below.append(max(0.0, value - low))
        above.append(max(0.0, high - value))
    look: dict[str, Any] = {"color": colour, "linestyle": style, "marker": "o", "markersize": 4}
    axis.errorbar(shares, values, yerr=[below, above], capsize=2, label=label, **look)


def _losses(axis: Any, shares: list[float], figures: Any, colour: str, style: str) -> None:
    losses = [_number(figure["loss"]) for figure in figures]
    axis.plot(shares, losses, color=colour, linestyle=style, marker="o", markersize=4)


def _number(value: float | None) -> float:
    return nan if value is None else value
