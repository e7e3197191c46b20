"""What a criterion assigns to anchor points, held fixed: the loss of other weights is then that of the same targets.

An assigner looks at the predictions, so its targets jump where weights move, and with them the loss. The curvature that
is meant is that between the jumps, so each part of a criterion that assigns is asked once for each batch, by the model
as it is, and gives the same answer from then on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from yolo_os.loss import assigners


class FixedAssignment:
    """Holds what a criterion assigns at its first look at each batch, and gives it again at every later one.

    Args:
        criterion: made for this one use; its parts that assign are changed.
    """

    def __init__(self, criterion: Any) -> None:
        self._batch = 0
        self._kept: dict[tuple[str, int], list[Any]] = {}
        self._calls: dict[str, int] = {}
        for name, part, method in _parts(criterion):
            object.__setattr__(part, method, self._held(name, getattr(part, method)))

    def look_at(self, batch: int) -> None:
        """The loss taken next is that of this batch."""
        self._batch = batch
        self._calls.clear()

    def _held(self, name: str, assign: Callable[..., Any]) -> Callable[..., Any]:
        def held(*args: Any, **kwargs: Any) -> Any:
            kept = self._kept.setdefault((name, self._batch), [])
            call = self._calls.get(name, 0)  # a transformer matches once for each of its decoder layers
            self._calls[name] = call + 1
            if call == len(kept):
                kept.append(assign(*args, **kwargs))
            return copy.deepcopy(kept[call])  # some losses write into their targets

        return held


def _parts(criterion: Any) -> Iterator[tuple[str, Any, str]]:
    """What assigns, with the method that is asked."""
    for branch, assigner in assigners(criterion):
        yield branch or "one2many", assigner, "forward"
    matcher = getattr(criterion, "matcher", None)  # a transformer's
    if isinstance(matcher, nn.Module):
        yield "matcher", matcher, "forward"
    if hasattr(criterion, "learned_objectness"):  # of an anchor-based head, whose targets are the IoU of its boxes
        yield "objectness", criterion, "learned_objectness"
