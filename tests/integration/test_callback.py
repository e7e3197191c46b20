"""Real trainings by stock Ultralytics with shifts: tiny data, a tiny detector, the callbacks as they come."""

import csv
import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics import RTDETR, YOLO
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file

from yolo_os import ShiftRecipe
from yolo_os.errors import UserError
from yolo_os.evaluation.dataset import make_dataset
from yolo_os.heads import find_head, unwrap
from yolo_os.integration.callback import SOS
from yolo_os.training.log import COLUMNS
from yolo_os.training.schedule import Schedule
from yolo_os.training.step import StepShift

CRUDE = ShiftRecipe(method="sos", samples=8, max_loss_rise=None)  # moves every layer, whatever it costs
TINY = {"epochs": 4, "imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
TINY |= {"optimizer": "SGD", "lr0": 0.001, "warmup_epochs": 0}
BATCHES = 3  # of 12 images in an epoch


def during(every, **options):
    """Shifts during training only, from its first step."""
    return SOS(options.pop("recipe", CRUDE), every=every, start=0, final=options.pop("final", None), **options)


@dataclass
class Trained:
    model: YOLO
    folder: Path

    def weights(self, name="last"):
        return torch.load(self.folder / "weights" / f"{name}.pt", weights_only=False)

    def state(self, name="last"):
        return self.weights(name)["model"].state_dict()

    @property
    def shifts(self):
        return table(self.folder / "shifts.csv")

    @property
    def steps(self):
        """The steps that shifted, one for each row, so that twice is seen."""
        return [int(row["step"]) for row in self.shifts if row["layer"] == "cv2.0"]

    @property
    def results(self):
        return table(self.folder / "results.csv")

    def column(self, name):
        return [float(row[name]) for row in self.results]


def table(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def matrices(model):
    return {layer.name: layer.matrix.double().clone() for layer in find_head(model).layers}


def hooks(trainer):
    modules = [*trainer.model.modules(), *trainer.ema.ema.modules()]
    modules += [part for part in vars(unwrap(trainer.model).criterion).values() if isinstance(part, torch.nn.Module)]
    assert not any({"forward", "loss"} & set(vars(each)) for each in modules)
    on_modules = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules)
    return on_modules + len(trainer.optimizer._optimizer_step_post_hooks)


@pytest.fixture(scope="session")
def tiny_data(digits, tmp_path_factory):
    """Lists of 12 images to train on and 4 to validate on."""
    made = make_dataset(digits, tmp_path_factory.mktemp("tiny") / "digits")
    described = yaml.safe_load(made.read_text())
    for split, count in (("train", 12), ("val", 4)):
        images = sorted((made.parent / "images" / f"{split}2007").iterdir())[:count]
        (made.parent / f"{split}.txt").write_text("\n".join(map(str, images)))
    tiny = made.with_name("tiny.yaml")
    settings = {"path": str(made.parent), "train": "train.txt", "val": "val.txt", "names": described["names"]}
    tiny.write_text(yaml.safe_dump(settings))
    return tiny


@pytest.fixture
def train(detector, tiny_data, tmp_path):
    """Train the embedded detector further; callbacks by event, called after those of SOS."""

    def run(sos=None, name="run", model=None, callbacks=None, **changes):
        yolo = model or YOLO(detector)
        if sos is not None:
            sos.attach(yolo)
        for event, function in (callbacks or {}).items():
            yolo.add_callback(event, function)
        yolo.train(data=str(tiny_data), project=str(tmp_path), name=name, exist_ok=True, **{**TINY, **changes})
        return Trained(yolo, tmp_path / name)

    return run


# Off and on


def test_a_schedule_beyond_the_end_trains_bit_for_bit_as_stock(train):
    stock = train(name="stock", epochs=2)
    off = train(during(10**6, final="budget"), name="off", epochs=2)
    on = train(during(BATCHES * 2, recipe=ShiftRecipe()), name="on", epochs=2)  # one shift, in the very last step
    for name in ("best", "last"):
        assert same(stock.state(name), off.state(name))
    own = [name for name in stock.results[0] if name != "time"]
    assert any("loss" in name for name in own)
    assert len(stock.results) == len(off.results) == 2
    assert all(row[name] == other[name] for row, other in zip(stock.results, off.results) for name in own)
    assert off.shifts == []
    assert off.column("os/shifts") == [0, 0]
    assert "yolo_os" not in off.weights()
    assert not (off.folder / "os" / "best").exists()
    assert not same(stock.state(), on.state())
    assert on.steps == [BATCHES * 2]


def draw_ours(trainer):
    """Not the plots of Ultralytics, which take longer than the training."""
    trainer.args.plots = True


@pytest.fixture(scope="module")
def full_run(detector, tiny_data, tmp_path_factory):
    """Shifts during and after a training, as by default but from its start; and the same once more, without plots."""
    folder = tmp_path_factory.mktemp("full")
    runs = []
    for name in ("one", "two"):
        model = YOLO(detector)
        if name == "one":
            model.add_callback("on_train_end", draw_ours)
        SOS(every=2, start=0).attach(model)
        model.train(data=str(tiny_data), project=str(folder), name=name, exist_ok=True, **TINY)
        runs.append(Trained(model, folder / name))
    return runs


def test_two_runs_are_the_same(full_run):
    one, two = full_run
    for name in ("best", "last", "best-unshifted"):
        assert same(one.state(name), two.state(name))
    assert one.shifts == two.shifts
    for row, other in zip(one.results, two.results):
        assert [row[name] for name in row if name != "time"] == [other[name] for name in other if name != "time"]


def test_shifts_csv_has_a_row_for_each_layer_of_each_shift(full_run, detector):
    rows = full_run[0].shifts
    names = [layer.name for layer in find_head(YOLO(detector)).layers]
    assert tuple(rows[0]) == COLUMNS
    assert [(int(row["step"]), row["layer"]) for row in rows] == [(s, name) for s in range(2, 13, 2) for name in names]
    assert all(int(row["epoch"]) == 1 + (int(row["step"]) - 1) // BATCHES for row in rows)
    for row in rows:
        assert float(row["norm_ratio"]) == pytest.approx(float(row["norm_after"]) / float(row["norm_before"]), rel=1e-5)
        assert float(row["loss_before"]) > 0
        assert int(row["rank"]) <= int(row["m"])
    by_step = {row["step"]: (row["loss_before"], row["loss_after"], row["taken_back"]) for row in rows}
    assert len(set(by_step.values())) == len(by_step)
    assert any(float(row["norm_ratio"]) < 1 for row in rows if row["taken_back"] == "0")


def test_results_csv_has_the_totals_from_its_first_row(full_run):
    run = full_run[0]
    steps = {row["step"]: int(row["taken_back"]) for row in run.shifts}
    epochs = [[step for step in steps if (int(step) - 1) // BATCHES == epoch] for epoch in range(4)]
    stand = [sum(not steps[step] for step in epoch) for epoch in epochs]
    back = [sum(steps[step] for step in epoch) for epoch in epochs]
    assert run.column("os/shifts") == np.cumsum(stand).tolist()
    assert run.column("os/taken_back") == np.cumsum(back).tolist()
    squares = [{"norm_before": 0.0, "norm_after": 0.0} for _ in steps]
    for row in run.shifts:
        for name, total in squares[list(steps).index(row["step"])].items():
            squares[list(steps).index(row["step"])][name] = total + float(row[name]) ** 2
    kept = {step: each["norm_after"] / each["norm_before"] for step, each in zip(steps, squares)}
    for epoch, value in zip(epochs, run.column("os/kept")):
        assert value == pytest.approx(math.prod(kept[step] for step in epoch if not steps[step]), rel=1e-4)
    assert all(value > 0 for value in run.column("os/norm") + run.column("os/norm_ema"))
    assert not any(("loss" in name or "metric" in name) for name in run.results[0] if name.startswith("os/"))


def test_pictures_reports_and_the_weights_before_are_left_in_the_folder(full_run):
    run = full_run[0]
    assert (run.folder / "shifts.png").stat().st_size > 10_000
    assert not list(full_run[1].folder.rglob("*.png"))
    report = json.loads((run.folder / "os" / "best" / "report.json").read_text())
    assert 0 < report["norm_ratio"] < 1
    assert (run.folder / "os" / "best" / "report.txt").read_text().strip()
    before, after = run.weights("best-unshifted"), run.weights("best")
    assert "yolo_os" not in before
    kept = sum(float(each.square().sum()) for each in matrices(after["model"]).values())
    kept /= sum(float(each.square().sum()) for each in matrices(before["model"]).values())
    assert kept == pytest.approx(report["norm_ratio"] ** 2, rel=1e-3)
    head = {id(tensor) for layer in find_head(after["model"]).layers for tensor in layer.module.parameters()}
    moved = {
        name: id(tensor) in head
        for name, tensor in after["model"].state_dict(keep_vars=True).items()
        if not torch.equal(tensor, before["model"].state_dict()[name])
    }
    assert moved
    assert all(moved.values())
    assert before["ema"] is before["optimizer"] is None


def test_checkpoints_record_the_shift_and_open_in_stock_ultralytics(full_run, digits):
    run = full_run[0]
    for name in ("best", "last"):
        (record,) = run.weights(name)["yolo_os"]
        assert record["recipe"] == ShiftRecipe().to_dict()
        assert 0 < record["squared_norm_kept"] < 1
        assert record["layers_moved"] == 6
        assert run.weights(name)["train_results"]["os/shifts"]  # as Ultralytics keeps the results of a training
    image = next((digits / "VOC2007" / "JPEGImages").iterdir())
    found = YOLO(run.folder / "weights" / "best.pt").predict(image, imgsz=64, conf=0.01, verbose=False)
    assert len(found[0].boxes)


def test_the_model_that_was_trained_holds_the_shifted_weights(full_run):
    run = full_run[0]
    assert same(run.model.model.float().state_dict(), run.weights("best")["model"].float().state_dict())
    head = matrices(run.weights("best-unshifted")["model"])
    assert not any(torch.equal(head[name], matrix) for name, matrix in matrices(run.model).items())


def test_shifts_that_are_taken_back_are_noted_and_leave_the_training_as_it_is(train, monkeypatch):
    monkeypatch.setattr(StepShift, "_loss_with", lambda self, solutions: self._loss() * 1.1)
    stock = train(name="stock", epochs=1)
    back = train(during(2, recipe=CRUDE.replace(max_loss_rise=0.01)), name="back", epochs=1)
    assert same(stock.state(), back.state())
    assert back.steps == [2]
    assert {row["taken_back"] for row in back.shifts} == {"1"}
    assert all("beyond max_loss_rise=0.01" in row["note"] for row in back.shifts)
    assert (back.column("os/shifts"), back.column("os/taken_back"), back.column("os/kept")) == ([0], [1], [1])


@pytest.mark.slow
def test_plots_are_drawn_with_those_of_ultralytics(train):
    run = train(SOS(every=2, start=0), epochs=2, plots=True)
    pictures = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*.png")}
    assert pictures >= {"results.png", "shifts.png", "os/best/layers.png", "os/last/layers.png"}


def test_a_final_shift_alone_leaves_the_training_as_it_is(train):
    stock, final = train(name="stock", epochs=2), train(SOS(every=None), name="final", epochs=2)
    assert same(stock.state("best"), final.state("best-unshifted"))
    assert not same(stock.state("best"), final.state("best"))
    assert final.shifts == []


def test_shifts_come_between_start_and_end(train):
    run = train(SOS(CRUDE, every=1, start=0.5, end=0.75, final=None))
    assert run.steps == [7, 8, 9, 10]  # of 12
    assert Schedule(1, 0.5, 0.75).count(BATCHES, 1, 4) == 4


def test_layers_left_alone_in_training_are_so_at_its_end():
    recipe = CRUDE.replace(layers="cls")
    assert SOS(recipe).final == ShiftRecipe(layers="cls")
    assert SOS(recipe, final=ShiftRecipe(layers="box")).final.layers == "box"


def test_a_second_attached_object_replaces_the_first_and_detach_removes_it(train, detector, tmp_path):
    model = YOLO(detector)
    bare = {event: list(callbacks) for event, callbacks in model.callbacks.items()}
    first, second = during(1), during(2)
    first.attach(model)
    second.attach(model)
    assert train(model=model, epochs=1).steps == [2]
    SOS.detach(model)
    assert {event: callbacks for event, callbacks in model.callbacks.items() if callbacks} == {
        event: callbacks for event, callbacks in bare.items() if callbacks
    }
    other = train(model=model, name="other", epochs=1)
    assert not (other.folder / "shifts.csv").exists()


def test_one_object_serves_several_trainings_one_after_the_other(train):
    sos = during(2)
    one, two = train(sos, "one", epochs=1), train(sos, "two", epochs=1)
    assert one.steps == two.steps == [2]
    assert same(one.state(), two.state())


# Model, moving average and checkpoint


@dataclass
class Watched:
    """What the weights were around each shift, told by hooks of our own; and the rows that it was solved for."""

    steps: dict
    last: dict

    @property
    def callbacks(self):
        return {
            "on_pretrain_routine_end": lambda trainer: trainer.optimizer.register_step_post_hook(
                lambda *_: self.note("before", trainer, 1)
            ),
            "on_train_epoch_start": self.after_sos,
            "on_train_start": lambda trainer: setattr(trainer.ema, "decay", lambda _: 0.9),  # far from the model
            "on_train_batch_end": lambda trainer: self.note("updated", trainer, 0),
            "on_model_save": self.saved,
        }

    def after_sos(self, trainer):
        if trainer.epoch == trainer.start_epoch:
            trainer.optimizer.register_step_post_hook(lambda *_: self.note("after", trainer, 1))

    def note(self, when, trainer, ahead):
        step = self.steps.setdefault(trainer.ema.updates + ahead, {})
        if when not in step:
            step[when] = matrices(trainer.model), matrices(trainer.ema.ema)

    def saved(self, trainer):
        self.last = {name: tensor.clone() for name, tensor in trainer.ema.ema.state_dict().items()}


@pytest.fixture
def sampled_rows(monkeypatch):
    """By step, the rows that each layer of the model was solved for."""
    rows, original = {}, StepShift.shift_

    def shift_(self, average=None):
        report = original(self, average)
        rows[len(rows)] = {name: each.rows.double().numpy() for name, each in self._collectors.items()}
        return report

    monkeypatch.setattr(StepShift, "shift_", shift_)
    return rows


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", pytest.param("MuSGD", marks=pytest.mark.slow)])
def test_model_and_average_are_moved_together_and_saved_so(optimizer, train, sampled_rows):
    watched = Watched({}, {})
    run = train(during(2), epochs=2, callbacks=watched.callbacks, optimizer=optimizer, lr0=0.01)
    assert run.steps == [2, 4, 6]
    for step, noted in watched.steps.items():
        (model, average), (new_model, new_average) = noted["before"], noted["after"]
        rows = sampled_rows[step // 2 - 1] if step in run.steps else None
        for name, old in model.items():
            if rows is None:
                assert torch.equal(new_model[name], old)
                assert torch.equal(new_average[name], average[name])
            else:
                seen = np.linalg.pinv(rows[name]) @ rows[name]
                np.testing.assert_allclose(new_model[name], seen @ old.numpy(), atol=1e-5)
                np.testing.assert_allclose(new_average[name], seen @ average[name].numpy(), atol=1e-5)
                assert not torch.allclose(new_average[name], average[name], atol=1e-2)
            expected = 0.9 * new_average[name] + 0.1 * new_model[name]
            torch.testing.assert_close(noted["updated"][1][name], expected, atol=1e-6, rtol=1e-6)
            assert torch.equal(noted["updated"][0][name], new_model[name])
    for row in run.shifts:
        norm = float(watched.steps[int(row["step"])]["after"][0][row["layer"]].norm())
        assert float(row["norm_after"]) == pytest.approx(norm, rel=1e-5)
    assert same(
        run.state(),
        {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in watched.last.items()},
    )
    for name, part in (("os/norm", 0), ("os/norm_ema", 1)):
        norm = math.sqrt(sum(float(each.square().sum()) for each in watched.steps[6]["updated"][part].values()))
        assert run.column(name)[-1] == pytest.approx(norm, rel=1e-5)
    assert run.column("os/norm")[-1] != pytest.approx(run.column("os/norm_ema")[-1], rel=1e-4)


def test_accumulated_batches_all_belong_to_the_step_that_shifts(train, monkeypatch):
    counts, original = [], StepShift.shift_

    def shift_(self, average=None):
        counts.append((self._batches, self._collectors["cv2.0"].count))
        return original(self, average)

    monkeypatch.setattr(StepShift, "shift_", shift_)
    updates = []
    run = train(
        during(2), nbs=12, callbacks={"on_train_epoch_end": lambda trainer: updates.append(trainer.ema.updates)}
    )
    assert updates == [1, 2, 3, 4]  # three batches of 4 images a step
    assert run.steps == [2, 4]
    assert counts == [(3, 12 * 64)] * 2


# Interrupted, stopped, repeated


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

    def shift_(self, average=None):
        sizes.add(self._batch["img"].shape[-1])
        return original(self, average)

    monkeypatch.setattr(StepShift, "shift_", shift_)
    run = train(during(1), close_mosaic=2, multi_scale=0.5, imgsz=96)
    assert run.steps == list(range(1, 13))
    assert len(sizes) > 1
    assert all(row["taken_back"] == "0" for row in run.shifts)


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
    monkeypatch.setattr(
        StepShift, "shift_", lambda self, average=None: shifts.append(original(self, average)) or shifts[-1]
    )
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

    def shift_(self, average=None):
        rows.append(self._collectors["cv2.0"].count)
        return original(self, average)

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

    def shift_(self, average=None):
        batches.append(self._batches)
        return original(self, average)

    monkeypatch.setattr(StepShift, "shift_", shift_)
    run = train(during(4), callbacks={"on_train_start": skip_step_4})
    assert run.steps == [5, 8, 12]
    assert batches == [1, 1, 1]


def test_a_compiled_model_shifts_as_one_that_is_not(train, monkeypatch):
    monkeypatch.setattr(
        "ultralytics.engine.trainer.attempt_compile",
        lambda model, mode, **_: torch.compile(model, backend="eager") if mode else model,
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


# Refused before the first batch


def refused(train, sos, match, **given):
    """A training that must not begin."""
    begun = []
    callbacks = dict.fromkeys(("on_train_start", "on_train_batch_start"), begun.append)
    with pytest.raises(UserError, match=match):
        train(sos, callbacks=callbacks, epochs=1, **given)
    assert not begun


def test_a_frozen_head_is_refused(train):
    refused(train, during(1), r"freeze=\[22\] freezes the head \(cv2.0, ", freeze=[22])


def test_a_part_of_the_head_that_is_frozen_is_refused_unless_it_is_left_alone(train):
    refused(train, during(1), r"freezes the head \(cv2.0, cv2.1, cv2.2\)", freeze=["22.cv2"])
    recipe = CRUDE.replace(layers="cls")
    run = train(during(2, recipe=recipe), epochs=1, freeze=["22.cv2"])
    assert {row["layer"] for row in run.shifts} == {"cv3.0", "cv3.1", "cv3.2"}


def test_a_compiled_model_in_several_processes_is_refused(detector):
    args = SimpleNamespace(compile=True, distill_model=None, quantize=None)
    with pytest.raises(UserError, match=r"^compile=: on several GPUs"):
        during(1).on_pretrain_routine_end(SimpleNamespace(model=YOLO(detector).model, args=args, world_size=2))


def test_distillation_is_refused(train, detector):
    refused(train, during(1), "^distill_model=: ", distill_model=str(detector))


def test_quantised_training_is_refused(detector):
    """By the check alone, as Ultralytics asks for another package before it."""
    args = SimpleNamespace(compile=False, distill_model=None, quantize=8)
    with pytest.raises(UserError, match=r"^quantize=8: "):
        during(1).on_pretrain_routine_end(SimpleNamespace(model=YOLO(detector).model, args=args))


def test_a_sample_too_large_for_the_head_that_is_trained_is_refused(train):
    """For the 80 classes of the model as it is given, class layers read 80 features; for 10 classes, 64."""
    recipe = CRUDE.replace(samples=70, layers="cls")
    refused(
        train, during(1, recipe=recipe), "a sample of 70 rows is not smaller than m = 64", model=YOLO("yolov8n.yaml")
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"recipe": CRUDE.replace(samples=64)}, "no layer is left to shift: cv2.0: a sample of 64 rows is not smaller"),
        ({"recipe": CRUDE.replace(layers="mask")}, "layers=mask selects no layer of this Detect head"),
        ({"recipe": CRUDE.replace(layers="cv9.*")}, r"layers=cv9.\* names no layer"),
        ({"final": ShiftRecipe(layers="angle")}, "layers=angle selects no layer of this Detect head"),
    ],
)
def test_what_can_do_nothing_is_refused_when_it_is_attached(changes, match, detector):
    model = YOLO(detector)
    callbacks = {event: list(each) for event, each in model.callbacks.items()}
    with pytest.raises(UserError, match=match):
        during(1, **changes).attach(model)
    assert callbacks == model.callbacks


def test_a_classifier_is_refused():
    with pytest.raises(UserError, match="this is a model for classify"):
        during(1).attach(YOLO("yolov8n-cls.yaml"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"start": 0.9, "end": 0.5}, "start=0.9 is not before end=0.5"),
        ({"every": 0}, "every=0: takes"),
        ({"every": None, "final": None}, "nothing left to do"),
        ({"recipe": "nothing"}, "recipe=nothing: no such file"),
        ({"final": {"keep": 2}}, "keep=2"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, match):
    with pytest.raises(UserError, match=match):
        SOS(**settings)


@pytest.mark.parametrize("error", [UserError, RuntimeError])
def test_a_final_shift_that_fails_loses_no_training(error, train, monkeypatch):
    def fail(*_, **__):
        raise error("no images")

    monkeypatch.setattr("yolo_os.integration.callback.calibration_batches", fail)
    run = train(during(2, final="budget"), epochs=1)
    assert run.steps == [2]
    assert "yolo_os" not in run.weights("best")


def test_a_shift_that_fails_loses_no_training_and_is_tried_again(train, monkeypatch, caplog):
    shift = StepShift.shift_
    calls = []

    def fail_once(self, average=None):
        calls.append(self.step)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return shift(self, average)

    monkeypatch.setattr(StepShift, "shift_", fail_once)
    run = train(during(4), epochs=2)
    assert calls == [4, 5]
    assert run.steps == [5]
    assert "no shift at step 4: OutOfMemoryError" in caplog.text


def test_a_write_that_fails_puts_model_and_average_back(train, monkeypatch):
    monkeypatch.setattr("yolo_os.training.step.broadcast_parameters_", lambda module: 1 / 0)
    stock, broken = train(name="stock", epochs=1), train(during(1), name="broken", epochs=1)
    assert same(stock.state(), broken.state())
    assert broken.shifts == []


def test_a_final_shift_that_does_harm_is_not_written(train, caplog):
    kept = train(during(None, final=CRUDE.replace(max_loss_rise=0.002)), name="kept", epochs=1)
    assert "yolo_os" not in kept.weights("best")
    assert not (kept.folder / "weights" / "best-unshifted.pt").exists()
    assert json.loads((kept.folder / "os" / "best" / "report.json").read_text())["norm_ratio"] < 1
    assert "best.pt stays as trained" in caplog.text
    harmed = train(during(None, final=CRUDE), name="harmed", epochs=1)  # as asked for: no tolerance
    assert harmed.weights("best")["yolo_os"]
    assert same(kept.state("best"), harmed.state("best-unshifted"))


def test_a_stop_that_comes_after_our_last_word_is_said(train, caplog):
    def stop(trainer):
        trainer.stop |= trainer.epoch == 1

    train(during(2, final="budget"), callbacks={"on_fit_epoch_end": stop})
    assert "the validation above is of the weights before the final shift" in caplog.text
    assert "before the final shift, " not in caplog.text


def test_metrics_in_the_file_are_those_of_the_weights_in_it(train):
    run = train(during(None, final=CRUDE), epochs=1)
    validated = run.model.trainer.metrics
    stored = run.weights("best")["train_metrics"]
    assert validated
    assert {name: stored[name] for name in validated} == pytest.approx(validated)


def test_a_stock_training_resumed_with_shifts_keeps_its_columns(train, tmp_path):
    def interrupt(trainer):
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(callbacks={"on_train_epoch_start": interrupt})
    run = train(during(1), model=YOLO(tmp_path / "run" / "weights" / "last.pt"), resume=True)
    assert run.steps == [7, 8, 9, 10, 11, 12]
    assert len(run.results) == 4
    assert all(None not in row and None not in row.values() for row in run.results)
    assert not any(name.startswith("os/") for name in run.results[0])


def test_a_schedule_by_which_no_shift_comes_is_warned_of(train, caplog):
    run = train(SOS(CRUDE, every="2epochs", start=0.9, final=None), epochs=6, imgsz=32)
    assert run.steps == []
    assert "no shift will come during this training" in caplog.text


def test_settings_left_out_are_those_of_training():
    assert SOS({"layers": "cls"}).recipe == ShiftRecipe(layers="cls", keep=0.9)
    assert SOS(final={"layers": "cls"}).final == ShiftRecipe(layers="cls")
    with pytest.raises(UserError, match=r"unknown key 'evry'.*every"):
        SOS.from_yaml("train", evry=2)
    with pytest.raises(UserError, match=r"^keep=2"):
        SOS.from_yaml("train", keep=2.0)


# Other tasks


def write_data(folder, task):
    """Four pictures of noise with two objects each, labelled as the task wants it."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(4):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), generator.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        lines = []
        for kind, (x, y) in enumerate(((0.3, 0.3), (0.6, 0.7))):
            corners = [x - 0.2, y - 0.2, x + 0.2, y - 0.2, x + 0.2, y + 0.2, x - 0.2, y + 0.2]
            points = [x - 0.1, y, 2, x + 0.1, y, 2]
            label = {"detect": [], "pose": points}.get(task)
            values = corners if label is None else [x, y, 0.4, 0.4, *label]
            lines.append(" ".join(map(str, [kind, *values])))
        (folder / "labels" / f"{number}.txt").write_text("\n".join(lines))
    settings = {"path": str(folder), "train": "images", "val": "images", "names": {0: "a", 1: "b"}}
    settings |= {"kpt_shape": [2, 3], "flip_idx": [0, 1]} if task == "pose" else {}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings))
    return folder / "data.yaml"


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("yolo11n-seg", {"box", "cls", "mask"}),
        pytest.param("yolo26n", {"box", "cls"}, marks=pytest.mark.slow),
        pytest.param("yolo26n-seg", {"box", "cls", "mask"}, marks=pytest.mark.slow),
        pytest.param("yolo11n-pose", {"box", "cls", "keypoint"}, marks=pytest.mark.slow),
        pytest.param("yolo26n-pose", {"box", "cls", "keypoint"}, marks=pytest.mark.slow),
        pytest.param("yolo11n-obb", {"box", "cls", "angle"}, marks=pytest.mark.slow),
        pytest.param("yolo26n-obb", {"box", "cls", "angle"}, marks=pytest.mark.slow),
        pytest.param("rtdetr-l", {"box", "cls"}, marks=pytest.mark.slow),
    ],
)
def test_every_task_is_shifted_during_training_and_at_its_end(name, roles, tmp_path):
    rtdetr = name.startswith("rtdetr")
    model = (RTDETR if rtdetr else YOLO)(f"{name}.yaml")
    data = write_data(tmp_path / "data", model.task)
    SOS(every=1, start=0).attach(model)
    given = {**TINY, "epochs": 2, "batch": 2, "nbs": 2, "imgsz": 128 if rtdetr else 64}
    model.train(data=str(data), project=str(tmp_path), name="run", **given)
    run = Trained(model, tmp_path / "run")
    assert {row["role"] for row in run.shifts} == roles
    assert {int(row["step"]) for row in run.shifts} == {1, 2, 3, 4}
    assert all(float(row["loss_before"]) > 0 for row in run.shifts)
    report = json.loads((run.folder / "os" / "best" / "report.json").read_text())
    assert report["norm_ratio"] <= 1
    assert YOLO(run.folder / "weights" / "best.pt").task == model.task


# Several processes


class Recorder:
    """Stands for the trainer of a process that Ultralytics starts: says which callbacks it was given."""

    def __init__(self, cfg, overrides, _callbacks):
        self.out, self.callbacks = Path(overrides["out"]), _callbacks

    def train(self):
        found = {event: [sos_of(each) for each in callbacks] for event, callbacks in self.callbacks.items()}
        objects = [each for each in found.values() for each in each if each is not None]
        self.out.write_text(
            json.dumps(
                {
                    "events": sorted(event for event, each in found.items() if any(each)),
                    "objects": len(set(map(id, objects))),
                    "settings": objects[0].to_dict(),
                    "left over": objects[0]._run is not None,
                }
            )
        )


def sos_of(callback):
    owner = getattr(callback, "__self__", None)
    return owner if isinstance(owner, SOS) else None


@pytest.mark.parametrize("trained", [False, True])
def test_the_callbacks_reach_the_processes_that_ultralytics_starts(trained, train, detector, tmp_path):
    pytest.importorskip("cloudpickle")
    sos = SOS(CRUDE.replace(seed=7), every="3steps", start=0.25, final="sos_paper")
    model = train(sos, epochs=1).model if trained else YOLO(detector)
    sos.attach(model)
    trainer = Recorder(None, {"out": tmp_path / "found.json"}, model.callbacks)
    trainer.args, trainer.model = SimpleNamespace(out=str(tmp_path / "found.json")), str(detector)
    script = generate_ddp_file(trainer)
    try:
        done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    finally:
        ddp_cleanup(trainer, script)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["objects"] == 1
    assert found["settings"] == sos.to_dict()
    assert found["settings"]["seed"] == 7
    assert not found["left over"]
    assert found["events"] == sorted(event for event, each in model.callbacks.items() if any(map(sos_of, each)))
    assert len(found["events"]) == 9


def test_it_pickles_in_the_middle_of_a_training_without_what_belongs_to_that(train):
    copies, sos = [], during(2)
    train(sos, epochs=1, callbacks={"on_train_batch_start": lambda _: copies.append(pickle.loads(pickle.dumps(sos)))})
    assert [each._run for each in copies] == [None] * BATCHES
    assert copies[0].to_dict() == sos.to_dict()


@pytest.fixture(scope="module")
def two_processes(detector, tiny_data, tmp_path_factory):
    """Stock trainings by two processes on the CPU: what each of them saw, by run."""
    folder = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, __file__, str(detector), str(tiny_data), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,  # processes that wait for each other would do so for long
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return {
        name: ([torch.load(folder / f"{name}{rank}.pt", weights_only=False) for rank in range(2)], folder / name)
        for name in DISTRIBUTED
    }


DISTRIBUTED = {
    "rows": during(1, recipe=ShiftRecipe(method="os", max_loss_rise=None)),
    "sample": during(1),
    "refused": during(1, recipe=CRUDE.replace(samples=1, max_loss_rise=0.0)),
    "default": SOS(every=1, start=0),
}


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_processes_have_the_same_layers_after_each_shift(name, two_processes):
    (first, second), folder = two_processes[name]
    assert [each["step"] for each in first["shifts"]] == [1, 2, 3]
    for one, two in zip(first["shifts"], second["shifts"]):
        assert one["model"].keys() == two["model"].keys()
        for part in ("model", "average"):
            assert all(torch.equal(matrix, two[part][layer]) for layer, matrix in one[part].items())
        assert one["report"] == two["report"]  # statistics, losses and the decision
        moved = any(not torch.equal(matrix, one["before"][layer]) for layer, matrix in one["model"].items())
        assert moved == one["report"].moved
    shifts = table(folder / "shifts.csv")
    assert [row["step"] for row in shifts if row["layer"] == "cv2.0"] == ["1", "2", "3"]
    assert [float(row["norm_after"]) for row in shifts] == [
        pytest.approx(layer.norm_after, rel=1e-5) for each in first["shifts"] for layer in each["report"].layers
    ]


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_the_loss_of_a_shift_is_that_of_all_processes(name, two_processes):
    """The learning rate is zero, so the forward passes had the weights that the shift found."""
    (first, second), _ = two_processes[name]
    for one, two in zip(first["shifts"], second["shifts"]):
        assert one["own loss"] != two["own loss"]
        assert one["report"].loss_before == pytest.approx((one["own loss"] + two["own loss"]) / 2, rel=1e-6)


def test_rows_of_all_processes_are_solved_for(two_processes):
    (first, _), _ = two_processes["rows"]
    rows = {layer.name: layer.rows for layer in first["shifts"][0]["report"].layers}
    assert rows == {"cv2.0": 256, "cv2.1": 64, "cv2.2": 16, "cv3.0": 256, "cv3.1": 64, "cv3.2": 16}  # 4 images
    sampled = two_processes["sample"][0][0]["shifts"][0]["report"].layers
    assert {layer.rows for layer in sampled} == {8}


def test_a_shift_is_taken_back_by_all_processes(two_processes):
    (first, second), _ = two_processes["refused"]
    taken_back = [[each["report"].taken_back for each in one["shifts"]] for one in (first, second)]
    assert taken_back[0] == taken_back[1]
    assert any(taken_back[0])


def test_the_first_process_shifts_what_is_saved(two_processes):
    _, folder = two_processes["default"]
    report = json.loads((folder / "os" / "best" / "report.json").read_text())
    assert report["norm_ratio"] < 1
    assert torch.load(folder / "weights" / "best.pt", weights_only=False)["yolo_os"]


def train_as_one_of_several(detector, data, folder):
    """What `torchrun` starts: stock trainings over gloo, whose shifts are noted."""
    from torch.nn.parallel import DistributedDataParallel
    from ultralytics.models.yolo.detect import DetectionTrainer

    class OnCPU(DistributedDataParallel):
        def __init__(self, module, device_ids=None, **options):
            super().__init__(module, **options)

    class Trainer(DetectionTrainer):
        def _setup_ddp(self):
            """The group is there."""

        def final_eval(self):
            """Takes a GPU in a process group."""

    torch.nn.parallel.DistributedDataParallel = OnCPU
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, original, noted, current = torch.distributed.get_rank(), StepShift.shift_, [], []

    def shift_(self, average=None):
        (trainer,) = current
        before = matrices(self.model)
        report = original(self, average)
        noted.append(
            {
                "step": self.step,
                "before": before,
                "model": matrices(self.model),
                "average": {layer.name: layer.matrix.clone() for layer in average.layers},
                "report": report,
                "own loss": float(trainer.loss.detach()) / 2 / len(self._batch["img"]),
            }
        )
        return report

    StepShift.shift_ = shift_
    for name, sos in DISTRIBUTED.items():
        model = YOLO(detector)
        sos.attach(model)
        given = {**TINY, "epochs": 1, "lr0": 0.0, "data": data, "project": folder, "name": name, "exist_ok": True}
        trainer = Trainer(overrides={"model": detector, **given}, _callbacks=model.callbacks)
        trainer.world_size = 2
        current[:], noted[:] = [trainer], []
        trainer.train()
        torch.save({"shifts": noted}, Path(folder) / f"{name}{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    train_as_one_of_several(*sys.argv[1:])
