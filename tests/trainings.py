"""Trainings by stock Ultralytics for the tests: tiny data, the embedded detector, the callbacks as they come."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from ultralytics import YOLO

from yolo_os import ShiftRecipe
from yolo_os.heads import find_head, unwrap
from yolo_os.integration.callback import SOS

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
