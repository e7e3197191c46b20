"""Squared norm against held-out loss and VOC mAP: uniform SOS, foreground SOS, a plain budget, and the default.

    python benchmarks/pareto.py                            # the embedded detector and data; about a minute
    python benchmarks/pareto.py --model best.pt --data VOCdevkit --imgsz 320 --images 380 --held-out 128
    python benchmarks/pareto.py --layers "cv2.0,cv2.1,cv3.0,cv3.1" --recipes "keep=0.2" "method=sos samples=0.95"

Every point shifts the same detector by the same calibration images (one pass for all of them) and is measured with its
weights rounded to the precision of the checkpoint, as `yolo-os shift` would write them. The guard is off: the curve is
wanted beyond what it lets pass. Prints a Markdown table, with the paired bootstrap interval of each change in mAP, and
what of the bar (issue 5) holds; --json and --plot write the figures and the picture.

The plain budget is the obvious thing to do, and what the default is measured against: every anchor point counts the
same, and each layer's outputs may change by the same relative amount (centred, the bias takes up the mean).
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml

from yolo_os import ShiftRecipe, evaluate_voc
from yolo_os.evaluation.detections import from_boxes
from yolo_os.forward import run_pass
from yolo_os.heads import find_head
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.data import calibration_batches
from yolo_os.integration.detect import detect
from yolo_os.integration.runtime import choose_device
from yolo_os.linalg import Shrinkage
from yolo_os.methods import METHODS
from yolo_os.resources import resource
from yolo_os.statistics import Gram
from yolo_os.timing import Clock
from yolo_os.voc import bootstrap, read_devkit

SAMPLES = (0.25, 0.5, 0.75, 0.9)
KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)
SOLID = ("car", "person", "cat", "train", "bus")  # the classes with solid counts in the VOC images at hand
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
    kept: float = 1.0
    rise: float = 0.0
    gains: dict = field(default_factory=dict)


class Several:
    """A collector that hands the features of a layer on to several."""

    def __init__(self, collectors):
        self.collectors = collectors

    def add(self, features, outputs, anchors):
        """Take in one batch."""
        for collector in self.collectors:
            collector.add(features, outputs, anchors)

    def merge(self):
        """Add up what all processes took in."""
        for collector in self.collectors:
            collector.merge()


def gains_of(model):
    """Gains of the training loss by name."""
    return {name: float(model.args[name]) for name in ("cls", "dfl", "box", "pose")}


def mu_for_change(layer, change):
    """The mu at which the outputs of a layer have changed by a relative squared amount, in the Gram that it holds."""
    low, high = 1e-16, 1e16
    size = layer.rise(1e300)  # at an endless mu nothing is left of the outputs
    for _ in range(80):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if layer.rise(middle) <= change * size else (low, middle)
    return low


def plain_budget(grams, keep):
    """Weights and bias changes by layer: all anchor points alike, one relative budget for each layer."""
    layers = {layer.name: Shrinkage.of(gram.moments[None] / gram.count, layer.matrix) for layer, gram in grams}
    whole = sum(float(layer.weight.square().sum()) for layer in layers.values())
    low, high = 1e-12, 1.0
    for _ in range(40):
        change = (low * high) ** 0.5
        mus = {name: mu_for_change(layer, change) for name, layer in layers.items()}
        norm = sum(layer.norm2(mus[name]) for name, layer in layers.items())
        low, high = (change, high) if norm >= keep * whole else (low, change)
    return {name: layer.solve(mus[name]) for name, layer in layers.items()}


def solve(recipe, collected):
    """Weights and bias changes by layer, as the method of the recipe has them."""
    solved = METHODS[recipe.method].solve(collected, recipe, None)
    return {name: (each.weight, each.bias_change) for name, each in solved.solutions.items() if not each.unchanged}


def shifted(model, solutions, precision):
    """A copy of the model with the solutions, rounded as in a checkpoint of that precision."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in find_head(model).layers:
            if layer.name in solutions:
                weight, bias_change = solutions[layer.name]
                layer.module.weight.copy_(weight.T.reshape(layer.module.weight.shape))
                if bias_change is not None:
                    layer.module.bias.add_(bias_change.to(layer.module.bias))
                for tensor in layer.module.parameters():
                    tensor.copy_(tensor.to(precision))
    return model


