"""Plots of a shift, where a person would rather look than read. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_os.plots.style import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure
from yolo_os.report import LayerReport, ShiftReport

# One colour a role.
_COLOURS = {
    "box": BLUE,
    "cls": ORANGE,
    "mask": GREEN,
    "keypoint": "#CC79A7",
    "angle": "#E69F00",
    "joint": "#56B4E9",
}


def plot_report(report: ShiftReport, folder: Path) -> list[Path]:
    """Write `layers.png` (norm and drift by layer) and `spectrum.png` (singular values of A); returns the paths."""
    paths = [folder / "layers.png", folder / "spectrum.png"]
    plot_layers(report, paths[0])
    plot_spectra(report.layers, paths[1], report.recipe.rtol)
    return paths


def plot_layers(report: ShiftReport, path: Path) -> None:
    """Bars by layer: the squared norm kept, and the drift of the outputs on held-out anchor points."""
    layers = report.layers
    figure, (upper, lower) = new_figure(2, 1, (max(6.0, 0.55 * len(layers) + 2), 6.0), sharex=True)
    places = range(len(layers))
    colours = [_COLOURS[layer.role] for layer in layers]
    kept = [layer.keep for layer in layers]
    upper.bar(
        places, kept, color=[colour if layer.unchanged is None else GREY for colour, layer in zip(colours, layers)]
    )
    upper.axhline(1, color="black", linewidth=0.8)
    upper.set_ylabel("squared norm kept")
    upper.set_title(f"{report.recipe.method}: {report.keep:.1%} of the squared norm kept in all", fontsize=11)
    drift = [layer.drift or 0.0 for layer in layers]
    residual = [layer.residual or 0.0 for layer in layers]
    if any(drift) or any(residual):  # from exact on the sample to a visible change of the outputs
        lower.set_yscale("log")
    lower.bar([place - 0.2 for place in places], drift, 0.4, color=colours)
    lower.bar([place + 0.2 for place in places], residual, 0.4, color=colours, alpha=0.4, hatch="//")
    lower.set_ylabel("relative change of outputs")
    lower.set_xticks(list(places), [layer.name for layer in layers], rotation=60, ha="right", fontsize=8)
    _legend(
        upper, [layer.role for layer in layers], grey="unchanged" if any(layer.unchanged for layer in layers) else None
    )
    lower.legend(
        handles=[
            _patch(facecolor="#555555", label="held-out drift (left)"),
            _patch(facecolor="#555555", alpha=0.4, hatch="//", label="residual in sample (right)"),
        ],
        fontsize=8,
        frameon=False,
    )
    save_figure(figure, path)


def plot_spectra(layers: Sequence[LayerReport], path: Path, rtol: float | None = None) -> None:
    """Singular values of each layer's A, relative to the largest, with the rank cut and m."""
    drawn = [layer for layer in layers if layer.singular_values]
    columns = min(3, max(1, len(drawn)))
    rows = max(1, -(-len(drawn) // columns))
    figure, axes = new_figure(rows, columns, (4.0 * columns, 2.7 * rows), squeeze=False)
    for axis, layer in zip(axes.flat, drawn):
        top = layer.singular_values[0] or 1.0
        values = [max(value / top, 1e-17) for value in layer.singular_values]
        axis.semilogy(range(1, len(values) + 1), values, color=_COLOURS[layer.role], linewidth=1.5)
        if layer.rank is not None:
            axis.axvline(layer.rank, color="black", linestyle="--", linewidth=0.9, label=f"rank {layer.rank}")
        axis.axvline(layer.m, color="#999999", linewidth=0.9, label=f"m = {layer.m}")
        if rtol is not None:
            axis.axhline(rtol, color="#999999", linestyle=":", linewidth=0.9, label=f"rtol {rtol:g}")
        axis.set_xlim(0, layer.m + 1)
        axis.set_ylim(min(values) / 3, 2)
        axis.set_title(f"{layer.name} ({layer.role}), {layer.rows or 0:,} rows", fontsize=9)
        axis.legend(fontsize=7, frameon=False)
    for axis in list(axes.flat)[len(drawn) :]:
        axis.axis("off")
    figure.supxlabel("index", fontsize=9)
    figure.supylabel("singular value of A / largest", fontsize=9)
    save_figure(figure, path)


def _patch(**options: Any) -> Any:
    from matplotlib.patches import Patch

    return Patch(**options)


def _legend(axis: Any, roles: Sequence[str], grey: str | None) -> None:
    handles = [_patch(facecolor=_COLOURS[role], label=role) for role in dict.fromkeys(roles)]
    if grey:
        handles.append(_patch(facecolor=GREY, label=grey))
    axis.legend(
        handles=handles, fontsize=8, frameon=False, ncols=len(handles), loc="upper center", bbox_to_anchor=(0.5, 1.0)
    )
    axis.set_ylim(0, 1.25)
