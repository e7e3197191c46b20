"""The engine of every shift: proposed values for a named set of weights are tried, judged, taken or put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from yolo_os.distributed import broadcast_

T = TypeVar("T")
Values = Mapping[str, Tensor]


class Weights:
    """A named set of a model's parameters and buffers: prediction layers are one such set, all layers another.

    Values are written into the tensors themselves, which optimizers and moving averages know by identity.

    Args:
        tensors: by name, the parameters and buffers.
        precision: floating-point values are rounded to it before they are written, so that what is judged is what a
            file in that precision will hold; None: to that of the tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], precision: torch.dtype | None = None) -> None:
        self.tensors = dict(tensors)
        self.precision = precision

    @torch.no_grad()
    def write_(self, values: Values) -> None:
        """Write values by name; of several processes, all end with the first one's. Names not given stay."""
        for name, value in values.items():
            tensor = self.tensors[name]
            rounded = value if self.precision is None or not tensor.is_floating_point() else value.to(self.precision)
            tensor.copy_(rounded)
            broadcast_(tensor)

    def measure(self, values: Values, figure: Callable[[], T]) -> T:
        """What a figure comes to with values in place; they are put back after it, interruptions included."""
        with self._saved(values, only_on_error=False):
            self.write_(values)
            return figure()

    @contextmanager
    def put_back_on_error(self) -> Iterator[None]:
        """Undo what a block does to the whole set, if it does not come to its end, interruptions included."""
        with self._saved(self.tensors, only_on_error=True):
            yield

    @contextmanager
    def _saved(self, names: Mapping[str, Tensor], only_on_error: bool) -> Iterator[None]:
        saved = {name: self.tensors[name].detach().clone() for name in names}
        done = False
        try:
            yield
            done = only_on_error
        finally:
            if not done:
                with torch.no_grad():
                    for name, value in saved.items():
                        self.tensors[name].copy_(value)
