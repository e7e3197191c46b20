"""Average precision by the rules of the PASCAL VOC development kit, on plain numpy arrays.

The rules are those of `VOCevaldet.m` and `VOCap.m` (VOCdevkit 2007 and 2012):

- a detection is compared with the one ground truth of its class and image with the largest intersection over union
  (the first of equals), whether or not that box is taken already: there is no second choice;
- at an IoU of the threshold or more it matches. A match with a difficult box counts neither way; the first match of
  a box, in order of falling score, is a true positive; a second one, and everything else, is a false positive;
- difficult boxes are not among the boxes to be found;
- AP of 2010 and later is the area under the precision made monotone (`ap`); AP of 2007 is the mean of that precision
  at the eleven recalls 0, 0.1, ..., 1 (`ap07`).

Everything is float64 and vectorised; 300,000 detections take well under a second (`benchmarks/voc_evaluation.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from yolo_os.errors import UserError
from yolo_os.evaluation import arrays
from yolo_os.evaluation.arrays import Floats, Integers
from yolo_os.evaluation.matching import Matches, match
from yolo_os.evaluation.names import some
from yolo_os.terminal import in_table

# The eleven recalls as two languages compute them. MATLAB's 0:0.1:1 counts its second half down from 1, so it has
# exactly 0.6 and 0.7 where numpy has the next larger float; every Python evaluator uses numpy's.
RECALL_POINTS = {
    "numpy": np.arange(0.0, 1.1, 0.1),
    "matlab": np.array([0.1 * i if i <= 5 else 1.0 - 0.1 * (10 - i) for i in range(11)]),
}


@dataclass(frozen=True, eq=False)
class PRCurve:
    """Precision and recall of one class after each detection that counts, best score first.

    Attributes:
        recall, precision, score: shape (k,); not made monotone.
    """

    recall: Floats
    precision: Floats
    score: Floats


@dataclass(frozen=True, eq=False)
class VOCResult:
    """Average precision of a detector on one image set.

    Not comparable with Ultralytics' mAP50 or COCO's AP50 of the same detections: see docs/evaluation.md.

    Attributes:
        ap: shape (num_classes,); VOC 2010+ AP, nan for a class without a box that is not difficult.
        ap07: shape (num_classes,); VOC 2007 AP, nan for the same classes.
        npos: shape (num_classes,); boxes that are not difficult.
        matches: what matching decided; `bootstrap` resamples it.
        recall_points: "numpy" or "matlab", the eleven points of `ap07`.
        classes: names of the classes, or none.
    """

    draw: ClassVar[Callable[[VOCResult, Path], Path] | None] = None  # set by `yolo_os.voc`, which knows the plots

    ap: Floats
    ap07: Floats
    npos: Integers
    matches: Matches
    recall_points: str = "numpy"
    classes: tuple[str, ...] = ()

    @property
    def map(self) -> float:
        """Mean of `ap` over the classes where it is defined; nan when there is none."""
        return mean_defined(self.ap)

    @property
    def map07(self) -> float:
        """Mean of `ap07` over the classes where it is defined; nan when there is none."""
        return mean_defined(self.ap07)

    @property
    def unfound(self) -> tuple[str, ...]:
        """Classes that have boxes to be found and no detection that counts: their AP of 0 is in the mean."""
        detected = np.bincount(self.matches.det_class, minlength=len(self.npos)) > 0
        return tuple(self.names[index] for index in np.flatnonzero((self.npos > 0) & ~detected))

    def few(self, min_boxes: int) -> tuple[str, ...]:
        """Classes with fewer boxes than that, and at least one: one box more or less moves their AP far."""
        return tuple(self.names[index] for index in np.flatnonzero((self.npos > 0) & (self.npos < min_boxes)))

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, or their numbers as text."""
        return self.classes or tuple(str(index) for index in range(len(self.ap)))

    def curve(self, class_index: int | str) -> PRCurve:
        """Precision and recall of one class, by index or name; recall is nan where it has no box to be found.

        Raises:
            UserError: for a class that there is not.
        """
        if isinstance(class_index, str):
            if class_index not in self.names:
                raise UserError(f"no class is called '{class_index}': the classes are {some(self.names, 100)}")
            class_index = self.names.index(class_index)
        if not -len(self.ap) <= class_index < len(self.ap):
            raise UserError(f"there is no class {class_index}: classes run from 0 to {len(self.ap) - 1}")
        class_index %= len(self.ap)
        here = self.matches.of_class(class_index)
        found = np.cumsum(self.matches.det_true[here])
        positives = self.npos[class_index]
        return PRCurve(
            recall=found / positives if positives else np.full(len(found), np.nan),
            precision=found / np.arange(1, len(found) + 1),
            score=self.matches.det_score[here],
        )

    @property
    def curves(self) -> tuple[PRCurve, ...]:
        """Precision and recall of every class."""
        return tuple(self.curve(index) for index in range(len(self.ap)))

    def to_dict(self) -> dict[str, Any]:
        """`{"map", "map07", "classes": {name: {"ap", "ap07", "npos"}}}`, with None for an undefined AP."""
        rows = zip(self.names, self.ap, self.ap07, self.npos)
        return {
            "map": none_if_nan(self.map),
            "map07": none_if_nan(self.map07),
            "classes": {
                name: {"ap": none_if_nan(ap), "ap07": none_if_nan(ap07), "npos": int(npos)}
                for name, ap, ap07, npos in rows
            },
        }

    def __str__(self) -> str:
        """A table: AP of 2007, AP of 2010 and number of boxes, class by class, and the means."""
        names = [in_table(name) for name in self.names]
        width = max(map(len, (*names, "mean")))
        lines = [f"{'class':<{width}}   AP07   AP10    npos"]
        for name, ap07, ap, npos in zip(names, self.ap07, self.ap, self.npos):
            lines.append(f"{name:<{width}} {_figure(ap07)} {_figure(ap)} {npos:>7}")
        lines.append(f"{'mean':<{width}} {_figure(self.map07)} {_figure(self.map)} {int(self.npos.sum()):>7}")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> Path:
        """Draw the precision-recall curves into an image file and return its path (needs matplotlib)."""
        draw = type(self).draw
        if draw is None:
            raise UserError("plots are drawn where yolo_os.voc is imported: import it, or use yolo_os.plots.evaluation")
        return draw(self, Path(path))


