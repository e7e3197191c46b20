"""What else might a shift be good for? Disturbed images, weights of few bits, noise on the weights; before and after.

    python benchmarks/robust.py                                               # the embedded detector
    python benchmarks/robust.py --models 'runs/compare/digits/runs/VOCdevkit/stock-*/weights/best.pt'
    python benchmarks/robust.py --models voc_yolov5nu.pt --data VOCdevkit --classes car,person,cat,train,bus

Each model is shifted to 0.6 and 0.4 of the squared norm of its prediction layers (the default method without its guard,
calibrated on train images), and all are evaluated on the test images under every disturbance. Weights of few bits: all
convolutions, each output channel rounded to a symmetric grid of its own. Noise on the weights: normal, as a share of
each output channel's standard deviation, the same draw before and after (one draw for each model).

Prints a Markdown table of AP50-95 before, and of the paired difference after, with its 95 % interval over images, and
over the models as seeds where there are several. Figures are kept in --out, and the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import glob
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from common import DETECTOR, DEVKIT, changed_dataset, find, images_of, keep_ultralytics_here
from torch import nn

from yolo_os import ShiftRecipe, shift_
from yolo_os.comparison.resampling import STEPS, Found, Truth, draws, resample
from yolo_os.comparison.statistics import defined, paired
from yolo_os.evaluation.annotations import Annotations
from yolo_os.files import write_json
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.data import class_names_of
from yolo_os.voc import dataset_for, read_devkit

KEEPS = (0.6, 0.4)
REPLICATES = 400


def noisy(image, random):
    return np.clip(image + random.normal(0, 25, image.shape), 0, 255).astype(np.uint8)


def blurred(image, random):
    return cv2.GaussianBlur(image, (0, 0), 1.5)


def dull(image, random):
    return (0.35 * image + 0.65 * image.mean()).astype(np.uint8)


def dark(image, random):
    return (0.3 * image).astype(np.uint8)


def compressed(image, random):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], cv2.IMREAD_COLOR)


def coarse(image, random):
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


IMAGES = {
    "plain images": lambda image, random: image,
    "noise (25 of 255)": noisy,
    "blur (1.5 pixels)": blurred,
    "contrast x 0.35": dull,
    "brightness x 0.3": dark,
    "JPEG of quality 10": compressed,
    "every pixel 2 x 2": coarse,
}
BITS = (8, 6, 5, 4)
NOISE = (0.05, 0.1, 0.2)


def of_bits(model, bits):
    """A copy whose convolutions have weights of so many bits."""
    made, most = copy.deepcopy(model), 2 ** (bits - 1) - 1
    for weight in convolutions(made):
        scale = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12) / most
        weight.copy_((weight / scale).round() * scale)
    return made


def with_noise(model, size, seed):
    """A copy with noise on the weights of its convolutions."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for weight in convolutions(made):
        spread = weight.flatten(1).std(dim=1).nan_to_num().reshape(-1, 1, 1, 1)
        weight.add_(size * spread * torch.randn(weight.shape, generator=generator))
    return made


def convolutions(model):
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            yield module.weight.data


def disturb(devkit, names, label, folder):
    """The test images under a disturbance, as a data set."""

    def change(image, file):
        return IMAGES[label](image, np.random.default_rng(sum(map(ord, file.stem))))

    return changed_dataset(folder, names, {"test": images_of(dataset_for(devkit, classes=names), "test")}, change)


class Study:
    """Evaluates models on the test images under each disturbance."""

    def __init__(self, options, names):
        self.options, self.names = options, names
        self.annotations: Annotations = read_devkit(options.data, split="test", classes=list(names))
        wanted = options.classes.split(",") if options.classes else list(names)
        self.wanted = np.array([list(names).index(name) for name in wanted])
        truth = self.annotations
        kept = np.isin(truth.class_index, self.wanted)
        columns = (self._numbered(truth.class_index[kept]), truth.box[kept], truth.difficult[kept])
        self.truth = Truth(tuple(wanted), tuple(truth.images), truth.image[kept], *columns)
        self.weights = draws(len(truth.images), REPLICATES)

    def _numbered(self, class_index):
        place = np.full(len(self.names), -1)
        place[self.wanted] = np.arange(len(self.wanted))
        return place[class_index]

    def ap(self, model, data, imgsz):
        """AP50-95 on the images and on drawn ones."""
        found = find(model, data, self.annotations, imgsz=imgsz)
        kept = np.isin(found.class_index, self.wanted)
        index = self._numbered(found.class_index[kept])
        return resample(
            self.truth, Found(found.image[kept], index, found.box[kept], found.score[kept]), self.weights
        ).means["ap"]


