"""One run of a comparison, in a process of its own: train or shift, evaluate, and leave a result or the error.

    python -m yolo_os.integration.compare_run FOLDER ...

Each folder holds a `run.json`. A run is done when its `result.json` was moved into place. The process ends when its
standard input does, so that none outlives the comparison that started it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from yolo_os._version import __version__
from yolo_os.comparison.engine import THREADS
from yolo_os.comparison.plan import FAILURE, FOUND, RESULT, RUN
from yolo_os.comparison.resampling import Found, Truth
from yolo_os.errors import UserError
from yolo_os.files import write_json
from yolo_os.heads import find_head
from yolo_os.integration.callback import callback_of
from yolo_os.integration.checkpoint import Checkpoint, load_checkpoint, read_contents, save_shifted, shift_record
from yolo_os.integration.compare_arms import START, attach, recipe_of
from yolo_os.integration.data import calibration_batches
from yolo_os.integration.detect import Boxes, Validation
from yolo_os.integration.flatness import hessian_trace
from yolo_os.integration.guard import guarded
from yolo_os.integration.runtime import choose_device, device_name, limit_threads
from yolo_os.integration.toward import read_origin, shift_toward_, toward_record
from yolo_os.integration.train import train
from yolo_os.shift import shift_batches_
from yolo_os.training.log import epochs_in


def run_job(folders: Sequence[Path], alone: bool = True) -> int:
    """Make the runs of some folders, one after another; how many failed.

    Args:
        folders: a training's, and those of the shifts that start from it.
        alone: whether this process does nothing else, so that its peak memory is that of the run.
    """
    with guarded():  # once for all that is opened below, each with a guard of its own
        return sum(not _made(folder, alone) for folder in folders if not (folder / RESULT).is_file())


def _made(folder: Path, alone: bool) -> bool:
    """Make one run; whether it came to a result."""
    (folder / FAILURE).unlink(missing_ok=True)
    spec = json.loads((folder / RUN).read_text(encoding="utf-8"))
    started = time.perf_counter()
    try:
        result = _shift(spec, folder) if spec["after"] else _train(spec, folder)
        result |= {"wall": time.perf_counter() - started, "version": __version__}
        result["memory"] = _peak_memory(spec) if alone else None
        write_json(folder / RESULT, {**{key: spec[key] for key in _IDENTITY}, **result})
    except Exception as error:  # whatever it is, it is the error of this run, and the others go on
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_json(folder / FAILURE, {"error": said, "traceback": traceback.format_exc()})
        print(f"failed: {said}", file=sys.stderr, flush=True)
        return False
    return True


_IDENTITY = ("arm", "seed", "data", "fraction", "settings")


def _train(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    given = {**spec["train"], "data": spec["data_yaml"], "seed": spec["seed"]}
    given |= {"project": str(folder.parent), "name": folder.name, "exist_ok": True}
    state = _state(folder, spec["trust"])
    seconds: float | None = None
    if state != "trained":
        sos = callback_of(spec["os"])
        if state == "new":
            _empty(folder)
        else:
            given = {"model": str(folder / "weights" / "last.pt"), "resume": True, "device": given.get("device")}
        started = time.perf_counter()
        train(
            {key: value for key, value in given.items() if value is not None},
            sos,
            spec["trust"],
            prepare=lambda model: attach(model, spec),
        )
        seconds = time.perf_counter() - started if state == "new" else None
    checkpoint = load_checkpoint(folder / "weights" / "best.pt", spec["trust"])
    return {
        "seconds": seconds,
        "resumed": state != "new",
        "curves": _curves(folder / "results.csv"),
        **_evaluate(checkpoint, checkpoint.model, spec, folder),
    }


def _state(folder: Path, trust: bool) -> str:
    """How far the training of a folder came: new, resumable, or trained."""
    last, best = folder / "weights" / "last.pt", folder / "weights" / "best.pt"
    try:
        contents = read_contents(last, trust)
    except UserError:
        return "new"
    if contents.get("optimizer") is None:
        return "trained" if best.is_file() else "new"
    epochs = (contents.get("train_args") or {}).get("epochs", 0)
    # The weights of a training that was killed at its very end may be half way through its final shift.
    return "resumable" if 0 < contents.get("epoch", -1) + 1 < epochs else "new"


def _empty(folder: Path) -> None:
    """Remove what an earlier try left."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in (RUN, "log.txt"):
            entry.unlink()


