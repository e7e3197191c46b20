"""Read Ultralytics' label caches (`labels/train.cache`) as data: they are pickles, and lie beside the user's images."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from yolo_os.errors import UserError

_KEYS = {"im_file", "shape", "cls", "bboxes", "segments", "keypoints", "normalized", "bbox_format"}
_TYPE = re.compile(r"[<>|=]?[biufc]\d{1,2}")


class _Type:
    """The type of an array, by its text: of numbers, or of objects for the one array around everything."""

    def __init__(self, text: Any, *rest: Any) -> None:
        if not isinstance(text, str) or not (text == "O8" or _TYPE.fullmatch(text)):
            raise UserError(f"{text!r:.40} is no type of a label cache")
        self.numbers = None if text == "O8" else np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or state[1] not in ("<", "|", "="):
            raise UserError("a label cache of another machine")


class _Array:
    """An array as it is put together."""

    def __init__(self, *given: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type) or not all(type(each) is int and each >= 0 for each in shape):
            raise UserError("an array of a label cache is damaged")
        if kind.numbers is None:
            if shape != () or not isinstance(data, list) or len(data) != 1:
                raise UserError("a label cache of arrays of objects")
            self.value = data[0]
        elif isinstance(data, bytes):
            self.value = np.frombuffer(data, kind.numbers).reshape(shape, order="F" if fortran else "C").copy()


class _Call:
    """What the pickle of a cache may call: one of our own, of which nothing can be set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *given: Any) -> Any:
        return self._function(*given)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UserError("a label cache that sets what it calls")

    def __setstate__(self, state: Any) -> None:
        raise UserError("a label cache that sets what it calls")


def _scalar(kind: Any, data: Any) -> Any:
    return np.frombuffer(data, kind.numbers)[0]


def _refused(*given: Any) -> Any:
    raise UserError("a label cache that calls a class")


# Numpy's own would do as they are told: an array of objects over any bytes is an address of the file's choice.
_NAMES = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Call(_Array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Call(_scalar) for core in ("core", "_core")},
    ("numpy", "dtype"): _Call(_Type),
    ("numpy", "ndarray"): _Call(_refused),
}


class _Arrays(pickle.Unpickler):
    """Arrays of numbers and plain containers; nothing of numpy's is called on the way."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise UserError(f"{module}.{name} is no part of a label cache")
        return _NAMES[module, name]


def read_label_cache(path: Path) -> dict[str, Any]:
    """The contents of a label cache; nothing of the file's is run.

    Raises:
        Exception: of any kind, if it is missing, damaged or holds anything else, upon which Ultralytics scans anew.
    """
    if not path.is_file():
        raise UserError(f"{path}: no file")
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if shape != () or dtype != np.dtype(object):
            raise UserError(f"{path}: no label cache")
        content = _Arrays(file).load()
    cache = content.value if isinstance(content, _Array) else None
    if not isinstance(cache, dict) or not {"labels", "hash", "results", "msgs", "version"} <= cache.keys():
        raise UserError(f"{path}: no label cache")
    results, messages = cache["results"], cache["msgs"]
    if len(results) != 5 or not all(isinstance(each, int) for each in results):
        raise UserError(f"{path}: no label cache")
    if not isinstance(messages, list) or not all(isinstance(each, str) for each in messages):
        raise UserError(f"{path}: no label cache")
    if not isinstance(cache["labels"], list):
        raise UserError(f"{path}: no label cache of boxes")
    labels = [_finished(each) for each in cache["labels"]]
    if not all(map(_is_label, labels)):
        raise UserError(f"{path}: no label cache of boxes")
    return {**cache, "labels": labels}


def _finished(label: Any) -> Any:
    """A label with its arrays in place of what they were put together in."""
    if not isinstance(label, dict):
        return label
    return {
        name: [_value(part) for part in value] if name == "segments" and isinstance(value, list) else _value(value)
        for name, value in label.items()
    }


def _value(part: Any) -> Any:
    return part.value if isinstance(part, _Array) else part


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
        and bool((np.isfinite(classes) & (classes >= 0)).all())
        and bool((np.isfinite(boxes) & (boxes >= -0.02) & (boxes <= 1.02)).all())  # Ultralytics lets 1 % pass
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