def versions(file, options):
    """The model as it is, and its shifts."""
    checkpoint = load_checkpoint(file)
    made = {"before": checkpoint.model}
    for keep in KEEPS:
        made[f"{keep:g}"] = copy.deepcopy(checkpoint.model)
        recipe = ShiftRecipe(keep=keep, max_loss_rise=None, held_out=0)
        shift_(made[f"{keep:g}"], options.data, recipe, imgsz=checkpoint.imgsz)
    return made, checkpoint.imgsz


def measure(options, files, study, kept):
    """AP by file, disturbance and version, added to what is kept."""
    for label in IMAGES:
        with tempfile.TemporaryDirectory() as folder:
            data = None
            for number, file in enumerate(files):
                todo = [name for name in disturbances(label) if f"{file} {name}" not in kept]
                if not todo:
                    continue
                data = data or disturb(options.data, study.names, label, Path(folder) / "set")
                made, imgsz = versions(file, options)
                for name, change in disturbances(label).items():
                    if name in todo:
                        aps = {
                            version: study.ap(change(model, number), data, imgsz).tolist()
                            for version, model in made.items()
                        }
                        kept[f"{file} {name}"] = aps
                        write_json(options.out, kept)
                        print(f"{name}, {file}", flush=True)


def disturbances(label):
    """By name, what is done to a model on images of a kind: of plain ones, bits and noise as well."""
    made = {label: lambda model, number: model}
    if label == "plain images":
        for bits in BITS:
            made[f"weights of {bits} bits"] = lambda model, number, bits=bits: of_bits(model, bits)
        for size in NOISE:
            made[f"weights with noise, {size:g}"] = lambda model, number, size=size: with_noise(model, size, number)
    return made


def change(mine, before, evidence):
    """The difference with its interval."""
    return str(paired(defined(mine - before), evidence, STEPS["ap"]))


def table(files, kept, evidence):
    """Markdown."""
    heads = " | ".join(f"keep {keep:g}, change [95 %]" for keep in KEEPS)
    yield f"| AP50-95, {len(files)} detector{'s' if len(files) > 1 else ''} | before | {heads} |"
    yield "| --- " * (2 + len(KEEPS)) + "|"
    for label in IMAGES:
        for name in disturbances(label):
            rows = [kept[f"{file} {name}"] for file in files]
            before = np.array([row["before"] for row in rows])
            cells = [f"{before[:, 0].mean():.4f}"]
            cells += [change(np.array([row[f"{keep:g}"] for row in rows]), before, evidence) for keep in KEEPS]
            yield f"| {name} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=str(DETECTOR), help="a file, or a pattern of files, seeds of one training")
    parser.add_argument("--data", default=str(DEVKIT), help="a VOCdevkit")
    parser.add_argument("--classes", help="with commas, those that the mean is over; all by default")
    parser.add_argument("--out", type=Path, default=Path("robust.json"))
    options = parser.parse_args()
    files = sorted(glob.glob(options.models))
    if not files:
        parser.error(f"--models {options.models}: no such file")
    with tempfile.TemporaryDirectory() as settings:
        keep_ultralytics_here(Path(settings))
        names = class_names_of(load_checkpoint(files[0]).model)
        kept = json.loads(options.out.read_text()) if options.out.exists() else {}
        study = Study(options, names)
        measure(options, files, study, kept)
    print("\n".join(table(files, kept, study.truth.evidence)))


if __name__ == "__main__":
    main()
