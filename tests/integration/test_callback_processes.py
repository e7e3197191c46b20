"""Trainings by several processes: the callbacks travel, all decide alike."""

import json
import os
import pickle
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import finished
from trainings import BATCHES, CRUDE, TINY, during, matrices, table
from ultralytics import YOLO
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file

from yolo_os import ShiftRecipe
from yolo_os.integration.callback import SOS
from yolo_os.training.step import StepShift


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
        done = finished([sys.executable, script])
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
    done = finished(
        [*launcher, __file__, str(detector), str(tiny_data), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return {
        name: ([torch.load(folder / f"{name}{rank}.pt", weights_only=False) for rank in range(2)], folder / name)
        for name in {**DISTRIBUTED, **TOWARD}
    }


DISTRIBUTED = {
    "rows": during(1, recipe=ShiftRecipe(method="os", max_loss_rise=None)),
    "sample": during(1),
    "refused": during(1, recipe=CRUDE.replace(samples=1, max_loss_rise=0.0)),
    "default": SOS(every=1, start=0),
}
TOWARD = {"toward": SOS(toward=True)}  # no shift of the prediction layers, and a training that goes somewhere


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


def test_a_shift_is_reverted_by_all_processes(two_processes):
    (first, second), _ = two_processes["refused"]
    outcomes = [[each["report"].outcome for each in one["shifts"]] for one in (first, second)]
    assert outcomes[0] == outcomes[1]
    assert any(each["report"].reverted for each in first["shifts"])


def test_the_first_process_shifts_what_is_saved(two_processes):
    _, folder = two_processes["default"]
    report = json.loads((folder / "os" / "best" / "report.json").read_text())
    assert report["keep"] < 1
    assert torch.load(folder / "weights" / "best.pt", weights_only=False)["yolo_os"]


def test_the_first_process_takes_the_step_towards_the_start(two_processes):
    (first, second), folder = two_processes["toward"]
    assert not first["shifts"] and not second["shifts"]
    read = json.loads((folder / "os" / "best" / "toward.json").read_text())["toward"]
    assert next(trial["share"] for trial in read["tried"]) == 1
    assert read["share"] < 1
    (record,) = torch.load(folder / "weights" / "best.pt", weights_only=False)["yolo_os"]
    assert record["recipe"]["share"] == read["share"]


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
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, original, noted, current = torch.distributed.get_rank(), StepShift.shift_, [], []

    def shift_(self):
        (trainer,) = current
        before = matrices(self._model)
        report = original(self)
        noted.append(
            {
                "step": self.step,
                "before": before,
                "model": matrices(self._model),
                "average": {layer.name: layer.matrix.clone() for layer in self._shifter._average},
                "report": report,
                "own loss": float(trainer.loss.detach()) / 2 / len(self._batch["img"]),
            }
        )
        return report

    StepShift.shift_ = shift_
    for name, sos in {**DISTRIBUTED, **TOWARD}.items():
        model = YOLO(detector)
        sos.attach(model)
        given = {**TINY, "epochs": 1, "lr0": 0.05 if name in TOWARD else 0.0, "data": data}
        given |= {"project": folder, "name": name, "exist_ok": True}
        trainer = Trainer(overrides={"model": detector, **given}, _callbacks=model.callbacks)
        trainer.world_size = 2
        current[:], noted[:] = [trainer], []
        trainer.train()
        torch.save({"shifts": noted}, Path(folder) / f"{name}{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    train_as_one_of_several(*sys.argv[1:])
