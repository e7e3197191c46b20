"""Which detections are true: matching by the rules of the development kit; see `voc`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.evaluation.arrays import Flags, Floats, Integers


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
        det_row: shape (k,); the row of each detection among those given; empty where that is not known.
    """

    image_ids: NDArray[Any]
    det_image: Integers
    det_class: Integers
    det_score: Floats
    det_true: Flags
    gt_image: Integers
    gt_class: Integers
    num_classes: int
    det_row: Integers = field(default_factory=lambda: np.zeros(0, np.int64))

    @cached_property
    def npos(self) -> Integers:
        """Shape (num_classes,); boxes to be found."""
        return np.bincount(self.gt_class, minlength=self.num_classes)

    def of_class(self, class_index: int) -> slice:
        """Where the detections of one class stand."""
        bounds = np.searchsorted(self.det_class, (class_index, class_index + 1))
        return slice(int(bounds[0]), int(bounds[1]))


def match(
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
    images, scores, trues, given, counts = [], [], [], [], []
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
                image, score, true, rows = image[counted], score[counted], true[counted], rows[counted]
        images.append(image)
        scores.append(score)
        trues.append(true)
        given.append(rows)
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
        det_row=np.concatenate(given),
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
    """The stable order by class; numpy sorts 16-bit numbers by counting, several times as fast."""
    return np.argsort(labels.astype(np.uint16) if labels.max(initial=0) < 2**16 else labels, kind="stable")


def _order_falling(scores: Floats) -> Integers:
    """The stable order by falling score: a radix sort of the floats' bits, 16 at a time, which numpy sorts by counting.

    Numpy's stable sort of floats instead would make the 32 ms of `evaluate_voc` in docs/results.md 51.
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
