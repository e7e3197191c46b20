"""What was measured of how flat minima are: frozen, printable, JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_os.files import write_json
from yolo_os.flatness.estimate import Estimate
from yolo_os.flatness.sharpness import Sharpness
from yolo_os.terminal import counted

_TITLES = {
    "trace": "trace of the Hessian",
    "gauss_newton": "trace of the Gauss-Newton matrix",
    "normalised": "filter-normalised trace",
}


@dataclass(frozen=True)
class Eigenvalue:
    """The largest eigenvalue as Lanczos' iteration has it: from below, with the residual of its vector."""

    value: float
    residual: float


@dataclass(frozen=True)
class ModelTrace:
    """How flat the training loss is around the weights of one model.

    Attributes:
        model: its name.
        parameters: how many numbers were varied.
        squared_norm: of the parameters varied.
        head_squared_norm: ||V||^2 of all prediction layers, whatever was varied.
        loss: training loss per image.
        figures: `trace`, and where asked for `gauss_newton` and `normalised`.
        exact: the part of the trace that the prediction layers hold, in closed form; None where there is none.
        layers: the trace by layer.
        eigenvalue, sharpness, relative_sharpness: None where not measured.
    """

    model: str
    parameters: int
    squared_norm: float
    head_squared_norm: float
    loss: float
    figures: dict[str, Estimate]
    exact: float | None
    layers: dict[str, Estimate] = field(default_factory=dict)
    eigenvalue: Eigenvalue | None = None
    sharpness: Sharpness | None = None
    relative_sharpness: Sharpness | None = None

    @property
    def trace(self) -> float:
        """Of the Hessian."""
        return self.figures["trace"].value

    @property
    def stderr(self) -> float:
        """The standard error of the trace; 0 where it is exact."""
        return self.figures["trace"].stderr

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; what was not measured is None."""
        return {
            "model": self.model,
            **_plain(self.figures["trace"], "trace"),
            "exact": self.exact,
            "loss": self.loss,
            "parameters": self.parameters,
            "squared_norm": self.squared_norm,
            "head_squared_norm": self.head_squared_norm,
            "gauss_newton": _plain(self.figures.get("gauss_newton")),
            "normalised": _plain(self.figures.get("normalised")),
            "eigenvalue": self.eigenvalue and vars(self.eigenvalue),
            "sharpness": self.sharpness and vars(self.sharpness),
            "relative_sharpness": self.relative_sharpness and vars(self.relative_sharpness),
            "layers": {name: _plain(each) for name, each in self.layers.items()},
        }


@dataclass(frozen=True)
class TraceDifference:
    """A figure of a model less that of the first one.

    Attributes:
        model, first: names.
        figure: its name in `ModelTrace.figures`.
        change: the difference.
        relative: to the value of the first; None for a value of 0.
        paired: whether the probes were the same; if not, the errors of both are added up.
    """

    model: str
    first: str
    figure: str
    change: Estimate
    relative: float | None
    paired: bool

    def __str__(self) -> str:
        """One line, with what can be said of it."""
        low, high = self.change.interval
        said = "lower" if self.change.value < 0 else "higher" if self.change.value > 0 else "the same"
        said = "no difference beyond chance" if low < 0 < high else said
        share = "" if self.relative is None else f" ({self.relative:+.1%})"
        how = "" if self.paired else ", not paired"
        change = f"{self.change.value:+.4g} {_range(self.change)}{share}"
        return f"{self.model}, {_TITLES[self.figure]}: {change}: {said}{how}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        own = {name: getattr(self, name) for name in ("model", "first", "figure", "relative", "paired")}
        return {**own, **_plain(self.change)}


@dataclass(frozen=True)
class TraceReport:
    """Models side by side, on the same images.

    Attributes:
        models: the first is what the others are compared with.
        differences: of every other model, figure by figure.
        settings: what was asked for, plain types.
        images: how many the loss is over.
        estimator: how the traces were found.
        seconds: in all.
        warnings: what a person should know before using the figures.
    """

    models: tuple[ModelTrace, ...]
    differences: tuple[TraceDifference, ...]
    settings: dict[str, Any]
    images: int
    estimator: str
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def trace(self) -> float:
        """Of the first model."""
        return self.models[0].trace

    @property
    def stderr(self) -> float:
        """Of the trace of the first model."""
        return self.models[0].stderr

    def __float__(self) -> float:
        """The trace of the first model."""
        return self.trace

    def __str__(self) -> str:
        """A table of the models, and of the differences where there are several."""
        width = max(12, *(len(each.model) + 2 for each in self.models))
        head = f"{'model':<{width}}{'trace':>12}{'stderr':>10}{'95 % interval':>24}{'loss':>9}{'||V||^2':>10}"
        lines = [head, "-" * len(head)]
        for each in self.models:
            trace = each.figures["trace"]
            lines.append(
                f"{each.model:<{width}}{_short(trace.value):>12}{_short(trace.stderr):>10}{_range(trace):>24}"
                f"{each.loss:>9.4f}{each.head_squared_norm:>10.2f}"
            )
        for each in self.models:
            more = [f"{_TITLES[name]} {_pm(figure)}" for name, figure in each.figures.items() if name != "trace"]
            if len(each.layers) > 1:
                largest = sorted(each.layers.items(), key=lambda pair: -abs(pair[1].value))[:4]
                more.append(f"largest parts: {', '.join(f'{name} {_pm(part)}' for name, part in largest)}")
            if each.eigenvalue:
                value = each.eigenvalue
                more.append(f"largest eigenvalue {_short(value.value)} (residual {_short(value.residual)})")
            if each.sharpness and each.relative_sharpness:
                ball, own = each.sharpness, each.relative_sharpness
                more.append(f"worst loss within {ball.radius:g} of the weights +{_short(ball.rise)}")
                more.append(f"worst loss within {own.radius:.0%} of the filters' norms +{_short(own.rise)}")
            lines += ["", f"{each.model}:", *(f"  {line}" for line in more)] if more else []
        if self.differences:
            lines += ["", f"less that of {self.models[0].model}, 95 % intervals:"]
        lines += [f"  {difference}" for difference in self.differences]
        lines += ["", f"training loss of {counted(self.images, 'image')}; {self.estimator}; {self.seconds:.1f} s"]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "models": [each.to_dict() for each in self.models],
            "differences": [each.to_dict() for each in self.differences],
            "images": self.images,
            "estimator": self.estimator,
            "settings": self.settings,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON; the file appears whole or not at all."""
        write_json(Path(path), self.to_dict())


def _plain(estimate: Estimate | None, name: str = "value") -> Any:
    if estimate is None:
        return None
    low, high = estimate.interval
    return {name: estimate.value, "stderr": estimate.stderr, "low": low, "high": high, "samples": estimate.samples}


def _short(value: float) -> str:
    return f"{value:.4g}"


def _range(estimate: Estimate) -> str:
    return "exact" if not estimate.stderr else "[{:.4g}, {:.4g}]".format(*estimate.interval)


def _pm(estimate: Estimate) -> str:
    return f"{_short(estimate.value)} +- {_short(estimate.stderr)}" if estimate.stderr else f"{_short(estimate.value)}"
