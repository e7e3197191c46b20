"""`hessian_trace`: how flat the training loss is around models, with whatever a user has for a model and data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.utils import TQDM

from yolo_os.errors import UserError
from yolo_os.flatness.detector import chosen, detector_objective, labelled_batches
from yolo_os.flatness.exact import has_closed_form
from yolo_os.flatness.measure import MEASURES, Notice, Subject, TraceSettings, measure, unnoticed
from yolo_os.flatness.report import TraceReport
from yolo_os.flatness.surface import ACROSS, ALONG, LINE, across_line, along_line, over_plane
from yolo_os.forward import Batch
from yolo_os.heads import find_head, unwrap
from yolo_os.integration.checkpoint import load_checkpoint, trained_args
from yolo_os.integration.data import calibration_batches, class_names_of
from yolo_os.integration.runtime import choose_device
from yolo_os.recipe import ShiftRecipe
from yolo_os.report import TraceChange
from yolo_os.shifter import check_finite


def hessian_trace(
    model: Any,
    data: str | Path | Iterable[Batch],
    *,
    layers: str | Sequence[str] = "all",
    images: int = 64,
    split: str = "train",
    imgsz: int | None = None,
    batch: int = 16,
    workers: int = 0,
    device: str | None = None,
    tolerance: float = 0.05,
    probes: int = 400,
    seed: int = 0,
    estimator: str = "auto",
    measures: str | Sequence[str] = "trace",
    trust: bool = False,
    notice: Notice = unnoticed,
) -> TraceReport:
    """The trace of the Hessian of the true training loss, with its standard error, and what is measured beside it.

    The loss is that of eval mode (running BatchNorm statistics), without augmentation, its assignment of objects to
    anchor points held fixed at the weights as they are. Models are left as they were. See docs/flatness.md.

    Args:
        model: a `YOLO`, an `RTDETR`, their bare model or the path of a checkpoint; or several of these, which are
            compared with the first on the same images by the same probes.
        data: what Ultralytics takes as `data=`, or a VOCdevkit folder, from which images are drawn; or labelled batches
            as Ultralytics' data loaders make them, all of which are used.
        layers: `all`, `head` (the prediction layers), a role, or patterns; see `flatness.detector.chosen`.
        images: how many are drawn from `split`, by `seed`.
        split: train, val or test.
        imgsz: image size in pixels; that of the first model's training if None.
        batch: images per batch, which bounds the memory.
        workers: loader processes.
        device: as Ultralytics takes it; None: where a model is.
        tolerance: standard error to reach, as a share of the trace.
        probes: most random probes of a batch.
        seed: of images and probes.
        estimator: `auto`, `hutchinson` or `deflated`.
        measures: of trace, normalised, gauss_newton, eigenvalue, sharpness; `all`, or several with commas.
        trust: see `load_checkpoint`.
        notice: is told the running estimates.

    Raises:
        UserError: for a model or data that have no training loss, a fused model, weights that are not finite, or too
            little memory.
    """
    settings = TraceSettings(tolerance, probes, seed, estimator, _measures(measures))
    given = list(model) if isinstance(model, list | tuple) else [model]
    opened = [_open(each, trust) for each in given]
    names = _names(given)
    for (_, bare), name in zip(opened, names):
        _check(bare, name)
        chosen(bare, layers)  # refused before data are looked for
        if device is not None:
            bare.to(choose_device(device))
    first = opened[0][1]
    for (_, bare), name in zip(opened[1:], names[1:]):
        if class_names_of(bare) != class_names_of(first):
            raise UserError(f"{name} has other classes than {names[0]}, so their losses can't be compared")
    drawn: Iterable[Batch]
    if isinstance(data, str | Path):
        recipe = ShiftRecipe(images=images, held_out=0, seed=seed)
        drawn, _ = calibration_batches(first, data, recipe, split=split, imgsz=imgsz, batch=batch, workers=workers)
    else:
        drawn = data
    batches = labelled_batches(drawn)
    with ExitStack() as stack:
        subjects = [
            stack.enter_context(subject_of(whole, bare, name, batches, layers))
            for (whole, bare), name in zip(opened, names)
        ]
        return measure(subjects, sum(len(each["img"]) for each in batches), settings, notice)


@contextmanager
def subject_of(
    model: Any, bare: nn.Module, name: str, batches: Sequence[Mapping[str, Any]], layers: str | Sequence[str]
) -> Iterator[Subject]:
    """A model made ready to be measured, for the length of a block."""
    head = find_head(bare)
    parameters = chosen(bare, layers)
    varied = {id(each) for each in parameters.values()}
    closed = [
        layer
        for layer in head.layers
        if has_closed_form(head) and all(id(each) in varied for each in layer.tensors.values())
    ]
    norm = sum(float(layer.matrix.double().square().sum()) for layer in head.layers)
    with trained_args(model, bare), detector_objective(bare, batches, parameters) as objective:
        yield Subject(name, objective, closed, norm)


def landscape(
    before: str | Path,
    after: str | Path,
    data: str | Path,
    *,
    images: int = 32,
    split: str = "train",
    imgsz: int | None = None,
    batch: int = 16,
    workers: int = 0,
    device: str | None = None,
    seed: int = 0,
    trust: bool = False,
    surface: bool = True,
    notice: Notice = unnoticed,
) -> dict[str, Any]:
    """The loss along the line through two checkpoints, and over a plane that holds both: plain data for pictures.

    BatchNorm statistics go along the line with the weights. As many more images of the split are held out.

    Args:
        before, after: checkpoints of one architecture.
        data, images, split, imgsz, batch, workers, device, seed, trust, notice: as for `hessian_trace`.
        surface: also the plane, which costs a pass for each of its points.

    Raises:
        UserError: for checkpoints that differ in shape or not at all, or as `hessian_trace`.
    """
    models = [load_checkpoint(each, trust).model for each in (before, after)]
    model = models[0]
    if device is not None:
        model.to(choose_device(device))
    own, other = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in models)
    floats = {name: each for name, each in own.items() if each.is_floating_point()}
    if any(name not in other or other[name].shape != each.shape for name, each in floats.items()):
        raise UserError(f"{before} and {after} differ in shape, so no line leads from one to the other")
    changed = {name: each for name, each in floats.items() if not torch.equal(each.cpu(), other[name].cpu())}
    if not changed:
        raise UserError(f"{before} and {after} have the same weights: there is no line between them")
    recipe = ShiftRecipe(images=images, held_out=images, seed=seed)
    drawn = calibration_batches(model, data, recipe, split=split, imgsz=imgsz, batch=batch, workers=workers)
    parameters = chosen(model, "all")
    made: dict[str, Any] = {
        "before": str(before),
        "after": str(after),
        "line": {"places": list(LINE), "losses": {}},
    }
    for index, part in enumerate(drawn):
        if not part.images:
            continue
        name = f"{part.images} {'other ' if index else ''}images of {split}"
        notice(f"line, {name}")
        with detector_objective(model, labelled_batches(part), parameters) as objective:
            made["line"]["losses"][name] = along_line(objective, changed, other)
            if surface and index == 0:
                direction = across_line(parameters, changed, other, seed)
                losses = over_plane(objective, changed, other, direction, notice=notice)
                made["surface"] = {"along": list(ALONG), "across": list(ACROSS), "losses": losses}
    return made


def check_trace(model: nn.Module, layers: str | bool) -> None:
    """Refuse words of `trace=` that name no layer, before anything is measured.

    Raises:
        UserError: naming the word.
    """
    try:
        chosen(model, "head" if layers is True else str(layers))
    except UserError as error:
        raise UserError(str(error).replace("layers=", "trace=", 1)) from None


def trace_change(before: nn.Module, after: nn.Module, batches: Iterable[Batch], layers: str | bool) -> TraceChange:
    """The trace before and after a shift, by the same images and probes.

    Args:
        before, after: bare models.
        batches: labelled, of which the loss is taken.
        layers: which weights; True: the prediction layers.
    """
    words = "head" if layers is True else str(layers)
    with trace_bar() as notice:
        report = hessian_trace([before, after], batches, layers=words, notice=notice)
    change = next(each for each in report.differences if each.figure == "trace").change
    return TraceChange(words, report.images, report.models[0].trace, report.models[1].trace, *change.interval)


class TraceBar:
    """A progress bar that shows the running estimates, for `notice`; there is none before the first round."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, text: str) -> None:
        """One more round, with what is known after it."""
        if self._bar is None:
            self._bar = TQDM(total=None, desc="trace", unit=" rounds")
        self._bar.set_description(text)
        self._bar.update(1)

    def close(self, leave: bool = True) -> None:
        """No more rounds; the bar stays on the terminal, or is erased so that an error stands on a line of its own."""
        if self._bar is not None:
            self._bar.leave = leave
            self._bar.close()


