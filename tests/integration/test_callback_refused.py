"""What is refused before the first batch, and what fails without losing the training."""

import json
from types import SimpleNamespace

import pytest
import torch
from trainings import BATCHES, CRUDE, during, same
from ultralytics import YOLO

from yolo_os import ShiftRecipe
from yolo_os.errors import UserError
from yolo_os.integration.callback import SOS
from yolo_os.shifter import Weights
from yolo_os.training.step import StepShift


def refused(train, sos, match, **given):
    """A training that must not begin."""
    begun = []
    callbacks = dict.fromkeys(("on_train_start", "on_train_batch_start"), begun.append)
    with pytest.raises(UserError, match=match):
        train(sos, callbacks=callbacks, epochs=1, **given)
    assert not begun


def test_a_frozen_head_is_refused(train):
    refused(train, during(1), r"freeze=\[22\] freezes cv2.0, ", freeze=[22])


def test_a_part_of_the_head_that_is_frozen_is_refused_unless_it_is_left_alone(train):
    refused(train, during(1), r"freezes cv2.0, cv2.1, cv2.2: leave them alone with os.layers=cls", freeze=["22.cv2"])
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

    monkeypatch.setattr("yolo_os.integration.final.calibration_batches", fail)
    run = train(during(2, final="budget"), epochs=1)
    assert run.steps == [2]
    assert "yolo_os" not in run.weights("best")


def test_a_shift_that_fails_loses_no_training_and_is_tried_again(train, monkeypatch, caplog):
    shift = StepShift.shift_
    calls = []

    def fail_once(self):
        calls.append(self.step)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return shift(self)

    monkeypatch.setattr(StepShift, "shift_", fail_once)
    run = train(during(4), epochs=2)
    assert calls == [4, 5]
    assert run.steps == [5]
    assert "no shift at step 4: OutOfMemoryError" in caplog.text


def test_a_write_that_fails_puts_model_and_average_back(train, monkeypatch):
    calls, original = [], Weights.write_

    def write_(self, values):
        original(self, values)
        calls.append(values)
        if len(calls) % 3 == 0:  # after the weights that are tried and those of the model, those of its average
            raise RuntimeError("broken")

    monkeypatch.setattr(Weights, "write_", write_)
    stock, broken = train(name="stock", epochs=1), train(during(1), name="broken", epochs=1)
    assert same(stock.state(), broken.state())
    assert broken.shifts == []
    assert len(calls) == 3 * BATCHES


def test_a_final_shift_that_does_harm_is_not_written(train, caplog):
    kept = train(during(None, final=CRUDE.replace(max_loss_rise=0.002)), name="kept", epochs=1)
    assert "yolo_os" not in kept.weights("best")
    assert not (kept.folder / "weights" / "best-unshifted.pt").exists()
    tried = json.loads((kept.folder / "os" / "best" / "report.json").read_text())["guard"]
    assert [trial["passed"] for trial in tried] == [False] * 4
    assert all(trial["keep"] < 1 and trial["rise"] > 0.002 for trial in tried)
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


def test_one_branch_that_is_frozen_says_how_to_go_on(train):
    with pytest.raises(UserError, match=r"freezes cv3.0, cv3.1, cv3.2: leave them alone with os.layers=box"):
        train(during(2), freeze=["22.cv3"])


def test_bfloat16_on_a_cpu_is_refused_in_a_word(train):
    with pytest.raises(UserError, match=r"amp=bf16: .* on a GPU only"):
        train(during(2), amp="bf16")


@pytest.mark.parametrize("recipe", [3, ["sos"], 0.5])
def test_what_is_no_recipe_is_refused(recipe, detector):
    with pytest.raises(UserError, match="takes a ShiftRecipe, a dictionary of settings, or the name or file of one"):
        SOS(recipe)


def test_a_bare_model_is_refused(detector):
    with pytest.raises(UserError, match="attached to a YOLO or RTDETR, which trains; this is a DetectionModel"):
        SOS().attach(YOLO(detector).model)


def test_tuning_says_that_it_does_not_shift(detector, monkeypatch, caplog):
    called = []
    monkeypatch.setattr(YOLO, "tune", lambda self, **given: called.append(given))
    model = YOLO(detector)
    SOS().attach(model)
    model.tune(data="x.yaml", iterations=1)
    assert called == [{"data": "x.yaml", "iterations": 1}]
    assert "they make no shifts" in caplog.text
    SOS.detach(model)
    caplog.clear()
    model.tune(data="x.yaml")
    assert not caplog.text


def test_without_saving_every_epoch_the_unshifted_weights_are_kept_all_the_same(train):
    run = train(during(None, final=CRUDE), epochs=2, save=False)
    kept = sorted(path.name for path in (run.folder / "weights").iterdir())
    shifted = {name.removesuffix("-unshifted.pt") + ".pt" for name in kept if "unshifted" in name}
    assert len(shifted) == 1
    assert run.weights(shifted.pop().removesuffix(".pt"))["yolo_os"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "sos", "samples": 0.5}, {"method": "sos", "samples": 0.5, "keep": 0.9}),
        ({"recipe": {"method": "sos"}, "seed": 3}, {"method": "sos", "seed": 3}),
        ({"keep": 0.8, "every": 5}, {"method": "budget", "keep": 0.8}),
    ],
)
def test_settings_of_a_recipe_are_keywords(settings, expected):
    made = SOS(**settings).to_dict()
    assert {name: made[name] for name in expected} == expected


def test_an_unknown_keyword_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown key 'metod': did you mean method\?"):
        SOS(metod="sos")


def test_the_docstring_names_every_setting_with_its_default():
    import re
    from dataclasses import fields

    from yolo_os.recipe import training_settings

    recipe = SOS(final=None).recipe
    text = " ".join(SOS.__doc__.split("Args:")[1].split())
    wanted = {each.name: getattr(recipe, each.name) for each in fields(recipe)}
    wanted |= {
        name: training_settings()[name] for name in ("every", "start", "final", "toward", "retain", "retain_drop")
    }
    for name, value in wanted.items():
        said = re.search(rf"(?:^| |, ){name}(?:, \w+)?: [^\[]*\[(.*?)\]", text)
        assert said and str(value) in said[1], name
