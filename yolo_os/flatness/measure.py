"""Measure how flat minima are: several models side by side, closed forms where there are, probes for the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from yolo_os.errors import UserError
from yolo_os.flatness.estimate import (
    DIRECTIONS,
    LEAST,
    ROUND,
    Estimate,
    Probed,
    Sampled,
    Scales,
    Sketch,
    eigenthings,
    hutchinson,
    sketch,
)
from yolo_os.flatness.exact import LayerTrace, prediction_traces
from yolo_os.flatness.operator import GaussNewton, Hessian, Objective, Products
from yolo_os.flatness.report import Eigenvalue, ModelTrace, TraceDifference, TraceReport
from yolo_os.flatness.sharpness import filter_norms, sharpness
from yolo_os.heads import PredictionLayer

MEASURES = ("trace", "normalised", "gauss_newton", "eigenvalue", "sharpness")
ESTIMATORS = ("auto", "hutchinson", "deflated")
Notice = Callable[[str], None]


def unnoticed(text: str) -> None:
    """Nobody watches."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is measured.

    Attributes:
        name: of it.
        objective: its loss; all subjects of one measurement have the same batches.
        closed: prediction layers among its parameters whose trace has a closed form.
        head_squared_norm: of all its prediction layers.
    """

    name: str
    objective: Objective
    closed: Sequence[PredictionLayer] = ()
    head_squared_norm: float = math.nan


@dataclass(frozen=True)
class TraceSettings:
    """How to measure.

    Attributes:
        tolerance: the probes stop when the standard error of every trace is at most this share of it.
        most: probes of a batch, whatever the error then is.
        seed: of the probes.
        estimator: `hutchinson`, plain probes; `deflated`, with a sketch of the largest directions taken out first;
            `auto`, the latter where plain probes would take longer.
        measures: what is measured, of MEASURES; the trace always is, and the normalised one comes with it.
    """

    tolerance: float = 0.05
    most: int = 400
    seed: int = 0
    estimator: str = "auto"
    measures: tuple[str, ...] = ("trace", "normalised")

    def __post_init__(self) -> None:
        """Refuse what makes no sense, naming the key of the command line."""
        if not 0 < self.tolerance < 1:
            raise UserError(f"tolerance={self.tolerance}: takes a number between 0 and 1, such as 0.05")
        if self.most < 2:
            raise UserError(f"probes={self.most}: takes at least 2, or there is no standard error")
        if self.estimator not in ESTIMATORS:
            raise UserError(f"estimator={self.estimator}: use one of {', '.join(ESTIMATORS)}")
        for each in self.measures:
            if each not in MEASURES:
                raise UserError(f"measures={each}: use some of {', '.join(MEASURES)}")


@dataclass(eq=False)
class _Traced:
    """What is known of one subject so far."""

    subject: Subject
    exact: dict[str, LayerTrace]
    figures: dict[str, Estimate] = field(default_factory=dict)
    layers: dict[str, Estimate] = field(default_factory=dict)
    sampled: dict[str, Sampled] = field(default_factory=dict)  # by figure; what the figure adds to it is exact
    eigenvalue: Eigenvalue | None = None

    @property
    def closed(self) -> float:
        """The exact part of the trace."""
        return sum(each.total for each in self.exact.values())

    def closed_part(self, figure: str) -> float:
        """Of a figure; of the Gauss-Newton trace it is that of the Hessian, as the layers are linear."""
        if figure != "normalised":
            return self.closed
        return sum(self.exact[layer.name].normalised(layer.module.weight) for layer in self.subject.closed)


def measure(
    subjects: Sequence[Subject], images: int, settings: TraceSettings, notice: Notice = unnoticed
) -> TraceReport:
    """The flatness of models side by side.

    Raises:
        UserError: if the loss of a model changes between two calls or is not finite, memory does not suffice, or a
            library is missing.
    """
    began = time.perf_counter()
    with _memory_said():
        for subject in subjects:
            subject.objective.check_determinism()
        traced = [_Traced(each, prediction_traces(each.objective, each.closed)) for each in subjects]
        probed = any(_scales(each) for each in subjects)
        how = "closed form, exact"
        if probed:
            how = _probe(traced, settings, notice)
            if "gauss_newton" in settings.measures:
                _probe_gauss_newton(traced, settings, notice)
        models = tuple(_finished(each, settings) for each in traced)
    return TraceReport(
        models,
        tuple(_differences(traced)),
        {**vars(settings), "measures": list(settings.measures)},
        images,
        how,
        time.perf_counter() - began,
        tuple(_warnings(models, settings)),
    )


def _scales(subject: Subject) -> dict[str, Scales]:
    """What probes are to find of a subject's parameters: all that closed forms leave; nothing if they leave none."""
    closed = {id(tensor) for layer in subject.closed for tensor in layer.tensors.values()}
    left = [id(tensor) not in closed for tensor in subject.objective.tensors]
    if not any(left):
        return {}
    norms = filter_norms(subject.objective.parameters)
    names = [name.rpartition(".")[0] for name in subject.objective.parameters]
    scales: dict[str, Scales] = {
        "trace": [1.0 if open_ else None for open_ in left],
        "normalised": [norm.square() if open_ and norm is not None else None for open_, norm in zip(left, norms)],
    }
    for layer in dict.fromkeys(name for name, open_ in zip(names, left) if open_):
        scales[f"layer {layer}"] = [1.0 if open_ and name == layer else None for name, open_ in zip(names, left)]
    return scales


