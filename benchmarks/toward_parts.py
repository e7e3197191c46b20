"""What should move towards the start of a training, and how? Parts, BatchNorm statistics, heads for other classes.

    python benchmarks/toward_parts.py                         # takes the trainings of benchmarks/toward.py, if any
    python benchmarks/toward_parts.py --data voc --shared FOLDER --camera night --seeds 0
    python benchmarks/toward_parts.py --heads                 # digits only: heads for five of the ten classes

The first table takes the runs of one arm of benchmarks/toward.py and puts parts of the model at a share of the way:
`line` is what `shift_toward_` does; `anew` has the same weights, and BatchNorm statistics that are taken anew from the
training images of the new camera; `greedy` starts at the best share on val and changes those of backbone, neck and
head one after the other, as far as val says it helps. The second table (--heads) fine-tunes for five of ten classes:
the class prediction layers are new, and it is asked what of the rest of the head should move with the backbone.

Mean VOC mAP10 on test images over seeds, and the paired gain over the training as it was (95 %, as in toward.py). What
was measured is kept beside what toward.py measures, and not measured again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from common import keep_ultralytics_here
from torch import nn
from toward import ARMS, MEASURED, SHARES, SIDES, Judge, Measured, boxes_of, evidence_of, prepare, study_of, train

from yolo_os import ShiftRecipe
from yolo_os.comparison.statistics import paired
from yolo_os.flatness.detector import detector_objective, labelled_batches
from yolo_os.flatness.operator import differentiable
from yolo_os.integration.data import calibration_batches
from yolo_os.shifter import Weights
from yolo_os.toward import Line

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


@dataclass(frozen=True)
class Case:
    """A run: its model, the line from the start to it, and the data sets of the new and the old camera."""

    model: nn.Module
    line: Line
    data: Path
    old: Path
    imgsz: int

    @property
    def images(self):
        """What it learned from."""
        return sorted((self.data.parent / "images" / "train").iterdir())

    def batches(self, data, size):
        """Labelled train images of a data set, letterboxed."""
        count = len(list((data.parent / "images" / "train").iterdir()))
        recipe = ShiftRecipe(images=count, held_out=0)
        drawn, _ = calibration_batches(self.model, str(data), recipe, imgsz=self.imgsz, batch=size)
        return labelled_batches(drawn)


def at(share, chosen=lambda case, name: True):
    """Values at a share for those tensors that are chosen."""
    return lambda case: mixed(case.model, case.line, lambda name: share if chosen(case, name) else 1.0)


def in_parts(*parts):
    return lambda case, name: place(case.model, name) in parts


def sloped(share, slope):
    return lambda case: mixed(case.model, case.line, lambda name: sloping(case.model, name, share, slope))


def fisher(share):
    """Old and new weights averaged by the diagonal Fisher information of each: the old one's on old images.

    Both are taken to the same mean, and `share` is how much the new one then counts (Matena and Raffel, 2022).
    BatchNorm statistics stay, as in "weights only".
    """

    def values(case):
        start, ends = case.line.values(0.0), case.line.values(1.0)
        new = squared_slopes(case, case.data)
        old = Weights(case.line.tensors).measure(start, lambda: squared_slopes(case, case.old))
        means = [sum(float(each.sum()) for each in found.values()) for found in (new, old)]
        made = mixed(case.model, case.line, lambda name: 1.0 if statistics(name) else share)
        for name, mine in new.items():
            if name in case.line.tensors:
                counts = share * mine / means[0], (1 - share) * old[name] / means[1]
                sums = counts[0] + counts[1] + 1e-12 / mine.numel()
                part = (counts[0] + share * 1e-12 / mine.numel()) / sums
                made[name] = start[name] + part * (ends[name] - start[name])
        return made

    return values


def squared_slopes(case, data):
    """By parameter, the mean over images of the squared slope of the loss."""
    parameters = dict(case.model.named_parameters())
    parameters = {name: each for name, each in parameters.items() if "dfl" not in name}
    batches = case.batches(data, 1)
    sums = {name: torch.zeros_like(each) for name, each in parameters.items()}
    with detector_objective(case.model, batches, parameters) as objective, differentiable(objective.tensors):
        for batch in range(len(batches)):
            slopes = torch.autograd.grad(objective.loss(batch), objective.tensors, materialize_grads=True)
            for total, slope in zip(sums.values(), slopes):
                total.add_(slope.square(), alpha=1 / len(batches))
    return sums


def projected(share):
    """The shift itself, with the start as its origin, in every convolution: the least change that serves as well.

    V' = V0 + G (G + mu)^-1 (V - V0) with G = A^T A of what the convolution is given on the new images: directions that
    these hardly feel go back first. One mu, relative to the mean of G's eigenvalues, leaves `share` of the length of
    all changes. Other weights are at the plain share; BatchNorm statistics stay, since the features hardly change.
    """

    def values(case):
        start, ends = case.line.values(0.0), case.line.values(1.0)
        solved = {}
        for name, gram in grams(case).items():
            change = (ends[name] - start[name]).double()
            eigenvalues, vectors = torch.linalg.eigh(gram)
            turned = change.flatten(1) @ vectors
            solved[name] = eigenvalues.clamp(min=0) / eigenvalues.mean(), vectors, turned, change.shape

        def length(mu):
            return sum(float((turned * (eig / (eig + mu))).square().sum()) for eig, _, turned, _ in solved.values())

        low, high, wanted = 1e-9, 1e9, share**2 * length(0.0)
        for _ in range(100):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if length(middle) > wanted else (low, middle)
        made = mixed(case.model, case.line, lambda name: 1.0 if statistics(name) else share)
        for name, (eig, vectors, turned, shape) in solved.items():
            kept = ((turned * (eig / (eig + low))) @ vectors.T).reshape(shape)
            made[name] = (start[name].double() + kept).to(start[name])
        return made

    return values


def grams(case):
    """By weight, A^T A over the rows that a convolution is given on the new images; of those without groups."""
    found, hooks = {}, []

    def take(name, module):
        def hook(_, given):
            shape = {"padding": module.padding, "stride": module.stride, "dilation": module.dilation}
            rows = torch.nn.functional.unfold(given[0], module.kernel_size, **shape)
            rows = rows.transpose(0, 1).flatten(1).double()
            found[name] = found.get(name, 0) + rows @ rows.T

        return module.register_forward_pre_hook(hook)

    for name, module in case.model.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and f"{name}.weight" in case.line.tensors:
            hooks.append(take(f"{name}.weight", module))
    try:
        with torch.no_grad():
            for batch in case.batches(case.data, 4):
                case.model.eval()(batch["img"].float() / 255)
    finally:
        for hook in hooks:
            hook.remove()
    return found


# By name, what gives the values.
VARIANTS = {
    "as trained": lambda case: {},
    "anew at 1": lambda case: anew(case.model, case.line, 1.0, case.images, case.imgsz),
}
for _share in (0.8, 0.5):
    VARIANTS |= {
        f"line at {_share:g}": at(_share),
        f"backbone at {_share:g}": at(_share, in_parts("backbone")),
        f"backbone and neck at {_share:g}": at(_share, in_parts("backbone", "neck")),
        f"neck and head at {_share:g}": at(_share, in_parts("neck", "head")),
        f"head at {_share:g}": at(_share, in_parts("head")),
        f"weights only at {_share:g}": at(_share, lambda case, name: not statistics(name)),
        f"statistics only at {_share:g}": at(_share, lambda case, name: statistics(name)),
        f"anew at {_share:g}": lambda case, share=_share: anew(case.model, case.line, share, case.images, case.imgsz),
        f"rising with depth, mean {_share:g}": sloped(_share, 0.4),
        f"falling with depth, mean {_share:g}": sloped(_share, -0.4),
        f"Fisher-weighted at {_share:g}": fisher(_share),
        f"projected at {_share:g}": projected(_share),
    }
GREEDY = "greedy on val"


def sloping(model, name, share, slope):
    """A share that rises with depth from and to a part of 1 - share below and above its mean."""
    depth = int(name.split(".")[1]) / (len(model.model) - 1)
    return round(share + slope * (1 - share) * (2 * depth - 1), 3)


def greedy(judge, model, line):
    """Shares of backbone, neck and head found one after the other on val: the values, and the shares."""
    known = {}

    def score(shares):
        key = tuple(shares.values())
        if key not in known:
            values = mixed(model, line, lambda name: shares[place(model, name)])
            [found] = judge.at(model, line, values, "val", SIDES[:1])
            known[key] = found.map
        return known[key]

    best = max(SHARES[:-1], key=lambda share: score(dict.fromkeys(("backbone", "neck", "head"), share)))
    shares = dict.fromkeys(("backbone", "neck", "head"), best)
    for part in shares:
        shares[part] = max(SHARES[:-1], key=lambda share: score({**shares, part: share}))
    return mixed(model, line, lambda name: shares[place(model, name)]), tuple(shares.values())


def parts(study, options, out, measured):
    """The first table."""
    found, taken = {}, []
    wanted = [*VARIANTS, GREEDY]
    if options.only:
        wanted = [each for each in wanted if each == "as trained" or each.startswith(tuple(options.only.split(",")))]
    for seed in options.seeds:
        key = f"{options.camera} {options.arm} {seed} parts"
        left = [label for label in wanted if f"{key} {label}" not in measured]
        if left:
            measure(study, options, out, seed, left, key, measured)
        for label in wanted:
            found.setdefault(label, []).append(measured[f"{key} {label}"])
        if GREEDY in wanted:
            taken.append(measured[f"{key} shares"])
    yield f"{options.data}, camera {options.camera}, {options.arm}, {len(options.seeds)} seeds"
    yield from rows(found, evidence_of(boxes_of(study, measured)))
    if taken:
        shares = "; ".join(" ".join(f"{share:g}" for share in each) for each in taken)
        yield f"greedy shares of backbone, neck, head: {shares}"


def measure(study, options, out, seed, labels, key, measured):
    """Judge what was not judged of a run, which is trained if need be."""
    data = prepare(study, out / "data" / f"{options.camera}{seed}", options.camera, seed)
    old = prepare(study, out / "data" / f"{study.old_camera}{seed}", study.old_camera, seed + 100)
    folder = out / "runs" / f"{options.camera}-{options.arm}-{seed}"
    if not (folder / "done").exists():
        train(study, options.arm, seed, data, old, folder)
    judge = Judge(study, data, old)
    model, line = judge.line(folder / "weights" / "best.pt")
    case = Case(model, line, data, old, study.imgsz)
    for label in labels:
        if label == GREEDY:
            values, shares = greedy(judge, model, line)
            measured[f"{key} shares"] = shares
        else:
            values = VARIANTS[label](case)
        measured[f"{key} {label}"] = judge.on_drawn(model, line, values)
        print(f"measured {key} {label}", flush=True)


def rows(found, evidence):
    """A Markdown table of what was found, by variant: mAP10 of each seed, shape (2, 1 + replicates)."""
    yield ""
    yield "| what is at that share | new camera | change | old camera | change |"
    yield "| --- | --- | --- | --- | --- |"
    first = np.stack(found["as trained"])
    for label, seeds in found.items():
        drawn = np.stack(seeds)
        cells = []
        for side in range(len(SIDES)):
            change = "" if label == "as trained" else str(paired(drawn[:, side] - first[:, side], evidence))
            cells += [f"{drawn[:, side, 0].mean():.4f}", change]
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

    def score_test(self, found):
        """By labels: the devkit's difficult objects are not among them."""
        return self.score_val(found)


