"""Build an untrained model from an architecture file, shipped with Ultralytics or the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.nn.tasks import (
    WorldModel,
    YOLOEModel,
    YOLOESegModel,
    guess_model_task,
    yaml_model_load,
)

from yolo_os.errors import UserError
from yolo_os.integration.guard import guarded

_TEXT_HEADS = {
    "WorldDetect": WorldModel,
    "YOLOEDetect": YOLOEModel,
    "YOLOESegment": YOLOESegModel,
    "YOLOESegment26": YOLOESegModel,
}


def build(path: str | Path) -> nn.Module:
    """The untrained model of an architecture file such as `yolo11n.yaml`.

    Raises:
        UserError: if there is no such file, it describes no model, or asks for something that is no part of one.
    """
    try:
        with guarded():
            config: dict[str, Any] = yaml_model_load(path)
            head = str(config["head"][-1][2])
            if head in _TEXT_HEADS:
                model: nn.Module = _TEXT_HEADS[head](config, verbose=False)
            elif head == "RTDETRDecoder":
                model = RTDETR(str(path)).model
            else:
                model = YOLO(str(path), task=guess_model_task(config)).model
    except UserError as error:
        raise UserError(f"model={path}: {error}") from None
    except Exception as error:  # FileNotFoundError, KeyError, SyntaxError, YAML errors
        raise UserError(f"model={path}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    return model
