"""What the runs of a comparison came to, as plain data: the one thing that tables, plots and pages are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolo_os.comparison.plan import DATA, FOUND, MARGIN, TRUTH, Config, Job, Run, cell_name, make_plan, runs_of
from yolo_os.comparison.resampling import METRICS, STEPS, Found, Replicates, Truth, draws, resample
from yolo_os.comparison.statistics import Difference, defined, holm, mean_of, paired, verdict, word
from yolo_os.evaluation.arrays import Floats
from yolo_os.evaluation.intervals import Evidence
from yolo_os.terminal import counted

MAIN = next(iter(METRICS))
_NOTHING = 0.01  # AP50-95 of a training that has not begun to work
Key = tuple[str, str, float | int, int]  # arm, data, fraction, seed


class Measured:
    """AP of the runs that are done, on the same drawn image sets; each is resampled once.

    Args:
        config: of the comparison.
        jobs: its plan.
        folder: where it is kept.
        replicates: how many image sets are drawn.
    """

    def __init__(self, config: Config, jobs: Sequence[Job], folder: Path, replicates: int) -> None:
        self.config, self.runs, self.replicates = config, runs_of(jobs), replicates
        self._folder = folder
        self._truths: dict[str, tuple[Truth, Any]] = {}
        self._known: dict[Path, Replicates] = {}
        self._results: dict[Path, dict[str, Any]] = {}

    def truth(self, data: str) -> tuple[Truth, Any]:
        """The ground truth of a data set, and the weights of the drawn image sets."""
        if data not in self._truths:
            truth = Truth.load(self._folder / "data" / data / TRUTH)
            self._truths[data] = truth, draws(len(truth.files), self.replicates)
        return self._truths[data]

    @property
    def warnings(self) -> list[str]:
        """What is to be said of the data."""
        files = [self._folder / "data" / data / DATA for data in self.config.names()]
        return [
            str(each)
            for file in files
            if file.is_file()
            for each in json.loads(file.read_text(encoding="utf-8"))["warnings"]
        ]

    def result(self, run: Run) -> dict[str, Any] | None:
        """What a run came to."""
        if run.folder not in self._results and (result := run.result) is not None:
            self._results[run.folder] = result
        return self._results.get(run.folder)

    def of(self, run: Run) -> Replicates | None:
        """AP of a run; None where it is not done."""
        if run.folder not in self._known and run.done:
            truth, weights = self.truth(run.data)
            self._known[run.folder] = resample(truth, Found.load(run.folder / FOUND), weights)
        return self._known.get(run.folder)

    def by_seed(self, arm: str, cells: Sequence[tuple[str, float | int]]) -> dict[int, list[Run]]:
        """The runs of an arm by seed, of those seeds that have all of some cells."""
        found: dict[int, list[Run]] = {}
        for run in self.runs:
            if run.arm.name == arm and (run.data, run.fraction) in cells and run.done:
                found.setdefault(run.seed, []).append(run)
        return {seed: runs for seed, runs in found.items() if len(runs) == len(cells)}

    def means(self, arm: str, cells: Sequence[tuple[str, float | int]], metric: str) -> dict[int, Floats]:
        """By seed, the metric of an arm as the mean over cells of one data set, shape (1 + replicates,)."""
        values = {}
        for seed, runs in self.by_seed(arm, cells).items():
            each = [known.means[metric] for known in map(self.of, runs) if known is not None]
            values[seed] = np.mean(each, axis=0)
        return values

    def difference(self, arm: str, cells: Sequence[tuple[str, float | int]], metric: str = MAIN) -> Difference | None:
        """An arm's difference to the reference over some cells; None where no seed has both."""
        reference = self.config.arms[0].name
        both = self.by_seed(arm, cells).keys() & self.by_seed(reference, cells).keys()
        if not both:
            return None
        parts = []
        for data in dict.fromkeys(data for data, _ in cells):
            here = [cell for cell in cells if cell[0] == data]
            mine, theirs = self.means(arm, here, metric), self.means(reference, here, metric)
            rows = defined(np.array([mine[seed] - theirs[seed] for seed in sorted(both)]))
            if not rows.size:
                return None
            truth, _ = self.truth(data)
            parts.append(paired(rows, truth.evidence, STEPS[metric], len(here)))
        return mean_of(parts)

    def differences(self, cells: Sequence[tuple[str, float | int]], metric: str = MAIN) -> dict[str, Difference]:
        """Of all arms but the reference that have one, with p-values by Holm."""
        found = {arm.name: self.difference(arm.name, cells, metric) for arm in self.config.arms[1:]}
        return holm({name: each for name, each in found.items() if each is not None})