def _shift(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    origin_folder = Path(spec["after"])
    if not (origin_folder / RESULT).is_file():
        raise UserError(f"the training that it starts from, {origin_folder.name}, has no result")
    before = json.loads((origin_folder / RESULT).read_text(encoding="utf-8"))
    _empty(folder)
    (folder / "weights").mkdir()
    started = time.perf_counter()
    checkpoint = load_checkpoint(origin_folder / "weights" / "best.pt", spec["trust"])
    model = checkpoint.model.to(choose_device(_device(spec)))
    loading: dict[str, Any] = {"imgsz": checkpoint.imgsz, "batch": _batch(spec), "workers": _loaders(spec)}
    shift = spec["shift"]
    toward = shift.get("toward")
    if toward:
        start = origin_folder / "weights" / START
        file = start if toward is True and start.is_file() else spec["train"]["model"] if toward is True else toward
        step = {key: value for key, value in shift.items() if key != "toward" and value is not None}
        origin = read_origin(str(file), {}, checkpoint.path, spec["trust"])
        moved = shift_toward_(
            model, origin, spec["data_yaml"], precision=checkpoint.precision, trust=spec["trust"], **step, **loading
        )
        record, said = toward_record(checkpoint, moved, __version__), moved.verdict
        moved.save(folder / "report.json")
    else:
        recipe = recipe_of(shift)
        used, held_out = calibration_batches(model, spec["data_yaml"], recipe, **loading)
        report = shift_batches_(model, used, recipe, held_out=held_out, precision=checkpoint.precision)
        record, said = shift_record(checkpoint, model, recipe.to_dict(), __version__), report.verdict
        report.save(folder / "report.json")
    save_shifted(checkpoint, model, record, folder / "weights" / "best.pt")
    own = time.perf_counter() - started
    trained = before.get("seconds")
    return {
        "seconds": trained + own if trained is not None else None,
        "resumed": before["resumed"],
        "curves": {},
        "said": said,
        **_evaluate(checkpoint, model, spec, folder),
    }


def _evaluate(checkpoint: Checkpoint, model: nn.Module, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Losses on all splits, and what is found on the test images: the one place where they are opened."""
    model = model.to(choose_device(_device(spec)))
    loading: dict[str, Any] = {"imgsz": checkpoint.imgsz, "batch": _batch(spec), "workers": _loaders(spec)}
    loading["device"] = next(model.parameters()).device
    losses = {}
    for split in ("train", "val"):
        found = Validation(spec["data_yaml"], model, split=split, **loading).run(model, loss=True)
        losses[split] = found.loss.get("total")
    trace = _trace(checkpoint, model, spec)
    tested = Validation(spec["test_yaml"], model, split=spec["test_split"], **loading).run(model, loss=True)
    losses["test"] = tested.loss.get("total")
    truth = Truth.load(Path(spec["truth"]))
    _found(tested.boxes, truth).save(folder / FOUND)
    norm = sum(float(layer.matrix.double().square().sum()) for layer in find_head(model).layers)
    return {"loss": losses, "squared_norm": norm, "trace": trace}


def _trace(checkpoint: Checkpoint, model: nn.Module, spec: dict[str, Any]) -> float | None:
    """The trace of the Hessian of the training loss on images to learn from; None where it is not asked for."""
    if not spec["trace"]:
        return None
    loading: dict[str, Any] = {"imgsz": checkpoint.imgsz, "batch": _batch(spec), "workers": _loaders(spec)}
    return float(hessian_trace(model, spec["data_yaml"], layers=spec["trace"], **loading).models[0].trace)


def _found(boxes: Boxes, truth: Truth) -> Found:
    """Boxes in continuous pixels, by image, as detections on a ground truth.

    Raises:
        UserError: if an image was not seen.
    """
    absent = [file for file in truth.files if file not in boxes]
    if absent:
        raise UserError(f"{len(absent)} of {len(truth.files)} test images can't be read, such as {absent[0]}")
    rows = [boxes[file] for file in truth.files]
    every = np.concatenate([np.zeros((0, 6)), *rows])
    image = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    return Found(image, every[:, 5].astype(np.int64), every[:, :4] + [1.0, 1.0, 0.0, 0.0], every[:, 4])


def _curves(file: Path) -> dict[str, list[float]]:
    """Loss on train and val, all terms, and Ultralytics' mAP50-95 of val, by epoch."""
    if not file.is_file():
        return {}
    rows = epochs_in(file)
    terms = {part: [key for key in rows[0] if key.startswith(f"{part}/")] if rows else [] for part in ("train", "val")}
    curves = {f"{part}_loss": [sum(float(row[key]) for key in keys) for row in rows] for part, keys in terms.items()}
    key = "metrics/mAP50-95(B)"
    return curves | {"map50_95": [float(row[key]) for row in rows if row.get(key)]}


def _peak_memory(spec: dict[str, Any]) -> int | None:
    """Bytes: of the GPU where the run was on one, else of this process."""
    if torch.cuda.is_available() and _device(spec) != "cpu":
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device(spec: dict[str, Any]) -> str:
    """The device of evaluations and shifts: the first of those that the training has."""
    return device_name(spec["train"].get("device")).split(",")[0]


def _batch(spec: dict[str, Any]) -> int:
    batch = spec["train"].get("batch", 16)
    return min(int(batch), 16) if isinstance(batch, int) and batch > 0 else 16


def _loaders(spec: dict[str, Any]) -> int:
    on_gpu = torch.cuda.is_available() and _device(spec) != "cpu"
    return int(spec["train"].get("workers", 8)) if on_gpu else 0


def _end_with_the_input() -> None:
    """End this process when its standard input ends, which it does when the process that started it is gone."""

    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock a thread must not hold when Python ends
            pass
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def main(folders: Sequence[str]) -> int:
    """Make the runs of some folders as a process of its own; 1 if any failed."""
    if THREADS in os.environ:
        limit_threads(int(os.environ[THREADS]))
    return 1 if run_job([Path(each) for each in folders]) else 0


if __name__ == "__main__":
    _end_with_the_input()
    sys.exit(main(sys.argv[1:]))