def evaluate_voc(
    gt_image: ArrayLike,
    gt_class: ArrayLike,
    gt_box: ArrayLike,
    gt_difficult: ArrayLike,
    det_image: ArrayLike,
    det_class: ArrayLike,
    det_box: ArrayLike,
    det_score: ArrayLike,
    num_classes: int,
    iou_threshold: float = 0.5,
    pixel_offset: float = 1.0,
    recall_points: str = "numpy",
    *,
    images: ArrayLike | None = None,
    classes: tuple[str, ...] = (),
    warn: bool = True,
) -> VOCResult:
    """PASCAL VOC average precision, by the development kit's own rules (`VOCevaldet.m`, `VOCap.m`).

    Args:
        gt_image: shape (m,); the image of each ground-truth box, whole numbers or text.
        gt_class: shape (m,); class index, 0 to num_classes - 1.
        gt_box: shape (m, 4); x1, y1, x2, y2 in pixels, 1-based and inclusive as in VOC's XML files.
        gt_difficult: shape (m,); true or 1 where the box is difficult.
        det_image, det_class, det_box: the same of each detection, shapes (k,), (k,) and (k, 4).
        det_score: shape (k,); larger is surer. Equal scores keep the order given.
        num_classes: how many classes there are.
        iou_threshold: the least IoU of a match, above 0 and at most 1.
        pixel_offset: 1 where a box from 3 to 3 is one pixel wide (VOC), 0 where it has no width (continuous edges).
        recall_points: "numpy" or "matlab": the eleven points of AP07 as `np.arange(0, 1.1, 0.1)` has them, which
            every Python evaluator uses, or as `0:0.1:1`; they differ when a recall is exactly 0.6 or 0.7.
        images: all images of the set; when given, an image that is not among them is refused. `bootstrap` draws from
            them, so give them if some images have neither a box nor a detection.
        classes: names for the table, or none.
        warn: with pixel_offset=1, whether to warn (`UserWarning`) of boxes that look counted from 0.

    Raises:
        UserError: for arrays of the wrong shape or of unequal lengths, a class out of range, a box or score that is
            not finite, image ids of two kinds, an unknown image or a setting out of range; it names the array and row.
    """
    if not 0 < iou_threshold <= 1:
        raise UserError(f"iou_threshold={iou_threshold}: must be above 0 and at most 1")
    if recall_points not in RECALL_POINTS:
        raise UserError(f"recall_points={recall_points}: use one of {', '.join(RECALL_POINTS)}")
    if num_classes < 1 or (classes and len(classes) != num_classes):
        raise UserError(f"num_classes={num_classes}: must be at least 1, and the number of classes if those are named")

    boxes = arrays.boxes("gt_box", gt_box)
    labels = arrays.class_indices("gt_class", gt_class, len(boxes), num_classes)
    difficult = arrays.vector("gt_difficult", gt_difficult, len(boxes)).astype(bool)
    found_boxes = arrays.boxes("det_box", det_box)
    found_labels = arrays.class_indices("det_class", det_class, len(found_boxes), num_classes)
    scores = arrays.vector("det_score", det_score, len(found_boxes)).astype(np.float64, copy=False)
    arrays.refuse_unfinite("det_score", scores)
    image_ids, at, found_at = arrays.number_images(
        arrays.vector("gt_image", gt_image, len(boxes)),
        arrays.vector("det_image", det_image, len(found_boxes)),
        None if images is None else np.asarray(images),
    )

    if warn and pixel_offset == 1:
        for name, given in (("gt_box", boxes), ("det_box", found_boxes)):
            _warn_of_base(name, given)
    matches = match(
        num_classes,
        image_ids,
        (at, labels, boxes, difficult),
        (found_at, found_labels, found_boxes, scores),
        iou_threshold,
        pixel_offset,
    )
    ap, ap07 = average_precisions(matches, RECALL_POINTS[recall_points])
    return VOCResult(ap, ap07, matches.npos, matches, recall_points, tuple(classes))


