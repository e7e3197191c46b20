"""One shift in several processes, as `torchrun` starts them: each has its batches, sums go through an all-reduce.

Outside a process group everything here does nothing. Inside one, all processes must take part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """For the length of a block this process works by itself, as if it were in no group."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world_size() -> int:
    """How many processes work on this."""
    if _alone:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the group that `torchrun` announces in the environment, for the length of a block; none, no group.

    Args:
        device: as the user named it; empty for GPUs where there are any.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or world_size() > 1:
        yield
        return
    on_gpus = torch.cuda.is_available() and device in ("", "cuda")
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_device() -> str:
    """The GPU of this process by its number on this machine, as a `device=` name; empty for one process or no GPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if world_size() > 1 and torch.cuda.is_available() else ""


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process through alone, then the others: for what makes a file that all of them read."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    try:
        yield
    finally:  # also when the first fails, so that the others come to the same error
        if world_size() > 1 and rank() == 0:
            dist.barrier()


def add_up(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the processes (all-reduce), the same bits in each."""
    if world_size() == 1:
        return tensor
    summed = _transportable(tensor)
    dist.all_reduce(summed)
    return summed.to(tensor.device)


def broadcast_(tensor: Tensor) -> None:
    """Give a tensor the first process's values, in place."""
    if world_size() > 1:
        values = _transportable(tensor)
        dist.broadcast(values, 0)
        with torch.no_grad():
            tensor.copy_(values)


def broadcast_parameters_(module: nn.Module) -> None:
    """Give the parameters of a module the first process's values, in place."""
    for tensor in module.parameters():
        broadcast_(tensor)


def gather(value: T) -> list[T]:
    """A picklable value from every process, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # all filled in


def agreed(value: T) -> T:
    """The first process's value: for a decision that each makes by itself and all must share."""
    return gather(value)[0]


def _transportable(tensor: Tensor) -> Tensor:
    """A copy where the group's backend can take it."""
    where = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return tensor.detach().to(where, copy=True).contiguous()
