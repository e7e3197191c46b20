"""Damaged inputs of every kind into every mode: how many end in a line, and how many do not.

    python benchmarks/fuzz.py --count 2000

Each case is a small data set with one input changed at random (bytes, text, or a value somewhere inside), given to one
command in a process of its own. A case is bad if it ends otherwise than with exit code 0, 2 or 3 and one line, runs
longer than four minutes, connects, or changes or removes a file that was there before. `--seed N --first M --count 1
--show` repeats a case.
"""

from __future__ import annotations

import argparse
import collections
import copy
import faulthandler
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["YOLO_OFFLINE"] = "true"
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
LIMIT = 240  # seconds a case
CODES = {0: "done", 2: "refused in a line", 3: "done, with problems listed"}
Case = Callable[[random.Random, Path], list[str]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="stop after so long")
    parser.add_argument("--kinds", default="", help="only these, with commas")
    parser.add_argument("--show", action="store_true", help="print what each case printed")
    options = parser.parse_args()
    kinds = {name: case for name, case in KINDS.items() if not options.kinds or name in options.kinds.split(",")}
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    bad: list[str] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="yolo_os_fuzz_") as scratch:
        base = Path(scratch) / "base"
        make_world(base)
        done = 0
        for number in range(options.first, options.first + options.count):
            if time.monotonic() - started > options.seconds:
                break
            kind = list(kinds)[number % len(kinds)]
            outcome, words, text = run_case(
                kinds[kind], f"{options.seed}-{kind}-{number}", base, Path(scratch) / "case"
            )
            counts[kind][outcome] += 1
            done += 1
            if outcome not in CODES.values():
                last = text.strip().splitlines()[-1:] or [""]
                bad.append(f"--first {number} {kind}: {' '.join(words)[:160]}\n    {outcome}: {last[0][:300]}")
                print(bad[-1], flush=True)
            if options.show:
                print(f"{' '.join(words)}\n{text}\n-> {outcome}")
    total: collections.Counter[str] = sum(counts.values(), collections.Counter())
    for kind, each in counts.items():
        print(f"{kind:<24}" + ", ".join(f"{count} {outcome}" for outcome, count in sorted(each.items())))
    print(f"{done} mutations in {time.monotonic() - started:.0f} s: " + ", ".join(f"{n} {o}" for o, n in total.items()))
    print(f"{len(bad)} bad")
    return 1 if bad else 0