def _warn_of_base(name: str, box: Floats) -> None:
    """Boxes of images reach their edges: many that start at exactly 0 and next to none at 1 were counted from 0."""
    zero, one = (int((box[:, :2] == edge).any(axis=1).sum()) for edge in (0, 1))
    if zero >= 5 and zero > 4 * one:
        warnings.warn(
            f"{name} looks counted from 0: {zero} boxes start at exactly 0 and {one} at 1, while pixel_offset=1 takes"
            " boxes as 1-based and inclusive; add 1 to all four numbers if they are inclusive pixels, or give"
            " pixel_offset=0 if all boxes are continuous",
            UserWarning,
            stacklevel=3,
        )


def average_precisions(matches: Matches, recall_points: Floats) -> tuple[Floats, Floats]:
    """AP and AP07 of every class, shape (num_classes,) each; nan where the class has no box to be found."""
    ap, ap07 = np.full((2, matches.num_classes), np.nan)
    for index in np.flatnonzero(matches.npos).tolist():
        ranks = np.flatnonzero(matches.det_true[matches.of_class(index)]) + 1
        # Precision peaks at true positives and recall rises at them only, so the rest of the curve is not needed.
        found = np.arange(1, len(ranks) + 1)
        envelope = np.maximum.accumulate((found / ranks)[::-1])[::-1]
        ap[index] = envelope.sum() / matches.npos[index]
        reached = np.searchsorted(found / matches.npos[index], recall_points)  # the first true positive at each recall
        ap07[index] = envelope[reached[reached < len(ranks)]].sum() / len(recall_points)
    return ap, ap07


def mean_defined(values: Floats) -> float:
    """Mean of the values that are not nan; nan when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def none_if_nan(value: float) -> float | None:
    """The value for a JSON file, which has no nan."""
    return None if np.isnan(value) else float(value)


def _figure(value: float) -> str:
    return "     -" if np.isnan(value) else f"{value:6.4f}"
