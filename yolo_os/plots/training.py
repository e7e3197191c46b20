"""The plot of a training with shifts."""

from __future__ import annotations

import json
from math import nan, sqrt
from pathlib import Path
from typing import Any

from yolo_os.plain_yaml import read_yaml
from yolo_os.plots.style import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure
from yolo_os.training.log import epochs_in, read_rows, shifts_in

# Where two curves lie on each other, the first is a broad line and the second a thin one on it.
_BROAD: dict[str, Any] = {"linewidth": 3.2, "alpha": 0.6, "solid_capstyle": "round"}
_THIN: dict[str, Any] = {
    "linewidth": 1.3,
    "linestyle": "--",
    "marker": "o",
    "markersize": 3.5,
    "markerfacecolor": "white",
}
_SKY, _PINK = "#56B4E9", "#CC79A7"


def plot_training(folder: Path, path: Path) -> None:
    """Norm, loss and shifts over a training, its final shift and the guard's limit, from the files in its folder."""
    results, shifts = epochs_in(folder / "results.csv"), shifts_in(read_rows(folder / "shifts.csv"))
    epochs = {name: [float(row[name] or "nan") for row in results] for name in (results[0] if results else ())}
    figure, (norm, loss, rise) = new_figure(3, 1, (7.5, 8.0), sharex=True)
    when = epochs.get("epoch", [])
    for name, label, colour, style in (
        ("os/norm", "norm of the model", BLUE, _BROAD),
        ("os/norm_ema", "norm of the average (saved)", ORANGE, _THIN),
    ):
        if name in epochs:
            norm.plot(when, epochs[name], label=label, color=colour, **style)
    for part, colour, style in (("train", _SKY, _BROAD), ("val", _PINK, _THIN)):
        terms = [values for name, values in epochs.items() if name.startswith(f"{part}/") and "loss" in name]
        if terms:
            loss.plot(when, [sum(row) for row in zip(*terms)], label=f"{part} loss", color=colour, **style)
    for back, colour, marker, label in (("0", GREEN, "o", "shift that stands"), ("1", GREY, "X", "shift reverted")):
        made = [row for row in shifts if row["reverted"] == back]
        if made:
            changes = [100 * (float(row["loss_after"]) / (float(row["loss_before"]) or nan) - 1) for row in made]
            at = [int(row["epoch"]) for row in made]
            rise.plot(at, changes, marker, color=colour, markersize=5, label=f"{label} ({len(made)})")
    for epoch in {int(row["epoch"]) for row in shifts if row["reverted"] == "0"}:
        for axis in (norm, loss):
            axis.axvline(epoch, color=GREEN, linewidth=0.6, alpha=0.5, zorder=0)
    rise.axhline(0, color="black", linewidth=0.8)
    _draw_limit(folder, rise)
    _draw_final(folder, norm, rise, dict(zip(when, epochs.get("os/norm_ema", when))))
    norm.set_ylabel("norm of the head's\nprediction layers")
    loss.set_ylabel("loss, sum of terms")
    rise.set_ylabel("loss, change\nby a shift (%)")
    rise.set_xlabel("epoch")
    rise.xaxis.get_major_locator().set_params(integer=True)
    if not shifts:
        rise.text(0.5, 0.6, "no shift during training", transform=rise.transAxes, ha="center", fontsize=9)
    entries = {label: handle for axis in (norm, loss, rise) for handle, label in zip(*axis.get_legend_handles_labels())}
    if entries:
        figure.legend(entries.values(), entries.keys(), fontsize=8, frameon=False, ncols=3, loc="outside lower center")
    save_figure(figure, path)


def _draw_limit(folder: Path, rise: Any) -> None:
    """The largest rise of the loss on its batch that a shift during training may cause."""
    file = folder / "os" / "settings.yaml"
    limit = read_yaml(file).get("max_loss_rise") if file.is_file() else None
    if limit is not None:
        rise.axhline(
            100 * limit, color="black", linewidth=1, linestyle=":", label=f"limit of the guard ({100 * limit:g}%)"
        )


def _draw_final(folder: Path, norm: Any, rise: Any, norms: dict[float, float]) -> None:
    """The final shift of best.pt, from its report: the norm that it leaves, and the loss on held-out images.

    It stands at the epoch that best.pt is of, which is told by its norm (the last of equals).
    """
    file = folder / "os" / "best" / "report.json"
    if not file.is_file():
        return
    report = json.loads(file.read_text(encoding="utf-8"))
    val = folder / "os" / "best" / "val.json"
    taken = json.loads(val.read_text(encoding="utf-8"))["taken"] if val.is_file() else report["keep"] < 1
    had, left = (sqrt(sum(layer[name] ** 2 for layer in report["layers"])) for name in ("norm_before", "norm_after"))
    at = min(reversed(norms), key=lambda epoch: abs(norms[epoch] - had), default=0.0)
    label = f"final shift of best.pt, {report['keep']:.0%} of the squared norm left" + ("" if taken else " (not taken)")
    style: dict[str, Any] = {"marker": "*", "markersize": 12, "linestyle": "none", "color": GREEN if taken else GREY}
    norm.plot([at, at], [had, left], color=style["color"], linewidth=1, linestyle=":")
    norm.plot([at], [left], label=label, zorder=5, clip_on=False, **style)
    before, after = report["loss_before"], report["loss_after"]
    if before and after is not None:
        rise.plot([at], [100 * (after / before - 1)], label=label, zorder=5, clip_on=False, **style)