def run_case(case: Case, seed: str, base: Path, folder: Path) -> tuple[str, list[str], str]:
    """One case in a process of its own: how it ended, its words, what it printed."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, symlinks=True)
    words = case(random.Random(seed), folder)
    before = snapshot(folder)
    printed = folder.parent / "printed"
    child = os.fork()
    if child == 0:
        run_child(words, folder, printed)
    ended, deadline = 0, time.monotonic() + LIMIT
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "TOO LONG", words, printed.read_text(errors="replace")
    text = printed.read_text(errors="replace")
    if os.WIFSIGNALED(status):
        return f"KILLED BY SIGNAL {os.WTERMSIG(status)}", words, text
    code = os.WEXITSTATUS(status)
    after = snapshot(folder)
    changed = [name for name, stamp in before.items() if after.get(name) != stamp and not name.endswith(".cache")]
    errors = [line for line in text.splitlines() if line.startswith("yolo-os: ")]
    if code == 77:
        return "CONNECTS", words, text
    if changed:
        return f"CHANGED {changed[0]}", words, text
    if "Traceback (most recent call last)" in text or code not in CODES:
        return f"EXIT CODE {code}", words, text
    if code == 2 and len(errors) != 1:
        return f"{len(errors)} LINES OF ERROR", words, text
    if any(ord(letter) < 32 and letter not in "\n\r\t\x1b" for letter in text):
        return "CONTROL CODES", words, text
    return CODES[code], words, text


def run_child(words: list[str], folder: Path, printed: Path) -> None:
    code = 70
    try:
        os.chdir(folder)
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        faulthandler.dump_traceback_later(LIMIT - 10)  # of one that hangs
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), "utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), "utf-8", write_through=True)

        def connects(*_: Any, **__: Any) -> Any:
            os._exit(77)

        socket.socket.connect = connects  # type: ignore[method-assign]
        socket.getaddrinfo = connects
        from yolo_os.cli import main as command

        code = command(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def make_world(folder: Path) -> None:
    """A devkit of eight images, a data set of its own, detections in both forms, a detector, settings."""
    import torch

    from yolo_os.cli import ENVIRONMENT
    from yolo_os.evaluation.detection_files import coco_json, comp4
    from yolo_os.evaluation.detections import Detections
    from yolo_os.evaluation.readers.devkit import read_devkit
    from yolo_os.integration import checkpoint, detect, train  # noqa: F401  # so that children need not
    from yolo_os.modes import inspect, shift, val  # noqa: F401

    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)
    source = ROOT / "data" / "digits" / "VOCdevkit" / "VOC2007"
    stems = sorted(path.stem for path in (source / "Annotations").glob("*.xml"))[:8]
    kit = folder / "kit" / "VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (kit / name).mkdir(parents=True)
    images = {path.stem: path for path in (source / "JPEGImages").iterdir()}
    for split in ("train", "val"):
        for name in ("images", "labels"):
            (folder / "set" / name / split).mkdir(parents=True)
    for stem in stems:
        shutil.copy(source / "Annotations" / f"{stem}.xml", kit / "Annotations")
        shutil.copy(images[stem], kit / "JPEGImages")
        for split in ("train", "val"):
            shutil.copy(images[stem], folder / "set" / "images" / split)
            (folder / "set" / "labels" / split / f"{stem}.txt").write_text("1 0.5 0.5 0.4 0.4\n3 0.2 0.3 0.1 0.2\n")
    for split in ("train", "val", "test"):
        (kit / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    shutil.copy(ROOT / "data" / "digits" / "detector.pt", folder / "model.pt")
    contents = torch.load(folder / "model.pt", weights_only=False)
    names = list(contents["model"].names.values())
    data = {"path": "set", "train": "images/train", "val": "images/val", "names": dict(enumerate(names))}
    write_yaml(folder / "data.yaml", data)
    write_yaml(folder / "arch.yaml", {k: v for k, v in contents["model"].yaml.items() if k not in ("yaml_file", "ch")})
    write_yaml(folder / "recipe.yaml", {"method": "budget", "keep": 0.7, "images": 4, "held_out": 2})
    truth = read_devkit(kit, split="test", classes=names)
    found = Detections(
        truth.classes, truth.images, truth.image, truth.class_index, truth.box, truth.box[:, 0] / (truth.box[:, 0] + 9)
    )
    comp4.write(found, folder / "found")
    coco_json.write(found, folder / "found.json")
    shutil.rmtree(kit / ".yolo_os.cache", ignore_errors=True)


def write_yaml(path: Path, content: Any) -> None:
    import yaml

    try:
        text = yaml.dump(content, sort_keys=False, allow_unicode=True)
    except RecursionError:
        text = f"a: {'[' * 800}{']' * 800}"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


# How things are damaged.


def weird(rng: random.Random) -> Any:
    """A value that nobody expects."""
    deep: Any = 1
    for _ in range(rng.choice((5, 150, 800))):
        deep = [deep]
    return rng.choice(
        [
            None, True, False, 0, 1, -1, -7, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), -float("inf"),
            0.5, "", "x", "x" * 5000, "a/b", "../../a", "a\x1b[2Jb", "\x00", "数字", "$a_b$", "~nosuchuser/x", "None",
            "import os", [], {}, [[]], [1, 2, 3], {"a": 1}, [None], ["a", 1, {}], {"0": {"1": {"2": []}}}, deep,
        ]
    )  # fmt: skip


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(result) + 1) if result else 0
        size = rng.choice((1, 1, 4, 64, 1000))
        how = rng.randrange(6)
        if how == 0:
            del result[at:]
        elif how == 1:
            del result[at : at + size]
        elif how == 2:
            result[at:at] = rng.randbytes(size)
        elif how == 3:
            result[at:at] = result[at : at + size]
        elif at < len(result):
            result[at] = rng.choice((0, 1, 127, 128, 255, result[at] ^ (1 << rng.randrange(8))))
    return bytes(result)


def change_value(rng: random.Random, value: Any) -> Any:
    """A copy of nested lists and dictionaries with one part replaced, left out, or doubled."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []
    rest = [value]
    while rest:
        each = rest.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        for key in keys:
            places.append((each, key))
            rest.append(each[key])
    if not places:
        return weird(rng)
    holder, key = rng.choice(places)
    how = rng.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder.append(holder[key])
    elif how == 2 and isinstance(holder, dict):
        holder[rng.choice(["x", 99, -1, "a\x1bb", key])] = holder[key]
    else:
        holder[key] = weird(rng)
    return value


def checkpoint_words(rng: random.Random, folder: Path) -> list[str]:
    return rng.choice(
        [
            ["inspect", "model=model.pt"],
            ["inspect", "model=model.pt", "data=data.yaml", "images=4"],
            ["shift", "model=model.pt", "data=data.yaml", "images=4", "held_out=2", "plots=False", "out=out.pt"],
            ["shift", "model=model.pt", "data=kit", "images=4", "held_out=2", "plots=False", "json=r.json"],
            ["val", "model=model.pt", "data=kit", "plots=False", "coco=False"],
            [*TRAIN, "model=model.pt", "data=data.yaml"],
        ]
    )


