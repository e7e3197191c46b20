"""Squared norm against held-out loss and VOC mAP: uniform SOS, foreground SOS, a plain budget, and the default.

    python benchmarks/pareto.py                            # the embedded detector and data; about a minute
    python benchmarks/pareto.py --model best.pt --data VOCdevkit --imgsz 320 --images 380 --held-out 128
    python benchmarks/pareto.py --layers "cv2.0,cv2.1,cv3.0,cv3.1" --recipes "keep=0.2" "method=sos samples=0.95"

Every point shifts the same detector by the same calibration images (one pass for all of them) and is measured with its
weights rounded to the precision of the checkpoint, as `yolo-os shift` would write them. The guard is off: the curve is
wanted beyond what it lets pass. Prints a Markdown table, with the paired bootstrap interval of each change in mAP;
--json and --plot write the figures and the picture.

The plain budget is the obvious thing to do, and what the default is measured against: every anchor point counts the
same, and each layer's outputs may change by the same relative amount (centred, the bias takes up the mean).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from common import DETECTOR, DEVKIT, evaluate_group, find, groups_of, squared_norm

from yolo_os import ShiftRecipe
from yolo_os.forward import run_pass
from yolo_os.heads import find_head
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.data import calibration_batches
from yolo_os.integration.runtime import choose_device
from yolo_os.linalg import Shrinkage, in_float64
from yolo_os.loss import gains_of
from yolo_os.methods import REGISTRY, Entry
from yolo_os.methods.base import Candidate, Solved, System
from yolo_os.plots.style import new_figure, save_figure
from yolo_os.shift import silent
from yolo_os.shifter import Shifter, plan
from yolo_os.statistics import Gram
from yolo_os.timing import Clock
from yolo_os.voc import bootstrap, read_devkit

SAMPLES = (0.25, 0.5, 0.75, 0.9)
KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)
# Family: colour (Okabe and Ito, told apart also without colour vision) and marker.
STYLES = {
    "SOS, uniform": ("#D55E00", "s"),
    "SOS, foreground": ("#E69F00", "^"),
    "plain budget": ("#56B4E9", "D"),
    "default": ("#0072B2", "o"),
    "given": ("#000000", "X"),
}


@dataclass
class Point:
    """One shift; `rise` is that of the held-out training loss, relative; `gains` by group of classes."""

    family: str
    setting: str
    keep: float = 1.0
    rise: float = 0.0
    gains: dict = field(default_factory=dict)


class PlainBudget:
    """A method: all anchor points alike, one relative budget for each layer, set by the share of the norm to keep."""

    def unchanged(self, layer, recipe):
        """Never."""

    def collector(self, layer, recipe, gains):
        """The plain Gram matrix."""
        return Gram()

    def solve(self, found, recipe):
        """The relative change of the outputs, the same in each layer, that leaves `keep` of the squared norm."""
        layers = {
            layer.name: Shrinkage.from_moments(gram.moments[None] / gram.count, layer.matrix) for layer, gram in found
        }
        whole = sum(float(layer.weight.square().sum()) for layer in layers.values())
        low, high = 1e-12, 1.0
        for _ in range(40):
            change = (low * high) ** 0.5
            mus = {name: mu_for_change(layer, change) for name, layer in layers.items()}
            norm = sum(layer.norm2(mus[name]) for name, layer in layers.items())
            low, high = (change, high) if norm >= recipe.keep * whole else (low, change)
        moves = {
            name: lambda weight, layer=layer, mu=mus[name]: replace(layer, weight=in_float64(weight)).solve(mu)
            for name, layer in layers.items()
        }
        systems = {layer.name: System(layer.in_features, gram.count, torch.ones(0)) for layer, gram in found}
        return Solved(systems, [Candidate(moves)])


REGISTRY["plain"] = Entry(f"{__name__}:PlainBudget", "all anchor points alike", ("keep",))


def mu_for_change(layer, change):
    """The mu at which the outputs of a layer have changed by a relative squared amount, in the Gram that it holds."""
    low, high = 1e-16, 1e16
    size = layer.rise(1e300)  # at an endless mu nothing is left of the outputs
    for _ in range(80):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if layer.rise(middle) <= change * size else (low, middle)
    return low


class Together:
    """What takes in the features for several shifts, in one pass for all of them."""

    def __init__(self, statistics):
        self.statistics = statistics
        self.modules = [module for each in statistics for module in each.modules]

    def add(self, seen, labels, batch):
        """Take in what one captured forward pass has shown."""
        for each in self.statistics:
            each.add(seen, labels, batch)


class Scorer:
    """VOC mAP over several groups of classes."""

    def __init__(self, data, split, names, imgsz, device):
        self.data, self.settings = data, {"split": split, "imgsz": imgsz, "device": device}
        self.truth = read_devkit(data, split=split, classes=names)
        self.groups = groups_of(self.truth)

    def __call__(self, model):
        """The results, by group; a class without boxes is undefined and left out of a mean."""
        found = find(model, self.data, self.truth, **self.settings)
        return {group: evaluate_group(self.truth, [found], classes) for group, classes in self.groups.items()}


def points(base, given):
    """Family, setting and recipe of every point."""
    for sampling in ("uniform", "foreground"):
        for share in SAMPLES:
            yield f"SOS, {sampling}", f"{share:g} m rows", base.replace(method="sos", samples=share, sampling=sampling)
    for family, method in (("plain budget", "plain"), ("default", base.method)):
        for keep in KEEPS:
            yield family, f"{keep:g}", base.replace(method=method, keep=keep)
    for words in given:
        settings = dict(word.split("=", 1) for word in words.split())
        settings = {name: yaml.safe_load(value) for name, value in settings.items()}
        yield "given", words, ShiftRecipe.from_dict({**base.to_dict(), **settings}, "--recipes")


def draw(results, path, title):
    """The picture: loss and mAP against the squared norm kept."""
    from matplotlib.ticker import FuncFormatter

    figure, (left, right) = new_figure(1, 2, (11, 4.8), grid="both")
    group = next(iter(results[0].gains))
    for family, (colour, marker) in STYLES.items():
        curve = sorted((point for point in results if point.family == family), key=lambda point: point.keep)
        if not curve:
            continue
        if family != "given":
            curve.append(
                Point(family, "", gains={name: {"value": 0.0, "low": 0.0, "high": 0.0} for name in results[0].gains})
            )
        x = [point.keep for point in curve]
        look = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.6}
        look["linestyle"] = "none" if family == "given" else "-"
        left.plot(x, [100 * point.rise for point in curve], label=family, **look)
        gains = [point.gains[group] for point in curve]
        middle = [100 * gain["value"] for gain in gains]
        bars = [
            [100 * (gain["value"] - gain["low"]) for gain in gains],
            [100 * (gain["high"] - gain["value"]) for gain in gains],
        ]
        right.errorbar(x, middle, np.maximum(bars, 0), capsize=2.5, elinewidth=1, label=family, **look)
    left.set_yscale("symlog", linthresh=0.1, linscale=0.6)
    left.set_ylabel("rise of the held-out training loss, %")
    left.axhline(0.3, color="black", linewidth=0.8, linestyle=":")
    left.annotate("0.3 %", (0.12, 0.33), xycoords=("axes fraction", "data"), fontsize=8)
    right.set_yscale("symlog", linthresh=1, linscale=1.2)
    right.set_ylabel("change of VOC mAP10, points, with 95 % interval")
    right.set_title(f"test images, mean of {group}", fontsize=10)
    left.set_title("training images not used for the shift", fontsize=10)
    for axis in (left, right):
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xlabel("keep: share of the squared norm of the prediction layers")
        axis.invert_xaxis()
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    left.legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(title, fontsize=12)
    save_figure(figure, Path(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DETECTOR))
    parser.add_argument("--data", default=str(DEVKIT), help="a VOCdevkit")
    parser.add_argument("--imgsz", type=int, help="in pixels; that of the model's training if not given")
    parser.add_argument("--images", type=int, default=225, help="calibration images, of the split train")
    parser.add_argument("--held-out", type=int, default=75, help="images of the split train for the loss")
    parser.add_argument("--split", default="test", help="what mAP is taken of")
    parser.add_argument("--layers", default="all", help="as in a recipe")
    parser.add_argument("--recipes", nargs="*", default=[], help='further points, such as "keep=0.2 layers=cls"')
    parser.add_argument("--device", default="")
    parser.add_argument("--json")
    parser.add_argument("--plot", help="a PNG")
    options = parser.parse_args()

    device = choose_device(options.device)
    checkpoint = load_checkpoint(options.model)
    model, imgsz = checkpoint.model.to(device), options.imgsz or checkpoint.imgsz
    head, whole = find_head(model), squared_norm(model)
    base = ShiftRecipe(images=options.images, held_out=options.held_out, layers=options.layers, max_loss_rise=None)
    used, unused = calibration_batches(model, options.data, base, imgsz=imgsz)
    scorer = Scorer(options.data, options.split, list(model.names.values()), imgsz, options.device or None)
    before = scorer(model)
    wanted = list(points(base, options.recipes))

    def shifter_of(recipe):
        return Shifter(head, recipe, gains_of(model, head), plan(head, recipe), checkpoint.precision)

    def loss(statistics=None, batches=unused):
        return run_pass(model, batches, Clock(device), silent, "", statistics).means()["total"]

    # Points that differ in `keep` alone share what takes in their features.
    taking_in = {recipe: shifter_of(recipe) for recipe in {recipe.replace(keep=0.5) for _, _, recipe in wanted}}
    loss(Together([shifter.statistics for shifter in taking_in.values()]), used)
    loss_before = loss()

    results = []
    title = f"{Path(options.model).name}, {imgsz} px: {used.images} calibration images, {unused.images} held out"
    print(
        f"{title}; mAP10 of {len(scorer.truth.images)} images of {options.split}; "
        f"weights rounded to {str(checkpoint.precision).removeprefix('torch.')}\n"
    )
    print(f"| shift | setting | keep | held-out loss | {' | '.join(before)} |")
    print("| --- " * (4 + len(before)) + "|")
    print(f"| none | | 1 | {loss_before:.4f} | {' | '.join(f'{each.map:.4f}' for each in before.values())} |")
    for family, setting, recipe in wanted:
        shifter = shifter_of(recipe)
        shifter.collectors.update(taking_in[recipe.replace(keep=0.5)].collectors)
        unshifted = {name: tensor.clone() for name, tensor in shifter.weights.tensors.items()}
        shifter.shift_(None)
        point = Point(family, setting, squared_norm(model) / whole, loss() / loss_before - 1)
        gains = {group: bootstrap(before[group], after).map for group, after in scorer(model).items()}
        shifter.weights.write_(unshifted)
        point.gains = {
            group: {"value": gain.value, "low": gain.low, "high": gain.high} for group, gain in gains.items()
        }
        results.append(point)
        cells = " | ".join(f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" for gain in gains.values())
        print(f"| {family} | {setting} | {point.keep:.3f} | {point.rise:+.3%} | {cells} |", flush=True)

    if options.json:
        record = {
            "title": title,
            "before": {"loss": loss_before, "map": {group: each.map for group, each in before.items()}},
            "points": [asdict(point) for point in results],
        }
        Path(options.json).write_text(json.dumps(record, indent=2), encoding="utf-8")
    if options.plot:
        draw(results, options.plot, title)


if __name__ == "__main__":
    main()
