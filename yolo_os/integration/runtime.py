"""What Ultralytics runs with: its choice of a device, its progress bar, its log kept quiet."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from ultralytics.utils import LOGGER, TQDM, nms, torch_utils
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


def device_name(given: Any) -> str:
    """A `device=` as `choose_device` takes it, such as `0,1` of `[0, 1]`; empty for None."""
    return "" if given is None else str(given).strip("[]() ").replace(" ", "")


def check_device(given: Any) -> None:
    """Refuse a `device=` of a training that this machine does not have; -1, an idle GPU, is Ultralytics' to find.

    Raises:
        UserError: naming it.
    """
    name = device_name(given)
    if name and "-1" not in name:
        choose_device(name)


def limit_threads(count: int) -> None:
    """Compute with at most so many threads on a CPU from now on.

    Ultralytics takes up to 8 whenever it chooses the CPU, whatever OMP_NUM_THREADS says.
    """
    torch.set_num_threads(min(count, torch.get_num_threads()))
    torch_utils.NUM_THREADS = min(count, torch_utils.NUM_THREADS)


def progress_bar(batches: Iterable[Any], title: str) -> Iterable[Any]:
    """The batches, with a bar while they last; none for an empty pass."""
    total = len(batches) if isinstance(batches, Sized) else None
    if total == 0:
        return batches
    bar: Iterable[Any] = TQDM(batches, desc=title, total=total)
    return bar


@contextmanager
def quiet() -> Iterator[None]:
    """Ultralytics' log kept to warnings for the length of a block."""
    level = LOGGER.level
    LOGGER.setLevel("WARNING")
    try:
        yield
    finally:
        LOGGER.setLevel(level)


@contextmanager
def as_one_process() -> Iterator[None]:
    """Ultralytics as if this were its only process for the length of a block.

    In a training on several devices its validator waits for the other processes, which are not there.
    """
    numbers = ("RANK", "LOCAL_RANK")
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "ultralytics"]
    held = [(module, name, vars(module)[name]) for module in modules for name in numbers if name in vars(module)]
    for module, name, _ in held:
        setattr(module, name, -1)
    try:
        yield
    finally:
        for module, name, number in held:
            setattr(module, name, number)


@contextmanager
def unhurried() -> Iterator[None]:
    """Ultralytics' suppression of overlaps without its limit of time for the length of a block.

    Past that limit, on a busy machine or with many classes, it goes on without the detections of the images left.
    """
    hurried = nms.non_max_suppression
    nms.non_max_suppression = functools.partial(hurried, max_time_img=math.inf)
    try:
        yield
    finally:
        nms.non_max_suppression = hurried
