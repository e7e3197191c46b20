"""What should move towards the start of a training, and how? Parts, BatchNorm statistics, heads for other classes.

    python benchmarks/toward_parts.py --out runs/toward            # after benchmarks/toward.py with the same --out
    python benchmarks/toward_parts.py --out runs/toward --data voc --shared FOLDER --camera night --seeds 0
    python benchmarks/toward_parts.py --out runs/toward --heads    # digits only: heads for five of the ten classes

The first table takes the runs of one arm of benchmarks/toward.py and puts parts of the model at a share of the way:
`line` is what `shift_toward_` does; `anew` has the same weights, and BatchNorm statistics that are taken anew from the
training images of the new camera; `greedy` starts at the best share on val and changes those of backbone, neck and
head one after the other, as far as val says it helps. The second table (--heads) fine-tunes for five of ten classes:
the class prediction layers are new, and it is asked what of the rest of the head should move with the backbone.

Mean VOC mAP10 on test images over seeds, and the paired gain over the training as it was (95 %, as in toward.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from common import DETECTOR, DEVKIT, keep_ultralytics_here
from toward import ARMS, SHARES, Digits, Judge, Voc, compare, interval, load, prepare, train

FEW = 5  # classes of the digits that a new head tells apart
# What moves besides backbone and neck: the branches of the head that stay.
MOVING = {
    "backbone and neck": ("",),
    "and the box branch": ("cv3",),
    "and the towers of the class branch": ("cv2",),
    "all that has a counterpart": (),
}


def statistics(name):
    return name.endswith(("running_mean", "running_var"))


def place(model, name):
    """backbone, neck or head."""
    number = int(name.split(".")[1])
    return "head" if number == len(model.model) - 1 else "backbone" if number < len(model.yaml["backbone"]) else "neck"


def mixed(model, line, share_of):
    """Values with a share of its own for each tensor; those at 1 stay as they are."""
    values = {}
    for share in {share_of(name) for name in line.tensors} - {1.0}:
        values.update({name: value for name, value in line.values(share).items() if share_of(name) == share})
    return values


def anew(model, line, share, images, imgsz):
    """The weights at a share, and the BatchNorm statistics that the model then has on images."""
    values = {name: value for name, value in line.values(share).items() if not statistics(name)}
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    kept = {name: tensor.detach().clone() for name, tensor in line.tensors.items()}
    momenta = [module.momentum for module in norms]
    counts = [module.num_batches_tracked.clone() for module in norms]
    try:
        with torch.no_grad():
            for name, value in values.items():
                line.tensors[name].copy_(value)
            for module in norms:
                module.reset_running_stats()
                module.momentum = None  # the plain mean over all batches
                module.train()
            for start in range(0, len(images), 20):
                model(torch.stack([letterboxed(file, imgsz) for file in images[start : start + 20]]))
            taken = {name: line.tensors[name].clone() for name in line.tensors if statistics(name)}
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                line.tensors[name].copy_(value)
            for module, momentum, count in zip(norms, momenta, counts):
                module.momentum = momentum
                module.num_batches_tracked.copy_(count)
                module.eval()
    return {**values, **taken}


def letterboxed(file, imgsz):
    image = cv2.imread(str(file))
    scale = imgsz / max(image.shape[:2])
    image = cv2.resize(image, (round(image.shape[1] * scale), round(image.shape[0] * scale)))
    canvas = np.full((imgsz, imgsz, 3), 114, np.uint8)
    top, left = (imgsz - image.shape[0]) // 2, (imgsz - image.shape[1]) // 2
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return torch.from_numpy(canvas[..., ::-1].copy()).permute(2, 0, 1).float() / 255


def variants(model, line, images, imgsz):
    """Name: values, for a few shares."""
    yield "anew at 1", lambda: anew(model, line, 1.0, images, imgsz)
    for share in (0.8, 0.5):
        parts = {
            "line": lambda name: True,
            "backbone": lambda name: place(model, name) == "backbone",
            "backbone and neck": lambda name: place(model, name) != "head",
            "neck and head": lambda name: place(model, name) != "backbone",
            "head": lambda name: place(model, name) == "head",
            "weights only": lambda name: not statistics(name),
            "statistics only": statistics,
        }
        for label, chosen in parts.items():
            yield (
                f"{label} at {share:g}",
                lambda share=share, chosen=chosen: mixed(model, line, lambda name: share if chosen(name) else 1.0),
            )
        yield f"anew at {share:g}", lambda share=share: anew(model, line, share, images, imgsz)
        for label, slope in (("rising with depth", 0.4), ("falling with depth", -0.4)):
            yield (
                f"{label}, mean {share:g}",
                lambda share=share, slope=slope: mixed(model, line, lambda name: sloping(model, name, share, slope)),
            )


def sloping(model, name, share, slope):
    """A share that rises with depth from and to a part of 1 - share below and above its mean."""
    depth = int(name.split(".")[1]) / (len(model.model) - 1)
    return round(share + slope * (1 - share) * (2 * depth - 1), 3)


def greedy(judge, model, line, folder):
    """Shares of backbone, neck and head found one after the other on val; the values and the shares."""

    def score(shares):
        key = "greedy-" + "-".join(f"{share:g}" for share in shares.values())
        path = folder / f"val-new-{key}.npz"
        if not path.exists():
            values = mixed(model, line, lambda name: shares[place(model, name)])
            judge.at(model, line, values, folder, key, only=("val", "new"))
        return load(path)[0].map

    best = max(SHARES[:-1], key=lambda share: score(dict.fromkeys(("backbone", "neck", "head"), share)))
    shares = dict.fromkeys(("backbone", "neck", "head"), best)
    for part in shares:
        shares[part] = max(SHARES[:-1], key=lambda share: score({**shares, part: share}))
    return mixed(model, line, lambda name: shares[place(model, name)]), shares


def parts(study, options, out):
    """The first table."""
    found, taken = {}, []
    for seed in options.seeds:
        folder = out / "runs" / f"{options.camera}-{options.arm}-{seed}"
        data = prepare(study, out / "data" / f"{options.camera}{seed}", options.camera, seed)
        old = prepare(study, out / "data" / f"{study.old_camera}{seed}", study.old_camera, seed + 100)
        judge = Judge(study, data, old)
        model, line = judge.line(folder / "weights" / "best.pt")
        kept = out / "parts" / folder.name
        images = sorted((data.parent / "images" / "train").iterdir())
        judge.at(model, line, {}, kept, "as trained")
        made = [("as trained", dict), *variants(model, line, images, study.imgsz)]
        if options.only:
            made = made[:1] + [each for each in made[1:] if each[0].startswith(tuple(options.only.split(",")))]
        for label, values in made:
            if not (kept / f"test-old-{label}.npz").exists():
                judge.at(model, line, values(), kept, label)
        labels = [label for label, _ in made]
        if not options.only:
            values, shares = greedy(judge, model, line, kept)
            taken.append(shares)
            labels.append("greedy on val")
            judge.at(model, line, values, kept, labels[-1])
        for label in labels:
            for side in ("new", "old"):
                found.setdefault(label, {}).setdefault(side, []).append(load(kept / f"test-{side}-{label}.npz")[0])
    yield f"{options.data}, camera {options.camera}, {options.arm}, {len(options.seeds)} seeds"
    yield from rows(found, study.counted)
    if taken:
        shares = "; ".join(" ".join(f"{share:g}" for share in each.values()) for each in taken)
        yield f"greedy shares of backbone, neck, head: {shares}"


def rows(found, names):
    """A Markdown table of what was found, by variant and camera."""
    yield ""
    yield "| what is at that share | new camera | change | old camera | change |"
    yield "| --- | --- | --- | --- | --- |"
    first = found["as trained"]
    for label, sides in found.items():
        cells = []
        for side in ("new", "old"):
            each = compare(sides[side], first[side], names)
            cells += [f"{each['map']:.4f}", "" if label == "as trained" else interval(each)]
        yield f"| {label} | {' | '.join(cells)} |"


def few_classes(data, out):
    """The data set with the first FEW classes only."""
    text = data.read_text()
    if not (out / "data.yaml").exists():
        for split in ("train", "val", "test"):
            (out / "labels" / split).mkdir(parents=True, exist_ok=True)
            (out / "images" / split).mkdir(parents=True, exist_ok=True)
            for image in (data.parent / "images" / split).iterdir():
                (out / "images" / split / image.name).write_bytes(image.read_bytes())
                label = data.parent / "labels" / split / f"{image.stem}.txt"
                lines = label.read_text().splitlines() if label.exists() else []
                kept = [line for line in lines if int(line.split()[0]) < FEW]
                (out / "labels" / split / label.name).write_text("".join(f"{line}\n" for line in kept))
        head, names = text.split("names:\n")
        head = head.replace(str(data.parent.resolve()), str(out.resolve()))
        (out / "data.yaml").write_text(f"{head}names:\n" + "".join(names.splitlines(keepends=True)[:FEW]))
    return out / "data.yaml"


class FewJudge(Judge):
    """Judges a head for the first classes: test images of both cameras, labels of these classes."""

    def __init__(self, study, data, old, weights):
        from yolo_os.integration.checkpoint import load_checkpoint
        from yolo_os.integration.detect import Validation
        from yolo_os.integration.toward import read_origin

        self.study, self.origin = study, read_origin(study.weights, {}, None)
        self.val = {}
        model = load_checkpoint(weights).model
        self.test = {
            name: Validation(each, model, split="test", imgsz=study.imgsz, device="cpu")
            for name, each in (("new", data), ("old", old))
        }

    def score_test(self, found):
        """By labels: the devkit's difficult objects are not among them."""
        return self.score_val(found)


