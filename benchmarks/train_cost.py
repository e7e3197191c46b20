"""What shifts cost a training: time of epochs with and without them, in turns in one training, and peak memory.

    python benchmarks/train_cost.py                                    # embedded detector, 160 pixels
    python benchmarks/train_cost.py --model yolov5n.yaml --imgsz 320   # a YOLOv5n on the same images

One training by stock Ultralytics, of epochs of 19 steps, with `SOS` attached; in every second epoch it is told to do
nothing, so that each epoch with shifts has a neighbour without. Prints the median and the quartiles of the ratios of
neighbours, and the share of the time that the shifts' own code took, which is less noisy (on a GPU it counts no more
than the host's part). Peak memory is that of two further processes, one stock and one with shifts (resident set; on a
GPU that of torch's allocator).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "data" / "digits"


def prepared(args: argparse.Namespace, work: Path) -> tuple[Any, dict[str, Any]]:
    import torch
    from ultralytics import YOLO
    from ultralytics.utils import LOGGER

    from yolo_os.conversion.dataset import dataset_for

    torch.set_num_threads(args.threads)
    LOGGER.setLevel("ERROR")
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    model = YOLO(str(args.model))
    settings = {
        "data": str(dataset_for(DIGITS / "VOCdevkit", classes=names)),
        "imgsz": args.imgsz,
        "batch": args.batch,
        "nbs": args.batch,
        "device": args.device,
        "workers": 0,
        "cache": True,
        "val": False,
        "plots": False,
        "amp": False,
        "verbose": False,
        "optimizer": "SGD",
        "warmup_epochs": 0,
        "close_mosaic": 0,
        "fliplr": 0.0,
        "project": str(work),
        "name": "run",
        "exist_ok": True,
    }
    return model, settings


def measure_time(args: argparse.Namespace, work: Path, every: str, method: str) -> dict[str, float]:
    """Epochs in pairs, one without and one with shifts."""
    from yolo_os import SOS, ShiftRecipe

    model, settings = prepared(args, work)
    sos = SOS(ShiftRecipe(method=method, keep=0.9), every=every, start=0.0, final=None)
    own, started = 0.0, 0.0

    def add(spent: float) -> None:
        nonlocal own
        own += spent

    for event in ("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"):
        setattr(sos, event, _timed(getattr(sos, event), add))
    sos._after_step = _timed(sos._after_step, add)  # type: ignore[method-assign]
    times: list[tuple[float, float]] = []

    def begin(trainer: Any) -> None:
        nonlocal started, own
        sos._running().off = trainer.epoch % 2 == 0
        started, own = time.perf_counter(), 0.0

    def end(trainer: Any) -> None:
        times.append((time.perf_counter() - started, own))

    sos.attach(model)
    model.callbacks["on_train_epoch_start"].insert(0, begin)
    model.add_callback("on_train_epoch_end", end)
    model.train(epochs=2 * args.pairs + 2, **settings)
    pairs = list(zip(times[2::2], times[3::2]))  # the first pair warms up
    ratios = sorted(with_[0] / without[0] for without, with_ in pairs)
    shares = [with_[1] / (with_[0] - with_[1]) for _, with_ in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {"ratio": middle, "low": low, "high": high, "own": statistics.median(shares)}


def _timed(function: Any, add: Any) -> Any:
    def timed(*given: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*given)
        finally:
            add(time.perf_counter() - start)

    return timed


def measure_memory(args: argparse.Namespace, with_shifts: bool) -> float:
    """Peak memory in MB of a short training in a process of its own."""
    command = [sys.executable, __file__, "--memory", "on" if with_shifts else "off"]
    for name in ("model", "imgsz", "batch", "device", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report_memory(args: argparse.Namespace, work: Path) -> None:
    """The child process of `measure_memory`."""
    import torch

    from yolo_os import SOS, ShiftRecipe

    model, settings = prepared(args, work)
    if args.memory == "on":
        SOS(ShiftRecipe(keep=0.9), every=5, start=0.0, final=None).attach(model)
    model.train(epochs=2, **settings)
    on_gpu = model.trainer.device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated() / 1e6 if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    )
    print(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description="What shifts cost a training.")
    parser.add_argument("--model", default=str(DIGITS / "detector.pt"))
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
        os.environ["YOLO_CONFIG_DIR"] = temporary
        os.environ["YOLO_OFFLINE"] = "true"
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
