"""Compare trainings: prepare the data, make the runs that are left, and say what they came to."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_os.comparison import engine
from yolo_os.comparison.arms import Arm
from yolo_os.comparison.plan import (
    FAILURE,
    MARGIN,
    RUN,
    Clock,
    Config,
    Job,
    Run,
    differing,
    digest,
    duration,
    make_plan,
    plain,
    runs_of,
    settings_of,
)
from yolo_os.comparison.results import MAIN, Measured, recorded, summarise
from yolo_os.errors import UserError
from yolo_os.files import discard_folder, make_folder, write_json
from yolo_os.integration.architecture import build
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.compare_arms import check_shift, settings_for
from yolo_os.integration.compare_data import Prepared, count_of, prepare, train_yaml
from yolo_os.integration.compare_run import run_job
from yolo_os.integration.data import class_names_of, image_size, task_of
from yolo_os.integration.guard import guarded
from yolo_os.integration.runtime import check_device, choose_device, device_name
from yolo_os.plots.compare_page import write_report
from yolo_os.shifter import check_finite
from yolo_os.terminal import counted

Say = Callable[[str], None]
REPLICATES = 400
_OVERHEAD = 10.0  # seconds of a run besides its batches: imports, scans, the last evaluations


def compare(
    config: Config,
    folder: Path,
    *,
    workers: int = 1,
    ray: str | bool | None = None,
    cpus: float = 1,
    gpus: float | None = None,
    replicates: int = REPLICATES,
    margin: float = MARGIN,
    say: Say = print,
) -> dict[str, Any]:
    """Make the runs of a comparison that are not done, and write its report; all figures as plain data.

    Args:
        config: what is compared.
        folder: where everything is kept; a comparison that is there already is gone on with.
        workers: processes at a time; 0: all in this process.
        ray: address of a Ray cluster whose machines share the folder, or `auto`; True: a new one, of this machine.
        cpus, gpus: what a task of Ray takes; None: a GPU where the cluster has any.
        replicates: drawn image sets.
        margin: a difference that is no larger is taken for none.
        say: is given lines of progress.

    Raises:
        UserError: for settings or data that can't be used, before anything is trained.
    """
    folder = folder.resolve()
    fresh = not folder.exists()
    make_folder(folder)
    with _alone_in(folder), guarded():  # once for all that is opened below, each with a guard of its own
        try:
            config = _looked_at(config)
            if not ray:
                _check_devices(config)
            models = _starts(config)
            model = models[config.model]
            jobs, prepared = _planned(config, folder, models)
            guess = None if _any_done(jobs) else _guess(config, model, list(prepared.values()))
        except UserError:
            if fresh:
                shutil.rmtree(folder)
                discard_folder(folder)  # with those that were made for it
            raise
        config.save(folder)
        warnings = [warning for each in prepared.values() for warning in each.warnings]
        for warning in warnings:
            say(f"warning: {warning}")
        measured = recorded(folder, replicates)
        clock = Clock(jobs, workers, guess)
        _make(jobs, measured, clock, ray, cpus, gpus, say)
        content = summarise(measured, margin)
        write_report(content, measured, folder)
    return content


def dry_run(config: Config, folder: Path, workers: int = 1, say: Say = print) -> float | None:
    """Print what would be done and how long it would take, and write nothing; the seconds, None where unknown.

    Raises:
        UserError: for settings or data that can't be used.
    """
    folder = folder.resolve()
    with tempfile.TemporaryDirectory() as scratch, guarded():
        config = _looked_at(config)
        models = _starts(config)
        model = models[config.model]
        known = make_plan(config, folder)
        names = class_names_of(model)
        prepared = {name: prepare(config, name, Path(scratch) / name, names, task_of(model)) for name in config.names()}
        _settings(config, models)
        for each in prepared.values():
            for warning in each.warnings:
                say(f"warning: {warning}")
            for fraction in config.fractions:
                count_of(fraction, each.train_images, each.train_yaml)
        mean = _guess(config, model, list(prepared.values()))
    say(f"{counted(len(runs_of(known)), 'run')} in {folder}:")
    for run in runs_of(known):
        state = "done" if run.done else f"failed ({run.failure}), again" if run.failure else "to do"
        what = f"shift of {run.after.arm.name}" if run.after else "training"
        say(f"  {run.label}: {what}, {state}")
    for name, each in prepared.items():
        said = f"{counted(each.train_images, 'image')} to learn from, {each.test_images} of {each.test_split}"
        say(f"{name}: {said} to evaluate on")
    left = Clock(known, workers, mean).left()
    say(f"estimated time: {duration(left)} (from {'finished runs' if _any_done(known) else 'one batch'}, so roughly)")
    return left


def _planned(config: Config, folder: Path, models: Mapping[str, nn.Module]) -> tuple[list[Job], dict[str, Prepared]]:
    """The jobs, each run's settings in its folder, and the data."""
    names, task = class_names_of(models[config.model]), task_of(models[config.model])
    jobs = make_plan(config, folder)
    trained = _settings(config, models)
    prepared = {name: prepare(config, name, folder / "data" / name, names, task) for name in config.names()}
    digests = {name: digest(Path(name)) for name in models}
    specs = {}
    for run in runs_of(jobs):
        common = trained[run.arm.after or run.arm.name]
        settings = settings_of(run, config, common, digests[common["model"]])
        run.check(settings)
        data = prepared[run.data]
        whole = {**common, "model": _whole(common["model"])}
        specs[run.folder] = {
            "arm": run.arm.name,
            "seed": run.seed,
            "data": run.data,
            "fraction": run.fraction,
            "settings": settings,
            "train": {"plots": False, "verbose": False, "deterministic": True, **whole},
            **{key: settings[key] for key in ("os", "jitter", "pull", "rate", "new_head", "shift")},
            "after": str(run.after.folder) if run.after else None,
            "data_yaml": _whole(train_yaml(data, run.fraction, run.seed, task)),
            "test_yaml": _whole(data.test_yaml),
            "test_split": data.test_split,
            "truth": str(data.truth),
            "trust": config.trust,
            "trace": config.trace,
        }
    for run in runs_of(jobs):  # only when all of them can be used
        _write_spec(run, plain(specs[run.folder]))
    return jobs, prepared


