"""Pictures of how flat minima are, from plain data. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from yolo_os.plots.style import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure

_COLOURS = (BLUE, ORANGE, GREEN)


def plot_line(line: Mapping[str, Any], path: Path) -> Path:
    """The loss along the line from before (0) to after (1) and past both.

    Args:
        line: `places`, `losses` by the name of the images, and the names of the models, `before` and `after`.
        path: of the picture.
    """
    figure, axis = new_figure(1, 1, (7.0, 4.2))
    for colour, (name, losses) in zip(_COLOURS, line["losses"].items()):
        values = _numbers(losses)
        start = values[line["places"].index(0)]
        label = f"{name}, {start:.4g} before"
        axis.plot(
            line["places"], [each - start for each in values], color=colour, marker="o", markersize=3.5, label=label
        )
    for place, model in ((0, line["before"]), (1, line["after"])):
        axis.axvline(place, color=GREY, linewidth=5, alpha=0.45, zorder=0)
        axis.annotate(
            Path(model).name, (place, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9
        )
    axis.set_xlabel("place on the line through both models (0: before, 1: after)")
    axis.set_ylabel("training loss per image,\nless that before")
    axis.legend(fontsize=9, frameon=False)
    return save_figure(figure, path)


def plot_surface(surface: Mapping[str, Any], path: Path) -> Path:
    """The loss over the plane of both models, as its rise over the lower of them.

    Args:
        surface: `along`, `across`, `losses` (a row for each place across), `before` and `after`.
        path: of the picture.
    """
    figure, axis = new_figure(1, 1, (7.0, 4.6), grid="both")
    losses = [_numbers(row) for row in surface["losses"]]
    shades = axis.contourf(surface["along"], surface["across"], losses, levels=18, cmap="viridis")
    lines = axis.contour(surface["along"], surface["across"], losses, levels=9, colors="white", linewidths=0.6)
    axis.clabel(lines, fontsize=7, fmt="%.3g")
    for place, model, marker in ((0, surface["before"], "o"), (1, surface["after"], "D")):
        label = f"{'before' if place == 0 else 'after'}: {Path(model).name}"
        axis.plot(
            [place], [0], marker=marker, color=ORANGE, markeredgecolor="white", markersize=9, linestyle="", label=label
        )
    axis.set_xlabel("along the line through both models")
    axis.set_ylabel("across it, a random direction,\nin units of each filter's norm")
    figure.colorbar(shades, ax=axis, label="training loss per image")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False)
    return save_figure(figure, path)


def plot_norms(models: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """The trace of each model against the squared norm of its prediction layers.

    Args:
        models: as `ModelTrace.to_dict` makes them.
        path: of the picture.
    """
    figure, axis = new_figure(1, 1, (6.0, 4.2), grid="both")
    for model in models:
        bars = [[max(0.0, model["trace"] - model["low"])], [max(0.0, model["high"] - model["trace"])]]
        axis.errorbar([model["head_squared_norm"]], [model["trace"]], yerr=bars, color=BLUE, marker="o", capsize=3)
        axis.annotate(
            Path(model["model"]).name,
            (model["head_squared_norm"], model["trace"]),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=8,
        )
    axis.margins(0.25)
    axis.set_xlabel("squared norm of the prediction layers")
    axis.set_ylabel("trace of the Hessian\n(bars: 95 %, of the probes)")
    return save_figure(figure, path)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [nan if value is None else value for value in values]
