"""The model in training, its moving average and the checkpoint move together."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from trainings import during, matrices, same

from yolo_os.training.step import StepShift


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

    def shift_(self):
        report = original(self)
        rows[len(rows)] = {name: each.rows.double().numpy() for name, each in self._shifter.collectors.items()}
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

    def shift_(self):
        counts.append((self.batches, self._shifter.collectors["cv2.0"].count))
        return original(self)

    monkeypatch.setattr(StepShift, "shift_", shift_)
    updates = []
    run = train(
        during(2), nbs=12, callbacks={"on_train_epoch_end": lambda trainer: updates.append(trainer.ema.updates)}
    )
    assert updates == [1, 2, 3, 4]  # three batches of 4 images a step
    assert run.steps == [2, 4]
    assert counts == [(3, 12 * 64)] * 2