def _probe(traced: Sequence[_Traced], settings: TraceSettings, notice: Notice) -> str:
    """Find what has no closed form; says how that was done."""
    subjects = [each.subject for each in traced]
    scales = [_scales(each) for each in subjects]
    matrices = [Hessian(each.objective) for each in subjects]
    wants_eigenvalue = "eigenvalue" in settings.measures
    if settings.estimator != "hutchinson" or wants_eigenvalue:
        eigenthings()  # said before any work is done if it is missing
    sketches: list[Sketch] | None = None
    sampled: list[Sampled] | None = None
    if wants_eigenvalue or settings.estimator == "deflated":
        sketches = _sketches(subjects, matrices, settings, notice)
        if wants_eigenvalue:
            for each, found in zip(traced, sketches):
                each.eigenvalue = Eigenvalue(found.eigenvalue, found.residual)
    elif settings.estimator == "auto":
        sampled = _hutchinson(
            traced, "trace", [Probed(*each) for each in zip(matrices, scales)], settings, notice, pilot=True
        )
        if not _plain_suffices(traced, sampled, settings):
            sketches, sampled = _sketches(subjects, matrices, settings, notice), None
    if settings.estimator == "hutchinson":
        sketches = None
    probed = [
        Probed(matrix, own, sketches[index] if sketches else None)
        for index, (matrix, own) in enumerate(zip(matrices, scales))
    ]
    sampled = _hutchinson(traced, "trace", probed, settings, notice, sampled)
    for each, samples in zip(traced, sampled):
        for name in samples.rounds:
            if name.startswith("layer "):
                each.layers[name.removeprefix("layer ")] = samples.estimate(name)
            else:
                each.figures[name] = samples.estimate(name).plus(each.closed_part(name))
                each.sampled[name] = samples
    count = sampled[0].estimate("trace").samples
    plain = f"{count} random probes of one batch each"
    return plain if sketches is None else f"{sketches[0].basis.shape[1]} directions taken out by Lanczos, then {plain}"


def _probe_gauss_newton(traced: Sequence[_Traced], settings: TraceSettings, notice: Notice) -> None:
    """The same of the Gauss-Newton matrix, its trace alone."""
    matrices = [GaussNewton(each.subject.objective) for each in traced]
    sketches: Sequence[Sketch | None] = [None] * len(traced)
    if settings.estimator != "hutchinson":
        sketches = _sketches([each.subject for each in traced], matrices, settings, notice)
    probed = [
        Probed(matrix, {"gauss_newton": _scales(each.subject)["trace"]}, own)
        for matrix, each, own in zip(matrices, traced, sketches)
    ]
    for each, own in zip(traced, _hutchinson(traced, "gauss_newton", probed, settings, notice)):
        each.figures["gauss_newton"] = own.estimate("gauss_newton").plus(each.closed_part("gauss_newton"))
        each.sampled["gauss_newton"] = own


def _sketches(
    subjects: Sequence[Subject], matrices: Sequence[Products], settings: TraceSettings, notice: Notice
) -> list[Sketch]:
    found = []
    for subject, matrix in zip(subjects, matrices):
        notice(f"{subject.name}: largest directions")
        found.append(sketch(matrix, settings.seed))
    return found