def _whole(name: str) -> str:
    """A path that means the same wherever a run is made."""
    return str(Path(name).resolve()) if Path(name).is_file() else name


def _write_spec(run: Run, spec: Mapping[str, Any]) -> None:
    """Leave a run's settings in its folder; what an unfinished one of other settings has left is removed."""
    file = run.folder / RUN
    if not run.done and file.is_file() and differing(spec["settings"], _read_json(file).get("settings") or {}):
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / FAILURE).unlink(missing_ok=True)
    write_json(file, spec)


def _make(
    jobs: list[Job],
    measured: Measured,
    clock: Clock,
    ray: str | bool | None,
    cpus: float,
    gpus: float | None,
    say: Say,
) -> None:
    """Make the runs that are left, and say what each came to."""
    left = [job for job in jobs if job.left]
    if len(left) < len(jobs):
        say(f"{sum(run.done for run in runs_of(jobs))} of {len(runs_of(jobs))} runs are done already")
    if left:
        say(f"about {duration(clock.left())} to go")

    def announce(job: Job) -> None:
        say(f"running: {'; '.join(run.label for run in job.left)}")

    def make_here(folders: list[Path]) -> None:
        run_job(folders, alone=False)

    if ray:
        gpus = (1.0 if torch.cuda.is_available() else 0.0) if gpus is None else gpus
        ended: Iterator[Job] = engine.ray_tasks(left, ray, cpus, gpus)
    elif clock.workers == 0:
        ended = engine.here(left, make_here, announce)
    else:
        ended = engine.processes(left, clock.workers, announce)
    for job in ended:
        for run in job.runs:
            say(_said(run, jobs, measured))
        time_left = clock.left()
        if time_left:
            say(f"about {duration(time_left)} left")


def _said(run: Run, jobs: list[Job], measured: Measured) -> str:
    """What a run came to, and what its arm has come to so far."""
    runs = runs_of(jobs)
    at = f"[{sum(each.done or each.failure is not None for each in runs)}/{len(runs)}] {run.label}"
    if run.failure:
        return f"{at}: failed: {run.failure}"
    known, result = measured.of(run), measured.result(run) or {}
    value = f"{known.means[MAIN][0]:.4f}" if known else "nothing"
    said = f"{at}: {value} in {duration(result.get('wall'))}"
    cells = [(data, fraction) for data, fraction in {(each.data, each.fraction) for each in runs if each.done}]
    cells = [cell for cell in cells if cell == (run.data, run.fraction)]
    difference = measured.difference(run.arm.name, cells) if run.arm.name != measured.config.arms[0].name else None
    if difference is None:
        return said
    seeds = f"{difference.seeds} seed{'s' if difference.seeds > 1 else ''}"
    return f"{said}; {difference} to {measured.config.arms[0].name} so far, {seeds}"


