"""Real trainings by stock Ultralytics with shifts: what comes when, and what is left in the folder."""

import json
import math

import numpy as np
import pytest
import torch
from trainings import BATCHES, CRUDE, TINY, Trained, during, matrices, same
from ultralytics import YOLO

from yolo_os import ShiftRecipe
from yolo_os.heads import find_head
from yolo_os.integration.callback import SOS
from yolo_os.shifter import Weights
from yolo_os.training.log import COLUMNS
from yolo_os.training.schedule import Schedule


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
        assert float(row["keep"]) == pytest.approx(
            (float(row["norm_after"]) / float(row["norm_before"])) ** 2, rel=1e-4
        )
        assert float(row["loss_before"]) > 0
        assert int(row["rank"]) <= int(row["m"])
    by_step = {row["step"]: (row["loss_before"], row["loss_after"], row["reverted"]) for row in rows}
    assert len(set(by_step.values())) == len(by_step)
    assert any(float(row["keep"]) < 1 for row in rows if row["reverted"] == "0")


def test_results_csv_has_the_totals_from_its_first_row(full_run):
    run = full_run[0]
    steps = {row["step"]: int(row["reverted"]) for row in run.shifts}
    epochs = [[step for step in steps if (int(step) - 1) // BATCHES == epoch] for epoch in range(4)]
    stand = [sum(not steps[step] for step in epoch) for epoch in epochs]
    back = [sum(steps[step] for step in epoch) for epoch in epochs]
    assert run.column("os/shifts") == np.cumsum(stand).tolist()
    assert run.column("os/reverted") == np.cumsum(back).tolist()
    squares = [{"norm_before": 0.0, "norm_after": 0.0} for _ in steps]
    for row in run.shifts:
        for name, total in squares[list(steps).index(row["step"])].items():
            squares[list(steps).index(row["step"])][name] = total + float(row[name]) ** 2
    kept = {step: each["norm_after"] / each["norm_before"] for step, each in zip(steps, squares)}
    for epoch, value in zip(epochs, run.column("os/keep")):
        assert value == pytest.approx(math.prod(kept[step] for step in epoch if not steps[step]), rel=1e-4)
    assert all(value > 0 for value in run.column("os/norm") + run.column("os/norm_ema"))
    assert not any(("loss" in name or "metric" in name) for name in run.results[0] if name.startswith("os/"))


def test_pictures_reports_and_the_weights_before_are_left_in_the_folder(full_run):
    run = full_run[0]
    assert (run.folder / "shifts.png").stat().st_size > 10_000
    assert not list(full_run[1].folder.rglob("*.png"))
    report = json.loads((run.folder / "os" / "best" / "report.json").read_text())
    assert 0 < report["keep"] < 1
    assert (run.folder / "os" / "best" / "report.txt").read_text().strip()
    before, after = run.weights("best-unshifted"), run.weights("best")
    assert "yolo_os" not in before
    kept = sum(float(each.square().sum()) for each in matrices(after["model"]).values())
    kept /= sum(float(each.square().sum()) for each in matrices(before["model"]).values())
    assert kept == pytest.approx(report["keep"], rel=1e-3)
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
        assert 0 < record["keep"] < 1
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


def test_shifts_that_are_reverted_are_noted_and_leave_the_training_as_it_is(train, monkeypatch):
    original = Weights.measure
    monkeypatch.setattr(Weights, "measure", lambda self, values, figure: original(self, values, figure) * 1.1 + 1)
    stock = train(name="stock", epochs=1)
    back = train(during(2, recipe=CRUDE.replace(max_loss_rise=0.01)), name="back", epochs=1)
    assert same(stock.state(), back.state())
    assert back.steps == [2]
    assert {row["reverted"] for row in back.shifts} == {"1"}
    assert all("beyond max_loss_rise=0.01" in row["note"] for row in back.shifts)
    assert (back.column("os/shifts"), back.column("os/reverted"), back.column("os/keep")) == ([0], [1], [1])


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
