"""One split of a data set: its images, put there the cheapest way, and their labels.

A 1-based inclusive box from x1 to x2 covers the continuous stretch from x1 - 1 to x2 of the image, so its centre is
(x1 - 1 + x2) / 2 and its width x2 - x1 + 1. (Ultralytics' own conversion of VOC has the centre half a pixel too far
to the left and top, and the width a pixel too small.)
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations, Problem, unusable_image
from yolo_os.evaluation.readers.data_yaml import folder_names


class Placer:
    """Puts an image into the data set the cheapest way that works here, and remembers which way that was."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, source: Path, target: Path) -> None:
        """Put the image `source` at `target`.

        Raises:
            UserError: if something is there, which a copy would write through: a link to another image of the user's.
        """
        if os.path.lexists(target):
            raise UserError(f"{source}: another image is called {target.name} there; rename one")
        source = Path(os.path.abspath(source))  # a link's own path counts from the folder that the link is in
        if self.how == "symlink":
            try:
                return os.symlink(source, target)
            except OSError:
                self.how = "hard link"  # no right to make links (Windows), or a file system without them
        if self.how == "hard link":
            try:
                return os.link(source, target)
            except OSError:
                self.how = "copy"  # another disk
        shutil.copyfile(source, target)
        return None


def write_split(
    folder: Path, split: str, annotations: Annotations, place: Placer
) -> tuple[NDArray[np.bool_], list[Problem]]:
    """Images and labels of one split; returns which images are there, and what is wrong with the others."""
    folders = folder_names(split, annotations.roots)
    for name in folders:
        (folder / "images" / name).mkdir(parents=True)
        (folder / "labels" / name).mkdir(parents=True)
    kept = annotations.image_readable
    problems = []
    objects = np.flatnonzero(~annotations.difficult)
    objects = objects[np.argsort(annotations.image[objects], kind="stable")]
    bounds = np.searchsorted(annotations.image[objects], np.arange(len(annotations.images) + 1))
    for index, (stem, image) in enumerate(zip(annotations.stems, annotations.image_files)):
        mine = objects[bounds[index] : bounds[index + 1]]
        if not kept[index]:
            problems.append(unusable_image(image))
            continue
        name = folders[annotations.root[index]]
        label = folder / "labels" / name / f"{stem}.txt"
        target = folder / "images" / name / f"{stem}{image.suffix}"
        for path in (label, target):
            path.parent.mkdir(parents=True, exist_ok=True)
        place(image, target)
        label.write_text(label_lines(annotations.class_index[mine], annotations.box[mine], annotations.size[index]))
    return kept, problems


def label_lines(class_index: NDArray[np.int64], box: NDArray[np.float64], size: NDArray[np.float64]) -> str:
    """YOLO label text: class, centre and size as fractions of the image, of 1-based inclusive pixel boxes.

    Ten digits put a box within a millionth of a pixel. Boxes are clipped to the image.
    """
    near = np.maximum(box[:, :2] - 1, 0) / size
    far = np.minimum(box[:, 2:], size) / size
    rows = np.concatenate([(near + far) / 2, far - near], axis=1).tolist()
    return "".join(
        f"{label} {x:.10g} {y:.10g} {w:.10g} {h:.10g}\n" for label, (x, y, w, h) in zip(class_index.tolist(), rows)
    )
