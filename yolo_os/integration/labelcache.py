"""Read Ultralytics' label caches (`labels/train.cache`) as data: they are pickles, and lie beside the user's images."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from yolo_os.errors import UserError

_NAMES = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
_KEYS = {"im_file", "shape", "cls", "bboxes", "segments", "keypoints", "normalized", "bbox_format"}


class _Arrays(pickle.Unpickler):
    """Numpy's arrays and numbers, and plain containers; the constructors among them make nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise UserError(f"{module}.{name} is no part of a label cache")
        return super().find_class(module, name)


def read_label_cache(path: Path) -> dict[str, Any]:
    """The contents of a label cache; nothing of the file's is run.

    Raises:
        Exception: of any kind, if it is missing, damaged or holds anything else, upon which Ultralytics scans anew.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if shape != () or dtype != np.dtype(object):
            raise UserError(f"{path}: no label cache")
        content = _Arrays(file).load()
    cache = content.item() if isinstance(content, np.ndarray) and content.shape == () else content
    if not isinstance(cache, dict) or not {"labels", "hash", "results", "msgs", "version"} <= cache.keys():
        raise UserError(f"{path}: no label cache")
    results, messages = cache["results"], cache["msgs"]
    if len(results) != 5 or not all(isinstance(each, int) for each in results):
        raise UserError(f"{path}: no label cache")
    if not isinstance(messages, list) or not all(isinstance(each, str) for each in messages):
        raise UserError(f"{path}: no label cache")
    if not isinstance(cache["labels"], list) or not all(_is_label(each) for each in cache["labels"]):
        raise UserError(f"{path}: no label cache of boxes")
    return cache


def _is_label(label: Any) -> bool:
    """Whether a label is as Ultralytics writes it: anything else would fail in the middle of a pass."""
    if not isinstance(label, dict) or label.keys() != _KEYS or not isinstance(label["im_file"], str):
        return False
    classes, boxes, segments, points = (label[name] for name in ("cls", "bboxes", "segments", "keypoints"))
    shape = label["shape"]
    return (
        _is_array(classes)
        and _is_array(boxes)
        and classes.shape == (len(boxes), 1)
        and boxes.shape == (len(classes), 4)
        and isinstance(shape, tuple)
        and len(shape) == 2
        and all(isinstance(each, int) and 0 < each < 1_000_000 for each in shape)
        and isinstance(segments, list)
        and all(_is_array(each) and each.ndim == 2 for each in segments)
        and (points is None or (_is_array(points) and points.ndim == 3 and len(points) == len(boxes)))
        and label["normalized"] is True
        and label["bbox_format"] == "xywh"
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