def recorded(folder: Path, replicates: int) -> Measured:
    """The runs of the comparison in a folder, as far as they are done.

    Raises:
        UserError: if there is none.
    """
    config = Config.load(folder)
    return Measured(config, make_plan(config, folder.resolve()), folder.resolve(), replicates)


def summarise(measured: Measured, margin: float = MARGIN) -> dict[str, Any]:
    """All figures of a comparison, as plain types; see docs/compare.md.

    Args:
        measured: the runs that are done.
        margin: a difference that is no larger is taken for none.
    """
    config = measured.config
    cells = [(data, fraction) for data in config.names() for fraction in config.fractions]
    done = [cell for cell in cells if measured.by_seed(config.arms[0].name, [cell])]
    arms = _arms(measured, cells, margin)
    failures = [
        {"arm": run.arm.name, "seed": run.seed, "data": run.data, "fraction": run.fraction, "error": run.failure}
        for run in measured.runs
        if run.failure
    ]
    said = measured.warnings
    if len(config.seeds) == 1:
        said.append("one seed: the luck of training is in no interval, and no verdict can be given")
    if len(config.seeds) == 2:
        said.append("two seeds say little of the luck of training: take three or more for a verdict to rest on")
    if arms[0]["mean"] is not None and arms[0]["mean"] < _NOTHING:
        said.append(
            f"{arms[0]['name']} finds next to nothing (AP50-95 {arms[0]['mean']:.4f}): no training to compare with"
        )
    resumed = sum(bool((measured.result(run) or {}).get("resumed")) for run in measured.runs if run.after is None)
    if resumed:
        said.append(
            f"interrupted and resumed: {counted(resumed, 'training')}, with images in another order than those of the "
            "other arms, which widens intervals, and counted in no time"
        )
    return {
        "model": config.model,
        "reference": config.arms[0].name,
        "metric": METRICS[MAIN],
        "seeds": list(config.seeds),
        "replicates": measured.replicates,
        "margin": margin,
        "settings": config.to_dict(),
        "runs": {"planned": len(measured.runs), "done": sum(run.done for run in measured.runs)},
        "arms": arms,
        "cells": [
            {
                "data": data,
                "fraction": fraction,
                "name": cell_name(data, fraction),
                "images": len(measured.truth(data)[0].files),
                "arms": _arms(measured, [(data, fraction)], margin),
                "classes": _classes(measured, (data, fraction)),
            }
            for data, fraction in done
        ],
        "curves": _curves(measured, done[0]) if done else {},
        "failures": failures,
        "warnings": said,
        "verdict": _sentence(arms),
    }


def _arms(measured: Measured, cells: list[tuple[str, float | int]], margin: float) -> list[dict[str, Any]]:
    """A row for each arm: its mean, and its difference to the reference."""
    by_metric = {metric: measured.differences(cells, metric) for metric in METRICS}
    return [_arm(measured, arm.name, cells, by_metric, margin) for arm in measured.config.arms]


def _arm(
    measured: Measured,
    name: str,
    cells: list[tuple[str, float | int]],
    by_metric: Mapping[str, Mapping[str, Difference]],
    margin: float,
) -> dict[str, Any]:
    seeds = sorted(measured.by_seed(name, cells))
    metrics = {}
    for metric in METRICS:
        data = dict.fromkeys(data for data, _ in cells)
        per_data = [measured.means(name, [cell for cell in cells if cell[0] == each], metric) for each in data]
        values = [float(np.mean([part[seed][0] for part in per_data])) for seed in seeds]
        metrics[metric] = {**_spread(values), **_difference(by_metric[metric].get(name), name, measured)}
    row: dict[str, Any] = {"name": name, "seeds": seeds, **metrics[MAIN], "metrics": metrics}
    row |= _costs(measured, name, cells)
    difference = by_metric[MAIN].get(name)
    row["word"] = word(difference, margin) if difference else ""
    row["verdict"] = verdict(name, difference, margin) if difference else ""
    row["failed"] = sum(bool(run.failure) for run in measured.runs if run.arm.name == name)
    return row


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": values,
    }


