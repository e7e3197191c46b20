"""Optimum shifting for YOLO detectors (arXiv 2405.14111): the same outputs from the least-norm prediction layers.

Names are imported when they are first used, so that what needs no torch starts without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from yolo_os._version import __version__
from yolo_os.errors import what_is_missing

if TYPE_CHECKING:
    from yolo_os.errors import UserError as UserError
    from yolo_os.heads import PredictionLayer as PredictionLayer
    from yolo_os.heads import prediction_layers as prediction_layers
    from yolo_os.integration.callback import SOS as SOS
    from yolo_os.integration.compare import compare as compare
    from yolo_os.integration.flatness import hessian_trace as hessian_trace
    from yolo_os.integration.shift import shift_ as shift_
    from yolo_os.linear import shift_linear_ as shift_linear_
    from yolo_os.recipe import ShiftRecipe as ShiftRecipe
    from yolo_os.report import ShiftReport as ShiftReport
    from yolo_os.voc import evaluate_voc as evaluate_voc

_HOMES = {
    "SOS": "integration.callback",
    "PredictionLayer": "heads",
    "ShiftRecipe": "recipe",
    "ShiftReport": "report",
    "UserError": "errors",
    "compare": "integration.compare",
    "evaluate_voc": "voc",
    "hessian_trace": "integration.flatness",
    "prediction_layers": "heads",
    "shift_": "integration.shift",
    "shift_linear_": "linear",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'yolo_os' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(f"yolo_os.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        said = what_is_missing(error, f"yolo_os.{name}")
        raise ImportError(said) if said else error from None


def __dir__() -> list[str]:
    return sorted(__all__)
