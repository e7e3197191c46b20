"""What a shift towards an origin did: frozen, printable, JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolo_os.evaluation.bootstrap import Difference
from yolo_os.files import write_json

_WAYS = {True: "BatchNorm statistics moved with the weights", False: "BatchNorm statistics left as trained"}


@dataclass(frozen=True)
class MovedTensor:
    """A tensor on its way: its distance to the origin, before and after."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class StayedTensor:
    """A tensor that was left alone, and why; its distance to the origin where it has a counterpart there."""

    name: str
    reason: str
    distance: float | None = None


@dataclass(frozen=True)
class Figure:
    """A share's figures on one set of images.

    Attributes:
        map: VOC mAP (AP of 2010).
        gain: of that over staying, with its paired interval over images; None for staying itself.
        loss: training loss per image.
    """

    map: float
    gain: Difference | None = field(compare=False)
    loss: float | None

    def to_dict(self) -> dict[str, Any]:
        """`{"map", "gain": {"value", "low", "high", "stderr"} or None, "loss"}`."""
        names = ("value", "low", "high", "stderr")
        gain = None if self.gain is None else {name: getattr(self.gain, name) for name in names}
        return {"map": self.map, "gain": gain, "loss": self.loss}


@dataclass(frozen=True)
class ShareTrial:
    """One share that was judged.

    Attributes:
        share: of the way from the origin to the model.
        statistics: whether BatchNorm statistics go it too, or stay as the training left them.
        distance: of the parameters to the origin, relative to the norm of the origin's.
        new: figures on the data that the model was trained for.
        retained: figures on each set that must not get worse, by name.
    """

    share: float
    statistics: bool
    distance: float
    new: Figure
    retained: dict[str, Figure] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The figures on the new data beside the share; those on retained sets under `retained`."""
        retained = {name: figure.to_dict() for name, figure in self.retained.items()}
        where = {"share": self.share, "statistics": self.statistics}
        return {**where, **self.new.to_dict(), "distance": self.distance, "retained": retained}


@dataclass(frozen=True)
class Part:
    """How far the moved tensors of one part of the model are from the origin, relative to the origin's norm."""

    name: str
    tensors: int
    before: float
    after: float


