"""When to shift during training: every so many optimizer steps or epochs, from a share of the training to another."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from yolo_os.errors import UserError
from yolo_os.recipe import training_settings
from yolo_os.settings import Key

# Their defaults are those of `configs/train.yaml` (see `recipe.training_settings`).
SCHEDULE_KEYS = (
    Key(
        "every",
        (int, str, type(None)),
        None,
        "a number of optimizer steps, or of epochs as in 2epochs; None: no shift during training, only the final one",
        filled=False,
    ),
    Key("start", (float,), None, "share of the training after which the first shift may come", filled=False),
    Key("end", (float,), None, "share of the training after which no more shifts come", filled=False),
)


@dataclass(frozen=True)
class Schedule:
    """When to shift: validated on construction, and without a state of its own, so that a resumed training goes on.

    Attributes:
        every: a number of optimizer steps, or text such as `epoch`, `2epochs` or `100steps`; None: never.
        start, end: shares of the training, 0 <= start < end <= 1, between which shifts come.

    Raises:
        UserError: on construction, naming the setting, what it takes and what it got.
    """

    every: int | str | None = field(default_factory=lambda: training_settings()["every"])
    start: float = field(default_factory=lambda: training_settings()["start"])
    end: float = field(default_factory=lambda: training_settings()["end"])

    def __post_init__(self) -> None:
        """Check every setting."""
        for key in SCHEDULE_KEYS:
            object.__setattr__(self, key.name, key.check(getattr(self, key.name)))
        self._parsed()
        if not 0 <= self.start < 1:
            raise UserError(f"start={self.start}: takes a share of the training from 0, below 1")
        if not 0 < self.end <= 1:
            raise UserError(f"end={self.end}: takes a share of the training above 0, up to 1")
        if self.start >= self.end:
            raise UserError(f"start={self.start} is not before end={self.end}: no shift would ever come")

    @property
    def steps(self) -> int | None:
        """The number of optimizer steps from shift to shift; None where epochs are counted."""
        count, unit = self._parsed()
        return count if unit == "step" else None

    @property
    def epochs(self) -> int | None:
        """The number of epochs from shift to shift; None where steps are counted."""
        count, unit = self._parsed()
        return count if unit == "epoch" else None

    def beyond(self, steps: int, epochs: int) -> bool:
        """Whether a training of at most so many steps and epochs ends before the first shift could come."""
        return (self.steps or 0) > steps or (self.epochs or 0) > epochs

    def count(self, batches: int, accumulate: int, epochs: int) -> int:
        """About how many shifts come in a training: by epochs of so many batches, that many of which make a step.

        Batches that are over at the end of an epoch go into the first step of the next, as Ultralytics has it.
        """
        shifts, last, current = 0, 0, -1
        for step, ended in enumerate(range(accumulate - 1, batches * epochs, accumulate), 1):
            epoch, batch = divmod(ended, batches)
            if epoch > current:
                last, current = max(last, self.period(step - 1, epoch - 1)), epoch
            if self.due(step, epoch, last, batch / batches, epochs):
                shifts, last = shifts + 1, self.period(step, epoch)
        return shifts

    def due(self, step: int, epoch: int, last: int, done: float, epochs: int) -> bool:
        """Whether a shift comes in a step.

        Args:
            step: counted from 1.
            epoch: the step's, counted from 0.
            last: the period of the shift before.
            done: share of the epoch before the step's last batch.
            epochs: of the training. Where these are counted, they count as within `start` and `end` by their beginning.
        """
        progress = (epoch + (done if self.steps else 0.0)) / max(epochs, 1)
        return self.period(step, epoch) > last and self.within(progress)

    def period(self, step: int, epoch: int) -> int:
        """How many shifts would have come by an optimizer step, counted from 1, of an epoch, counted from 0.

        A shift is due in the first step whose period is above that of the last one made. By epochs, that is the
        first step after every so many epochs.
        """
        if self.steps:
            return step // self.steps
        return max(epoch, 0) // self.epochs if self.epochs else 0

    def within(self, progress: float) -> bool:
        """Whether shifts come at this share of the training."""
        return self.start <= progress <= self.end

    def to_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return {"every": self.every, "start": self.start, "end": self.end}

    def __str__(self) -> str:
        """Such as: every 2 epochs from 70% to 100% of the training."""
        count, unit = self._parsed()
        often = f"every {unit}" if count == 1 else f"every {count} {unit}s"
        return f"{often} from {self.start:.0%} to {self.end:.0%} of the training" if count else "never"

    def _parsed(self) -> tuple[int, str]:
        if self.every is None:
            return 0, ""
        found = re.fullmatch(r"(\d*)\s*(step|epoch|)s?", str(self.every).strip())
        count = int(found[1] or 1) if found and (found[1] or found[2]) else 0
        if found is None or count < 1:
            raise UserError(
                f"every={self.every}: takes a number of optimizer steps from 1, epochs as in epoch or 2epochs, or None"
            )
        return count, found[2] or "step"
