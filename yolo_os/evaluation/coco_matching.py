"""Which detections are true by COCO's rules (`cocoeval.py`), at ten IoU thresholds at once.

Of each class and image the 100 detections of the highest scores count. Each takes, of the boxes that no better one has
taken, the one of the largest IoU (the last of equals), if that reaches the threshold; a box that is ignored (a crowd,
or of another size than is asked for) only if there is no other, and then the detection counts neither way. A crowd is
taken any number of times, and the IoU with it is the share of the detection that lies in it. A detection of another
size than is asked for that takes no box counts neither way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolo_os.evaluation.arrays import Flags, Floats, Integers

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST_DETECTIONS = 100  # of an image and class
# Square pixels, both ends included, as COCO has them.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 1024.0), "medium": (1024.0, 9216.0), "large": (9216.0, 1e10)}


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of an image set: image and class of each, and x, y, width, height in continuous pixels."""

    image: Integers
    label: Integers
    box: Floats

    @property
    def size(self) -> Floats:
        """Areas of the boxes."""
        area: Floats = self.box[:, 2] * self.box[:, 3]
        return area


@dataclass(frozen=True, eq=False)
class CocoMatches:
    """What matching decided.

    Attributes:
        row: shape (k,); the detections that count, by class, and within a class by falling score.
        true, ignored: shape (thresholds, k); whether each is a true positive, and whether it counts neither way.
        wanted: shape (m,); whether each box of the ground truth is to be found.
    """

    row: Integers
    true: Flags
    ignored: Flags
    wanted: Flags


def match_coco(
    truth: Boxes, area: Floats, crowd: Flags, found: Boxes, score: Floats, images: int, limits: tuple[float, float]
) -> CocoMatches:
    """Match detections.

    Args:
        truth, area, crowd: the ground truth; what areas are told apart by is given (that of a mask, say).
        found, score: the detections; of equal scores of an image the first counts first, then the smaller image.
        images: images are numbered below this.
        limits: the areas of objects that are looked for.
    """
    low, high = limits
    ignored = crowd | (area < low) | (area > high)
    row = _that_count(found, score, images)
    group = found.label[row] * images + found.image[row]
    det, box, iou = _pairs(truth, crowd, found, row, group, images)
    taken_by = np.full((len(IOU_THRESHOLDS), len(row)), -1)
    if len(det):
        # A detection's boxes in the order of its preference.
        order = np.lexsort((-box, -iou, ignored[box], det))
        det, box, iou = det[order], box[order], iou[order]
        _choose(det, box, iou, crowd, group, taken_by)
    matched = taken_by >= 0
    off = matched & ignored[taken_by] if len(area) else matched
    outside = (found.size[row] < low) | (found.size[row] > high)
    return CocoMatches(row, matched & ~off, off | (~matched & outside), ~ignored)


def _that_count(found: Boxes, score: Floats, images: int) -> Integers:
    """The best detections of each image and class, by class and falling score, equal ones by image."""
    order = np.lexsort((found.image, -score, found.label))  # stable
    group = (found.label * images + found.image)[order]
    by_group = np.argsort(group, kind="stable")
    kept = np.zeros(len(order), dtype=bool)
    kept[by_group] = _rank_in_run(group[by_group]) < MOST_DETECTIONS
    return order[kept]


def _pairs(
    truth: Boxes, crowd: Flags, found: Boxes, row: Integers, group: Integers, images: int
) -> tuple[Integers, Integers, Floats]:
    """Detections (places in `row`) and boxes of their image and class whose IoU reaches the lowest threshold."""
    truth_group = truth.label * images + truth.image
    by_group = np.argsort(truth_group, kind="stable")
    first, last = (np.searchsorted(truth_group[by_group], group, side) for side in ("left", "right"))
    parts = []
    # Round r compares each detection with the r-th box of its image, so memory stays that of the detections.
    live = np.flatnonzero(last > first)
    rank = 0
    while len(live):
        box = by_group[first[live] + rank]
        iou = _overlap(found.box[row[live]], truth.box[box], crowd[box])
        near = iou >= IOU_THRESHOLDS[0]
        parts.append((live[near], box[near], iou[near]))
        rank += 1
        live = live[first[live] + rank < last[live]]
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    det, box, iou = (np.concatenate(each) for each in zip(*parts))
    return det, box, iou


def _overlap(found: Floats, truth: Floats, crowd: Flags) -> Floats:
    """IoU, in the order of operations of COCO's `bbIou`, whose bits decide at a threshold."""
    x, y, width, height = found.T
    u, v, across, down = truth.T
    w = np.minimum(x + width, u + across) - np.maximum(x, u)
    h = np.minimum(y + height, v + down) - np.maximum(y, v)
    inter = np.where((w > 0) & (h > 0), w * h, 0.0)
    union = np.where(crowd, width * height, width * height + across * down - inter)
    iou: Floats = np.divide(inter, union, out=np.zeros(len(inter)), where=inter > 0)
    return iou


def _choose(det: Integers, box: Integers, iou: Floats, crowd: Flags, group: Integers, taken_by: Integers) -> None:
    """Let detections take boxes, the best first: the first of each image and class at once, then the second, ...

    Args:
        det, box, iou: pairs, a detection's together and in the order of its preference.
        crowd: of boxes.
        group: image and class of each detection.
        taken_by: shape (thresholds, detections); the box that each takes is written there.
    """
    starts = np.flatnonzero(np.diff(det, prepend=-1))
    counts = np.diff(np.append(starts, len(det)))
    chooser = det[starts]  # rising, so within a group by falling score
    by_group = np.argsort(group[chooser], kind="stable")
    turn = np.empty(len(chooser), np.int64)
    turn[by_group] = _rank_in_run(group[chooser][by_group])
    free = np.ones((len(IOU_THRESHOLDS), len(crowd)), dtype=bool)
    # Just under 1 for a threshold of 1, as COCO has it.
    enough = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    by_turn = np.argsort(turn, kind="stable")
    for now in np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]):
        open_ = np.ones((len(IOU_THRESHOLDS), len(now)), dtype=bool)
        for choice in range(int(counts[now].max())):
            has = np.flatnonzero(counts[now] > choice)
            pair = starts[now[has]] + choice
            here = box[pair]
            takes = open_[:, has] & (iou[pair] >= enough) & free[:, here]
            at, which = np.nonzero(takes)
            taken_by[at, chooser[now[has[which]]]] = here[which]
            open_[at, has[which]] = False
            single = ~crowd[here[which]]
            free[at[single], here[which[single]]] = False


def _rank_in_run(values: Integers) -> Integers:
    """The place of each value among equals that stand together."""
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    return np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
