"""Choose a device as Ultralytics does."""

from __future__ import annotations

import torch
from ultralytics.utils.torch_utils import select_device

from yolo_os.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device that a `device=` names; a GPU where there is one for an empty name.

    Raises:
        UserError: if this machine has no such device.
    """
    try:
        device: torch.device = select_device(name, verbose=False)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"device={name}: {' '.join(str(error).split())}") from None
    return device
