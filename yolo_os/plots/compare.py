"""The pictures of a comparison, drawn from its plain figures. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolo_os.plots.style import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure
from yolo_os.terminal import in_table

# Okabe and Ito, told apart also without colour vision; the reference is the first.
PALETTE = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#7B3294", "#8C6D31")
_GAINS = {"helps": GREEN, "hurts": ORANGE, "no difference": BLUE, "no evidence": GREY}


def colours(content: Mapping[str, Any]) -> dict[str, str]:
    """The colour of each arm."""
    return {arm["name"]: PALETTE[place % len(PALETTE)] for place, arm in enumerate(content["arms"])}


def plot_differences(content: Mapping[str, Any], path: Path) -> Path:
    """Each arm's difference to the reference with its interval and its seeds, and what would have been seen."""
    cells = [("mean over data sets" if len(content["cells"]) > 1 else "", content["arms"])]
    cells += [(cell["name"], cell["arms"]) for cell in content["cells"]] if len(content["cells"]) > 1 else []
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for scope, arms in cells:
        named = f" ({_text(scope)})" if scope else ""
        rows += [(f"{_text(arm['name'])}{named}", arm) for arm in arms[1:] if arm["difference"] is not None]
    figure, axis = new_figure(1, 1, (8.2, 0.46 * max(len(rows), 1) + 1.9), grid="x")
    margin = 100 * content["margin"]
    axis.axvspan(-margin, margin, color=GREY, alpha=0.25, linewidth=0, label=f"within {margin:g} points: none")
    axis.axvline(0, color="black", linewidth=0.8)
    for place, (_, arm) in enumerate(rows):
        colour = _GAINS[arm["word"]]
        colour = "#666666" if colour == GREY else colour
        axis.plot([100 * arm["low"], 100 * arm["high"]], [place, place], color=colour, linewidth=2.2)
        axis.plot(100 * arm["difference"], place, "o", color=colour, markersize=7)
        seeds = [100 * value for value in arm["by_seed"]]
        axis.plot(seeds, [place + 0.2] * len(seeds), "|", color=colour, markersize=8, alpha=0.8)
        if arm["smallest"] is not None:
            ends = [-100 * arm["smallest"], 100 * arm["smallest"]]
            axis.plot(ends, [place, place], linestyle="none", marker="x", color="#999999", markersize=5, zorder=1)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    axis.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    low = min([-margin, *(100 * min(arm["low"], *arm["by_seed"]) for _, arm in rows)])
    high = max([margin, *(100 * max(arm["high"], *arm["by_seed"]) for _, arm in rows)])
    axis.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axis.set_xlabel(
        f"difference of {content['metric']} to {_text(content['reference'])}, points\n"
        "bar: 95 % over seeds and images; ticks: each seed; x: the smallest that would have been seen",
        fontsize=9,
    )
    axis.legend(fontsize=8, frameon=False, loc="best")
    return save_figure(figure, path)


def plot_cost(content: Mapping[str, Any], path: Path) -> Path:
    """Gain against time, and against the norm of the head that is left."""
    figure, (time, norm) = new_figure(1, 2, (9.6, 4.0), grid="both", sharey=True)
    palette = colours(content)
    axes = ((time, "seconds_ratio", "seconds of training"), (norm, "squared_norm_ratio", "squared norm of the head"))
    for axis, key, label in axes:
        axis.axhline(0, color="black", linewidth=0.8)
        axis.axvline(1, color=GREY, linewidth=0.8)
        for arm in content["arms"]:
            if arm[key] is None or arm["difference"] is None:
                continue
            bars = [[100 * (arm["difference"] - arm["low"])], [100 * (arm["high"] - arm["difference"])]]
            marker = "*" if arm["name"] == content["reference"] else "o"
            look = {"color": palette[arm["name"]], "marker": marker, "markersize": 8, "linestyle": "none"}
            axis.errorbar([arm[key]], [100 * arm["difference"]], yerr=bars, capsize=3, label=_text(arm["name"]), **look)
        axis.set_xlabel(f"{label}, relative to {_text(content['reference'])}")
    time.set_ylabel(f"difference of {content['metric']}, points")
    norm.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, path)


