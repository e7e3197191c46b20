"""The plan of a comparison: which run is made of which settings, in which folder, and which of them are done."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_os.comparison.arms import Arm, read_arms
from yolo_os.errors import UserError
from yolo_os.files import file_name, write_text
from yolo_os.plain_yaml import read_yaml

CONFIG, RUN, RESULT, FAILURE = "compare.yaml", "run.json", "result.json", "failure.json"
REPORT = "compare.json"  # what the comparison came to
FOUND = "test.npz"  # what a run's detector found on the test images
DATA, TRUTH = "data.json", "truth.npz"  # of a data set: how its splits were settled, and what is on the test images
WHOLE = 1.0  # of a fraction: all of train
TESTS = ("test", "train", "val")
MARGIN = 0.005  # a difference that is none: half a point of mAP, about what one stock training differs from the next


@dataclass(frozen=True)
class Config:
    """All settings of a comparison.

    Attributes:
        model: checkpoint that every training starts from, or an architecture.
        data: data sets, as `yolo train` takes them, or VOCdevkit folders.
        arms: the first is the reference.
        seeds: of the trainings, shared by all arms.
        fractions: parts of train that are learned from, as shares or numbers of images.
        train: keys of `yolo train` that all arms share.
        test: what is evaluated on: `test`, a part of `train` that is drawn off, or `val`; None: the first there is.
        held_out: share of train that is drawn off where there is no test split.
        new_head: draw the last module's weights anew from the seed, whatever the model's head has learned.
        trust: let checkpoints be unpickled as Ultralytics does.
        trace: of which weights the trace of the loss's Hessian is taken (see docs/flatness.md); None: of none.
    """

    model: str
    data: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    fractions: tuple[float | int, ...] = (WHOLE,)
    train: dict[str, Any] = field(default_factory=dict)
    test: str | None = None
    held_out: float = 0.2
    new_head: bool = False
    trust: bool = False
    trace: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as `from_dict` takes them."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        lists: dict[str, Any] = {name: list(named[name]) for name in ("data", "seeds", "fractions")}
        return {**named, **lists, "arms": [arm.to_dict() for arm in self.arms]}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Config:
        """A configuration of what `to_dict` made."""
        lists: dict[str, Any] = {name: tuple(settings[name]) for name in ("data", "seeds", "fractions")}
        return cls(**{**settings, **lists, "arms": read_arms(settings["arms"])})

    def save(self, folder: Path) -> None:
        """Write it into the folder of the comparison, which then needs nothing else to be gone on with or reported."""
        import yaml

        write_text(folder / CONFIG, yaml.safe_dump(self.to_dict(), sort_keys=False))

    def read_back(self) -> Config:
        """What it would be read as from its file, so that what is made in Python is looked at as what a file says.

        Raises:
            UserError: for an arm that is wrong, or a value that no file holds.
        """
        import yaml

        try:
            return Config.from_dict(yaml.safe_load(yaml.safe_dump(self.to_dict())))
        except yaml.YAMLError as error:
            raise UserError(f"a setting is neither text nor a plain number ({' '.join(str(error).split())})") from None

    @classmethod
    def load(cls, folder: Path) -> Config:
        """That of the comparison in a folder.

        Raises:
            UserError: if there is none.
        """
        file = folder / CONFIG
        if not file.is_file():
            raise UserError(f"folder={folder}: holds no comparison (no {CONFIG})")
        try:
            return cls.from_dict(read_yaml(file))
        except (KeyError, TypeError) as error:
            raise UserError(f"{file}: is no configuration of a comparison ({error})") from None

    def names(self) -> dict[str, str]:
        """The data sets by a short name, which their rows and folders have."""
        short: dict[str, str] = {}
        for data in self.data:
            path = Path(data)
            stem = path.parent.name if path.stem == "data" and path.parent.name else path.stem
            name, number = file_name(stem or "data"), 2
            while name in short:
                name, number = f"{file_name(stem)}-{number}", number + 1
            short[name] = data
        return short


@dataclass(frozen=True)
class Run:
    """One training, or one shift of what a training made.

    Attributes:
        arm: of the comparison.
        seed: of the training.
        data: short name of the data set.
        fraction: of train.
        folder: where it is kept.
        after: the training that a shift starts from.
    """

    arm: Arm
    seed: int
    data: str
    fraction: float | int
    folder: Path
    after: Run | None = None

    @property
    def label(self) -> str:
        """What progress calls it."""
        return f"{self.arm.name}, seed {self.seed}, {cell_name(self.data, self.fraction)}"

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return (self.folder / RESULT).is_file()

    @property
    def result(self) -> dict[str, Any] | None:
        """What it came to; None where it is not done."""
        return json.loads((self.folder / RESULT).read_text(encoding="utf-8")) if self.done else None

    @property
    def failure(self) -> str | None:
        """Why it failed; None where it did not."""
        file = self.folder / FAILURE
        if self.done or not file.is_file():
            return None
        return str(json.loads(file.read_text(encoding="utf-8"))["error"])

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse to take a result for that of other settings.

        Raises:
            UserError: naming a setting that differs.
        """
        result = self.result
        if result is None:
            return
        made = result.get("settings", {})
        differ = differing(settings, made)
        if differ:
            key = differ[0]
            was, now = made.get(key), settings.get(key)
            raise UserError(
                f"{self.folder} was made with other settings ({key}: {was}, now {now}): give this comparison another "
                "name=, or remove that folder to make it again"
            )


