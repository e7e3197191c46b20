"""Check the arrays that `evaluate_voc` takes, and number their images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yolo_os.errors import UserError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def vector(name: str, values: ArrayLike, length: int) -> NDArray[Any]:
    """The values as an array of shape (length,)."""
    array = np.asarray(values)
    if array.shape != (length,):
        rows = name.split("_")[0] + "_box"
        raise UserError(f"{name} has shape {array.shape}; ({length},) is needed, an entry for each row of {rows}")
    return array


def class_indices(name: str, values: ArrayLike, length: int, num_classes: int) -> Integers:
    """Class indices, each from 0 to num_classes - 1."""
    given = vector(name, values, length)
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


def boxes(name: str, values: ArrayLike) -> Floats:
    """Boxes of shape (k, 4), all finite."""
    given = np.asarray(values, dtype=np.float64)
    if given.size == 0:
        given = given.reshape(0, 4)
    if given.ndim != 2 or given.shape[1] != 4:
        raise UserError(f"{name} has shape {given.shape}; (boxes, 4) is needed: x1, y1, x2, y2")
    refuse_unfinite(name, given)
    return given


def refuse_unfinite(name: str, values: Floats) -> None:
    """Refuse nan and infinity."""
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise UserError(f"{name}[{row}] is {values[row]}: every box and score must be finite")


def number_images(
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
    """The ids in order, each once, and the place of every entry among them, as `np.unique` gives them.

    For the 300,000 detections of the timing in docs/results.md the table saves 20 of 55 ms, the dictionary 60 of 150.
    """
    if ids.dtype.kind not in "iu":
        words = ids.tolist()
        place = {word: index for index, word in enumerate(sorted(set(words)))}
        return np.array(list(place)), np.fromiter(map(place.__getitem__, words), np.int64, len(words))
    ids = ids.astype(np.int64, copy=False)
    low, high = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if high - low > 8 * len(ids) + 1000:
        unique, index = np.unique(ids, return_inverse=True)
        return unique, index
    offset = ids - low
    present = np.zeros(high - low + 1, dtype=bool)
    present[offset] = True
    return np.flatnonzero(present) + low, (np.cumsum(present) - 1).take(offset)
