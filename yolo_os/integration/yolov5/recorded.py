"""Modules that a file describes, as data: what is in them, and their tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from yolo_os.integration.unpickle import Damaged, Recorded


def children(module: Recorded) -> dict[str, Recorded]:
    """The modules in a module, by name; places that are empty are left out.

    Raises:
        Damaged: if they are no modules.
    """
    held = module.state.get("_modules", {})
    found = {str(name): each for name, each in held.items() if each is not None} if isinstance(held, dict) else None
    if found is None or not all(isinstance(each, Recorded) for each in found.values()):
        raise Damaged(f"the modules of a {module.kind} are damaged")
    return found


def walk(module: Recorded, name: str = "") -> Iterator[tuple[str, Recorded]]:
    """A module and all within it, by their full names; its own is empty."""
    yield name, module
    for own, child in children(module).items():
        yield from walk(child, f"{name}.{own}".removeprefix("."))


def tensors(module: Recorded) -> dict[str, Tensor]:
    """The parameters and buffers of a module and of those within it, by the names of a `state_dict`."""
    found = {}
    for name, each in walk(module):
        passing = each.state.get("_non_persistent_buffers_set")
        for place in ("_parameters", "_buffers"):
            held = each.state.get(place)
            for own, tensor in held.items() if isinstance(held, dict) else ():
                if isinstance(tensor, torch.Tensor) and not (isinstance(passing, set) and own in passing):
                    found[f"{name}.{own}".removeprefix(".")] = tensor.detach()
    return found