def plot_curves(content: Mapping[str, Any], path: Path) -> Path:
    """Losses and mAP of val over the epochs: the mean over seeds, and each seed pale."""
    figure, axes = new_figure(1, 3, (12.4, 3.9), grid="both")
    palette = colours(content)
    labels = {
        "train_loss": "training loss, all terms",
        "val_loss": "loss on val, all terms",
        "map50_95": "mAP50-95 of val, as Ultralytics has it",
    }
    for axis, (key, label) in zip(axes, labels.items()):
        for name, runs in content["curves"].items():
            lines = [run[key] for run in runs if run.get(key)]
            for line in lines if len(lines) > 1 else []:
                axis.plot(range(1, len(line) + 1), line, color=palette[name], linewidth=0.6, alpha=0.3)
            if lines:
                length = min(map(len, lines))
                mean = np.mean([line[:length] for line in lines], axis=0)
                wide = name == content["reference"]
                look = {"linewidth": 5, "alpha": 0.35} if wide else {"linewidth": 1.5, "marker": "."}
                axis.plot(range(1, length + 1), mean, color=palette[name], label=_text(name), **look)
        axis.set_xlabel("epoch")
        axis.set_title(label, fontsize=10)
        axis.xaxis.get_major_locator().set_params(integer=True)
    if axes[2].get_legend_handles_labels()[0]:
        axes[2].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, path)


def plot_fractions(content: Mapping[str, Any], path: Path) -> Path:
    """The main figure against the part of train that was learned from, for each arm; the mean over data sets."""
    figure, axis = new_figure(1, 1, (6.6, 4.2), grid="both")
    palette = colours(content)
    fractions = list(dict.fromkeys(cell["fraction"] for cell in content["cells"]))
    for name, colour in palette.items():
        points = []
        for fraction in fractions:
            cells = [cell for cell in content["cells"] if cell["fraction"] == fraction]
            rows = [arm for cell in cells for arm in cell["arms"] if arm["name"] == name and arm["mean"] is not None]
            if rows:
                points.append((fraction, np.mean([row["mean"] for row in rows])))
        if points:
            axis.plot(*zip(*points), color=colour, marker="o", markersize=4, label=_text(name))
    axis.set_xlabel("part of train (share or number of images)")
    axis.set_ylabel(content["metric"])
    axis.legend(fontsize=8, frameon=False)
    return save_figure(figure, path)


def side_by_side(image: Any, truth: Sequence[Any], sides: Sequence[tuple[str, Sequence[Any]]], classes: Any) -> bytes:
    """A JPEG of one image twice, with what two detectors found on it, and what is there.

    Args:
        image: (H, W, 3) as OpenCV has it.
        truth: (x1, y1, x2, y2, class), 1-based and inclusive.
        sides: a title, and (x1, y1, x2, y2, class, score) of each detection.
        classes: their names.
    """
    import cv2

    scale = min(max(1.0, 480 / max(image.shape[:2])), 8.0)
    scale = min(scale, 640 / max(image.shape[:2])) if max(image.shape[:2]) > 640 else scale
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    large = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR if scale < 1 else cv2.INTER_CUBIC)
    halves = []
    for title, found in sides:
        canvas = large.copy()
        for *box, _ in truth:
            _draw(cv2, canvas, box, scale, (255, 255, 255), 1)
        for *box, label, score in found:
            colour = _bgr(PALETTE[1 + int(label) % (len(PALETTE) - 1)])
            _draw(cv2, canvas, box, scale, colour, 2)
            said = f"{in_table(str(classes[int(label)])).encode('ascii', 'replace').decode()} {score:.2f}"
            (wide, high), _ = cv2.getTextSize(said, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
            left, bottom = max(0, int((box[0] - 1) * scale)), max(high + 5, int((box[1] - 1) * scale))
            cv2.rectangle(canvas, (left, bottom - high - 5), (left + wide + 4, bottom), colour, cv2.FILLED)
            at = (left + 2, bottom - 4)
            cv2.putText(canvas, said, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
        banner = np.full((22, canvas.shape[1], 3), 40, np.uint8)
        said = title.encode("ascii", "replace").decode()
        cv2.putText(banner, said, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
        halves.append(np.concatenate([banner, canvas]))
    gap = np.full((halves[0].shape[0], 8, 3), 255, np.uint8)
    _, data = cv2.imencode(".jpg", np.concatenate([halves[0], gap, halves[1]], axis=1), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return bytes(data.tobytes())


def _draw(cv2: Any, canvas: Any, box: Sequence[float], scale: float, colour: tuple[int, ...], width: int) -> None:
    x1, y1, x2, y2 = ((box[0] - 1) * scale, (box[1] - 1) * scale, box[2] * scale, box[3] * scale)
    cv2.rectangle(canvas, (round(x1), round(y1)), (round(x2), round(y2)), colour, width, cv2.LINE_AA)


def _bgr(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return blue, green, red


def _text(name: str) -> str:
    """A name as matplotlib takes it for text, not for mathematics."""
    return in_table(name).replace("$", r"\$")
