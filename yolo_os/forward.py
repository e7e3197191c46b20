"""Go through images once, in eval mode: hand features to their collectors and take the training loss on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from yolo_os.distributed import gather, rank, world_size
from yolo_os.errors import UserError
from yolo_os.heads import Head, last_module
from yolo_os.loss import LossMean, has_labels, training_loss
from yolo_os.statistics import Collector, capture, collect, inputs_of
from yolo_os.timing import Clock

Batch = Tensor | Mapping[str, Any]
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def run_pass(
    model: nn.Module,
    batches: Iterable[Batch],
    head: Head,
    collectors: Mapping[str, Collector],
    clock: Clock,
    progress: Progress,
    title: str,
    heads: CachedHeads | None = None,
) -> LossMean:
    """One pass in eval mode: hand every layer's features to its collector, and take the training loss on the way.

    Args:
        model: the bare model.
        batches: see `shift_`.
        head: of this model, or of another of the same architecture when there is nothing to collect.
        collectors: by layer name; layers without one are not captured.
        clock: counts the seconds by phase.
        progress, title: see `shift_`.
        heads: keeps what the head is given for each labelled batch.

    Returns:
        The mean loss, without terms where the batches have no labels or the model no loss; counts the images.
    """
    weight = next(model.parameters())
    mean = LossMean()
    layers = [layer for layer in head.layers if layer.name in collectors]
    captured = [layer.module for layer in layers] + (list(head.scorers.values()) if layers else [])
    hook = last_module(model).register_forward_pre_hook(heads.note) if heads else nullcontext()
    with eval_mode(model), torch.no_grad(), training_loss(model) as loss, capture(captured) as seen, hook:
        for local, batch in enumerate(clock.loading(progress(batches, title))):
            number = local * world_size() + rank()
            moved = _on_device(batch, weight)
            images = len(moved["img"])
            with clock("forward"):
                predictions = model(moved["img"])
            terms: Mapping[str, Tensor] = {}
            loss.labels.clear()
            if loss.missing is None and has_labels(moved):
                with clock("loss"):
                    terms = loss(moved, predictions)
                if heads:
                    heads.keep(moved)
            mean.add(terms, images, len(moved["cls"]) if terms else 0)
            with clock("features"):
                collect(head, layers, collectors, seen, loss.labels, number)
                seen.clear()
    shares = gather(mean.images)
    if any(shares) and not all(shares):
        raise UserError(f"of {len(shares)} processes some had no image to work on: take fewer, or a smaller batch=")
    for layer in layers:
        collectors[layer.name].merge()
    mean.merge()
    return mean


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for the length of a block; every module's own mode is put back after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class CachedHeads:
    """What the head was given for each batch, so that it can be run again without the backbone.

    Feature maps of many images are large: past LIMIT bytes all are let go, and the whole model has to be run again.
    """

    LIMIT = 4 * 2**30

    def __init__(self) -> None:
        self.batches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._bytes = 0

    def note(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """The hook: notes the inputs of the head."""
        self.inputs = inputs_of(inputs)

    def keep(self, batch: dict[str, Any]) -> None:
        """Keep the inputs just noted with their labels; of the images only their number, which is all a loss asks."""
        tensors = [each for given in self.inputs for each in (given if isinstance(given, list) else [given])]
        self._bytes += sum(each.nbytes for each in tensors if isinstance(each, Tensor))
        if self._bytes > self.LIMIT:
            self.batches.clear()
            return
        self.batches.append((self.inputs, {**batch, "img": batch["img"].new_empty(len(batch["img"]), 0)}))

    def loss(self, model: nn.Module, clock: Clock) -> float:
        """The mean total loss of the model's head as it is now."""
        mean, head = LossMean(), last_module(model)
        with eval_mode(model), torch.no_grad(), training_loss(model) as loss, clock("guard"):
            for inputs, batch in self.batches:
                predictions = head(*inputs_of(inputs))
                mean.add(loss(batch, predictions), len(batch["img"]), len(batch["cls"]))
        mean.merge()
        return mean.means()["total"]


def _on_device(batch: Batch, weight: Tensor) -> dict[str, Any]:
    """A batch as a dictionary on the model's device, images as floats in 0..1 in the model's precision."""
    entries = {"img": batch} if isinstance(batch, Tensor) else dict(batch)
    if "img" not in entries:
        raise UserError(f"a batch has no images: its keys are {', '.join(map(str, entries))}, expected 'img'")
    for key, value in entries.items():
        if isinstance(value, Tensor):
            entries[key] = value.to(weight.device, non_blocking=True)
    scale = 255 if entries["img"].dtype == torch.uint8 else 1
    entries["img"] = entries["img"].to(weight.dtype) / scale
    return entries
