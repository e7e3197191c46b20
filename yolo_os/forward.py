"""Go through images once, in eval mode: hand features to their collectors and take the training loss on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from yolo_os.capture import LayerStatistics, capture, inputs_of
from yolo_os.distributed import gather, rank, world_size
from yolo_os.errors import UserError
from yolo_os.heads import last_module
from yolo_os.loss import LossMean, has_labels, training_loss
from yolo_os.timing import Clock

Batch = Tensor | Mapping[str, Any]
Progress = Callable[[Iterable[Any], str], Iterable[Any]]
# A quarter of the memory: the model, its activations and a data loader need theirs beside it.
CACHE_SHARE = 0.25


def run_pass(
    model: nn.Module,
    batches: Iterable[Batch],
    clock: Clock,
    progress: Progress,
    title: str,
    statistics: LayerStatistics | None = None,
    heads: CachedHeads | None = None,
) -> LossMean:
    """One pass in eval mode: features go to their collectors, the training loss is taken on the way.

    Args:
        model: the bare model.
        batches: see `shift_`.
        clock: counts the seconds by phase.
        progress, title: see `shift_`.
        statistics: of layers of this model; what it takes in is not merged yet over processes.
        heads: keeps what the head is given for each labelled batch.

    Returns:
        The mean loss, without terms where the batches have no labels or the model no loss; counts the images.
    """
    weight = next(model.parameters())
    mean = LossMean()
    captured = statistics.modules if statistics else []
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
            if statistics:
                with clock("features"):
                    statistics.add(seen, loss.labels, number)
                    seen.clear()
    shares = gather(mean.images)
    if any(shares) and not all(shares):
        raise UserError(f"of {len(shares)} processes some had no image to work on: take fewer, or a smaller batch=")
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

    Feature maps of many images are large: past `limit` bytes all are let go, and the whole model has to be run again.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.batches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._bytes = 0
        self._limit = limit

    def note(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """The hook: notes the inputs of the head."""
        self.inputs = inputs_of(inputs)

    def keep(self, batch: dict[str, Any]) -> None:
        """Keep the inputs just noted with their labels; of the images only their number, which is all a loss asks."""
        tensors = [each for given in self.inputs for each in (given if isinstance(given, list) else [given])]
        self._bytes += sum(each.nbytes for each in tensors if isinstance(each, Tensor))
        if self._bytes > self._limit:
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


def memory_for_features(device: torch.device) -> int:
    """How many bytes of feature maps may be kept: CACHE_SHARE of the free memory of a GPU, or of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * CACHE_SHARE)
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * CACHE_SHARE)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 4 * 2**30


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
