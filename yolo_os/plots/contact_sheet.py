"""A contact sheet: images with what detectors found on them, side by side. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.plots.style import BLUE, GREEN, ORANGE, new_figure, save_figure
from yolo_os.terminal import in_table, shown


@dataclass(frozen=True, eq=False)
class Found:
    """What was found on an image: boxes (k, 4) in 1-based inclusive pixels, a text for each, and whether it is true."""

    box: NDArray[np.float64]
    text: tuple[str, ...]
    true: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sheet:
    """A row of a contact sheet.

    Attributes:
        file: of the image.
        title: of the row.
        size: width and height, for an image that can't be read.
        truth: shape (m, 4); boxes of the ground truth.
        found: of each detector.
    """

    file: Path
    title: str
    size: tuple[float, float]
    truth: NDArray[np.float64]
    found: tuple[Found, ...]


def plot_contact_sheet(sheets: Sequence[Sheet], names: Sequence[str], title: str, path: Path) -> Path:
    """One row for each image, one column for each detector; true detections blue, false ones orange, truth green."""
    figure, axes = new_figure(
        len(sheets), len(names), (4.2 * len(names), 3.4 * len(sheets) + 0.9), grid="x", squeeze=False
    )
    for row, sheet in zip(axes, sheets):
        picture = _read(sheet)
        height, width = picture.shape[:2]
        for axis, name, found in zip(row, names, sheet.found):
            axis.imshow(picture, extent=(0, width, height, 0), interpolation="nearest", aspect="equal")
            axis.set(xlim=(0, width), ylim=(height, 0))
            axis.axis("off")
            for box in sheet.truth:
                _draw(axis, box, GREEN, "--", 1.0)
            for box, text, true in zip(found.box, found.text, found.true):
                colour = BLUE if true else ORANGE
                _draw(axis, box, colour, "-", 1.6)
                x, y = float(np.clip(box[0] - 1, 0, width)), float(np.clip(box[1] - 1, 0, height))
                axis.text(
                    x, y, _plain(in_table(text)), fontsize=6, color="white", clip_on=True,
                    verticalalignment="top", bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
                )  # fmt: skip
            right, wrong = int(found.true.sum()), int((~found.true).sum())
            counts = f"{right} right, {wrong} wrong, {len(sheet.truth) - right} missed"
            axis.set_title(_plain(f"{in_table(name)}: {counts}\n{sheet.title}"), fontsize=8)
    figure.suptitle(_plain(title), fontsize=10)
    figure.supxlabel("green dashes: ground truth; blue: true; orange: false", fontsize=8)
    return save_figure(figure, path)


def _plain(text: str) -> str:
    """As matplotlib takes it for text, not for mathematics."""
    return "\n".join(shown(line, 120) for line in text.split("\n")).replace("$", r"\$")


def _draw(axis: Any, box: NDArray[np.float64], colour: str, style: str, width: float) -> None:
    left, top, right, bottom = box[0] - 1, box[1] - 1, box[2], box[3]
    axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], style, color=colour, linewidth=width)


def _read(sheet: Sheet) -> NDArray[np.uint8]:
    """The image as it is shown; grey where it can't be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(sheet.file) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # Pillow raises anything from OSError to SyntaxError for a damaged file
        width, height = (max(1, int(side)) for side in sheet.size)
        return np.full((height, width, 3), 200, np.uint8)
