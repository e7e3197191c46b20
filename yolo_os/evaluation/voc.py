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

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yolo_os.errors import UserError
from yolo_os.terminal import in_table

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

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
class Matches:
    """What matching decided, and all that AP needs: the detections that count and the boxes to be found.

    Detections that fell on a difficult box are left out: they count neither way.

    Attributes:
        image_ids: shape (images,); the images in order, which the indices below point into.
        det_image, det_class: shape (k,); by class, and within a class by falling score.
        det_score: shape (k,).
        det_true: shape (k,); whether the detection is a true positive.
        gt_image, gt_class: shape (m,); of the boxes that are not difficult.
        num_classes: how many classes there are.
    """

    image_ids: NDArray[Any]
    det_image: Integers
    det_class: Integers
    det_score: Floats
    det_true: Flags
    gt_image: Integers
    gt_class: Integers
    num_classes: int

    @cached_property
    def npos(self) -> Integers:
        """Shape (num_classes,); boxes to be found."""
        return np.bincount(self.gt_class, minlength=self.num_classes)

    def of_class(self, class_index: int) -> slice:
        """Where the detections of one class stand."""
        bounds = np.searchsorted(self.det_class, (class_index, class_index + 1))
        return slice(int(bounds[0]), int(bounds[1]))


@dataclass(frozen=True, eq=False)
class VOCResult:
    """Average precision of a detector on one image set.

    Not comparable with Ultralytics' mAP50 or COCO's AP50 of the same detections: see docs/voc.md.

    Attributes:
        ap: shape (num_classes,); VOC 2010+ AP, nan for a class without a box that is not difficult.
        ap07: shape (num_classes,); VOC 2007 AP, nan for the same classes.
        npos: shape (num_classes,); boxes that are not difficult.
        matches: what matching decided; `bootstrap` resamples it.
        recall_points: "numpy" or "matlab", the eleven points of `ap07`.
        classes: names of the classes, or none.
    """

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
    def names(self) -> tuple[str, ...]:
        """The classes' names, or their numbers as text."""
        return self.classes or tuple(str(index) for index in range(len(self.ap)))

    def curve(self, class_index: int) -> PRCurve:
        """Precision and recall of one class; recall is nan where the class has no box to be found."""
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
        from yolo_os.plots.evaluation import plot_curves

        return plot_curves(self, Path(path))


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

    boxes = _boxes("gt_box", gt_box)
    labels = _class_indices("gt_class", gt_class, len(boxes), num_classes)
    difficult = _vector("gt_difficult", gt_difficult, len(boxes)).astype(bool)
    found_boxes = _boxes("det_box", det_box)
    found_labels = _class_indices("det_class", det_class, len(found_boxes), num_classes)
    scores = _vector("det_score", det_score, len(found_boxes)).astype(np.float64, copy=False)
    _refuse_unfinite("det_score", scores)
    image_ids, at, found_at = _number_images(
        _vector("gt_image", gt_image, len(boxes)),
        _vector("det_image", det_image, len(found_boxes)),
        None if images is None else np.asarray(images),
    )

    matches = _match(
        num_classes,
        image_ids,
        (at, labels, boxes, difficult),
        (found_at, found_labels, found_boxes, scores),
        iou_threshold,
        pixel_offset,
    )
    ap, ap07 = average_precisions(matches, RECALL_POINTS[recall_points])
    return VOCResult(ap, ap07, matches.npos, matches, recall_points, tuple(classes))


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


def _match(
    num_classes: int,
    image_ids: NDArray[Any],
    ground_truth: tuple[Integers, Integers, Floats, Flags],
    detections: tuple[Integers, Integers, Floats, Floats],
    iou_threshold: float,
    offset: float,
) -> Matches:
    """Decide about every detection; classes one after the other, whose small arrays stay in the processor's cache.

    Args:
        num_classes, image_ids: as in `Matches`.
        ground_truth: image, class, box and difficult.
        detections: image, class, box and score.
        iou_threshold, offset: as in `evaluate_voc`.
    """
    gt_image, gt_class, gt_box, gt_difficult = ground_truth
    det_image, det_class, det_box, det_score = detections
    gt_rows = np.lexsort((gt_image, gt_class))  # stable: boxes of one image and class keep their order
    gt_stops = np.cumsum(np.bincount(gt_class, minlength=num_classes)).tolist()
    det_rows = _stable_order(det_class)
    det_stops = np.cumsum(np.bincount(det_class, minlength=num_classes)).tolist()
    images, scores, trues, counts = [], [], [], []
    for label in range(num_classes):
        boxes = gt_rows[gt_stops[label - 1] if label else 0 : gt_stops[label]]
        rows = det_rows[det_stops[label - 1] if label else 0 : det_stops[label]]
        score = det_score.take(rows)
        order = _order_falling(score)
        rows, score = rows.take(order), score.take(order)
        image = det_image.take(rows)
        true = np.zeros(len(rows), dtype=bool)
        if len(boxes):
            nearest, overlap = _nearest(gt_image[boxes], gt_box[boxes], image, det_box, rows, len(image_ids), offset)
            matched = np.flatnonzero(overlap >= iou_threshold)
            target = nearest.take(matched)
            first_hit = np.full(len(boxes), len(rows))
            np.minimum.at(first_hit, target, matched)  # the best score stands first, so the smallest position wins
            true[first_hit[first_hit < len(rows)]] = True
            skip = gt_difficult[boxes].take(target)
            if skip.any():
                counted = np.ones(len(rows), dtype=bool)
                counted[matched[skip]] = False
                image, score, true = image[counted], score[counted], true[counted]
        images.append(image)
        scores.append(score)
        trues.append(true)
        counts.append(len(true))
    return Matches(
        image_ids=image_ids,
        det_image=np.concatenate(images),
        det_class=np.repeat(np.arange(num_classes), counts),
        det_score=np.concatenate(scores),
        det_true=np.concatenate(trues),
        gt_image=gt_image[~gt_difficult],
        gt_class=gt_class[~gt_difficult],
        num_classes=num_classes,
    )


