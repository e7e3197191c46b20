"""From a forward pass to the collectors: hooks note what layers are given, which becomes features of anchor points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from yolo_os.heads import Head
from yolo_os.statistics import Anchors, Branch, Collector

Seen = dict[nn.Module, tuple[Tensor, Tensor]]


class LayerStatistics:
    """Collectors of some of a head's prediction layers, fed from captured forward passes.

    Attributes:
        head: whose layers these are.
        collectors: by layer name.
        modules: what `capture` has to note for them.
    """

    def __init__(self, head: Head, collectors: Mapping[str, Collector]) -> None:
        self.head = head
        self.collectors = collectors
        self._layers = [layer for layer in head.layers if layer.name in collectors]
        self.modules = [layer.module for layer in self._layers] + list(head.scorers.values() if self._layers else ())

    def add(self, seen: Mapping[nn.Module, tuple[Tensor, Tensor]], labels: Mapping[str, Tensor], batch: int) -> None:
        """Take in what one captured forward pass has shown; layers that did not run are passed over.

        Args:
            seen: what `capture` noted.
            labels: by branch, (B, anchors of all levels) assigned classes, -1 for background (see `TrainingLoss`).
            batch: number of the batch in the data, whichever process sees it.
        """
        anchors = anchors_of(self.head, seen, labels, batch)
        for layer in self._layers:
            if layer.module in seen:
                features, outputs = map(as_columns, seen[layer.module])
                self.collectors[layer.name].add(features, outputs, anchors.get(layer.group, Anchors(batch=batch)))

    def merge(self) -> None:
        """Add up what all processes took in, once; nothing to do for one."""
        for collector in self.collectors.values():
            collector.merge()


@contextmanager
def capture(modules: Iterable[nn.Module]) -> Iterator[Seen]:
    """Note the last input and output of modules while the block runs; hooks are removed however it ends.

    Yields:
        A dictionary, filled by each forward pass, from module to (input, output). Clear it between batches: it holds
        references to whole feature maps, not copies.
    """
    seen: Seen = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen[module] = (inputs[0].detach(), output.detach())

    handles = [module.register_forward_hook(note) for module in dict.fromkeys(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def as_columns(tensor: Tensor) -> Tensor:
    """A feature map (B, C, H, W) or queries (B, P, C) as (B, C, P), without a copy."""
    return tensor.flatten(2) if tensor.ndim == 4 else tensor.transpose(1, 2)


def anchors_of(
    head: Head, seen: Mapping[nn.Module, tuple[Tensor, Tensor]], labels: Mapping[str, Tensor], batch: int = 0
) -> dict[str, Anchors]:
    """What is known of the anchor points, by group, from one captured forward pass; arguments as of `add`."""
    logits = {
        group: head.class_logits(group, as_columns(seen[scorer][1]))
        for group, scorer in head.scorers.items()
        if scorer in seen
    }
    anchors = {group: Anchors(each, None, batch) for group, each in logits.items()}
    for branch, groups in head.branches.items():
        ran = [group for group in groups if group in logits]
        if not ran:
            continue
        together = Branch(tuple(logits[group] for group in ran))
        sizes = [logits[group].shape[2] for group in ran]
        label = labels.get(branch)
        fits = label is not None and sum(sizes) == label.shape[1]
        parts = torch.split(label, sizes, dim=1) if label is not None and fits else [None] * len(ran)
        for group, part in zip(ran, parts):
            anchors[group] = Anchors(logits[group], part, batch, together)
    return anchors


def inputs_of(given: Any) -> Any:
    """What a module is given, to be kept or given again: lists copied, as some heads write into theirs, no graph."""
    if isinstance(given, list | tuple):
        return type(given)(inputs_of(each) for each in given)
    return given.detach() if isinstance(given, Tensor) else given
