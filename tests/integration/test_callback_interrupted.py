"""Trainings that are interrupted, stopped, resumed, short of memory or done again."""

import math

import pytest
import torch
from trainings import BATCHES, Trained, during, hooks, same
from ultralytics import YOLO

from yolo_os.heads import unwrap
from yolo_os.training.step import StepShift


def stop_at(epoch, batch, error=KeyboardInterrupt):
    seen = []

    def stop(trainer):
        seen.append(trainer.epoch)
        if trainer.epoch == epoch and seen.count(epoch) == batch:
            raise error

    return {"on_train_batch_end": stop}


@pytest.mark.parametrize("every", [4, "epoch", pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_training_shifts_at_the_steps_of_one_in_one_go(every, train, tmp_path):
    whole = train(during(every), name="whole")
    with pytest.raises(KeyboardInterrupt):  # in the third epoch, in which a shift has been made and will be again
        train(during(every), name="parts", callbacks=stop_at(2, 2))
    parts = Trained(None, tmp_path / "parts")
    assert int(parts.steps[-1]) > 2 * BATCHES
    model = YOLO(parts.folder / "weights" / "last.pt")
    during(every).attach(model)
    model.train(resume=True)
    assert parts.steps == whole.steps
    assert [row["layer"] for row in parts.shifts] == [row["layer"] for row in whole.shifts]
    assert parts.column("os/shifts") == whole.column("os/shifts")
    assert parts.column("epoch") == [1, 2, 3, 4]
    kept = len([step for step in whole.steps if step <= 2 * BATCHES]) * 6
    assert parts.shifts[:kept] == whole.shifts[:kept]


@pytest.mark.parametrize(
    "event",
    [
        "on_fit_epoch_end",
        *(pytest.param(f"on_train_{part}_end", marks=pytest.mark.slow) for part in ("batch", "epoch")),
    ],
)
def test_a_training_stopped_early_has_its_final_shift(event, train):
    def stop(trainer):
        trainer.stop |= trainer.epoch == 1

    run = train(during(2, final="budget"), callbacks={event: stop})
    assert len(run.results) == 2
    assert run.steps == ([2, 4] if "batch" in event else [2, 4, 6])
    assert len(run.weights("best")["yolo_os"]) == 1
    assert len(run.weights("last")["yolo_os"]) == 1
    assert "yolo_os" not in run.weights("best-unshifted")


def test_patience_that_is_at_its_end_too(train, monkeypatch):
    from ultralytics.engine.trainer import BaseTrainer

    validate = BaseTrainer.validate

    def ever_worse(self):
        metrics, _ = validate(self)
        self.best_fitness = self.best_fitness if self.epoch else 0.9
        return metrics, 0.9 - self.epoch / 10

    monkeypatch.setattr(BaseTrainer, "validate", ever_worse)
    run = train(during(2, final="budget"), patience=1)
    assert len(run.results) == 2
    assert run.weights("best")["yolo_os"]
    assert not same(run.state("best"), run.state("last"))


def test_a_training_by_time_ends_with_its_final_shift(train):
    run = train(during(1, final="budget"), time=1e-6)
    assert run.steps == [1]
    assert run.weights("best")["yolo_os"]


def test_closed_mosaic_and_changing_sizes_shift_all_the_same(train, monkeypatch):
    sizes, original = set(), StepShift.shift_

    def shift_(self):
        sizes.add(self._batch["img"].shape[-1])
        return original(self)

    monkeypatch.setattr(StepShift, "shift_", shift_)
    run = train(during(1), close_mosaic=2, multi_scale=0.5, imgsz=96)
    assert run.steps == list(range(1, 13))
    assert len(sizes) > 1
    assert all(row["reverted"] == "0" for row in run.shifts)


def poison_at(epoch, batch):
    """Weights that are no numbers after a batch, once."""
    seen = []

    def poison(trainer):
        seen.append(trainer.epoch)
        if trainer.epoch == epoch and seen.count(epoch) == batch:
            with torch.no_grad():
                unwrap(trainer.model).model[0].conv.weight.fill_(math.nan)

    return {"on_train_batch_end": poison}


@pytest.mark.parametrize(
    ("nbs", "epoch"),
    [(4, 1), (8, 2)],  # of two batches a step, the last of the third epoch waits for one of the next
)
def test_an_epoch_done_again_after_nan_shifts_as_if_it_were_the_first_time(nbs, epoch, train, monkeypatch):
    shifts, original = [], StepShift.shift_
    monkeypatch.setattr(StepShift, "shift_", lambda self: shifts.append(original(self)) or shifts[-1])
    run = train(during(1), nbs=nbs, callbacks=poison_at(epoch, 2))
    steps = 12 // (nbs // 4)
    assert run.steps == list(range(1, steps + 1))
    assert run.column("epoch") == [1, 2, 3, 4]
    assert run.column("os/shifts") == [len([row for row in run.steps if row <= end]) for end in LAST_STEPS[nbs]]
    assert all(math.isfinite(float(row["norm_after"])) for row in run.shifts)
    assert len(shifts) > steps  # some were made twice


LAST_STEPS = {4: (3, 6, 9, 12), 8: (1, 3, 5, 6)}


def test_a_batch_too_large_for_the_memory_is_halved_and_shifts_go_on(train, monkeypatch):
    calls, left, rows, original = [], [], [], StepShift.shift_

    def shift_(self):
        rows.append(self._shifter.collectors["cv2.0"].count)
        return original(self)

    def fail_once(trainer):
        model = unwrap(trainer.model)
        loss = model.loss

        def out_of_memory(batch, predictions=None):
            calls.append(len(batch["img"]))
            if len(calls) == 2:  # the second batch of the step that is to shift
                raise RuntimeError("CUDA out of memory")
            return loss(batch, predictions)

        model.loss = out_of_memory

    def count_hooks(trainer):
        del unwrap(trainer.model).loss
        left.append(hooks(trainer))

    monkeypatch.setattr(StepShift, "shift_", shift_)
    run = train(during(1), epochs=2, nbs=8, callbacks={"on_train_start": fail_once, "on_train_end": count_hooks})
    assert calls[:4] == [4, 4, 2, 2]
    assert run.steps == [1, 2, 3]
    assert rows[0] == 4 * 2 * 64  # the four small batches of the step, and none from before
    assert left == [1]  # that on the optimizer, until teardown


def test_a_step_that_the_scaler_skips_leaves_the_shift_to_the_next(train, monkeypatch):
    """Mixed precision, which the CPU has not: a step of gradients that are not finite is left out."""

    def skip_step_4(trainer):
        stock = trainer.scaler.step

        def step(optimizer, *args, **kwargs):
            if trainer.ema.updates + 1 != 4:
                return stock(optimizer, *args, **kwargs)
            return None

        trainer.scaler.step = step

    batches, original = [], StepShift.shift_

    def shift_(self):
        batches.append(self.batches)
        return original(self)

    monkeypatch.setattr(StepShift, "shift_", shift_)
    run = train(during(4), callbacks={"on_train_start": skip_step_4})
    assert run.steps == [5, 8, 12]
    assert batches == [1, 1, 1]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_shifts_as_one_that_is_not(backend, train, monkeypatch):
    """By `inductor`, which `compile=True` takes, compiling takes minutes on two cores, and wants a C++ compiler."""
    monkeypatch.setattr(
        "ultralytics.engine.trainer.attempt_compile",
        lambda model, mode, **_: torch.compile(model, backend=backend) if mode else model,
    )
    models = {"start": [], "end": []}

    def note(when):
        return lambda trainer: models[when].append(type(trainer.model).__name__)

    callbacks = {"on_train_batch_start": note("start"), "on_train_batch_end": note("end")}
    stock, compiled = (
        train(during(2), name=str(on), epochs=1, compile=on, callbacks=callbacks if on else None)
        for on in (False, True)
    )
    assert models["start"] == ["OptimizedModule", "DetectionModel", "OptimizedModule"]
    assert models["end"] == ["OptimizedModule"] * 3
    for row, other in zip(stock.shifts, compiled.shifts, strict=True):
        for name in ("norm_after", "loss_before", "loss_after"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4)


def test_no_hook_is_left_after_a_training(train):
    trainers = []
    run = train(during(2), epochs=1, callbacks={"on_train_start": trainers.append})
    assert run.steps == [2]
    assert hooks(trainers[0]) == 0


def test_no_hook_is_left_after_one_that_is_interrupted(train):
    trainers = []
    with pytest.raises(KeyboardInterrupt):
        train(during(3), nbs=12, callbacks={"on_train_start": trainers.append, **stop_at(2, 2)})
    assert hooks(trainers[0]) == 0
