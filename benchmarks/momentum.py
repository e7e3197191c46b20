"""What to do with the optimizer's momentum along the directions that a shift removes: leave it, project it, clear it.

    python benchmarks/momentum.py                       # about five minutes on two CPU cores
    python benchmarks/momentum.py --epochs 3            # a quick look

Fine-tunes the embedded detector with a shift every ten steps, from the first epoch, in three ways: momentum left as it
is, moved by the same map as the weight (the part in removed directions goes), and cleared for the layers shifted. What
would speak for the last two: the norm that the shift took coming back by old momentum, or a loss that is lower later.
Prints, for SGD and AdamW: the norm before each shift relative to that left by the shift before (mean over shifts), the
training loss of the last epoch, and the head's norm and the validation loss at the end.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "data" / "digits"
CHOICES = ("left", "projected", "cleared")
BUFFERS = ("momentum_buffer", "exp_avg")


def train(choice: str, optimizer: str, epochs: int, work: Path) -> dict[str, float]:
    from ultralytics import YOLO

    from yolo_os import SOS, ShiftRecipe
    from yolo_os.conversion.dataset import dataset_for
    from yolo_os.integration.data import class_names_of
    from yolo_os.linalg import in_float64
    from yolo_os.training.step import StepShift

    model = YOLO(str(DIGITS / "detector.pt"))
    data = dataset_for(DIGITS / "VOCdevkit", classes=class_names_of(model.model))
    holder: dict[str, Any] = {}
    model.add_callback("on_train_start", lambda trainer: holder.update(optimizer=trainer.optimizer))
    write = StepShift._write

    def write_both(self: StepShift, solutions: Mapping[str, Any]) -> None:
        write(self, solutions)
        if holder.get("trial") or choice == "left":
            return
        for layer in self.layers:
            state = holder["optimizer"].state.get(layer.module.weight, {})
            for name in BUFFERS:
                if name in state and layer.name in solutions:
                    old = state[name].flatten(1).T
                    new = solutions[layer.name].move(in_float64(old))[0] if choice == "projected" else old * 0
                    state[name].copy_(new.T.reshape(state[name].shape).to(old.dtype))

    judge = StepShift._loss_with

    def judge_apart(self: StepShift, solutions: Mapping[str, Any]) -> float:
        holder["trial"] = True  # what is written for a look at the loss is put back
        try:
            return judge(self, solutions)
        finally:
            holder["trial"] = False

    StepShift._write, StepShift._loss_with = write_both, judge_apart  # type: ignore[method-assign]
    try:
        SOS(ShiftRecipe(keep=0.9), every=10, start=0.0, final=None).attach(model)
        model.train(
            data=str(data),
            imgsz=160,
            batch=16,
            nbs=16,
            epochs=epochs,
            optimizer=optimizer,
            lr0=0.001 if optimizer == "AdamW" else 0.01,
            fliplr=0.0,
            warmup_epochs=0,
            device="cpu",
            workers=0,
            amp=False,
            plots=False,
            verbose=False,
            seed=0,
            project=str(work),
            name=f"{optimizer}-{choice}",
        )
    finally:
        StepShift._write, StepShift._loss_with = write, judge  # type: ignore[method-assign]
    folder = Path(model.trainer.save_dir)
    results = list(csv.DictReader((folder / "results.csv").open(), skipinitialspace=True))[-1]
    by_step: dict[int, list[float]] = {}
    for row in csv.DictReader((folder / "shifts.csv").open()):
        sums = by_step.setdefault(int(row["step"]), [0.0, 0.0])
        sums[0] += float(row["norm_before"]) ** 2
        sums[1] += float(row["norm_after"]) ** 2
    pairs = [by_step[step] for step in sorted(by_step)]
    regrown = [(after[0] / before[1]) ** 0.5 for before, after in pairwise(pairs)]
    return {
        "regrown": sum(regrown) / max(len(regrown), 1),
        "train": sum(float(value) for name, value in results.items() if name.startswith("train/")),
        "val": sum(float(value) for name, value in results.items() if name.startswith("val/")),
        "norm": float(results["os/norm"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Momentum along the directions that a shift removes.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="momentum-") as temporary:
        os.environ["YOLO_CONFIG_DIR"] = temporary
        os.environ["YOLO_OFFLINE"] = "true"
        import torch
        from ultralytics.utils import LOGGER

        torch.set_num_threads(args.threads)
        LOGGER.setLevel("ERROR")
        print("| optimizer | momentum | norm before the next shift | training loss | val loss | norm at the end |")
        print("| --- | --- | --- | --- | --- | --- |")
        for optimizer in ("SGD", "AdamW"):
            for choice in CHOICES:
                found = train(choice, optimizer, args.epochs, Path(temporary))
                print(
                    f"| {optimizer} | {choice} | {found['regrown']:.4f} | {found['train']:.4f} | {found['val']:.4f} "
                    f"| {found['norm']:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
