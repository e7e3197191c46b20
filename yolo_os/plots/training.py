"""The plot of a training with shifts."""

from __future__ import annotations

from math import nan
from pathlib import Path

from yolo_os.plots.style import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure
from yolo_os.training.log import read_rows, shifts_in


def plot_training(folder: Path, path: Path) -> None:
    """Head norm, loss and shifts over a training, from the `results.csv` and `shifts.csv` in its folder."""
    results, shifts = read_rows(folder / "results.csv"), shifts_in(read_rows(folder / "shifts.csv"))
    epochs = {name: [float(row[name] or "nan") for row in results] for name in (results[0] if results else ())}
    figure, (norm, loss, rise) = new_figure(3, 1, (7.0, 7.5), sharex=True)
    when = epochs.get("epoch", [])
    for name, label, colour in (("os/norm", "model", BLUE), ("os/norm_ema", "average (saved)", ORANGE)):
        if name in epochs:
            norm.plot(when, epochs[name], label=label, color=colour, marker=".")
    for part, colour in (("train", BLUE), ("val", ORANGE)):
        terms = [values for name, values in epochs.items() if name.startswith(f"{part}/") and "loss" in name]
        if terms:
            loss.plot(when, [sum(row) for row in zip(*terms)], label=part, color=colour, marker=".")
    for back, colour, label in (("0", GREEN, "stands"), ("1", GREY, "not allowed")):
        made = [row for row in shifts if row["reverted"] == back]
        if made:
            changes = [100 * (float(row["loss_after"]) / (float(row["loss_before"]) or nan) - 1) for row in made]
            when = [int(row["epoch"]) for row in made]
            rise.plot(when, changes, "o", color=colour, label=f"{label} ({len(made)})")
    for epoch in {int(row["epoch"]) for row in shifts if row["reverted"] == "0"}:
        for axis in (norm, loss):
            axis.axvline(epoch, color=GREEN, linewidth=0.6, alpha=0.5)
    rise.axhline(0, color="black", linewidth=0.8)
    norm.set_ylabel("norm of the head's\nprediction layers")
    loss.set_ylabel("loss, sum of terms")
    rise.set_ylabel("loss on the batch,\nchange by a shift (%)")
    rise.set_xlabel("epoch")
    rise.xaxis.get_major_locator().set_params(integer=True)
    for axis in (norm, loss, rise):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False)
    if not shifts:
        rise.text(0.5, 0.6, "no shift during training", transform=rise.transAxes, ha="center", fontsize=9)
    save_figure(figure, path)
