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
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from common import DETECTOR, digits_training, keep_ultralytics_here

CHOICES = ("left", "projected", "cleared")
BUFFERS = ("momentum_buffer", "exp_avg")


def taking(choice: str, holder: dict[str, Any]) -> Any:
    """`Shifter._take_`, the one place where a shift that was judged is written, with momentum treated as well."""
    from yolo_os.linalg import in_float64
    from yolo_os.shifter import Shifter

    take_ = Shifter._take_

    def take_both(self: Shifter, candidate: Any, values: Any) -> None:
        take_(self, candidate, values)
        for layer in self.layers:
            state = holder["optimizer"].state.get(layer.module.weight, {})
            for name in BUFFERS:
                if name in state and layer.name in candidate.moves and choice != "left":
                    old = state[name].flatten(1).T
                    new = candidate.moves[layer.name](in_float64(old))[0] if choice == "projected" else old * 0
                    state[name].copy_(new.T.reshape(state[name].shape).to(old.dtype))

    return take_both


def train(choice: str, optimizer: str, epochs: int, work: Path) -> dict[str, float]:
    from ultralytics import YOLO

    from yolo_os import SOS
    from yolo_os.shifter import Shifter
    from yolo_os.training.log import read_rows

    model = YOLO(str(DETECTOR))
    holder: dict[str, Any] = {}
    model.add_callback("on_train_start", lambda trainer: holder.update(optimizer=trainer.optimizer))
    SOS(every=10, start=0.0, final=None).attach(model)
    rate = 0.001 if optimizer == "AdamW" else 0.01
    run = {"epochs": epochs, "seed": 0, "project": str(work), "name": f"{optimizer}-{choice}"}
    with mock.patch.object(Shifter, "_take_", taking(choice, holder)):
        model.train(optimizer=optimizer, lr0=rate, **run, **digits_training())
    assert model.trainer is not None
    folder = Path(model.trainer.save_dir)
    results = read_rows(folder / "results.csv")[-1]
    by_step: dict[int, list[float]] = {}
    for row in read_rows(folder / "shifts.csv"):
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="momentum-") as temporary:
        keep_ultralytics_here(Path(temporary))
        import torch

        torch.set_num_threads(args.threads)
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
