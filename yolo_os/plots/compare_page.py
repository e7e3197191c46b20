"""All that a comparison leaves in its folder: tables, figures, pictures, and the one page that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolo_os._version import __version__
from yolo_os.comparison import report
from yolo_os.comparison.html import Picture, page
from yolo_os.comparison.plan import FOUND, REPORT, Run
from yolo_os.comparison.resampling import Found, Truth, image_scores
from yolo_os.comparison.results import Measured
from yolo_os.files import write_json, write_text
from yolo_os.plots.compare import plot_cost, plot_curves, plot_differences, plot_fractions, side_by_side

SHOWN = 0.25  # the least score of a detection that is drawn
_IMAGES = 3  # drawn of each arm
_ARMS = 8  # that images are drawn of


def write_report(content: Mapping[str, Any], measured: Measured, folder: Path) -> Path:
    """Write `report.md`, `report.html`, `compare.json`, `arms.csv`, `classes.csv` and the pictures; the page's path.

    Args:
        content: of `results.summarise`.
        measured: the runs behind it, for the images.
        folder: of the comparison.
    """
    write_json(folder / REPORT, content)
    write_text(folder / "report.md", report.markdown(content))
    write_text(folder / "arms.csv", report.arms_csv(content))
    write_text(folder / "classes.csv", report.classes_csv(content))
    plots = []
    if content["cells"]:
        drawn = [
            (plot_differences, "differences.png", "Differences to the reference, and what could have been seen"),
            (plot_cost, "cost.png", "Gain against time and against the head's norm"),
            (plot_curves, "curves.png", f"Learning curves on {content['cells'][0]['name']}"),
        ]
        if len({cell["fraction"] for cell in content["cells"]}) > 1:
            drawn.append((plot_fractions, "fractions.png", "By the part of train that was learned from"))
        plots = [Picture.read(draw(content, folder / name), caption) for draw, name, caption in drawn]
    path = folder / "report.html"
    write_text(path, page(content, plots, changed_images(measured), __version__))
    return path


def changed_images(measured: Measured) -> list[Picture]:
    """The test images on which each arm differs most from the reference, with what both found on them."""
    config = measured.config
    pictures: list[Picture] = []
    for data in config.names():
        cell = [(data, config.fractions[-1])]
        theirs = measured.by_seed(config.arms[0].name, cell)
        for arm in config.arms[1 : 1 + _ARMS]:
            mine = measured.by_seed(arm.name, cell)
            pairs = {seed: (theirs[seed][0], mine[seed][0]) for seed in mine if seed in theirs}
            if pairs and not arm.jitter:
                pictures += _changed(measured.truth(data)[0], pairs, config.arms[0].name, arm.name)
    return pictures


def _changed(truth: Truth, pairs: Mapping[int, tuple[Run, Run]], reference: str, name: str) -> list[Picture]:
    import cv2

    found = {seed: tuple(Found.load(run.folder / FOUND) for run in pair) for seed, pair in pairs.items()}
    changes = {
        seed: image_scores(truth, mine, SHOWN) - image_scores(truth, theirs, SHOWN)
        for seed, (theirs, mine) in found.items()
    }
    mean = np.mean(list(changes.values()), axis=0)
    pictures = []
    for place in np.argsort(-np.abs(mean), kind="stable")[:_IMAGES].tolist():
        image = cv2.imread(truth.files[place]) if mean[place] else None
        if image is None:
            continue
        seed = max(changes, key=lambda each: changes[each][place] * np.sign(mean[place]))
        here = truth.image == place
        boxes = np.column_stack([truth.box[here], truth.class_index[here]]).tolist()
        sides = [(label, _drawn(each, place)) for label, each in zip((reference, name), found[seed])]
        data = side_by_side(image, boxes, sides, truth.classes)
        caption = (
            f"{Path(truth.files[place]).name}: {reference} left, {name} right, seed {seed}; true detections less false "
            f"ones change by {mean[place]:+.1f} on average over the seeds; white: what is there"
        )
        pictures.append(Picture(data, "jpeg", caption))
    return pictures


def _drawn(found: Found, place: int) -> list[list[float]]:
    here = np.flatnonzero((found.image == place) & (found.score >= SHOWN))
    here = here[np.argsort(found.score[here], kind="stable")]  # the surest on top
    rows: list[list[float]] = np.column_stack([found.box[here], found.class_index[here], found.score[here]]).tolist()
    return rows