TRAIN = ["train", "epochs=1", "imgsz=64", "batch=4", "workers=0", "device=cpu", "plots=False", "val=False", "project=p"]
DATA_WORDS = [
    ["inspect", "model=model.pt", "data=data.yaml", "images=4"],
    ["shift", "model=model.pt", "data=data.yaml", "images=4", "held_out=2", "plots=False", "out=out.pt"],
    ["shift", "model=model.pt", "data=data.yaml", "split=val", "images=4", "held_out=2", "plots=False", "out=out.pt"],
    [*TRAIN, "model=model.pt", "data=data.yaml"],
]


def bytes_of_checkpoint(rng: random.Random, folder: Path) -> list[str]:
    file = folder / "model.pt"
    file.write_bytes(change_bytes(rng, file.read_bytes()))
    return checkpoint_words(rng, folder)


def pickle_of_checkpoint(rng: random.Random, folder: Path) -> list[str]:
    """The pickle inside is changed, and the archive around it is whole."""
    file = folder / "model.pt"
    with zipfile.ZipFile(file) as old:
        parts = {entry.filename: old.read(entry) for entry in old.infolist()}
    name = next(name for name in parts if name.endswith("/data.pkl"))
    if rng.random() < 0.2:
        name = rng.choice(list(parts))
    parts[name] = change_bytes(rng, parts[name])
    with zipfile.ZipFile(file, "w") as new:
        for name, data in parts.items():
            new.writestr(name, data)
    return checkpoint_words(rng, folder)


def values_of_checkpoint(rng: random.Random, folder: Path) -> list[str]:
    """Something inside is another thing: a tensor, a setting, an attribute of a layer."""
    import torch
    from torch import nn

    contents = torch.load(folder / "model.pt", weights_only=False)
    model = contents["model"]
    tensors: list[Callable[[torch.Tensor], Any]] = [
        lambda t: torch.full_like(t, float("nan")),
        lambda t: torch.full_like(t, float("inf")),
        lambda t: t[..., :1].clone(),
        lambda t: t.flatten(),
        lambda t: t.double(),
        lambda t: t.to(torch.int8),
        lambda t: t.to("meta"),
        lambda t: torch.zeros(1).expand(2**18, 2**18),
        lambda t: torch.zeros(0),
        lambda t: None,
        lambda t: torch.zeros_like(t),
    ]
    how = rng.randrange(5)
    if how == 0:
        key = rng.choice([*contents, "ema", "yolo_os", "train_args", "model", "modelopt"])
        contents[key] = rng.choice([weird(rng), torch.ones(3), {"imgsz": weird(rng)}, [{"recipe": weird(rng)}], model])
    elif how == 1:
        args = contents["train_args"]
        args[rng.choice([*args, "imgsz", "task", "single_cls", "classes"])] = weird(rng)
    elif how == 2:
        layer = rng.choice(list(model.modules()))
        held = rng.choice([layer._parameters, layer._buffers, layer._modules])
        if held:
            name = rng.choice(list(held))
            if isinstance(held[name], torch.Tensor):
                value = rng.choice(tensors)(held[name].detach())
                try:
                    held[name] = nn.Parameter(value) if held is layer._parameters and value is not None else value
                except RuntimeError:  # of whole numbers
                    held[name] = None
            else:
                held[name] = rng.choice([None, nn.Identity(), nn.Conv2d(3, 5, 1), model, nn.Sequential()])
    else:
        layer = (
            model if rng.random() < 0.4 else model.model[-1] if rng.random() < 0.5 else rng.choice([*model.modules()])
        )
        names = [name for name in vars(layer) if not name.startswith("_")] or ["training"]
        name = rng.choice([*names, *(["names", "yaml", "stride", "nc", "task"] if layer is model else [])])
        if rng.random() < 0.2:
            vars(layer).pop(name, None)
        elif isinstance(vars(layer).get(name), dict | list) and rng.random() < 0.7:
            vars(layer)[name] = change_value(rng, vars(layer)[name])
        else:
            vars(layer)[name] = weird(rng)
    try:
        torch.save(contents, folder / "model.pt")
    except RecursionError:
        (folder / "model.pt").write_bytes(b"PK")
    return checkpoint_words(rng, folder)