def squared_norm(model):
    return sum(float(layer.matrix.double().square().sum()) for layer in find_head(model).layers)


def groups_of(truth):
    """Which classes each mean is over: all, those with a solid number of boxes, the five of VOC."""
    counts = np.bincount(truth.class_index[~truth.difficult], minlength=len(truth.classes))
    groups = {"all classes": set(np.flatnonzero(counts))}
    enough = set(np.flatnonzero(counts >= 5))
    if enough != groups["all classes"]:
        groups[f"{len(enough)} classes of 5 boxes or more"] = enough
    if set(SOLID) <= set(truth.classes):
        groups["car person cat train bus"] = {truth.classes.index(name) for name in SOLID}
    return groups


class Scorer:
    """VOC mAP over several groups of classes."""

    def __init__(self, data, split, names, imgsz, device):
        self.data, self.split, self.imgsz, self.device = data, split, imgsz, device
        self.truth = read_devkit(data, split=split, classes=names)
        self.groups = groups_of(self.truth)

    def __call__(self, model):
        """The results, by group; a class without boxes is undefined and left out of a mean."""
        found = detect(model, self.data, split=self.split, imgsz=self.imgsz, device=self.device)
        truth, boxes = self.truth, from_boxes(found.boxes, found.names, self.truth)
        results = {}
        for group, classes in self.groups.items():
            wanted = np.isin(truth.class_index, sorted(classes))
            results[group] = evaluate_voc(
                truth.image[wanted],
                truth.class_index[wanted],
                truth.box[wanted],
                truth.difficult[wanted],
                boxes.image,
                boxes.class_index,
                boxes.box,
                boxes.score,
                num_classes=len(truth.classes),
                images=np.arange(len(truth.images)),
                classes=truth.classes,
            )
        return results


def points(base, given):
    """Family, setting and recipe of every point; the plain budget is no recipe."""
    for sampling in ("uniform", "foreground"):
        for share in SAMPLES:
            yield f"SOS, {sampling}", f"{share:g} m rows", base.replace(method="sos", samples=share, sampling=sampling)
    for keep in KEEPS:
        yield "plain budget", f"{keep:g}", keep
    for keep in KEEPS:
        yield "default", f"{keep:g}", base.replace(keep=keep)
    for words in given:
        settings = dict(word.split("=", 1) for word in words.split())
        settings = {name: yaml.safe_load(value) for name, value in settings.items()}
        yield "given", words, ShiftRecipe.from_dict({**base.to_dict(), **settings}, "--recipes")


def on_curve(curve, kept, value):
    """A figure at some norm, between the points of a curve; nothing shifted changes nothing."""
    pairs = sorted([(point.kept, value(point)) for point in curve] + [(1.0, 0.0)])
    return float(np.interp(kept, *zip(*pairs)))


def bar(results):
    """The lines of the bar that can be tried on these data: text and whether each holds."""
    default = [point for point in results if point.family == "default"]
    at = min(default, key=lambda point: abs(point.kept - 0.6))
    yield f"{at.kept:.3f} kept: held-out loss {at.rise:+.4%}; at most +0.3 %", at.rise <= 0.003
    enough = main_group(results)
    for group in dict.fromkeys([enough, list(at.gains)[-1]]):
        limit, gain = 0.003 if group == enough else 0.002, at.gains[group]
        text = f"mAP of {group} {gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"
        yield f"{at.kept:.3f} kept: {text}; a drop of at most {limit}", gain["value"] >= -limit
    for point in results:
        if point.family.startswith("SOS"):
            ours = on_curve(default, point.kept, lambda each: each.rise)
            times = (
                f"a factor of {point.rise / ours:.0f}" if min(point.rise, ours) > 0 else "no factor: one did not rise"
            )
            text = f"{point.kept:.3f} kept: {point.family}, {point.setting} {point.rise:+.3%}, default {ours:+.4%}"
            yield f"{text}; at least 5 times less ({times})", ours <= point.rise / 5
    for point in results:
        if point.family.startswith("SOS"):
            ours = on_curve(default, point.kept, lambda each: each.gains[enough]["value"])
            theirs = point.gains[enough]["value"]
            text = f"{point.kept:.3f} kept: mAP of {enough}, {point.family}, {point.setting} {theirs:+.4f}"
            yield f"{text}, default {ours:+.4f}; at least that of SOS", ours >= theirs


