"""A forward pass and a loss of a model just read, on an empty image: a damaged one fails here, and not in a pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from yolo_os.errors import UserError
from yolo_os.forward import eval_mode
from yolo_os.heads import find_head
from yolo_os.integration.contents import line_of
from yolo_os.loss import training_loss
from yolo_os.shifter import check_finite


def check_runs(model: nn.Module) -> None:
    """Refuse a detector that does not run on an image, or whose training loss can't be taken of it.

    Args:
        model: bare, on the CPU.

    Raises:
        UserError: with what it fails of.
    """
    try:
        transformer = find_head(model).kind == "RTDETRDecoder"
        check_finite(model)
    except UserError:  # no detector, or weights that are no numbers: who needs them says so
        return
    except Exception as error:  # settings of the wrong kind in its head, say
        raise UserError(f"its head is damaged ({line_of(error)})") from error
    untyped: Any = model
    try:
        stride = int(untyped.stride.max()) if getattr(model, "stride", None) is not None else 32
        size = 320 if transformer else max(64, 2 * stride)  # room for a transformer's queries
        first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
        weight = next(model.parameters())
        images = torch.zeros(2, first.in_channels, size, size, dtype=weight.dtype)
        with eval_mode(model), torch.no_grad(), training_loss(model) as loss:
            predictions = model(images)
            if loss.missing is None:
                loss(_labelled(untyped, images), predictions)
    except Exception as error:  # whatever the damage makes of it
        raise UserError(f"its model does not run on an image ({line_of(error)})") from error


def _labelled(model: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch with an object in the middle of each image, as the loaders of the model's task make it."""
    count, size = len(images), images.shape[-1]
    batch = {
        "img": images,
        "batch_idx": torch.arange(count).float(),
        "cls": torch.zeros(count, 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]).repeat(count, 1),
    }
    if model.task == "obb":
        batch["bboxes"] = torch.cat([batch["bboxes"], torch.zeros(count, 1)], 1)
    if model.task == "pose":
        batch["keypoints"] = torch.full((count, model.model[-1].kpt_shape[0], 3), 0.5)
    if model.task == "segment":
        batch["masks"] = torch.zeros(count, size // 4, size // 4)
        batch["sem_masks"] = torch.zeros(count, size // 4, size // 4, dtype=torch.long)
    return batch