def _difference(difference: Difference | None, name: str, measured: Measured) -> dict[str, Any]:
    if difference is not None:
        made = difference.to_dict()
        return {"difference": made.pop("value"), "pairs": made.pop("seeds"), **made}
    itself = name == measured.config.arms[0].name
    return dict.fromkeys(("difference", "low", "high"), 0.0 if itself else None)


def _costs(measured: Measured, name: str, cells: list[tuple[str, float | int]]) -> dict[str, Any]:
    """Norm of the head, seconds and memory relative to the reference's of the same seed, and the losses."""
    reference = measured.config.arms[0].name
    pairs = []
    for cell in cells:
        mine, theirs = measured.by_seed(name, [cell]), measured.by_seed(reference, [cell])
        for seed in mine.keys() & theirs.keys():
            pairs.append((measured.result(mine[seed][0]) or {}, measured.result(theirs[seed][0]) or {}))

    def ratio(key: str) -> float | None:
        known = [one[key] / other[key] for one, other in pairs if one.get(key) and other.get(key)]
        return float(np.mean(known)) if known else None

    def mean(*keys: str) -> float | None:
        values = []
        for result, _ in pairs:
            value: Any = result
            for key in keys:
                value = (value or {}).get(key)
            if value is not None:
                values.append(value)
        return float(np.mean(values)) if values else None

    return {
        "squared_norm": mean("squared_norm"),
        "squared_norm_ratio": ratio("squared_norm"),
        "trace": mean("trace"),
        "trace_ratio": ratio("trace"),
        "loss": {split: mean("loss", split) for split in ("train", "val", "test")},
        "seconds": mean("seconds"),
        "seconds_ratio": ratio("seconds"),
        "memory": mean("memory"),
        "memory_ratio": ratio("memory"),
    }


def _classes(measured: Measured, cell: tuple[str, float | int]) -> dict[str, list[dict[str, Any]]]:
    """By arm, AP50-95 of each class, and the difference to the reference; the interval is of this class alone."""
    truth, _ = measured.truth(cell[0])
    reference = {
        seed: measured.of(runs[0]) for seed, runs in measured.by_seed(measured.config.arms[0].name, [cell]).items()
    }
    holding = truth.holding
    table: dict[str, list[dict[str, Any]]] = {}
    for arm in measured.config.arms:
        mine = {seed: measured.of(runs[0]) for seed, runs in measured.by_seed(arm.name, [cell]).items()}
        both = [(mine[seed], reference[seed]) for seed in mine if seed in reference]
        rows = []
        for index, name in enumerate(truth.classes):
            values = [each.classes[0, index] for each in mine.values() if each is not None]
            mean, where = float(np.mean(values)) if values else None, holding[index]
            row: dict[str, Any] = {"name": name, "boxes": len(where), "mean": mean}
            differences = [a.classes[:, index] - b.classes[:, index] for a, b in both if a and b]
            drawn = defined(np.array(differences)) if differences else np.zeros((0, 0))
            if arm.name != measured.config.arms[0].name and drawn.shape[1] > 2 and len(where):
                made = paired(drawn, Evidence.of([where]), STEPS[MAIN])
                row |= {"difference": made.value, "low": made.low, "high": made.high}
            rows.append(row)
        table[arm.name] = [row for row in rows if row["boxes"]]
    return table


def _curves(measured: Measured, cell: tuple[str, float | int]) -> dict[str, list[dict[str, Any]]]:
    """By arm that is trained, the curves of its runs on one cell."""
    return {
        arm.name: [
            {"seed": seed, **(measured.result(runs[0]) or {}).get("curves", {})}
            for seed, runs in measured.by_seed(arm.name, [cell]).items()
        ]
        for arm in measured.config.arms
        if not arm.after
    }


def _sentence(arms: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for all arms."""
    said = [arm["verdict"] for arm in arms[1:] if arm["verdict"]]
    missing = [arm["name"] for arm in arms[1:] if not arm["verdict"]]
    if missing:
        said.append(f"{', '.join(missing)}: no result yet")
    return "; ".join(said) + "."
