"""Score image sets that are drawn from one, without matching anything again.

What a detection is matched with lies within its image and does not change when images are drawn: a replicate only
counts each image's detections and boxes as many times as it was drawn. Arrays here have images, or detections, in
rows and replicates in columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_os.evaluation.arrays import Flags, Floats, Integers

Weights = NDArray[np.uint8]
Counts = NDArray[np.int32]
# Figures of one IoU threshold, one row each, from what was found at each true positive, the monotone precision there,
# and how many boxes there are to be found; columns are replicates in which there are some.
Score = Callable[[Counts, Floats, Counts], Floats]

_TABLE = 2_000_000  # true positives times replicates at once; a few tables of 8 bytes each
_GATHERED = 256  # rows added up at once; as many weights of 255 fit into 16 bits


@dataclass(frozen=True, eq=False)
class Ranking:
    """The detections of one class by falling score, of one detector or of two in one list.

    Attributes:
        image: shape (k,); of each detection.
        true: shape (thresholds, k); whether it is a true positive at each IoU threshold.
        ignored: shape (thresholds, k), whether it counts neither way; or None: all count.
        boxes: shape (m,); the image of each box to be found.
    """

    image: Integers
    true: Flags
    ignored: Flags | None
    boxes: Integers

    def merged(self, other: Ranking, images: int) -> Ranking:
        """Both detectors' detections in one list: image i of the other is image i + `images`.

        What the scores of two detectors mean differs, so they are merged by rank. Of equal ranks those of one detector
        come first: mixed fairly, exchanged results would differ less than the detectors themselves do. Which of the
        two that is does not depend on the order in which they are given.
        """
        detector = np.repeat([0, 1], [len(self.image), len(other.image)])
        if self._content() > other._content():
            detector = 1 - detector
        order = np.lexsort((detector, np.concatenate([np.arange(len(self.image)), np.arange(len(other.image))])))
        ignored = None
        if self.ignored is not None or other.ignored is not None:
            parts = [np.zeros_like(each.true) if each.ignored is None else each.ignored for each in (self, other)]
            ignored = np.concatenate(parts, axis=1)[:, order]
        return Ranking(
            np.concatenate([self.image, other.image + images])[order],
            np.concatenate([self.true, other.true], axis=1)[:, order],
            ignored,
            np.concatenate([self.boxes, other.boxes + images]),
        )

    def _content(self) -> tuple[bytes, bytes]:
        return self.image.tobytes(), self.true.tobytes()

    def figures(self, weights: Weights, score: Score, number: int) -> Floats:
        """Figures of drawn images: shape (thresholds, number, replicates), nan where there is no box to be found.

        A detection whose image is drawn twice counts twice, one copy right after the other. Precision is only wanted
        after the last of the copies: within a run of true positives it only rises.
        """
        positives = _running(weights, self.boxes, np.array([len(self.boxes)]))[0]
        defined = positives > 0
        values = np.full((len(self.true), number, weights.shape[1]), np.nan)
        if not defined.all():
            weights, positives = np.ascontiguousarray(weights[:, defined]), positives[defined]
        values[:, :, defined] = 0
        for index, counted, found, _ in self._at_hits(weights):
            values[index][:, defined] = score(found, _envelope(found, counted), positives)
        return values

    def exchanged(self, weights: Weights, score: Score, number: int) -> Floats:
        """Of a merged ranking, the second detector's figures less the first's, shaped as `figures`.

        Args:
            weights: 1 where an image's results are those that the first detector gets, 0 where the second does.
            score, number: as in `figures`.
        """
        positives = np.full(weights.shape[1], len(self.boxes) // 2, np.int32)
        values = np.full((len(self.true), number, weights.shape[1]), np.nan if not len(self.boxes) else 0.0)
        for index, counted, found, all_counted in self._at_hits(weights) if len(self.boxes) else ():
            first = score(found, _envelope(found, counted), positives)
            # What the one does not get the other does, so nothing is gathered for it.
            found = np.arange(1, len(found) + 1, dtype=np.int32)[:, None] - found
            values[index] = score(found, _envelope(found, all_counted[:, None] - counted), positives) - first
        return values

    def _at_hits(self, weights: Weights) -> Iterator[tuple[int, Counts, Counts, Counts]]:
        """By threshold that has true positives: its index, and at each of them, in replicates, how many detections
        count up to there and how many boxes are found; and how many detections of the list count up to there."""
        hits = [np.flatnonzero(each) for each in self.true]
        stops = np.unique(np.concatenate(hits))
        if len(stops):
            counted = _running(weights, self.image, stops + 1)
        for index, hit in enumerate(hits):
            if not len(hit):
                continue
            count, length = counted if len(hit) == len(stops) else counted[np.searchsorted(stops, hit)], hit + 1
            if self.ignored is not None and self.ignored[index].any():
                uncounted = np.flatnonzero(self.ignored[index])
                off = np.searchsorted(uncounted, hit)
                count, length = count - _running(weights, self.image[uncounted], off), length - off
            found = np.empty((len(hit), weights.shape[1]), np.int32)
            before = np.zeros(weights.shape[1], np.int32)
            for row, image in zip(found, self.image[hit].tolist()):
                before = np.add(before, weights[image], out=row)
            yield index, count, found, length.astype(np.int32)


def _running(weights: Weights, image: Integers, ends: Integers) -> Counts:
    """The sums of the weights of image[:end] for each end, which rise; shape (ends, replicates).

    Row after row: for a thousand replicates that is three times as fast as a gather of all and `np.add.reduceat`.
    """
    sums = np.empty((len(ends), weights.shape[1]), np.int32)
    total, start = np.zeros(weights.shape[1], np.int32), 0
    for row, end in zip(sums, ends.tolist()):
        while start < end:
            some = image[start : min(end, start + _GATHERED)]
            total += weights[some[0]] if len(some) == 1 else weights.take(some, axis=0).sum(axis=0, dtype=np.uint16)
            start += len(some)
        row[:] = total
    return sums


def _envelope(found: Counts, counted: Counts) -> Floats:
    """Precision at true positives, and the best from there on."""
    precision: Floats = found / np.maximum(counted, 1)
    for row in range(len(precision) - 2, -1, -1):  # several times as fast as np.maximum.accumulate along columns
        np.maximum(precision[row], precision[row + 1], out=precision[row])
    return precision


def replicates(
    detectors: Sequence[Sequence[Ranking]], weights: Callable[[int], Iterator[Weights]], score: Score, number: int
) -> Iterator[tuple[Floats, ...]]:
    """Figures of every class in drawn image sets, of each detector, some replicates at a time.

    Args:
        detectors: the classes of each.
        weights: called with how many replicates a block should hold; how often each of them has each image.
        score: the figures.
        number: how many those are.

    Returns:
        Of each block, of each detector, shape (thresholds, number, replicates, classes).
    """
    for block in weights(_columns(detectors)):
        yield tuple(
            np.stack([ranking.figures(block, score, number) for ranking in detector], axis=-1) for detector in detectors
        )


def exchanges(
    first: Sequence[Ranking], second: Sequence[Ranking], images: int, count: int, seed: int, score: Score, number: int
) -> Iterator[Floats]:
    """Differences of two detectors after exchanging what they found on some images, by chance.

    Returns:
        In blocks, shape (thresholds, number, exchanges, classes).
    """
    merged = [one.merged(two, images) for one, two in zip(first, second)]
    random = np.random.default_rng(seed)
    size = _columns([merged])
    for start in range(0, count, size):
        # One by one, so that blocks do not change the figures.
        chosen = np.stack([random.integers(0, 2, images, np.uint8) for _ in range(min(size, count - start))]).T
        weights = np.ascontiguousarray(np.concatenate([chosen, 1 - chosen]))
        yield np.stack([ranking.exchanged(weights, score, number) for ranking in merged], axis=-1)


def draws(images: int, count: int, seed: int) -> Callable[[int], Iterator[Weights]]:
    """As many images as there are, drawn with replacement; the same for a seed whatever a block holds."""

    def blocks(size: int) -> Iterator[Weights]:
        random = np.random.default_rng(seed)
        for start in range(0, count, size):
            rows = [
                np.minimum(np.bincount(random.integers(0, images, images), minlength=images), 255).astype(np.uint8)
                for _ in range(min(size, count - start))
            ]
            yield np.ascontiguousarray(np.stack(rows).T)

    return blocks


def _columns(detectors: Sequence[Sequence[Ranking]]) -> int:
    """How many replicates to score at once: for the class with the most true positives a table of `_TABLE` entries."""
    most = max((int(ranking.true.any(axis=0).sum()) for detector in detectors for ranking in detector), default=0)
    return min(1000, max(32, _TABLE // max(1, most)))