def _hutchinson(
    traced: Sequence[_Traced],
    figure: str,
    probed: Sequence[Probed],
    settings: TraceSettings,
    notice: Notice,
    sampled: list[Sampled] | None = None,
    pilot: bool = False,
) -> list[Sampled]:
    """Probes until the figure of every model is known well enough, or once round for a pilot."""

    def done(sampled: Sequence[Sampled]) -> bool:
        estimates = [own.estimate(figure).plus(each.closed) for each, own in zip(traced, sampled)]
        notice(", ".join(f"{figure} {each.value:.4g} +- {each.stderr:.2g}" for each in estimates))
        return pilot or all(each.within(settings.tolerance) for each in estimates)

    least = ROUND if pilot else None
    return hutchinson(probed, done, seed=settings.seed, most=settings.most, least=least, before=sampled)


def _plain_suffices(traced: Sequence[_Traced], sampled: Sequence[Sampled], settings: TraceSettings) -> bool:
    """Whether plain probes come to their end before a sketch and the few probes after it would."""
    batches = len(sampled[0].weights)
    after_sketch = DIRECTIONS + max(2 * ROUND, math.ceil(LEAST / batches))
    for each, own in zip(traced, sampled):
        estimate = own.estimate("trace").plus(each.closed)
        wanted = settings.tolerance * abs(estimate.value)
        taken = estimate.samples / batches
        if estimate.stderr > wanted and taken * ((estimate.stderr / max(wanted, 1e-30)) ** 2 - 1) > after_sketch:
            return False
    return True


def _finished(traced: _Traced, settings: TraceSettings) -> ModelTrace:
    subject = traced.subject
    objective = subject.objective
    figures = {name: traced.figures.get(name, Estimate(traced.closed_part(name))) for name in ("trace", "normalised")}
    if "gauss_newton" in settings.measures:
        figures["gauss_newton"] = traced.figures.get("gauss_newton", Estimate(traced.closed))
    wants_sharpness = "sharpness" in settings.measures
    eigenvalue = traced.eigenvalue
    if "eigenvalue" in settings.measures and eigenvalue is None:
        found = sketch(Hessian(objective), settings.seed)
        eigenvalue = Eigenvalue(found.eigenvalue, found.residual)
    return ModelTrace(
        subject.name,
        objective.size,
        sum(float(tensor.detach().double().square().sum()) for tensor in objective.tensors),
        subject.head_squared_norm,
        objective.mean(),
        figures,
        traced.closed if subject.closed else None,
        {**traced.layers, **{name: Estimate(each.total) for name, each in traced.exact.items()}},
        eigenvalue,
        sharpness(objective) if wants_sharpness else None,
        sharpness(objective, relative=True) if wants_sharpness else None,
    )


def _differences(traced: Sequence[_Traced]) -> Iterator[TraceDifference]:
    first = traced[0]
    shapes = [tensor.shape for tensor in first.subject.objective.tensors]
    for other in traced[1:]:
        paired = shapes == [tensor.shape for tensor in other.subject.objective.tensors]
        for figure in ("trace", "gauss_newton", "normalised"):
            exact = other.closed_part(figure) - first.closed_part(figure)
            if figure not in other.figures and figure != "gauss_newton":
                change, before = Estimate(exact), first.closed_part(figure)
            elif figure in other.figures and figure in first.figures:
                before = first.figures[figure].value
                if paired:
                    change = other.sampled[figure].less(first.sampled[figure], figure).plus(exact)
                else:
                    change = _unpaired(other.figures[figure], first.figures[figure])
            else:
                continue
            relative = change.value / before if before else None
            yield TraceDifference(other.subject.name, first.subject.name, figure, change, relative, paired)


def _unpaired(one: Estimate, other: Estimate) -> Estimate:
    error = math.hypot(one.stderr, other.stderr)
    return Estimate(one.value - other.value, error, min(one.samples, other.samples), min(one.freedom, other.freedom))


def _warnings(models: Sequence[ModelTrace], settings: TraceSettings) -> Iterator[str]:
    for each in models:
        trace = each.figures["trace"]
        if not trace.within(settings.tolerance):
            yield (
                f"{each.model}: the trace is known to {trace.stderr / max(abs(trace.value), 1e-30):.1%}, not to "
                f"{settings.tolerance:.1%}: raise probes="
            )


@contextmanager
def _memory_said() -> Iterator[None]:
    """What is said of too little memory, with what helps.

    Raises:
        UserError: in place of torch's errors.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_little(error) from None
    except RuntimeError as error:
        if "allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise _too_little(error) from None


def _too_little(error: BaseException) -> UserError:
    said = " ".join(str(error).split())[:120]
    return UserError(f"too little memory for the graph of a batch ({said}): take a smaller batch=")
