"""`shifts.csv`: what every shift during a training did to every layer, and the totals that go into `results.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_os.files import written_whole
from yolo_os.training.step import StepReport

COLUMNS = (
    "step",
    "epoch",
    "layer",
    "role",
    "m",
    "n",
    "rank",
    "rows",
    "largest",
    "smallest",
    "norm_before",
    "norm_after",
    "keep",
    "residual",
    "loss_before",
    "loss_after",
    "reverted",
    "note",
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of `shifts.csv` or `results.csv`, by column, as text; an older `shifts.csv` in today's columns."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    for row in rows:
        if "taken_back" in row:
            row["reverted"] = row.pop("taken_back")
            row["keep"] = f"{float(row.pop('norm_ratio')) ** 2:.6g}"
    return rows


def epochs_in(path: Path) -> list[dict[str, Any]]:
    """The rows of `results.csv`, one for each epoch, by column, as text.

    Ultralytics writes an epoch's row before the checkpoint that a resumed training goes on from, so a training killed
    between the two has that epoch twice. The later row is that of the weights that went on. A row that was cut is left
    out.
    """
    whole = [row for row in read_rows(path) if None not in row and None not in row.values()]
    return list({row["epoch"]: row for row in whole}.values())


def shifts_in(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each shift that stands or was reverted, of the rows of all layers; not of one that moved nothing."""
    return list({row["step"]: row for row in rows if int(row["reverted"]) or not row["note"]}.values())


def extremes(singular_values: Sequence[float]) -> dict[str, float]:
    """The largest and the smallest of the singular values of A; none where nothing was solved."""
    return {"largest": singular_values[0], "smallest": singular_values[-1]} if singular_values else {}


@dataclass
class ShiftLog:
    """The shifts of a training so far, in a CSV file that is whole after each.

    Attributes:
        path: of the file; None for a process that writes none (its totals count all the same).
        shifts, reverted: how many stand, and how many were reverted.
        keep: share of the squared norm that the shifts of the present epoch left.
        rises: relative rises of the loss on the batch, of the shifts of the present epoch that stand.
    """

    path: Path | None
    shifts: int = 0
    reverted: int = 0
    keep: float = 1.0
    rises: list[float] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def begin(self, resumed: bool) -> None:
        """Start the file: empty, or with what an interrupted training has left in it."""
        if self.path is not None:
            if resumed and self.path.exists():
                self._rows = read_rows(self.path)
            self._save()

    def begin_epoch(self, step: int) -> None:
        """Forget shifts after an optimizer step: an epoch that is done again, after NaN or an interruption."""
        self.keep, self.rises = 1.0, []
        rows = [row for row in self._rows if int(row["step"]) <= step]
        if len(rows) < len(self._rows):
            self._rows = rows
            self._save()
        made = shifts_in(rows)
        self.reverted = sum(bool(int(row["reverted"])) for row in made)
        self.shifts = len(made) - self.reverted

    def add(self, step: int, epoch: int, report: StepReport) -> None:
        """Note a shift: step counted from 1, epoch from 1 as in `results.csv`."""
        self.shifts += report.moved
        self.reverted += report.reverted
        self.keep *= report.keep
        if report.moved:
            self.rises.append(report.rise)
        rows = [
            {
                "step": step,
                "epoch": epoch,
                "layer": layer.name,
                **{name: getattr(layer, name) for name in ("role", "m", "n", "rank", "rows")},
                **{name: f"{getattr(layer, name):.6g}" for name in ("norm_before", "norm_after", "keep", "residual")},
                **{name: f"{value:.6g}" for name, value in extremes(layer.singular_values).items()},
                "loss_before": f"{report.loss_before:.6g}",
                "loss_after": f"{report.loss_after:.6g}",
                "reverted": int(report.reverted),
                "note": layer.unchanged or "",
            }
            for layer in report.layers
        ]
        self._rows += rows
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)  # as Ultralytics does for its own
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)

    def totals(self) -> dict[str, float]:
        """The columns of this epoch for `results.csv`.

        None of the names holds `loss` or `metric`: Ultralytics would draw them among its own in `results.png`.
        """
        return {
            "os/shifts": self.shifts,
            "os/reverted": self.reverted,
            "os/keep": self.keep,
            "os/rise": sum(self.rises) / len(self.rises) if self.rises else 0.0,
        }

    def _save(self) -> None:
        if self.path is None:
            return
        with written_whole(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)