def _nearest(
    gt_image: Integers,
    gt_box: Floats,
    det_image: Integers,
    det_box: Floats,
    det_rows: Integers,
    num_images: int,
    offset: float,
) -> tuple[Integers, Floats]:
    """For each detection of a class the ground truth of its image with the largest IoU (the first of equals).

    Args:
        gt_image, gt_box: shapes (m,) and (m, 4); the ground truth of the class, by image.
        det_image, det_rows: shape (k,); the image of each detection of the class, and its row of det_box.
        num_images: images are numbered below this.
        offset: what to add to x2 - x1 for the width.

    Returns:
        Index and IoU, shape (k,); where a detection meets no ground truth the IoU is 0 and the index means nothing.
    """
    nearest = np.zeros(len(det_rows), dtype=np.int64)
    overlap = np.zeros(len(det_rows))
    in_image = np.bincount(gt_image, minlength=num_images)
    first = np.cumsum(in_image) - in_image
    choice = in_image.take(det_image)
    live = np.flatnonzero(choice)
    # Round r compares each detection with the r-th box of its image; memory stays that of the detections however
    # crowded an image is, and a larger IoU alone replaces the one before, so the first of equals stays.
    for rank in range(int(choice.max(initial=0))):
        if rank:
            live = live[choice.take(live) > rank]
        at = first.take(det_image.take(live)) + rank
        x1, y1, x2, y2 = np.ascontiguousarray(det_box.take(det_rows.take(live), axis=0).T)
        gx1, gy1, gx2, gy2 = np.ascontiguousarray(gt_box.take(at, axis=0).T)
        width = np.minimum(x2, gx2) - np.maximum(x1, gx1) + offset
        height = np.minimum(y2, gy2) - np.maximum(y1, gy1) + offset
        inter = np.where((width > 0) & (height > 0), width * height, 0.0)
        union = (x2 - x1 + offset) * (y2 - y1 + offset) + (gx2 - gx1 + offset) * (gy2 - gy1 + offset) - inter
        iou = np.divide(inter, union, out=inter, where=inter > 0)  # two boxes without area have no union
        better = np.flatnonzero(iou > overlap.take(live))
        overlap[live.take(better)] = iou.take(better)
        nearest[live.take(better)] = at.take(better)
    return nearest, overlap


def _stable_order(labels: Integers) -> Integers:
    """The stable order by class; numpy sorts 16-bit numbers by counting, ten times as fast."""
    return np.argsort(labels.astype(np.uint16) if labels.max(initial=0) < 2**16 else labels, kind="stable")


def _order_falling(scores: Floats) -> Integers:
    """The stable order by falling score: a radix sort of the floats' bits, 16 at a time, which numpy sorts by counting.

    It takes half the time of numpy's quickest sort of floats, which is not stable.
    """
    bits = (scores + 0.0).view(np.int64)  # plus 0 makes -0.0 equal to 0.0
    # As unsigned numbers, the bits of positive floats rise with them; those of negative floats lie above and fall.
    falling = np.where(bits < 0, bits, bits ^ np.int64(2**63 - 1)).view(np.uint64)
    order = np.arange(len(scores))
    for shift in (0, 16, 32, 48):
        digit = (falling >> np.uint64(shift)).astype(np.uint16)
        if len(digit) and (digit != digit[0]).any():  # scores that were float32 have no low bits
            order = order.take(np.argsort(digit.take(order), kind="stable"))
    return order