def of_head(model, line, share, *stay):
    """Values at a share, but for branches of the head that stay."""
    head = f"model.{len(model.model) - 1}."
    return mixed(model, line, lambda name: 1.0 if name.startswith(tuple(head + each for each in stay)) else share)


def heads(study, options, out, measured):
    """The second table."""
    found = {}
    study = replace(study, counted=study.counted[:FEW])
    labels = {"as trained": None}
    for share in (0.9, 0.8, 0.6, 0.5):
        labels |= {f"{label} at {share:g}": (share, *stay) for label, stay in MOVING.items()}
    for seed in options.seeds:
        key = f"{options.camera}-few {options.arm} {seed} heads"
        left = [label for label in labels if f"{key} {label}" not in measured]
        if left:
            sets = {}
            for name, camera, draw in (("new", options.camera, seed), ("old", study.old_camera, seed + 100)):
                whole = prepare(study, out / "data" / f"{camera}{seed}", camera, draw)
                sets[name] = few_classes(whole, out / "data" / f"{camera}{seed}-few")
            folder = out / "runs" / f"{options.camera}-few-{options.arm}-{seed}"
            if not (folder / "done").exists():
                train(study, options.arm, seed, sets["new"], sets["old"], folder)
            weights = folder / "weights" / "best.pt"
            judge = FewJudge(study, sets["new"], sets["old"], weights, splits=("test",))
            model, line = judge.line(weights)
            for label in left:
                values = of_head(model, line, *labels[label]) if labels[label] else {}
                measured[f"{key} {label}"] = judge.on_drawn(model, line, values)
        for label in labels:
            found.setdefault(label, []).append(measured[f"{key} {label}"])
    yield f"digits, camera {options.camera}, {options.arm}, a head for {FEW} of 10 classes, {len(options.seeds)} seeds"
    boxes = boxes_of(study, measured)
    yield from rows(found, evidence_of(boxes[boxes[:, 0] < FEW]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "voc"), default="digits")
    parser.add_argument("--shared", help="for voc: folder with data/VOCdevkit and weights/voc_yolov5nu.pt")
    parser.add_argument("--camera", default="inverted")
    parser.add_argument("--arm", default="stock20", choices=tuple(ARMS))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--out", default="runs/toward")
    parser.add_argument("--measured", help="file of what runs came to; measured/toward-DATA.npz beside this script")
    parser.add_argument("--only", help="beginnings of the names of the rows wanted, with commas")
    parser.add_argument("--heads", action="store_true", help="the second table")
    options = parser.parse_args()
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    out = Path(options.out).expanduser().resolve()
    keep_ultralytics_here(out / "settings")
    torch.set_num_threads(1)
    study = study_of(parser, options.data, options.shared)
    measured = Measured(Path(options.measured or MEASURED / f"toward-{options.data}.npz"))
    print("\n".join((heads if options.heads else parts)(study, options, out, measured)))


if __name__ == "__main__":
    main()
