"""A model's own training loss, evaluated without training, and the targets that it assigns on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from yolo_os.distributed import add_up, gather, world_size
from yolo_os.heads import Head, last_module

# Without these a batch holds no targets, and no loss can be taken of it.
LABEL_KEYS = ("batch_idx", "cls", "bboxes")


@dataclass
class LossMean:
    """A running mean over images of the loss and its terms, summed on the device: reading it is the one wait."""

    images: int = 0
    objects: int = 0
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, terms: Mapping[str, Tensor], images: int, objects: int) -> None:
        """Take in the mean terms of a batch of `images` images with `objects` labelled objects in all."""
        self.images += images
        self.objects += objects
        for name, value in terms.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach()
            self._sums[name] = self._sums.get(name, 0.0) + value * images

    def merge(self) -> None:
        """Add up what all processes took in; nothing to do for one."""
        if world_size() > 1:
            self._sums = {name: add_up(value) for name, value in self._sums.items()}
            self.images, self.objects = (sum(each) for each in zip(*gather((self.images, self.objects))))

    def means(self) -> dict[str, float]:
        """Mean of each term, `total` first; empty without any labelled object, of which a loss would say nothing."""
        if not self.objects:
            return {}
        return {name: float(value) / self.images for name, value in self._sums.items()}


class TrainingLoss:
    """The loss that a model was trained with, on one batch at a time: all terms, with their gains.

    It is the number to watch after a shift, so it is the true one: the model's own criterion with the gains in
    `model.args`, in eval mode and without augmentation when the caller's model and data are.

    Attributes:
        missing: why no loss can be taken of this model; None if it can.
        labels: by branch of the head, (B, anchors) the class assigned to each anchor point in the batch just seen,
            -1 for background; empty for losses that assign otherwise (RT-DETR matches queries).
    """

    def __init__(self, model: nn.Module, missing: str | None) -> None:
        self.missing = missing
        self.labels: dict[str, Tensor] = {}
        self._model: Any = model

    def __call__(self, batch: Mapping[str, Any], predictions: Any) -> dict[str, Tensor]:
        """The terms of the loss on a batch, `total` first, per image.

        Args:
            batch: as Ultralytics' data loaders make it, preprocessed.
            predictions: what the model returned for `batch["img"]`.
        """
        self.labels.clear()
        loss, terms = self._model.loss(batch, predictions)
        return {
            "total": per_image(loss, len(batch["img"])),
            **{name.removesuffix("_loss"): value for name, value in terms.items()},
        }


@contextmanager
def training_loss(model: nn.Module) -> Iterator[TrainingLoss]:
    """The training loss of a bare model (see `heads.unwrap`) for the length of a block; the model is left as it was."""
    inner: Any = model
    args, given = getattr(inner, "args", None), _args_of(model)
    had_criterion, criterion = hasattr(inner, "criterion"), getattr(inner, "criterion", None)
    loss = TrainingLoss(model, None)
    hooks: list[Any] = []
    lacks_nc = not hasattr(inner, "nc")  # RT-DETR's criterion wants what a trainer would have set
    try:
        if not all(name in given for name in ("box", "cls", "dfl")):
            loss.missing = "the model has no loss gains in its `args`"
        elif getattr(last_module(model), "cv2", model) is None:
            loss.missing = "the model is fused: the branch that its training loss needs is gone (take the unfused file)"
        else:
            if lacks_nc:
                inner.nc = getattr(last_module(model), "nc", None)
            inner.args = SimpleNamespace(**given)  # checkpoints hold a plain dict, criteria want attributes
            inner.criterion = inner.init_criterion()
            if hasattr(inner.criterion, "final_o2m"):  # end-to-end: the weights of the branches as training ends
                inner.criterion.o2m = inner.criterion.final_o2m
                inner.criterion.o2o = 1 - inner.criterion.o2m
            for branch, assigner in assigners(inner.criterion):
                hooks.append(assigner.register_forward_hook(noting(loss.labels, branch)))
        yield loss
    finally:
        for hook in hooks:
            hook.remove()
        if lacks_nc and hasattr(inner, "nc"):
            del inner.nc
        if args is not None:
            inner.args = args
        if hasattr(inner, "criterion"):
            del inner.criterion  # first, so that a criterion that is a module leaves no entry among the modules
        if had_criterion:
            inner.criterion = criterion


def per_image(loss: Tensor, images: int) -> Tensor:
    """The loss of a batch per image, a scalar, as a model's criterion returns it.

    The criteria of convolutional heads return their terms times the batch size; RT-DETR's returns the plain sum.
    """
    return loss.sum() / images if loss.ndim else loss


def gains_of(model: nn.Module, head: Head) -> dict[str, float]:
    """The gains of a bare model's training loss: those in its `args`, or where they do not say those of the head."""
    given = _args_of(model) if head.gains_in_args else {}
    return {**head.gains, **{name: float(given[name]) for name in head.gains if given.get(name) is not None}}


def has_labels(batch: Mapping[str, Any]) -> bool:
    """Whether a batch holds what a loss needs."""
    return all(key in batch for key in LABEL_KEYS)


def _args_of(model: nn.Module) -> dict[str, Any]:
    """The `args` of a bare model: a dictionary in a checkpoint, attributes while it is trained."""
    args = getattr(model, "args", None)
    return dict(args) if isinstance(args, Mapping) else dict(vars(args)) if args is not None else {}


def assigners(criterion: Any) -> Iterable[tuple[str, nn.Module]]:
    """The task-aligned assigners of a criterion, by branch of the head."""
    branches = {"": getattr(criterion, "one2many", criterion), "one2one_": getattr(criterion, "one2one", None)}
    for branch, loss in branches.items():
        assigner = getattr(loss, "assigner", None)
        if isinstance(assigner, nn.Module):
            yield branch, assigner


def noting(labels: dict[str, Tensor], branch: str) -> Any:
    """A hook that notes the classes an assigner gives out: -1 where an anchor point is background."""

    def note(module: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        target_labels, _, _, foreground, _ = output
        labels[branch] = torch.where(foreground.bool(), target_labels.long(), -1)

    return note