def _starts(config: Config) -> dict[str, nn.Module]:
    """The models that trainings start from, by file: that of all arms first, then those of arms with one of their own.

    Raises:
        UserError: if one can't be used, or is of another task than the first.
    """
    models = {config.model: _start(config.model, config.trust)}
    for arm in config.arms:
        name = _model_of(arm, config)
        if name in models:
            continue
        try:
            model = _start(name, config.trust)
        except UserError as error:
            raise UserError(f"arm {arm.name}: {error}") from None
        first = models[config.model]
        if task_of(model) != task_of(first):
            raise UserError(
                f"arm {arm.name}: model={name} is of the task {task_of(model)}, and {config.model} of {task_of(first)}"
            )
        models[name] = model
    return models


def _model_of(arm: Arm, config: Config) -> str:
    """The file that an arm starts from."""
    return str(arm.train.get("model", config.model))


def _settings(config: Config, models: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """By name of an arm that is trained, its keys of `yolo train`."""
    trained = [arm for arm in config.arms if arm.after is None]
    return {arm.name: settings_for(arm, config, _backbone(models[_model_of(arm, config)])) for arm in trained}


def _start(name: str, trust: bool) -> nn.Module:
    if name.endswith((".yaml", ".yml")):
        return build(name)
    model = load_checkpoint(name, trust).model
    try:
        check_finite(model)
    except UserError as error:
        raise UserError(f"model={name}: {error}") from None
    return model


def _backbone(model: nn.Module) -> int | None:
    """How many modules the backbone of a model has, by its architecture."""
    described = getattr(model, "yaml", None)
    parts = described.get("backbone") if isinstance(described, Mapping) else None
    return len(parts) if parts else None


def _any_done(jobs: Sequence[Job]) -> bool:
    return any(run.done for run in runs_of(jobs))


def _looked_at(config: Config) -> Config:
    """The comparison as its file will say it, with what its shifts name.

    Raises:
        UserError: for an arm that is wrong, or a file that is not there.
    """
    config = config.read_back()
    for arm in config.arms:
        check_shift(arm)
    return config


def _check_devices(config: Config) -> None:
    """Refuse devices that this machine does not have, before anything is written.

    Raises:
        UserError: naming one.
    """
    for arm in config.arms:
        if arm.after is None:
            check_device(arm.train.get("device", config.train.get("device")))


def _read_json(file: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _guess(config: Config, model: nn.Module, prepared: Sequence[Prepared]) -> float | None:
    """Seconds of a training of mean length, from one batch; None where the model does not run on one."""
    batch, epochs = config.train.get("batch", 16), config.train.get("epochs", 100)
    batch = batch if isinstance(batch, int) and batch > 0 else 16
    try:
        device = choose_device(device_name(config.train.get("device")).split(",")[0])
        size = image_size(model, config.train.get("imgsz"))
        copied = copy.deepcopy(model).float().train().to(device)
        images = torch.rand(batch, 3, size, size, device=device)
        for _ in range(2):  # the first one also warms up
            started = time.perf_counter()
            torch.autograd.backward([each.float().sum() for each in _tensors(copied(images))])
            seconds = (time.perf_counter() - started) / batch
    except (RuntimeError, UserError, AttributeError, TypeError):
        return None
    shares = [share if isinstance(share, float) else None for share in config.fractions]
    counts = [
        each.train_images * share if share is not None else count
        for each in prepared
        for share, count in zip(shares, config.fractions)
    ]
    # Loss, augmentation and validation take about half as much again.
    return float(1.5 * seconds * epochs * sum(counts) / len(counts) + _OVERHEAD)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Refuse to work in a folder in which another process does; the system forgets one that is killed.

    Raises:
        UserError: if another one does.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another yolo-os compare is at work in {folder}: wait for it, or give another name="
            ) from None
        yield