@dataclass(frozen=True)
class TowardReport:
    """A shift towards an origin.

    Attributes:
        share: what is left of the way that the training went; 1: nothing moved.
        statistics: whether BatchNorm statistics moved too, or stay as the training left them.
        reason: why this share.
        tried: the shares judged in that way, from 1 down; 0 is the origin itself, judged where all of the model can
            move.
        otherwise: those judged in the other way of treating the statistics, if both were.
        moved, stayed: every tensor of the model.
        parts: the moved ones, summed up.
        origin: where the origin came from.
        images: how many decided, by set: `new` first.
        unused: mAP on the images of the new data that no decision used, before and after, and the paired gain; None
            where there were too few images to set any apart.
        unused_images: how many.
        retain_drop: most mAP that was allowed to be lost on a retained set.
        precision: of the weights that were judged, such as `float16`.
        warnings: what a person should know before using the weights.
    """

    share: float
    statistics: bool
    reason: str
    tried: tuple[ShareTrial, ...]
    otherwise: tuple[ShareTrial, ...]
    moved: tuple[MovedTensor, ...]
    stayed: tuple[StayedTensor, ...]
    parts: tuple[Part, ...]
    origin: str
    images: dict[str, int]
    unused: tuple[float, Figure] | None
    unused_images: int
    retain_drop: float | None
    precision: str
    warnings: tuple[str, ...] = ()

    def trial(self, share: float) -> ShareTrial:
        """The figures of a share, judged in the way that was taken."""
        return next(trial for trial in self.tried if trial.share == share)

    @property
    def verdict(self) -> str:
        """One sentence: what moved, and what that did to mAP."""
        if self.share == 1:
            return f"Nothing moved: {self.reason}; the weights are as they were."
        taken, stay = self.trial(self.share), self.trial(1.0)
        left = "" if self.statistics else ", BatchNorm statistics left as trained"
        text = f"Moved to {self.share:g} of the way from {self.origin}{left}: {self.reason}. "
        if self.unused is not None:
            before, after = self.unused
            text += f"On {self.unused_images} val images that no decision used, mAP {_change(before, after)}"
        else:
            text += f"On the {self.images['new']} val images that the share was chosen on, mAP "
            text += _change(stay.new.map, taken.new)
        for name, figure in taken.retained.items():
            text += f"; on {name} {_change(stay.retained[name].map, figure)}"
        return f"{text}."

    def __str__(self) -> str:
        """A table of the shares, one of what moved, and the verdict."""
        lines = [f"origin: {self.origin}", ""]
        if self.otherwise or not self.statistics:
            lines.append(_WAYS[self.statistics])
        lines += _columns(self.tried, self.share)
        if self.otherwise:
            lines += ["", _WAYS[not self.statistics], *_columns(self.otherwise, None)]
        lines += ["", f"{'':<34}{'tensors':>8}{'distance to the origin':>26}"]
        for part in self.parts:
            lines.append(f"{part.name:<34}{part.tensors:>8}{part.before:>15.4f} ->{part.after:>8.4f}")
        for reason, count in Counter(each.reason for each in self.stayed).items():
            lines.append(f"{'unchanged':<34}{count:>8}   {reason}")
        lines += ["", *(f"warning: {warning}" for warning in self.warnings), self.verdict]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, under the one key `toward`; what was not measured is None."""
        unused = None
        if self.unused is not None:
            unused = {"images": self.unused_images, "map_before": self.unused[0], **self.unused[1].to_dict()}
        return {
            "toward": {
                "share": self.share,
                "statistics": self.statistics,
                "reason": self.reason,
                "tried": [trial.to_dict() for trial in self.tried],
                "otherwise": [trial.to_dict() for trial in self.otherwise],
                "moved": [asdict(each) for each in self.moved],
                "stayed": [asdict(each) for each in self.stayed],
                "parts": [asdict(part) for part in self.parts],
                "origin": self.origin,
                "images": self.images,
                "unused": unused,
                "retain_drop": self.retain_drop,
                "precision": self.precision,
                "warnings": list(self.warnings),
                "verdict": self.verdict,
            }
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON; the file appears whole or not at all."""
        write_json(Path(path), self.to_dict())


def _change(before: float, figure: Figure) -> str:
    """`0.4790 -> 0.5510 (+0.0720 [+0.0430, +0.0940])`."""
    text = f"{before:.4f} -> {figure.map:.4f}"
    gain = figure.gain
    return text if gain is None else f"{text} ({gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}])"


def _columns(tried: Sequence[ShareTrial], taken: float | None) -> Iterator[str]:
    """The table of the shares: figures on the new data, then mAP and gain on each retained set."""
    names = list(tried[0].retained)
    head = f"{'share':>6}{'distance':>10}{'loss':>9}{'val mAP':>9}  {'gain [95%]':<27}"
    head += "".join(f"{_short(name):>19}  {'gain [95%]':<27}" for name in names)
    yield head.rstrip()
    yield "-" * len(head.rstrip())
    for trial in tried:
        loss = "-" if trial.new.loss is None else f"{trial.new.loss:.4f}"
        row = f"{trial.share:>6g}{trial.distance:>10.4f}{loss:>9}{trial.new.map:>9.4f}  {_interval(trial.new):<27}"
        row += "".join(f"{each.map:>19.4f}  {_interval(each):<27}" for each in trial.retained.values())
        yield row.rstrip() + ("  <- taken" if trial.share == taken else "")


def _short(name: str) -> str:
    """The end of a long name."""
    return name if len(name) <= 18 else f"...{name[-15:]}"


def _interval(figure: Figure) -> str:
    gain = figure.gain
    return "" if gain is None else f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
