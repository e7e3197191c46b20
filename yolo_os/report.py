"""What a shift did, layer by layer and to the model: frozen, printable, JSON, plots."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from yolo_os.files import write_json
from yolo_os.heads import PredictionLayer
from yolo_os.methods.base import Moved, Outcome, System, Unchanged
from yolo_os.recipe import HARMFUL_RISE, ShiftRecipe
from yolo_os.terminal import counted

# Of a number rounded to a precision: half the distance of two neighbours, relative.
_ROUNDING = {"float16": 4.9e-4, "bfloat16": 3.9e-3, "float32": 6.0e-8, "float64": 1.1e-16}


@dataclass(frozen=True)
class Trial:
    """One strength of a shift that was judged, or taken without a judge.

    Attributes:
        keep: share of the squared norm of all prediction layers together that it leaves.
        mu: the multiplier of a loss-aware method, in units of the loss per squared norm; None for another.
        predicted: rise of the loss by the method's own model of it, in units of the loss; None if it has none.
        rise: relative rise of the figure that judged; None if nothing did.
        passed: whether both rises are within the tolerance.
        predicted_share: the predicted rise, relative to the figure; None without either.
        figure: what was measured with these weights, such as the training loss; None if nothing was.
    """

    keep: float
    mu: float | None
    predicted: float | None
    rise: float | None
    passed: bool
    predicted_share: float | None = None
    figure: float | None = None


@dataclass(frozen=True)
class LayerReport:
    """What happened to one prediction layer.

    Attributes:
        name, role, level, stride: as in `PredictionLayer`.
        m, n: input features and outputs.
        rank: of the rows solved for (budget: of an even draw of all rows); None if nothing was solved.
        rows: how many these are.
        sampling: how the rows were drawn; None where all were used.
        norm_before, norm_after: Frobenius norm of V.
        residual: ||A V' - A V|| / ||A V|| on the rows solved for; None if nothing was solved.
        drift: the same on all anchor points of the held-out images; None without these.
        outcome: that the weights moved, or why they are as they were.
        singular_values: of A, largest first.
        chosen: whether the shift was to move it, so that a recipe's `keep` counts it.
    """

    name: str
    role: str
    level: int
    stride: float | None
    m: int
    n: int
    norm_before: float
    norm_after: float
    rank: int | None = None
    rows: int | None = None
    sampling: str | None = None
    residual: float | None = None
    drift: float | None = None
    outcome: Outcome = field(default_factory=Moved)
    singular_values: tuple[float, ...] = field(default=(), repr=False)
    chosen: bool = True

    @classmethod
    def of(
        cls, layer: PredictionLayer, before: Tensor, after: Tensor, system: System | None, **more: Any
    ) -> LayerReport:
        """The report of a layer whose V was `before` and is `after`, both (m, n), and the system that was solved."""
        return cls(
            layer.name,
            layer.role,
            layer.level,
            layer.stride,
            layer.in_features,
            layer.out_features,
            float(before.norm()),
            float(after.norm()),
            rank=system.rank if system else None,
            rows=system.rows if system else None,
            sampling=system.sampling if system else None,
            singular_values=tuple(system.singular_values.tolist()) if system else (),
            **more,
        )

    @property
    def keep(self) -> float:
        """Share of the squared norm of V that is left."""
        return kept([self])

    @property
    def unchanged(self) -> str | None:
        """Why the weights are as they were; None if they moved."""
        return self.outcome.reason if isinstance(self.outcome, Unchanged) else None

    @property
    def norm_ratio(self) -> float:
        """Norm after, relative to before: the root of `keep`, its name until version 0.1."""
        return math.sqrt(self.keep)

    @property
    def skipped(self) -> str | None:
        """`unchanged` by its name until version 0.1."""
        return self.unchanged

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "outcome"}
        return own | {"keep": self.keep, "unchanged": self.unchanged, "skipped": self.unchanged}


def kept(layers: Iterable[LayerReport]) -> float:
    """Share of the squared norm of layers together that is left; 1 where there was none."""
    pairs = [(layer.norm_before, layer.norm_after) for layer in layers]
    before, after = sum(old**2 for old, _ in pairs), sum(new**2 for _, new in pairs)
    return after / before if before else 1.0


@dataclass(frozen=True)
class LossReport:
    """The training loss over some images, before and after: `total` and its terms, means per image."""

    images: int
    before: dict[str, float]
    after: dict[str, float]

    @property
    def rise(self) -> float | None:
        """The rise of the total, relative; None if it was not measured."""
        if not self.before.get("total") or "total" not in self.after:
            return None
        return self.after["total"] / self.before["total"] - 1


@dataclass(frozen=True)
class TraceChange:
    """The trace of the Hessian of the training loss before and after, over some images and weights.

    Attributes:
        layers: which weights, as `flatness.detector.chosen` takes them.
        images: how many the loss is over.
        before, after: traces.
        low, high: 95 % interval of after - before; both the difference itself where it is exact.
    """

    layers: str
    images: int
    before: float
    after: float
    low: float
    high: float

    def __str__(self) -> str:
        """One line."""
        share = f" ({self.after / self.before - 1:+.1%})" if self.before else ""
        known = "exact" if self.low == self.high else f"95 % [{self.low:+.4g}, {self.high:+.4g}]"
        what = {"head": "over the prediction layers", "all": "over all weights"}.get(self.layers, f"over {self.layers}")
        change = f"{self.before:.4g} -> {self.after:.4g}{share}, {known}"
        return f"trace of the Hessian {what}, {counted(self.images, 'image')}: {change}"


@dataclass(frozen=True)
class ShiftReport:
    """A shift of a model.

    Attributes:
        recipe: what was asked for.
        layers: every prediction layer of the head, unchanged ones with their reason.
        calibration: loss on the images that the shift used.
        held_out: loss on images that it did not use.
        precision: to which the weights that were judged and measured are rounded, such as `float16`.
        seconds: by phase.
        trials: the candidates that were tried, the strongest first, and what the judge said.
        warnings: what a person should know before using the weights.
        trace: of the Hessian, before and after; None where it was not asked for.
    """

    recipe: ShiftRecipe
    layers: tuple[LayerReport, ...]
    calibration: LossReport
    held_out: LossReport
    precision: str
    seconds: dict[str, float]
    trials: tuple[Trial, ...] = ()
    warnings: tuple[str, ...] = ()
    trace: TraceChange | None = None

    @property
    def keep(self) -> float:
        """Share of the squared norm of all prediction layers together that is left, those that stayed included."""
        return kept(self.layers)

    @property
    def norm_ratio(self) -> float:
        """||V'|| / ||V||: the root of `keep`, its name until version 0.1."""
        return math.sqrt(self.keep)

    @property
    def moved(self) -> tuple[LayerReport, ...]:
        """The layers whose weights moved."""
        return tuple(layer for layer in self.layers if layer.unchanged is None)

    @property
    def loss(self) -> LossReport:
        """The loss that judges the shift: on held-out images, or where there are none on the calibration images."""
        return self.held_out if self.held_out.images else self.calibration

    @property
    def verdict(self) -> str:
        """One sentence: what the shift did, and whether it cost anything."""
        if not self.moved:
            declined = bool(self.trials) and not self.trials[-1].passed
            why = "the guard let no shift pass" if declined else "no layer could be shifted"
            return f"Nothing moved: {why}; the weights are as they were."
        text = f"The squared norm of the prediction layers fell to {self.keep:.1%}"
        rise = self.loss.rise
        if rise is None:
            return f"{text}; no training loss could be measured, so what that cost is unknown."
        if not math.isfinite(rise):
            return f"{text}, but the training loss is no number any more: this shift does harm."
        where = (
            ("images that only the guard used" if self.trials else "images it did not use")
            if self.held_out.images
            else "its own calibration images (none were held out)"
        )
        moved = f"{'rose' if rise > 0 else 'fell'} by {abs(rise):.2%}" if abs(rise) >= 5e-5 else "stayed to 0.01%"
        change = f"the training loss on {where} {moved}"
        if rise > HARMFUL_RISE:
            return f"{text}, but {change}: this shift does harm."
        return f"{text}; {change}. Whether it generalises better is for a test set to say (yolo-os val)."

    def __str__(self) -> str:
        """A table of the layers, the loss and the verdict."""
        width = max(16, *(len(layer.name) + 1 for layer in self.layers))
        head = f"{'layer':<{width}}{'role':<9}{'m':>5}{'n':>5}{'rank':>6}{'rows':>9}{'norm':>9}{'->':>9}{'keep':>8}"
        head += f"{'residual':>10}{'drift':>8}"
        lines = [head, "-" * len(head)]
        for layer in self.layers:
            lines.append(
                f"{layer.name:<{width}}{layer.role:<9}{layer.m:>5}{layer.n:>5}{_count(layer.rank):>6}{_count(layer.rows):>9}"
                f"{layer.norm_before:>9.3f}{layer.norm_after:>9.3f}{layer.keep:>8.3f}{_small(layer.residual):>10}{_small(layer.drift):>8}"
            )
            if layer.unchanged:
                lines.append(f"{'':<{width}}unchanged: {layer.unchanged}")
        lines.append("")
        for title, loss in (("calibration", self.calibration), ("held-out", self.held_out)):
            if loss.before and loss.after:
                terms = ", ".join(f"{name} {loss.before[name]:.4f} -> {loss.after[name]:.4f}" for name in loss.before)
                rise = f" ({loss.rise:+.2%})" if loss.rise is not None else ""
                lines.append(f"training loss, {counted(loss.images, f'{title} image')}: {terms}{rise}")
        if self.trace is not None:
            lines.append(str(self.trace))
        lines += self._share_of_chosen()
        judged = [trial for trial in self.trials if trial.rise is not None]
        if judged:
            on = "held-out" if self.held_out.images else "calibration"
            lines.append(f"guard, judging by the loss on {counted(self.loss.images, f'{on} image')}:")
        for trial in judged:
            answer = "accepted" if trial.passed else "too much"
            by = "" if trial.predicted_share is None else f" (predicted {trial.predicted_share:+.3%})"
            lines.append(f"  {trial.keep:.1%} of the squared norm left, loss {trial.rise:+.3%}{by}: {answer}")
        if any(layer.residual is not None for layer in self.layers):
            lines.append(
                f"measured with the weights in {self.precision}, as the file holds them:"
                f" rounding alone makes residuals of {_ROUNDING.get(self.precision, 0.0):.0e}"
            )
        lines.append("seconds: " + ", ".join(f"{phase} {spent:.2f}" for phase, spent in self.seconds.items()))
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines.append(self.verdict)
        return "\n".join(lines)

    def _share_of_chosen(self) -> list[str]:
        """What is to be said of shares where only some layers were chosen, which `keep` of a recipe counts alone."""
        chosen = [layer for layer in self.layers if layer.chosen]
        if len(chosen) == len(self.layers) or not chosen:
            return []
        whole = sum(layer.norm_before**2 for layer in self.layers) or 1.0
        share = sum(layer.norm_before**2 for layer in chosen) / whole
        asked = f", of which keep={self.recipe.keep:g} was asked" if self.recipe.method == "budget" else ""
        return [
            f"shares of the squared norm below are of all {counted(len(self.layers), 'layer')}; the {len(chosen)}"
            f" chosen {'holds' if len(chosen) == 1 else 'hold'} {share:.1%} of it{asked}: {kept(chosen):.1%} of theirs"
            " is left"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; what was not measured is None."""
        return {
            "method": self.recipe.method,
            "recipe": self.recipe.to_dict(),
            "keep": self.keep,
            "norm_ratio": self.norm_ratio,
            "loss_before": self.loss.before.get("total"),
            "loss_after": self.loss.after.get("total"),
            "loss": {"calibration": asdict(self.calibration), "held_out": asdict(self.held_out)},
            "layers": [layer.to_dict() for layer in self.layers],
            "guard": [asdict(trial) for trial in self.trials],
            "precision": self.precision,
            "trace": self.trace and asdict(self.trace),
            "seconds": self.seconds,
            "warnings": list(self.warnings),
            "verdict": self.verdict,
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON; the file appears whole or not at all."""
        write_json(Path(path), self.to_dict())


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if value < 1e-3 else f"{value:.4f}"
