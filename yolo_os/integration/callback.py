"""Optimum shifting during an Ultralytics training: callbacks on a stock `YOLO`, no trainer of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import autocast

from yolo_os.distributed import agreed, alone, world_size
from yolo_os.errors import UserError
from yolo_os.files import written_whole
from yolo_os.heads import Head, find_head, unwrap
from yolo_os.integration.checkpoint import load_checkpoint, write
from yolo_os.integration.final import SAYS, check_step, final_shift, final_step, find_origin
from yolo_os.integration.guard import note_written
from yolo_os.methods.base import Unchanged
from yolo_os.recipe import Given, ShiftRecipe, read_settings, training_settings, with_implied_method
from yolo_os.resources import resource
from yolo_os.settings import listed, reject_unknown
from yolo_os.shifter import check_finite, plan
from yolo_os.terminal import counted
from yolo_os.training.log import ShiftLog
from yolo_os.training.schedule import Schedule
from yolo_os.training.step import StepShift

TASKS = ("detect", "segment", "pose", "obb")
# Stands for a setting that was not given: it is then that of configs/train.yaml.
SHIPPED: Any = type("Shipped", (), {"__repr__": lambda self: "as in configs/train.yaml"})()
_OWN = ("every", "start", "end", "final", "toward", "retain", "retain_drop")


@dataclass
class _Run:
    """What lasts for one training."""

    head: Head
    unchanged: dict[str, str]
    log: ShiftLog
    off: bool
    epochs: int = 0
    batch: int = 0  # of the epoch, from 0
    period: int = 0  # of the last shift
    hook: Any = None
    hooked: Any = None  # the optimizer that the hook is on
    watching: StepShift | None = None
    stop_watching: ExitStack = field(default_factory=ExitStack)
    compiled: Any = None  # the compiled model, while a step that shifts runs the model itself
    origin: str | None = None  # the file of the weights that the training started from, where they are moved towards
    finished: bool = False
    epoch: int = 0
    columns: bool = True  # whether results.csv has ours: not where a training is resumed that was begun without
    warned: bool = False  # of steps of this epoch that could not be shifted
    validated: dict[str, float] = field(default_factory=dict)  # metrics of best.pt before the final shift
    said: str = ""  # what val says of that shift

    def let_go(self, trainer: Any) -> None:
        """Watch no longer: a shift that is still due is left to the next step."""
        self.stop_watching.close()
        self.watching = None
        if self.compiled is not None:
            trainer.model, self.compiled = self.compiled, None


class ShiftCallback:
    """Shifts a model's prediction layers while stock Ultralytics trains it, and the saved weights at the end.

    Its short name is `SOS`, the paper's word for shifting in training; the method is that of its recipe, any of them:

        model = YOLO("yolo11n.pt")
        SOS().attach(model)
        model.train(data="my.yaml", epochs=100)

    A shift comes after an optimizer step and before the update of the moving average (EMA), from the features of that
    step's own batch; the average is moved by the same map. The loss on the batch is taken before and after, and a
    shift that raises it by more than `recipe.max_loss_rise` is reverted. At the end `best.pt` and `last.pt`, which
    hold the average, are shifted once more by `final`, judged on images that it did not use.

    In the run's folder: `shifts.csv` (a line for each shift and layer), `shifts.png`, `os/` columns in `results.csv`,
    and in `os/` the settings and the reports of the final shift; `weights/best-unshifted.pt` is the best before it.

    The object can be pickled, as Ultralytics does to start a training on several GPUs.

    What is not given is as in `configs/train.yaml`, the default of `yolo-os train` too: the values in brackets.

    Args:
        recipe: of the shifts during training, as a recipe, a dictionary of its settings, or the name or file of one.
        every: a number of optimizer steps, or text such as `epoch` or `2epochs`; None: no shifts during training
            [epoch].
        start, end: shares of the training, between 0 and 1, between which shifts come [0.7, 1.0].
        final: recipe of the shift of the saved weights, given likewise; None: none [budget].
        toward: True, or a file: at the end move all layers of `best.pt` towards the weights that the training started
            from, as far as val allows (see `integration.toward`); no other shift is then made, unless `every` or
            `final` is given too [None].
        retain: with `toward`, data that must not get worse [None].
        retain_drop: with `toward`, most mAP that may be lost on them; None: they are only reported [None].
        settings: of a recipe, by name, over those of `recipe`:

            - method: budget, os or sos [budget];
            - keep: with budget, share of the squared norm of the layers shifted that a shift leaves [0.9];
            - max_loss_rise: largest relative rise of the loss on the batch that a shift may cause; None: any [0.002];
            - samples: with sos, rows of A per layer, or below 1 a share of the layer's input features [0.75];
            - sampling: with sos, uniform, foreground or balanced [foreground];
            - layers: all, or roles and name patterns with commas, such as `cls,cv2.*` [all];
            - seed: of the rows drawn [0];
            - rtol: with os and sos, singular values below this share of the largest count as zero; None: by rounding
              [None];
            - images, held_out: of the final shift only, where they are set by `final` [256, 128].

    Raises:
        UserError: for a bad setting.
    """

    def __init__(
        self,
        recipe: Given = None,
        every: int | str | None = SHIPPED,
        start: float = SHIPPED,
        end: float = SHIPPED,
        final: Given = SHIPPED,
        toward: str | Path | bool | None = SHIPPED,
        retain: str | Path | Sequence[str | Path] | None = SHIPPED,
        retain_drop: float | None = SHIPPED,
        **settings: Any,
    ) -> None:
        reject_unknown(settings, [*(each.name for each in fields(ShiftRecipe)), *_OWN])
        shipped = training_settings()
        base = ShiftRecipe.from_dict({name: value for name, value in shipped.items() if name not in _OWN})
        given: dict[str, Any] = {"every": every, "start": start, "end": end, "final": final}
        given |= {"toward": toward, "retain": retain, "retain_drop": retain_drop}
        if given["toward"] not in (SHIPPED, None, False):
            given |= {name: None for name in ("every", "final") if given[name] is SHIPPED}
        own: dict[str, Any] = {name: shipped[name] if value is SHIPPED else value for name, value in given.items()}
        self.recipe = (ShiftRecipe.given(recipe, base) or base).replace(**settings)
        self.schedule = Schedule(own["every"], own["start"], own["end"])
        self.final = ShiftRecipe.given(own["final"])
        if self.final and self.final.layers == "all":  # what is not to be shifted during training isn't at its end
            self.final = self.final.replace(layers=self.recipe.layers)
        self.toward: str | bool | None = own["toward"] if isinstance(own["toward"], bool | None) else str(own["toward"])
        self.retain, self.retain_drop = listed(own["retain"]), own["retain_drop"]
        if self.retain_drop is not None and not (isinstance(self.retain_drop, int | float) and self.retain_drop >= 0):
            raise UserError(f"retain_drop={self.retain_drop}: takes a number from 0, or None")
        if not self.toward and (self.retain or self.retain_drop is not None):
            raise UserError("retain= and retain_drop= say nothing without toward=")
        if self.schedule.every is None and self.final is None and not self.toward:
            raise UserError("every=None and final=None: there is nothing left to do")
        self._run: _Run | None = None

    @property
    def shifts(self) -> bool:
        """Whether prediction layers are shifted, during training or at its end."""
        return self.schedule.every is not None or self.final is not None

    @classmethod
    def from_yaml(cls, path: str | Path, **changes: Any) -> ShiftCallback:
        """From a file with settings of a recipe and `every`, `start`, `end`, `final`, or a shipped one by its name.

        Args:
            path: of the file; `train` is the default of `yolo-os train`.
            changes: settings in place of those of the file.

        Raises:
            UserError: if there is no such file, or for an unknown setting or a bad value.
        """
        settings, file = read_settings(path)
        if file == resource("configs/train.yaml"):
            settings = {}  # what is not given is as there
        known = [*(setting.name for setting in fields(ShiftRecipe)), *_OWN]
        reject_unknown(changes, known)
        try:
            reject_unknown(settings, known)
            cls._of(settings)  # so that what is wrong in the file is said of the file
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        return cls._of({**settings, **changes})

    @classmethod
    def _of(cls, settings: Mapping[str, Any]) -> ShiftCallback:
        own = {name: value for name, value in settings.items() if name in _OWN}
        return cls({name: value for name, value in settings.items() if name not in own}, **own)

    def attach(self, model: Any) -> ShiftCallback:
        """Have a `YOLO` or `RTDETR` call this during its next trainings; what was attached before is replaced.

        Raises:
            UserError: for another task than detection, segmentation, pose or oriented boxes, a head that this recipe
                can do nothing to, or weights that are not finite.
        """
        if not hasattr(model, "add_callback"):
            raise UserError(f"SOS is attached to a YOLO or RTDETR, which trains; this is a {type(model).__name__}")
        task = getattr(model, "task", None)
        if task not in TASKS or not isinstance(getattr(model, "model", None), nn.Module):
            raise UserError(f"SOS shifts models for {', '.join(TASKS)}; this is a model for {task}")
        self._plan(find_head(model))
        check_finite(unwrap(model))
        self.detach(model)
        for event in _EVENTS:
            model.add_callback(event, getattr(self, event))
        model.tune = partial(_tune_without_shifts, model)
        return self

    @staticmethod
    def detach(model: Any) -> None:
        """Take what was attached off a `YOLO` again."""
        vars(model).pop("tune", None)
        for event in _EVENTS:
            callbacks = model.callbacks.get(event, [])
            callbacks[:] = [
                each for each in callbacks if not isinstance(getattr(each, "__self__", None), ShiftCallback)
            ]

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None:
        """Refuse settings of `yolo train` that leave a shift without sense.

        Raises:
            UserError: naming the setting.
        """
        if settings.get("distill_model") is not None:
            raise UserError("distill_model=: SOS shifts the model in training only where it is trained alone")
        if str(settings.get("quantize")) in ("8", "int8"):
            raise UserError("quantize=8: the norm of weights that are quantised in training is not theirs to choose")

    def _plan(self, head: Head) -> dict[str, str]:
        if not self.shifts:
            return {}  # nothing but the step towards the origin
        unchanged = plan(head, self.recipe)
        if self.final is not None:
            plan(head, self.final)
        return unchanged

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: what belongs to one training stays with it."""
        return {**self.__dict__, "_run": None}

    # What follows is called by the trainer, in this order.

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        """Check everything against the model that will be trained, before its first batch.

        Raises:
            UserError: for a recipe that can do nothing to it, a frozen head, or a training of a kind not supported.
        """
        self.check(vars(trainer.args))
        if getattr(trainer.args, "compile", False) and trainer.world_size > 1:
            raise UserError("compile=: on several GPUs the steps that shift can't run uncompiled: leave one of the two")
        head = find_head(trainer.model)
        unchanged = self._plan(head)
        shifted = [layer for layer in head.layers if self.shifts and layer.name not in unchanged]
        frozen = [layer for layer in shifted if not layer.module.weight.requires_grad]
        if frozen:
            names, free = ", ".join(layer.name for layer in frozen), {layer.role for layer in shifted}
            free -= {layer.role for layer in frozen}
            remedy = f"leave them alone with os.layers={','.join(sorted(free))}" if free else "nothing is left to shift"
            raise UserError(f"freeze={trainer.args.freeze} freezes {names}: {remedy}")
        if trainer.args.amp == "bf16" and trainer.device.type != "cuda":
            raise UserError("amp=bf16: Ultralytics trains in bfloat16 on a GPU only; leave amp= away")
        writes = RANK in (-1, 0)
        batches = len(trainer.train_loader)
        origin = str(find_origin(self.toward, trainer)) if self.toward else None
        if origin and writes:
            check_step(trainer, origin, self.retain)
        off = not trainer.args.time and self.schedule.beyond(batches * trainer.epochs, trainer.epochs)
        self._run = _Run(head, unchanged, ShiftLog(Path(trainer.save_dir) / "shifts.csv" if writes else None), off)
        self._run.origin = origin
        self._run.log.begin(bool(trainer.resume))
        self._run.columns = not trainer.csv.exists() or "os/norm" in trainer.csv.read_text(encoding="utf-8")
        count = self.schedule.count(batches, trainer.accumulate, trainer.epochs)
        if writes:
            file = _settings_file(Path(trainer.save_dir))
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as temporary:
                settings = {**self.to_dict(), "toward": origin}  # which a resumed training could not tell any more
                temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        length = f"{counted(trainer.epochs, 'epoch')} of {counted(batches, 'batch', 'es')}"
        if off:
            LOGGER.warning(
                f"{SAYS}every={self.schedule.every} is beyond the end of this training ({length}): it"
                f" runs without shifts, and its weights are saved as they are"
            )
        else:
            LOGGER.info(f"{SAYS}{self}")
            if self.schedule.every is not None and not count and not trainer.args.time:
                LOGGER.warning(
                    f"{SAYS}no shift will come during this training of {length}, "
                    f"{trainer.accumulate} to an optimizer step once it has warmed up: take an earlier start= or a "
                    "smaller every="
                )
        for name, reason in unchanged.items():
            LOGGER.info(f"{SAYS}{name} is left alone: {reason}")

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Find the place in the schedule again: an epoch may be the first, one resumed, or one that is done again."""
        run = self._running()
        run.let_go(trainer)  # of an epoch that broke off, for too little memory
        run.batch, run.epoch, run.warned = 0, trainer.epoch, False
        run.epochs = agreed(trainer.epochs)  # which time= lets every process estimate for itself
        step = trainer.ema.updates  # kept in checkpoints, so that the schedule goes on where it was
        run.period = self.schedule.period(step, trainer.epoch - 1)
        run.log.begin_epoch(step)
        if run.hooked is not trainer.optimizer:
            if run.hook is not None:
                run.hook.remove()
            run.hook = trainer.optimizer.register_step_post_hook(lambda *_: self._after_step(trainer))
            run.hooked = trainer.optimizer

    def on_train_batch_start(self, trainer: Any) -> None:
        """Watch the forward pass if the optimizer step that it leads to shifts."""
        run = self._running()
        done, step = run.batch / len(trainer.train_loader), trainer.ema.updates + 1
        run.batch += 1
        if run.off or run.watching is not None:
            return
        if not self.schedule.due(step, trainer.epoch, run.period, done, run.epochs):
            return
        bare = unwrap(trainer.model)
        average = find_head(trainer.ema.ema)
        watch = StepShift(bare, run.head, self.recipe, run.unchanged, step, _autocast_of(trainer), average)
        run.watching = run.stop_watching.enter_context(watch)
        if getattr(trainer.args, "compile", False):  # which does not run the hooks that features are read by
            run.compiled, trainer.model = trainer.model, bare

    def on_train_batch_end(self, trainer: Any) -> None:
        """A step that the gradient scaler left out, for what is not finite, has no shift."""
        run = self._running()
        if run.watching is not None and trainer.ema.updates >= run.watching.step:
            run.let_go(trainer)

    def _after_step(self, trainer: Any) -> None:
        """After an optimizer step, before the update of the moving average: shift, if one is due."""
        run = self._running()
        if run.watching is None:
            return
        step = trainer.ema.updates + 1
        try:
            report = run.watching.shift_()
            why = "no finite features or no labelled objects in its batch"
        except Exception as error:  # too little memory, say: no reason to lose a training over
            if world_size() > 1:  # the other processes wait for this one
                raise
            report, why = None, f"{type(error).__name__}: {error}"
        finally:
            run.let_go(trainer)
        if report is None:  # still due: the next step tries again
            if not run.warned:
                LOGGER.warning(f"{SAYS}no shift at step {step}: {why}")
            run.warned = True
            return
        run.period = self.schedule.period(step, trainer.epoch)
        run.log.add(step, trainer.epoch + 1, report)
        if report.reverted and isinstance(report.outcome, Unchanged):
            LOGGER.warning(f"{SAYS}the shift at step {step} was reverted: {report.outcome.reason}")

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Put the totals where `results.csv` and every logger of Ultralytics take the learning rates from."""
        run = self._running()
        run.let_go(trainer)  # the epoch may be done again, and a model with hooks can't be copied
        if run.columns:
            norms = {"os/norm": _norm(run.head), "os/norm_ema": _norm(find_head(trainer.ema.ema))}
            trainer.lr.update(run.log.totals() | norms)

    def on_model_save(self, trainer: Any) -> None:
        """Remember what this process saved: a `best.pt` may also be an older one, of a run that is resumed."""
        note_written(trainer.last)
        if trainer.best_fitness == trainer.fitness:
            note_written(trainer.best)

    def on_fit_epoch_end(self, trainer: Any) -> None:
        """After the last epoch is saved and before the last validation: the final shift of what was saved."""
        run = self._running()
        if run.finished or not trainer.stop or RANK not in (-1, 0):
            return
        run.finished = True
        saved = [path for path in (trainer.best, trainer.last) if path.exists()]
        if run.origin and saved:
            self._move_toward(run.origin, trainer, run, saved[0])
        if run.off or self.final is None:
            return
        same = len(saved) == 2 and saved[0].read_bytes() == saved[1].read_bytes()
        with alone():  # the other processes wait for this one's checkpoint
            for path in saved[:1] if same else saved:
                try:
                    final = final_shift(trainer, path, self.final)
                except Exception as error:  # whatever it is, it is no reason to lose a training over
                    why = f"{type(error).__name__}: {error}"
                    LOGGER.warning(f"{SAYS}no final shift of {path.name}, it stays as trained: {why}")
                else:
                    if path == trainer.best:
                        run.validated, run.said = final.metrics, final.said
        if same:
            with written_whole(saved[1]) as temporary:
                shutil.copyfile(saved[0], temporary)
        if trainer.epoch > run.epoch:  # a stop that came late: Ultralytics has validated already
            run.validated.clear()
            LOGGER.warning(f"{SAYS}the validation above is of the weights before the final shift")

    def _move_toward(self, origin: str, trainer: Any, run: _Run, path: Path) -> None:
        """The final step of the weights that are taken; whatever fails is no reason to lose a training over."""
        with alone():
            try:
                run.validated = final_step(trainer, path, origin, self.retain, self.retain_drop)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                LOGGER.warning(f"{SAYS}no step of {path.name} towards {origin}, it stays as trained: {why}")

    def on_train_end(self, trainer: Any) -> None:
        """Say what was done, and plot it."""
        run = self._running()
        folder = Path(trainer.save_dir)
        reverted = f", {run.log.reverted} reverted" if run.log.reverted else ""
        made = counted(run.log.shifts, "shift")
        LOGGER.info(f"{SAYS}{made} during training{reverted}; see {folder / 'shifts.csv'}")
        for name, value in run.validated.items():
            if "mAP50-95" in name and name in trainer.metrics:
                found = f"{value:.4f} before the final shift, {trainer.metrics[name]:.4f} after"
                if run.said:
                    found += f"; {run.said}; weights/{trainer.best.stem}-unshifted.pt holds the weights before"
                LOGGER.info(f"{SAYS}{name.removeprefix('metrics/')} of best.pt on val: {found}")
        if run.validated:  # what `model.train()` returns after a training on several GPUs
            note_written(trainer.best)  # by Ultralytics, which stripped what we wrote
            contents = load_checkpoint(trainer.best).contents
            write({**contents, "train_metrics": {**run.validated, **trainer.metrics}}, trainer.best)
        if trainer.args.plots:
            from yolo_os.plots.training import plot_training

            try:
                plot_training(folder, folder / "shifts.png")
            except Exception as error:  # a picture is no reason to lose a training's result over
                LOGGER.warning(f"{SAYS}shifts.png was not drawn: {type(error).__name__}: {error}")

    def teardown(self, trainer: Any) -> None:
        """Let go of everything, however the training ended."""
        run, self._run = self._run, None
        if run is not None:
            if run.hook is not None:
                run.hook.remove()
            run.let_go(trainer)

    def to_dict(self) -> dict[str, Any]:
        """The settings, as `from_yaml` reads them."""
        final = self.final.to_dict() if self.final else None
        toward = {"toward": self.toward, "retain": self.retain or None, "retain_drop": self.retain_drop}
        return {**self.recipe.to_dict(), **self.schedule.to_dict(), "final": final, **toward}

    def __str__(self) -> str:
        """One line: what is shifted when."""
        parts = [f"{self.recipe.method}, {self.schedule}"] if self.schedule.every else []
        origin = "the weights it starts from" if self.toward is True else self.toward
        parts += [f"final step towards {origin}"] if origin else []
        parts += [f"final shift by {self.final.method}"] if self.final else []
        return "; ".join(parts)

    def _running(self) -> _Run:
        assert self._run is not None, "the trainer called no on_pretrain_routine_end"
        return self._run


