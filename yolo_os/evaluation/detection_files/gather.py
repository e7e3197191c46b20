"""What the readers of all formats do with the detections that they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_os.errors import UserError
from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.detections import Detections, said_of_order
from yolo_os.evaluation.text import find_id, nfc


@dataclass(frozen=True)
class Reading:
    """The choices of `read_detections`."""

    split: str = "test"
    strict: bool = True
    pixel_offset: float = 1.0
    first_category: int | None = None


class Gather:
    """Collects detections, checks them, and refuses or counts those that do not belong to the annotations."""

    def __init__(self, annotations: Annotations, strict: bool) -> None:
        self.annotations = annotations
        self.strict = strict
        self.place = {name: index for index, name in enumerate(annotations.images)}
        self.other: dict[str, int] = {}  # the images that names mean which are written otherwise
        self.dropped: Counter[str] = Counter()
        self.columns: list[tuple[NDArray[Any], ...]] = []
        self.warnings: list[str] = []

    def refuse(self, reason: str, what: str, count: int) -> None:
        """Refuse detections, or count them where reading is not strict."""
        if self.strict:
            raise UserError(f"{what} (strict=False leaves such detections out and counts them)")
        self.dropped[reason] += count

    def add(
        self,
        ids: Sequence[str],
        label: NDArray[np.int64],
        box: NDArray[np.float64],
        score: NDArray[np.float64],
        where: Callable[[int], str],
    ) -> None:
        """Add detections; `where(row)` says where one was read."""
        finite = np.isfinite(score) & np.isfinite(box).all(axis=1)
        if not finite.all():
            raise UserError(f"{where(int(np.flatnonzero(~finite)[0]))}: score and box must be finite numbers")
        image = np.array([self.place_of(name) for name in ids], dtype=np.int64)
        lost = np.flatnonzero(image < 0)
        left_out = self.annotations.left_out
        unread = [row for row in lost.tolist() if find_id(nfc(ids[row]), left_out) is not None]
        self.dropped["of images whose annotations could not be read"] += len(unread)
        if len(unread) < len(lost):
            row = next(row for row in lost.tolist() if row not in unread)
            sets = ", ".join(f"{split} of {root}" for root, split in zip(self.annotations.roots, self.annotations.sets))
            self.refuse(
                "of unknown images",
                f"{where(row)}: image '{ids[row]}' is not in the image set {sets}",
                len(lost) - len(unread),
            )
        keep = image >= 0
        self.columns.append((image[keep], label[keep], box[keep], score[keep]))

    def place_of(self, name: str) -> int:
        """The image that a name means, also one with suffix, folders or quotes, or in another Unicode form; else -1."""
        found = self.place.get(name)
        if found is None:
            found = self.other.get(name)
        if found is None:
            known = find_id(nfc(name), self.place)
            found = self.other[name] = -1 if known is None else self.place[known]
        return found

    def counted_from(self, first: int, source: object, labels: Iterable[int]) -> bool:
        """Warn where class numbers are taken in an order that nobody gave; whether that was said.

        Raises:
            UserError: if it can't be the order.
        """
        warning = said_of_order(source, self.annotations, first, labels)
        self.warnings += [warning] if warning else []
        return warning is not None

    def result(self, notes: Iterable[str]) -> Detections:
        """All that was added."""
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
        image, label, box, score = (np.concatenate(column) for column in zip(empty, *self.columns))
        classes, images = self.annotations.classes, self.annotations.images
        dropped, warnings = dict(+self.dropped), tuple(self.warnings)
        return Detections(classes, images, image, label, box, score, dropped, tuple(notes), warnings)
