"""The training loss of a detector as an objective: eval mode, no augmentation, its assignment held fixed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from yolo_os.errors import UserError
from yolo_os.flatness.assignment import FixedAssignment
from yolo_os.flatness.operator import Objective
from yolo_os.forward import Batch, check_batch, eval_mode, on_device
from yolo_os.heads import Head, PredictionLayer, find_head
from yolo_os.loss import has_labels, training_loss
from yolo_os.recipe import matches


def labelled_batches(data: Iterable[Batch]) -> list[Mapping[str, Any]]:
    """The batches of some data, kept in memory as they came.

    Raises:
        UserError: if there are none, or no labelled object in them: there is then no loss.
    """
    batches = [data] if isinstance(data, Tensor | Mapping) else list(data)
    if not batches:
        raise UserError("the data holds no images: nothing to take a loss of")
    found = [each for each in batches if isinstance(each, Mapping) and has_labels(each)]
    if len(found) < len(batches) or not any(len(each["cls"]) for each in found):
        raise UserError(
            "the images have no labels, so there is no training loss, nor a curvature of it: give data whose split "
            "has labelled objects"
        )
    return found


@contextmanager
def detector_objective(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], parameters: Mapping[str, Tensor]
) -> Iterator[Objective]:
    """The training loss of a bare model over batches, for the length of a block; the model is left as it was.

    The loss per image, mean over images, as a training that saw these batches would report it. Assignment is that of
    the model as it is now.

    Args:
        model: see `heads.unwrap`; with the args of its training.
        batches: see `labelled_batches`.
        parameters: by name, what the loss is differentiated by; see `chosen`.

    Raises:
        UserError: for a model without a loss, or batches that it does not take.
    """
    check_batch(model, batches[0])
    weight = next(model.parameters())
    images = [len(batch["img"]) for batch in batches]
    wanted = [(each, each.requires_grad) for each in model.parameters()]
    with eval_mode(model), training_loss(model) as loss:
        if loss.missing is not None:
            raise UserError(f"no training loss can be taken: {loss.missing}")
        untyped: Any = model
        assignment = FixedAssignment(untyped.criterion)

        def predict(batch: int) -> Any:
            made = model(on_device({"img": batches[batch]["img"]}, weight)["img"])
            return (None, made[1]) if isinstance(made, tuple) else made  # of the decoded boxes no loss is taken

        def criterion(batch: int, made: Any) -> Tensor:
            assignment.look_at(batch)
            moved = on_device({**batches[batch], "img": batches[batch]["img"][:, :1, :1, :1]}, weight)
            return loss(moved, made)["total"]

        try:
            for each, _ in wanted:
                each.requires_grad_(False)  # but for the parameters, while something is differentiated by them
            objective = Objective(parameters, [each / sum(images) for each in images], predict, criterion)
            objective.mean()  # assigns
            yield objective
        finally:
            for each, before in wanted:
                each.requires_grad_(before)


def chosen(model: nn.Module, layers: str | Sequence[str]) -> dict[str, Tensor]:
    """The trained parameters of a bare model that words name, in the model's order.

    Args:
        model: see `heads.unwrap`.
        layers: `all`; `head`, the prediction layers; a role (`box`, `cls`, ...); or a pattern of names of prediction
            layers (`cv3.*`) or of parameters (`model.0.*`). Several in a list, or with commas.

    Raises:
        UserError: for a word that names nothing.
    """
    words = [each.strip() for each in layers.split(",")] if isinstance(layers, str) else list(layers)
    trained = {name: each for name, each in model.named_parameters() if ".dfl." not in name}  # DFL's are constants
    prediction = prediction_parameters(find_head(model))
    names: set[str] = set()
    for word in words:
        ids = {
            id(each)
            for layer, own in prediction
            if word == "head" or matches(word, layer.name, layer.role)
            for each in own
        }
        found = {name for name, each in trained.items() if word == "all" or id(each) in ids}
        found = found or {name for name in trained if fnmatchcase(name, word) or fnmatchcase(name, f"{word}.*")}
        if not found:
            known = ", ".join(layer.name for layer, _ in prediction)
            raise UserError(f"layers={word}: names no layer; takes all, head, a role, or a pattern such as {known}")
        names |= found
    return {name: each for name, each in trained.items() if name in names}


def prediction_parameters(head: Head) -> list[tuple[PredictionLayer, list[Tensor]]]:
    """The prediction layers of a head with their weight and bias."""
    return [(layer, list(layer.tensors.values())) for layer in head.layers]