def _number_images(
    gt_image: NDArray[Any], det_image: NDArray[Any], images: NDArray[Any] | None
) -> tuple[NDArray[Any], Integers, Integers]:
    """All image ids, and the index of each box's and each detection's image among them."""
    given = {"gt_image": gt_image, "det_image": det_image} | ({} if images is None else {"images": images})
    kinds = {}
    for name, ids in given.items():
        if not len(ids):
            continue
        if ids.dtype.kind == "O":  # Python strings or ints that numpy was not sure about
            ids = given[name] = np.array(ids.tolist())
        if ids.dtype.kind not in "iuUS":
            raise UserError(f"{name}: image ids must be whole numbers or text, not {ids.dtype}")
        kinds[name] = "text" if ids.dtype.kind in "US" else "whole numbers"
    if len(set(kinds.values())) > 1:
        raise UserError("image ids of two kinds: " + ", ".join(f"{name} holds {kind}" for name, kind in kinds.items()))
    present = [given[name] for name in kinds] or [np.zeros(0, dtype=np.int64)]
    unique, index = _number(np.concatenate(present))
    parts = dict(zip(kinds, np.split(index, np.cumsum([len(ids) for ids in present])[:-1])))
    none = np.zeros(0, dtype=np.int64)
    at, found_at = parts.get("gt_image", none), parts.get("det_image", none)
    if images is not None:
        known = np.zeros(len(unique), dtype=bool)
        known[parts.get("images", none)] = True
        for name, numbers in (("gt_image", at), ("det_image", found_at)):
            if not known[numbers].all():
                row = int(np.flatnonzero(~known[numbers])[0])
                raise UserError(f"{name}[{row}] is {given[name][row]}, which is not among the images")
    return unique, at, found_at


def _number(ids: NDArray[Any]) -> tuple[NDArray[Any], Integers]:
    """The ids in order, each once, and the place of every entry among them: `np.unique`, several times as fast."""
    values = ids if ids.dtype.kind in "iu" else _text_as_numbers(ids)
    low, high = (int(values.min()), int(values.max())) if len(ids) else (0, 0)
    if high - low > 8 * len(ids) + 1000:
        _, index = np.unique(values, return_inverse=True)
        index = index.astype(np.int64, copy=False)
    else:
        offset = (values - low).astype(np.int64, copy=False)
        present = np.zeros(high - low + 1, dtype=bool)
        present[offset] = True
        index = (np.cumsum(present) - 1).take(offset)
    one_of_each = np.zeros(int(index.max(initial=-1)) + 1, dtype=np.int64)
    one_of_each[index] = np.arange(len(ids))
    return ids[one_of_each], index


def _text_as_numbers(ids: NDArray[Any]) -> Integers:
    """A number for each text, in the order of the texts: its letters as digits of a base as large as they need.

    Names of images are alike, so the digits are few and the numbers small; where they are not, the place of each text
    among all of them is the number, which takes longer.
    """
    ids = np.ascontiguousarray(ids.astype(ids.dtype.newbyteorder("="), copy=False))
    letters: NDArray[Any] = ids.view(np.uint32 if ids.dtype.kind == "U" else np.uint8).reshape(len(ids), -1)
    low, high = letters.min(axis=0).tolist(), letters.max(axis=0).tolist()
    bases = [last - first + 1 for first, last in zip(low, high)]
    if math.prod(bases) < 2**62:
        numbers = np.zeros(len(ids), dtype=np.int64)
        for column, first, base in zip(letters.T, low, bases):
            numbers = numbers * base + (column.astype(np.int64) - first)
        return numbers
    words = ids.tolist()
    place = {word: index for index, word in enumerate(sorted(set(words)))}
    return np.fromiter(map(place.__getitem__, words), np.int64, len(words))


def _vector(name: str, values: ArrayLike, length: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.shape != (length,):
        boxes = name.split("_")[0] + "_box"
        raise UserError(f"{name} has shape {array.shape}; ({length},) is needed, an entry for each row of {boxes}")
    return array


def _class_indices(name: str, values: ArrayLike, length: int, num_classes: int) -> Integers:
    given = _vector(name, values, length)
    if not length:
        return np.zeros(0, dtype=np.int64)
    if given.dtype.kind not in "iuf":
        raise UserError(f"{name} must hold class indices (whole numbers), not {given.dtype}")
    labels = given.astype(np.int64, copy=False)
    wrong = (labels < 0) | (labels >= num_classes) | (labels != given)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(f"{name}[{row}] is {given[row]}; classes run from 0 to {num_classes - 1}")
    return labels


def _boxes(name: str, values: ArrayLike) -> Floats:
    boxes = np.asarray(values, dtype=np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"{name} has shape {boxes.shape}; (boxes, 4) is needed: x1, y1, x2, y2")
    _refuse_unfinite(name, boxes)
    return boxes


def _refuse_unfinite(name: str, values: Floats) -> None:
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise UserError(f"{name}[{row}] is {values[row]}: every box and score must be finite")


def none_if_nan(value: float) -> float | None:
    """The value for a JSON file, which has no nan."""
    return None if np.isnan(value) else float(value)


def _figure(value: float) -> str:
    return "     -" if np.isnan(value) else f"{value:6.4f}"