SOS = ShiftCallback

_EVENTS = (
    "on_pretrain_routine_end",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_model_save",
    "on_fit_epoch_end",
    "on_train_end",
    "teardown",
)


def _tune_without_shifts(model: Any, *given: Any, **named: Any) -> Any:
    """`model.tune()` with a word: it trains in processes of its own, which no callback reaches."""
    LOGGER.warning(f"{SAYS}tune() starts trainings of its own that callbacks do not reach: they make no shifts")
    return type(model).tune(model, *given, **named)


def _settings_file(run: Path) -> Path:
    """Where a run's folder holds the settings of its shifts."""
    return run / "os" / "settings.yaml"


def callback_of(settings: Mapping[str, Any]) -> SOS | None:
    """The callback that keys of `yolo-os train` describe; None where there are none, or for `os=False`.

    Args:
        settings: without their prefix, and `os` itself.

    Raises:
        UserError: for an unknown setting, a bad value, or one that says nothing.
    """
    given = dict(settings)
    choice = given.pop("os", None if given else False)
    if choice is False:
        if given:
            raise UserError(f"os=False trains without shifts: leave os.{next(iter(given))} away")
        return None
    if choice is None:
        given = with_implied_method(given, "os.")
    lone = [name for name in given if name not in ("toward", "retain", "retain_drop")]
    if choice in (None, True) and given.get("toward") and lone and not {"every", "final"} & given.keys():
        raise UserError(
            f"os.{lone[0]} says nothing: with os.toward no other shift is made unless os.every or os.final is given"
        )
    return SOS.from_yaml("train" if choice in (None, True) else choice, **given)


def settings_of(last: str | Path) -> Path | None:
    """The settings of the training that a `weights/last.pt` comes from; None if it had none of ours."""
    file = _settings_file(Path(last).resolve().parent.parent)
    return file if file.is_file() else None


def _norm(head: Head) -> float:
    """The Frobenius norm of all prediction layers together."""
    return float(torch.stack([layer.matrix.float().square().sum() for layer in head.layers]).sum().sqrt())


def _autocast_of(trainer: Any) -> Callable[[], AbstractContextManager[Any]]:
    """The autocast of the trainer's own forward passes."""
    enabled = torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp
    return lambda: autocast(enabled, device=trainer.device.type)