def main_group(results):
    """The mean that counts most: of the classes of 5 boxes or more, which may be all."""
    groups = list(results[0].gains)
    return next((group for group in groups if "5 boxes" in group), groups[0])


def draw(results, path, title):
    """The picture: loss and mAP against the squared norm kept."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(11, 4.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    group = main_group(results)
    for family, (colour, marker) in STYLES.items():
        curve = sorted((point for point in results if point.family == family), key=lambda point: point.kept)
        if not curve:
            continue
        if family != "given":
            curve.append(
                Point(family, "", gains={name: {"value": 0.0, "low": 0.0, "high": 0.0} for name in results[0].gains})
            )
        x = [point.kept for point in curve]
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
        axis.set_xlabel("squared norm of the prediction layers kept")
        axis.invert_xaxis()
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    left.legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(title, fontsize=12)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(resource("data/digits/detector.pt")))
    parser.add_argument("--data", default=str(resource("data/digits/VOCdevkit")), help="a VOCdevkit")
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

    def one_pass(batches, collectors=None):
        return run_pass(model, batches, head, collectors or {}, Clock(device), lambda batches, _: batches, "")

    # A recipe's collectors by layer; points that differ in `keep` alone share theirs.
    gathered = {"plain budget": {layer.name: Gram() for layer in head.layers if base.selects(layer.name, layer.role)}}
    for _, _, recipe in wanted:
        if isinstance(recipe, ShiftRecipe) and recipe.replace(keep=0.5) not in gathered:
            method = METHODS[recipe.method]
            gathered[recipe.replace(keep=0.5)] = {
                layer.name: method.collector(layer, recipe, gains_of(model))
                for layer in head.layers
                if recipe.selects(layer.name, layer.role) and method.refusal(layer, recipe) is None
            }
    one_pass(
        used,
        {
            layer.name: Several([each[layer.name] for each in gathered.values() if layer.name in each])
            for layer in head.layers
        },
    )
    loss_before = one_pass(unused).means()["total"]

    results = []
    title = f"{Path(options.model).name}, {imgsz} px: {used.images} calibration images, {unused.images} held out"
    print(
        f"{title}; mAP10 of {len(scorer.truth.images)} images of {options.split}; "
        f"weights rounded to {str(checkpoint.precision).removeprefix('torch.')}\n"
    )
    print(f"| shift | setting | squared norm kept | held-out loss | {' | '.join(before)} |")
    print("| --- " * (4 + len(before)) + "|")
    print(f"| none | | 1 | {loss_before:.4f} | {' | '.join(f'{each.map:.4f}' for each in before.values())} |")
    for family, setting, recipe in wanted:
        key = recipe.replace(keep=0.5) if isinstance(recipe, ShiftRecipe) else "plain budget"
        collected = [(layer, gathered[key][layer.name]) for layer in head.layers if layer.name in gathered[key]]
        solutions = plain_budget(collected, recipe) if key == "plain budget" else solve(recipe, collected)
        moved = shifted(model, solutions, checkpoint.precision)
        rise = run_pass(moved, unused, head, {}, Clock(device), lambda batches, _: batches, "").means()["total"]
        gains = {group: bootstrap(before[group], after).map for group, after in scorer(moved).items()}
        point = Point(family, setting, squared_norm(moved) / whole, rise / loss_before - 1)
        point.gains = {
            group: {"value": gain.value, "low": gain.low, "high": gain.high} for group, gain in gains.items()
        }
        results.append(point)
        cells = " | ".join(f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" for gain in gains.values())
        print(f"| {family} | {setting} | {point.kept:.3f} | {point.rise:+.3%} | {cells} |", flush=True)

    lines = list(bar(results))
    print(f"\n{sum(holds for _, holds in lines)} of {len(lines)} lines of the bar hold:\n")
    for text, holds in lines:
        print(f"- {'holds' if holds else 'FAILS'}: {text}")
    if options.json:
        record = {
            "title": title,
            "before": {"loss": loss_before, "map": {group: each.map for group, each in before.items()}},
            "points": [asdict(point) for point in results],
            "bar": [{"line": text, "holds": bool(holds)} for text, holds in lines],
        }
        Path(options.json).write_text(json.dumps(record, indent=2), encoding="utf-8")
    if options.plot:
        draw(results, options.plot, title)


if __name__ == "__main__":
    main()
