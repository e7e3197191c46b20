"""How every figure begins and ends. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_os.files import written_whole

# Told apart also without colour vision (Okabe and Ito).
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#BBBBBB"
SEVERAL = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")


def new_figure(rows: int, columns: int, size: tuple[float, float], grid: str = "y", **options: Any) -> tuple[Any, Any]:
    """A figure of `size` inches and its axes; `grid` is x, y or both, `options` are those of `Figure.subplots`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no window system
    axes = figure.subplots(rows, columns, **options)
    for axis in getattr(axes, "flat", [axes]):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis=grid, alpha=0.25)
        axis.set_axisbelow(True)
    return figure, axes


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure in the format of its name, whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")
    return path