@contextmanager
def trace_bar() -> Iterator[TraceBar]:
    """A bar for the length of a block."""
    bar = TraceBar()
    try:
        yield bar
    except BaseException:
        bar.close(leave=False)
        raise
    bar.close()


def _measures(given: str | Sequence[str]) -> tuple[str, ...]:
    words = [each.strip() for each in given.split(",")] if isinstance(given, str) else list(given)
    return MEASURES if words == ["all"] else tuple(dict.fromkeys(("trace", *words)))


def _open(model: Any, trust: bool) -> tuple[Any, nn.Module]:
    """A model as given and its bare one."""
    if isinstance(model, str | Path):
        bare = load_checkpoint(model, trust).model
        return bare, bare
    return model, unwrap(model)


def _names(given: Sequence[Any]) -> list[str]:
    """What each is called: its path, or a number."""
    names = [str(each) if isinstance(each, str | Path) else f"model {index}" for index, each in enumerate(given, 1)]
    return names if len(given) > 1 or isinstance(given[0], str | Path) else ["model"]


def _check(bare: nn.Module, name: str) -> None:
    """Refuse a model whose curvature would mean nothing, or something else than asked for.

    Raises:
        UserError: for weights that are not finite or of half precision, or a fused model.
    """
    try:
        check_finite(bare)
    except UserError as error:
        raise UserError(f"model={name}: {error}") from None
    if next(bare.parameters()).dtype in (torch.float16, torch.bfloat16):
        raise UserError(f"model={name}: its weights are of half precision, too coarse for second derivatives: .float()")
    if not any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in bare.modules()):
        raise UserError(
            f"model={name}: it is fused (no BatchNorm is left in it), so its loss is a function of other weights than "
            "those that were trained: take the unfused file"
        )
