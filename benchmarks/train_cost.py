"""What shifts cost a training: time of epochs with and without them, in turns in one training, and peak memory.

    python benchmarks/train_cost.py                                    # embedded detector, 160 pixels
    python benchmarks/train_cost.py --model yolov5n.yaml --imgsz 320   # a YOLOv5n on the same images

One training by stock Ultralytics, of epochs of 19 steps, with `SOS` attached, whose schedule leaves out every second
epoch, so that each epoch with shifts has a neighbour without. Prints the median and the quartiles of the ratios of
neighbours, and the share of the time that the shifts' own code took, which is less noisy (on a GPU it counts no more
than the host's part). Peak memory is that of two further processes, one stock and one with shifts (resident set; on a
GPU that of torch's allocator).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

from common import DETECTOR, digits_training, keep_ultralytics_here

from yolo_os.training.schedule import Schedule


class EverySecondEpoch(Schedule):
    """Shifts come in epochs of odd numbers only, counted from 0."""

    def due(self, step: int, epoch: int, last: int, done: float, epochs: int) -> bool:
        """Whether a shift comes in a step."""
        return epoch % 2 == 1 and super().due(step, epoch, last, done, epochs)


class OwnTime:
    """Seconds spent in methods."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, function: Any) -> Any:
        """The function, its time counted."""

        @wraps(function)
        def timed(*given: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*given)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def prepared(args: argparse.Namespace, work: Path) -> tuple[Any, dict[str, Any]]:
    import torch
    from ultralytics import YOLO

    torch.set_num_threads(args.threads)
    given = {"imgsz": args.imgsz, "batch": args.batch, "nbs": args.batch, "device": args.device, "optimizer": "SGD"}
    run = {"cache": True, "val": False, "close_mosaic": 0, "project": str(work), "name": "run", "exist_ok": True}
    return YOLO(str(args.model)), {**digits_training(), **given, **run}


def measure_time(args: argparse.Namespace, work: Path, every: str, method: str) -> dict[str, float]:
    """Epochs in pairs, one without and one with shifts."""
    from yolo_os import SOS
    from yolo_os.training.step import StepShift

    model, settings = prepared(args, work)
    sos = SOS({"method": method, "keep": 0.9}, every=every, start=0.0, final=None)
    sos.schedule = EverySecondEpoch(every, 0.0)
    own, started = OwnTime(), 0.0
    times: list[tuple[float, float]] = []

    def begin(trainer: Any) -> None:
        nonlocal started
        started, own.seconds = time.perf_counter(), 0.0

    def end(trainer: Any) -> None:
        times.append((time.perf_counter() - started, own.seconds))

    # All that runs because of the shifts: the callbacks, taking in a batch after its loss, the shift after a step.
    parts = [(SOS, name) for name in ("on_train_epoch_start", "on_train_batch_start", "_after_step")]
    parts += [(SOS, name) for name in ("on_train_batch_end", "on_train_epoch_end")] + [(StepShift, "_take_in")]
    with ExitStack() as patched:
        for owner, name in parts:
            patched.enter_context(mock.patch.object(owner, name, own.of(getattr(owner, name))))
        model.add_callback("on_train_epoch_start", begin)
        sos.attach(model)
        model.add_callback("on_train_epoch_end", end)
        model.train(epochs=2 * args.pairs + 2, **settings)
    pairs = list(zip(times[2::2], times[3::2]))  # the first pair warms up
    ratios = sorted(with_[0] / without[0] for without, with_ in pairs)
    shares = [with_[1] / (with_[0] - with_[1]) for _, with_ in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {"ratio": middle, "low": low, "high": high, "own": statistics.median(shares)}


def measure_memory(args: argparse.Namespace, with_shifts: bool) -> float:
    """Peak memory in MB of a short training in a process of its own."""
    command = [sys.executable, __file__, "--memory", "on" if with_shifts else "off"]
    for name in ("model", "imgsz", "batch", "device", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report_memory(args: argparse.Namespace, work: Path) -> None:
    """The child process of `measure_memory`."""
    import torch

    from yolo_os import SOS

    model, settings = prepared(args, work)
    if args.memory == "on":
        SOS(every=5, start=0.0, final=None).attach(model)
    model.train(epochs=2, **settings)
    if model.trainer.device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DETECTOR))
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--methods", default="budget,sos")
    parser.add_argument("--every", default="epoch,10steps", help="as os.every; with commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", choices=("on", "off"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="train-cost-") as temporary:
        keep_ultralytics_here(Path(temporary))
        if args.memory:
            report_memory(args, Path(temporary))
            return
        print("| method | shifts | epoch with / without [quartiles] | own code, share of the epoch |")
        print("| --- | --- | --- | --- |")
        for method in args.methods.split(","):
            for every in args.every.split(","):
                found = measure_time(args, Path(temporary), every, method)
                print(
                    f"| {method} | every {every} | {found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}] "
                    f"| {found['own']:.2%} |",
                    flush=True,
                )
        stock, shifted = measure_memory(args, False), measure_memory(args, True)
        print(
            f"\npeak memory: stock {stock:.0f} MB, budget every 5 steps {shifted:.0f} MB, ratio {shifted / stock:.3f}"
        )


if __name__ == "__main__":
    main()