@dataclass(frozen=True)
class Job:
    """What one process does: a training and the shifts that start from it."""

    runs: tuple[Run, ...]

    @property
    def left(self) -> tuple[Run, ...]:
        """Those that are not done."""
        return tuple(run for run in self.runs if not run.done)


def make_plan(config: Config, folder: Path) -> list[Job]:
    """All jobs, seed by seed, so that every arm has as many as the others when a comparison is broken off."""
    jobs = []
    for seed in config.seeds:
        for data in config.names():
            for fraction in config.fractions:
                where = folder / "runs" / cell_name(data, fraction)
                made: dict[str, list[Run]] = {}
                for arm in config.arms:
                    origin = made[arm.after][0] if arm.after else None
                    run = Run(arm, seed, data, fraction, where / f"{arm.name}-{seed}", origin)
                    made[arm.after or arm.name] = [*made.get(arm.after or arm.name, []), run]
                jobs += [Job(tuple(runs)) for runs in made.values()]
    return jobs


def runs_of(jobs: Iterable[Job]) -> list[Run]:
    """The runs of all jobs."""
    return [run for job in jobs for run in job.runs]


def cell_name(data: str, fraction: float | int) -> str:
    """A data set, and the part of its train split, in a name."""
    if fraction == WHOLE and isinstance(fraction, float):
        return data
    return f"{data}-{fraction}"


def settings_of(run: Run, config: Config, common: Mapping[str, Any], model_digest: str | None) -> dict[str, Any]:
    """What a result depends on, to tell whether it is that of these settings.

    Args:
        run: in question.
        config: of the comparison.
        common: keys of `yolo train` of this run, factors applied.
        model_digest: of the file that this one starts from.
    """
    settings = {
        "model": common["model"],
        "model_sha256": model_digest,
        "data": config.names()[run.data],
        "fraction": run.fraction,
        "train": {key: value for key, value in common.items() if key not in ("device", "workers", "plots", "verbose")},
        "os": run.arm.os,
        "jitter": run.arm.jitter,
        "pull": run.arm.pull,
        "rate": run.arm.rate,
        "new_head": config.new_head,
        "after": run.arm.after,
        "shift": run.arm.shift,
    }
    return {key: plain(value) for key, value in settings.items()}


def differing(settings: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """The settings that are not those that something was made with; one that is missing is None."""
    return [key for key in {**settings, **made} if plain(settings.get(key)) != made.get(key)]


def plain(value: Any) -> Any:
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


class Clock:
    """How long what is left will take, from what is done and a first guess."""

    def __init__(self, jobs: Sequence[Job], workers: int, guess: float | None = None) -> None:
        self.jobs, self.workers, self.guess = jobs, workers, guess

    def left(self) -> float | None:
        """Seconds until all is done; None while nothing is known."""
        known: dict[str, list[float]] = {}
        for run in runs_of(self.jobs):
            result = run.result
            if result and result.get("wall") is not None:
                known.setdefault(run.arm.name, []).append(result["wall"])
        trained = [value for run in runs_of(self.jobs) if not run.after for value in known.get(run.arm.name, [])]
        mean = statistics.fmean(trained) if trained else self.guess
        total = 0.0
        for run in (run for job in self.jobs for run in job.left):
            if run.failure:
                continue
            if run.arm.name in known:
                total += statistics.fmean(known[run.arm.name])
            elif mean is None:
                return None
            else:
                total += mean * (0.2 if run.after else 1.0)
        return total / max(1, self.workers)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "an unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def digest(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
