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
    """A line by layer: keep, the share of the squared norm, and how far its outputs move, each with its value."""
    layers = report.layers
    figure, (left, right) = new_figure(1, 2, (9.5, max(3.0, 0.32 * len(layers) + 1.8)), grid="x", sharey=True)
    places = range(len(layers))
    colours = [_COLOURS[layer.role] if layer.unchanged is None else GREY for layer in layers]
    kept = [layer.keep for layer in layers]
    left.barh(places, kept, 0.7, color=colours)
    for place, share in zip(places, kept):  # one of 0.001 has no bar to be seen
        left.text(1.03, place, f"{share:.3f}", va="center", fontsize=8)
    left.axvline(1, color="black", linewidth=0.8)
    left.set_xlim(0, 1.22)
    left.set_xlabel("keep, of the layer's squared norm")
    left.set_yticks(list(places), [layer.name for layer in layers], fontsize=8)
    left.invert_yaxis()
    left.set_title(f"{report.recipe.method}: {report.keep:.1%} of the squared norm left in all", fontsize=10)
    shown = [("held-out drift", [layer.drift for layer in layers], {"marker": "o"})]
    shown += [("residual in sample", [layer.residual for layer in layers], {"marker": "D", "facecolors": "none"})]
    values = [value for _, column, _ in shown for value in column if value]
    if values:  # from exact on the sample to a visible change of the outputs
        right.set_xscale("log")
        right.set_xlim(min(values) / 3, max(values) * 8)
    for (_, column, style), shift in zip(shown, (-0.17, 0.17)):
        for place, value, colour in zip(places, column, colours):
            if value:
                edge = {"edgecolors": colour} if "facecolors" in style else {"color": colour}
                right.scatter(value, place + shift, s=26, **{**style, **edge})
                right.annotate(
                    f"{value:.2g}", (value, place + shift), (5, -2.5), textcoords="offset points", fontsize=6
                )
    right.set_xlabel("relative change of outputs")
    handles = [_patch(facecolor=_COLOURS[role], label=role) for role in dict.fromkeys(layer.role for layer in layers)]
    if any(layer.unchanged for layer in layers):
        handles.append(_patch(facecolor=GREY, label="unchanged"))
    if values:
        handles += [_mark(label, **style) for label, _, style in shown]
    figure.legend(handles=handles, fontsize=8, frameon=False, ncols=len(handles), loc="outside lower center")
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


def _mark(label: str, marker: str, facecolors: str = "#555555") -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        linestyle="none",
        marker=marker,
        label=label,
        markeredgecolor="#555555",
        markerfacecolor=facecolors,
    )
