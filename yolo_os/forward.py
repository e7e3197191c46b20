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


def silent(items: Iterable[Any], title: str) -> Iterable[Any]:
    """No progress bar."""
    return items


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
            if local == 0:
                check_batch(model, batch)
            number = local * world_size() + rank()
            moved = on_device(batch, weight)
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


def on_device(batch: Batch, weight: Tensor) -> dict[str, Any]:
    """A batch as a dictionary on the model's device, images as floats in 0..1 in the model's precision."""
    if not isinstance(batch, Tensor | Mapping):
        raise UserError(
            f"a batch is a {type(batch).__name__}: takes tensors of images (B, 3, H, W), or dictionaries as "
            "Ultralytics' loaders make them (numpy arrays go through torch.from_numpy, image files into a data YAML)"
        )
    entries = {"img": batch} if isinstance(batch, Tensor) else dict(batch)
    if "img" not in entries:
        raise UserError(f"a batch has no images: its keys are {', '.join(map(str, entries))}, expected 'img'")
    for key, value in entries.items():
        if isinstance(value, Tensor):
            entries[key] = value.to(weight.device, non_blocking=True)
    scale = 255 if entries["img"].dtype == torch.uint8 else 1
    entries["img"] = entries["img"].to(weight.dtype) / scale
    return entries


def check_batch(model: nn.Module, batch: Batch) -> None:
    """Refuse, before a pass, a first batch that the model would take for something else.

    Raises:
        UserError: for images of another shape, number of channels or range, or labels of classes it does not have.
    """
    images = batch.get("img") if isinstance(batch, Mapping) else batch
    if not isinstance(images, Tensor):
        return  # which the pass itself refuses
    channels = next((each.shape[1] for each in model.parameters() if each.ndim == 4), 3)
    if images.ndim != 4 or images.shape[1] != channels:
        hint = "; permute(0, 3, 1, 2) brings the channels forward" if images.shape[-1] == channels else ""
        hint = "; images[None] makes a batch of one" if images.ndim == 3 else hint
        raise UserError(f"images of shape {tuple(images.shape)}: this model takes (B, {channels}, H, W){hint}")
    if images.is_floating_point() and float(images.max() if images.numel() else 0) > 2:
        raise UserError(f"images up to {float(images.max()):g}: floats are taken in 0..1, so divide by 255")
    labels, classes = batch.get("cls") if isinstance(batch, Mapping) else None, getattr(last_module(model), "nc", None)
    if isinstance(labels, Tensor) and labels.numel() and classes:
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label < classes:
                raise UserError(f"a label is of class {label}, and the model has classes 0 to {classes - 1}")