def of_head(model, line, share, *stay):
    """Values at a share, but for branches of the head that stay."""
    head = f"model.{len(model.model) - 1}."
    return mixed(model, line, lambda name: 1.0 if name.startswith(tuple(head + each for each in stay)) else share)


def heads(study, options, out):
    """The second table."""
    found = {}
    for seed in options.seeds:
        sets = {}
        for name, camera, draw in (("new", options.camera, seed), ("old", study.old_camera, seed + 100)):
            whole = prepare(study, out / "data" / f"{camera}{seed}", camera, draw)
            sets[name] = few_classes(whole, out / "data" / f"{camera}{seed}-few")
        folder = out / "runs" / f"{options.camera}-few-{options.arm}-{seed}"
        if not (folder / "done").exists():
            train(study, options.arm, seed, sets["new"], sets["old"], folder)
        weights = folder / "weights" / "best.pt"
        judge = FewJudge(study, sets["new"], sets["old"], weights)
        model, line = judge.line(weights)
        kept = out / "parts" / folder.name
        made = [("as trained", {})]
        for share in (0.9, 0.8, 0.6, 0.5):
            made += [(f"{label} at {share:g}", of_head(model, line, share, *stay)) for label, stay in MOVING.items()]
        for label, values in made:
            judge.at(model, line, values, kept, label)
            for side in ("new", "old"):
                found.setdefault(label, {}).setdefault(side, []).append(load(kept / f"test-{side}-{label}.npz")[0])
    yield f"digits, camera {options.camera}, {options.arm}, a head for {FEW} of 10 classes, {len(options.seeds)} seeds"
    yield from rows(found, study.counted[:FEW])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "voc"), default="digits")
    parser.add_argument("--shared", help="for voc: folder with data/VOCdevkit and weights/voc_yolov5nu.pt")
    parser.add_argument("--camera", default="inverted")
    parser.add_argument("--arm", default="stock20", choices=tuple(ARMS))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--out", default="runs/toward")
    parser.add_argument("--only", help="beginnings of the names of the rows wanted, with commas; greedy is left out")
    parser.add_argument("--heads", action="store_true", help="the second table")
    options = parser.parse_args()
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    out = Path(options.out).expanduser().resolve()
    keep_ultralytics_here(out / "settings")
    torch.set_num_threads(1)
    if options.data == "voc":
        if options.shared is None:
            parser.error("--data voc needs --shared, a folder with data/VOCdevkit and weights")
        shared = Path(options.shared).expanduser().resolve()
        study = Voc(shared / "data" / "VOCdevkit", shared / "weights" / "voc_yolov5nu.pt")
    else:
        study = Digits(DEVKIT, DETECTOR)
    print("\n".join(heads(study, options, out) if options.heads else parts(study, options, out)))


if __name__ == "__main__":
    main()