def damaged_yaml(name: str, words: Callable[[random.Random], list[str]]) -> Case:
    def case(rng: random.Random, folder: Path) -> list[str]:
        import yaml

        file = folder / name
        if rng.random() < 0.3:
            file.write_bytes(change_bytes(rng, file.read_bytes()))
        else:
            write_yaml(file, change_value(rng, yaml.safe_load(file.read_text())))
        return words(rng)

    return case


def damaged_json(rng: random.Random, folder: Path) -> list[str]:
    file = folder / "found.json"
    if rng.random() < 0.25:
        file.write_bytes(change_bytes(rng, file.read_bytes()))
    else:
        content = json.loads(file.read_text())
        if rng.random() < 0.5:
            names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
            categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
            content = {"annotations": content, "categories": categories}
        try:
            file.write_text(json.dumps(change_value(rng, content)))
        except RecursionError:
            file.write_text("[" * 800 + "]" * 800)
    return ["val", "detections=found.json", "devkit=kit", "plots=False", NAMES, f"strict={rng.random() < 0.5}"]


def damaged_file(pattern: str, *words: list[str]) -> Case:
    def case(rng: random.Random, folder: Path) -> list[str]:
        file = rng.choice(sorted(folder.glob(pattern)))
        file.write_bytes(change_bytes(rng, file.read_bytes()))
        return rng.choice(words)

    return case


def damaged_cache(rng: random.Random, folder: Path) -> list[str]:
    import numpy as np

    label = {
        "im_file": str(folder / "set/images/train/a.jpg"), "shape": (160, 160), "cls": np.zeros((1, 1), np.float32),
        "bboxes": np.full((1, 4), 0.5, np.float32), "segments": [], "keypoints": None, "normalized": True,
        "bbox_format": "xywh",
    }  # fmt: skip
    content = {"labels": [label], "hash": "x", "results": (1, 0, 0, 0, 1), "msgs": [], "version": "1.0.12"}
    with (folder / "set" / "labels" / "train.cache").open("wb") as file:
        np.save(file, change_value(rng, content), allow_pickle=True)
    if rng.random() < 0.5:
        cache = folder / "set" / "labels" / "train.cache"
        cache.write_bytes(change_bytes(rng, cache.read_bytes()))
    return rng.choice(DATA_WORDS)


def strange_words(rng: random.Random, folder: Path) -> list[str]:
    """Keys with values that nobody expects."""
    words = list(rng.choice([*DATA_WORDS, VAL, ["voc", "devkit=kit", "out=made"]]))
    keys = ["model", "data", "out", "json", "imgsz", "batch", "device", "classes", "name", "project", "split", "recipe"]
    keys += ["detections", "devkit", "year", "images", "keep", "pretrained", "cfg", "os", "conf", "seed", "epochs"]
    key = rng.choice(keys)
    value = str(weird(rng)).replace("\x00", "") or "x"
    words = [word for word in words if not word.startswith(f"{key}=")]
    return [*words, f"{key}={value}"]


NAMES = "classes=zero,one,two,three,four,five,six,seven,eight,nine"
VAL = ["val", "detections=found", "devkit=kit", "plots=False", NAMES]
INSPECT_ARCH = [["inspect", "model=arch.yaml"], [*TRAIN, "model=arch.yaml", "data=data.yaml"]]
RECIPE = [
    ["shift", "model=model.pt", "data=data.yaml", "recipe=recipe.yaml", "plots=False", "out=out.pt"],
    [*TRAIN, "model=model.pt", "data=data.yaml", "os=recipe.yaml"],
]
KINDS: dict[str, Case] = {
    "checkpoint, bytes": bytes_of_checkpoint,
    "checkpoint, pickle": pickle_of_checkpoint,
    "checkpoint, values": values_of_checkpoint,
    "checkpoint, values again": values_of_checkpoint,
    "data.yaml": damaged_yaml("data.yaml", lambda rng: rng.choice(DATA_WORDS)),
    "architecture": damaged_yaml("arch.yaml", lambda rng: rng.choice(INSPECT_ARCH)),
    "recipe": damaged_yaml("recipe.yaml", lambda rng: rng.choice(RECIPE)),
    "COCO JSON": damaged_json,
    "devkit text": damaged_file("found/*.txt", VAL),
    "XML": damaged_file("kit/VOC2007/Annotations/*", VAL, ["voc", "devkit=kit", "out=made"]),
    "image set": damaged_file("kit/VOC2007/ImageSets/Main/*", VAL, ["voc", "devkit=kit", "out=made"]),
    "image": damaged_file("set/images/*/*", *DATA_WORDS),
    "labels": damaged_file("set/labels/*/*", *DATA_WORDS),
    "label cache": damaged_cache,
    "words": strange_words,
}


if __name__ == "__main__":
    sys.exit(main())
