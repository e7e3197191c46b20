"""Commands killed with -9 at random moments: inputs stay as they were, outputs are whole or absent.

    python benchmarks/kill.py --kills 100

Each command runs in a process of its own over a small data set and is killed at a moment drawn from the length that it
takes when it is left alone. After each kill every file that was there before must be as it was (of an output that was
there before, as it was or whole and new), every output must be whole or absent, and the same command, left alone, must
end well and leave no temporary file behind.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz import NAMES, TRAIN, make_world, run_child, snapshot

COMMANDS = {
    "shift": ["shift", "model=model.pt", "data=data.yaml", "images=4", "held_out=2", "out=out.pt", "json=out.json"],
    "shift over an earlier": ["shift", "model=model.pt", "data=kit", "images=4", "held_out=2", "out=earlier.pt"],
    "val": ["val", "detections=found", "devkit=kit", NAMES, "json=out.json"],
    "val of a model": ["val", "model=model.pt", "data=kit", "json=earlier.json", "coco=False"],
    "voc": ["voc", "devkit=kit", "out=made", "copy=True"],
    "voc over an earlier": ["voc", "devkit=kit", "out=earlier", "copy=True"],
    "train": [*TRAIN, "model=model.pt", "data=data.yaml", "epochs=3", "os.every=1", "os.start=0", "os.final=sos_paper"],
}
CACHE = ".yolo_os.cache"  # of ours, beside the annotations
OUTPUTS = ("out.pt", "out.json", "earlier.pt", "earlier.json", "made", "earlier", "runs", "p")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="stop after so long")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    bad = killed = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="yolo_os_kill_") as scratch:
        base, case, printed = (Path(scratch) / name for name in ("base", "case", "printed"))
        make_world(base)
        (base / "earlier.json").write_text("{}")
        for words in (["voc", "devkit=kit", "out=earlier", "copy=True"], COMMANDS["shift over an earlier"]):
            run_whole(words, base, printed)
        shutil.rmtree(base / "runs", ignore_errors=True)
        lengths = {}
        for name, words in COMMANDS.items():
            fresh(base, case)
            begun = time.monotonic()
            run_whole(words, case, printed)
            lengths[name] = time.monotonic() - begun
        while killed < options.kills and time.monotonic() - started < options.seconds:
            name = list(COMMANDS)[killed % len(COMMANDS)]
            fresh(base, case)
            before = snapshot(case)
            moment = rng.uniform(0, lengths[name])
            if not kill_at(moment, COMMANDS[name], case, printed):
                counts[name]["finished before"] += 1
                killed += 1
                continue
            killed += 1
            wrong = [*changed(before, case), *broken(case)]
            try:
                run_whole(COMMANDS[name], case, printed)
                left = [path for path in case.rglob(".*") if path.name not in (".files.json", CACHE)]
                wrong += [f"left behind: {path.relative_to(case)}" for path in left]
                wrong += [f"after a whole run: {each}" for each in broken(case)]
            except RuntimeError as error:
                wrong.append(f"can't be run any more: {error}")
            counts[name]["bad" if wrong else "inputs as they were, outputs whole or absent"] += 1
            bad += bool(wrong)
            for each in wrong:
                print(f"{name} killed after {moment:.2f} of {lengths[name]:.2f} s: {each}", flush=True)
    for name, outcomes in counts.items():
        print(f"{name:<24}" + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    print(f"{killed} kills in {time.monotonic() - started:.0f} s, {bad} bad")
    return 1 if bad else 0


def fresh(base: Path, case: Path) -> None:
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(base, case, symlinks=True)  # with the times of the files


def start(words: list[str], folder: Path, printed: Path) -> int:
    child = os.fork()
    if child == 0:
        os.setpgrp()
        run_child(words, folder, printed)
    return child


def run_whole(words: list[str], folder: Path, printed: Path) -> None:
    _, status = os.waitpid(start(words, folder, printed), 0)
    if not os.WIFEXITED(status) or os.WEXITSTATUS(status) not in (0, 3):
        raise RuntimeError(printed.read_text(errors="replace").strip().splitlines()[-1:])


def kill_at(moment: float, words: list[str], folder: Path, printed: Path) -> bool:
    """Kill a command after some seconds; False if it had ended before."""
    child = start(words, folder, printed)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def changed(before: dict[str, tuple[int, int]], folder: Path) -> list[str]:
    """Inputs that are not as they were; outputs have a look of their own."""
    after = snapshot(folder)
    inputs = {name: stamp for name, stamp in before.items() if name.split("/")[0] not in OUTPUTS and CACHE not in name}
    return [f"changed: {name}" for name, stamp in inputs.items() if after.get(name) != stamp]


def broken(folder: Path) -> list[str]:
    """Outputs under their final names that are not whole."""
    from yolo_os.integration.checkpoint import read_contents

    found = []
    checks: dict[str, Callable[[Path], object]] = {
        "*.pt": read_contents,
        "*.json": lambda file: json.loads(file.read_text()),
        "shifts.csv": lambda file: None if file.read_text().endswith("\n") else 1 / 0,
    }
    for pattern, check in checks.items():
        for file in folder.rglob(pattern):
            if file.name.startswith(".") or not file.is_file():
                continue
            try:
                check(file)
            except Exception as error:
                found.append(f"not whole: {file.relative_to(folder)} ({type(error).__name__}: {error})"[:300])
    for name in ("made", "earlier"):
        made = folder / name
        if made.exists():
            listed = json.loads((made / ".files.json").read_text())
            there = {str(file.relative_to(made)) for file in made.rglob("*") if file.is_file()} - {".files.json"}
            if set(listed) != there:
                found.append(f"not whole: {name}, {len(there)} of {len(listed)} files")
    if not (folder / "earlier.pt").exists():
        found.append("gone: earlier.pt")
    return found


if __name__ == "__main__":
    sys.exit(main())
