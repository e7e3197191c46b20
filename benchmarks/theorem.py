"""The paper's theorem on detectors: is C0 + C1 ||V||^2 <= tr H <= C0 + C2 ||V||^2, with constants that stay put?

Small detectors of four families, the embedded one and a classifier are trained on digits. At several times of each
training its prediction layers are shifted by many strengths, and at every point (time, strength) this takes ||V||^2,
the trace of the Hessian over the prediction layers (exact) and the loss; at some also the trace over all weights. Then

    R^2       of the line tr = C0 + C ||V||^2: over all points, over the strengths at one time, over the times
    C1, C2    least and largest (tr - C0) / ||V||^2 with that line's C0: equal if the theorem is tight, positive if it
              says anything

and Neural-Collapse measures of the features of anchor points that learn an object, by class: within-class variance over
between-class (NC1), and the mean cosine between centred class means, which collapse brings to -1 / (classes - 1).

    python benchmarks/theorem.py --out theorem [--only yolov8,yolo11]
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import torch
from common import DETECTOR, DEVKIT, digits_training, keep_ultralytics_here, small_architecture

from yolo_os.files import write_json

STRENGTHS = (1.0, 0.8, 0.6, 0.4, 0.2)
IMAGES, SIZE = 16, 96


def checkpoints(family, options):
    """Checkpoints of a training by epoch: trained once, kept in the folder."""
    from ultralytics import YOLO

    folder = (options.out / family).resolve()
    weights = folder / "weights"
    if not (weights / "last.pt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        settings = {**digits_training(), "epochs": options.epochs, "save_period": max(1, options.epochs // 3)}
        settings |= {"imgsz": SIZE, "optimizer": "AdamW", "lr0": 0.004, "mosaic": 0.0, "val": False, "seed": 0}
        YOLO(small_architecture(family, folder)).train(
            project=str(folder.parent), name=folder.name, exist_ok=True, **settings
        )
    found = {int(path.stem.removeprefix("epoch")) + 1: path for path in weights.glob("epoch*.pt")}
    return dict(sorted({**found, options.epochs: weights / "last.pt"}.items()))


def images_of(model):
    from yolo_os.flatness.detector import labelled_batches
    from yolo_os.integration.data import calibration_batches
    from yolo_os.recipe import ShiftRecipe

    drawn, _ = calibration_batches(model, DEVKIT, ShiftRecipe(images=IMAGES, held_out=0), imgsz=SIZE)
    return labelled_batches(drawn)


def point(model, batches, whole):
    """||V||^2, the traces and the loss of a detector as it is."""
    from yolo_os import hessian_trace

    head = hessian_trace(model, batches, layers="head").models[0]
    found = {
        "norm": head.head_squared_norm,
        "head": head.trace,
        "normalised": head.figures["normalised"].value,
        "loss": head.loss,
    }
    if whole:
        all_ = hessian_trace(model, batches, tolerance=0.1).models[0]
        found |= {"all": all_.trace, "all_stderr": all_.stderr}
    return found


def detector_points(checkpoint, last):
    """The points of one time of a training, and its Neural-Collapse measures."""
    from yolo_os import ShiftRecipe, shift_
    from yolo_os.integration.checkpoint import load_checkpoint

    plain = load_checkpoint(checkpoint).model
    batches = images_of(plain)
    found = []
    for method in ("budget", "plain scaling"):
        for keep in STRENGTHS if method == "budget" else (0.4,):
            model = copy.deepcopy(plain)
            if method == "budget" and keep < 1:
                shift_(model, batches, ShiftRecipe(keep=keep, max_loss_rise=None))
            elif keep < 1:
                scale_(model, keep)
            whole = last and method == "budget" and keep in (1.0, 0.4)
            found.append({"method": method, "keep": keep, **point(model, batches, whole)})
    return found, collapse(plain, batches)


def scale_(model, keep):
    """Every prediction layer's weight by one factor: less norm, and another function."""
    from yolo_os.heads import find_head

    for layer in find_head(model).layers:
        layer.module.weight.data *= keep**0.5


class Positives:
    """Collects the features of anchor points that learn an object, with their classes."""

    def __init__(self):
        self.count, self.rows, self.labels = 0, [], []

    def add(self, features, outputs, anchors):
        """Take in one batch."""
        if anchors.label is not None:
            image, place = (anchors.label >= 0).nonzero(as_tuple=True)
            self.rows.append(features[image, :, place].double())
            self.labels.append(anchors.label[image, place])


def collapse(model, batches):
    """NC1 and the mean cosine of centred class means, by class layer; what the classes make possible beside it."""
    from yolo_os.capture import LayerStatistics
    from yolo_os.forward import run_pass, silent
    from yolo_os.heads import find_head
    from yolo_os.timing import Clock

    head = find_head(model)
    collectors = {layer.name: Positives() for layer in head.layers if layer.role == "cls"}
    run_pass(model, batches, Clock(torch.device("cpu")), silent, "", LayerStatistics(head, collectors))
    found = {}
    for name, each in collectors.items():
        rows, labels = torch.cat(each.rows), torch.cat(each.labels)
        classes = [c for c in range(10) if (labels == c).sum() > 1]
        if len(rows) < 100 or len(classes) < 10:
            continue
        means = torch.stack([rows[labels == c].mean(0) for c in classes])
        within = (rows - means[labels]).square().sum(1).mean()
        centred = means - means.mean(0)
        unit = centred / centred.norm(dim=1, keepdim=True)
        cosines = (unit @ unit.T)[~torch.eye(10, dtype=torch.bool)]
        found[name] = {
            "rows": len(rows),
            "nc1": float(within / centred.square().sum(1).mean()),
            "cosine": float(cosines.mean()),
            "cosine_spread": float(cosines.std()),
        }
    return found


def classifier_points(options):
    """The same of a small MLP that classifies scikit-learn's digits."""
    import classifier

    data = classifier.digits(0)
    images, labels = data[:2]
    times = {}
    for epoch in (10, 25, 50, 100, 200):
        model, _ = classifier.fit("mlp", data, 0, classifier.EPOCHS["mlp"], epoch, 5e-4)
        with torch.no_grad():
            features = model[0](images)
        points = []
        gram = features.double().T @ features.double()
        values, vectors = torch.linalg.eigh(gram)
        for keep in STRENGTHS:
            shrunk = copy.deepcopy(model)
            if keep < 1:  # the budget method with all rows alike: V' = U l / (l + mu) U^T V
                weight = shrunk[1].weight.detach().double().T
                low, high = 1e-9, 1e9
                for _ in range(80):
                    mu = (low * high) ** 0.5
                    new = vectors @ ((values / (values + mu))[:, None] * (vectors.T @ weight))
                    low, high = (mu, high) if new.square().sum() > keep * weight.square().sum() else (low, mu)
                shrunk[1].weight.data.copy_(new.T)
            figures = classifier.figures(shrunk, data, 0.05)
            points.append(
                {
                    "method": "budget", "keep": keep, "norm": figures["norm"], "head": figures["last"],
                    "all": figures["trace"], "all_stderr": figures["stderr"], "loss": figures["loss"],
                }
            )  # fmt: skip
        times[epoch] = {"points": points, "collapse": {"last": {"nc1": classifier.collapse(model, images, labels)}}}
    return times


def line(points, figure):
    """C0 and C of tr = C0 + C ||V||^2, the R^2, and C1, C2."""
    norms = torch.tensor([each["norm"] for each in points], dtype=torch.float64)
    traces = torch.tensor([each[figure] for each in points], dtype=torch.float64)
    design = torch.stack([torch.ones_like(norms), norms], 1)
    solution = torch.linalg.lstsq(design, traces[:, None]).solution[:, 0]
    left = (traces - design @ solution).square().sum() / (traces - traces.mean()).square().sum().clamp(min=1e-300)
    quotients = (traces - solution[0]) / norms
    return [float(each) for each in (*solution, 1 - left, quotients.min(), quotients.max())]


def table(results):
    """The fits, the points, and how far features have collapsed."""
    lines = [f"{'network':<12}{'points':<28}{'C0':>10}{'C':>10}{'R^2':>8}{'C1':>10}{'C2':>10}"]

    def add_fit(name, title, points, figure):
        start, slope, share, least, largest = line(points, figure)
        fitted = f"{start:>10.3g}{slope:>10.3g}{share:>8.3f}{least:>10.3g}{largest:>10.3g}"
        lines.append(f"{name:<12}{title:<28}{fitted}")

    for name, times in results.items():
        budget = {
            time: [each for each in found["points"] if each["method"] == "budget"] for time, found in times.items()
        }
        every = [each for points in budget.values() for each in points]
        unshifted = [each for each in every if each["keep"] == 1]
        add_fit(name, "all times and strengths", every, "head")
        for when, points in budget.items():
            add_fit(name, f"strengths at epoch {when}", points, "head")
        if len(unshifted) > 2:
            add_fit(name, "times, unshifted", unshifted, "head")
        whole = [each for each in every if "all" in each]
        if len(whole) > 2:  # fewer say nothing of a line
            add_fit(name, "trace over all weights", whole, "all")
    lines += ["", f"{'network':<12}{'epoch':>6}{'keep':>6}{'||V||^2':>10}{'head':>10}{'all':>10}{'+-':>8}{'loss':>9}"]
    for name, times in results.items():
        for when, found in times.items():
            for each in found["points"]:
                whole = f"{each['all']:>10.4g}{each['all_stderr']:>8.2g}" if "all" in each else f"{'':>18}"
                method = "" if each["method"] == "budget" else f"  ({each['method']})"
                lines.append(
                    f"{name:<12}{when:>6}{each['keep']:>6.2f}{each['norm']:>10.2f}{each['head']:>10.4g}{whole}"
                    f"{each['loss']:>9.4f}{method}"
                )
    lines += ["", f"{'network':<12}{'epoch':>6}  {'layer':<18}{'NC1':>8}{'cosine of class means':>24}{'spread':>8}"]
    for name, times in results.items():
        for when, found in times.items():
            for layer, each in found["collapse"].items():
                angle = f"{each['cosine']:>24.3f}{each['cosine_spread']:>8.3f}" if "cosine" in each else ""
                lines.append(f"{name:<12}{when:>6}  {layer:<18}{each['nc1']:>8.3f}{angle}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("theorem"))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--only", default="embedded,yolov5,yolov8,yolo11,yolo26,classifier")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    keep_ultralytics_here(options.out.resolve())
    file = options.out / "theorem.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in options.only.split(","):
        began = time.perf_counter()
        if name == "classifier":
            results[name] = {str(when): found for when, found in classifier_points(options).items()}
        else:
            times = {50: DETECTOR} if name == "embedded" else checkpoints(name, options)
            results[name] = {}
            for when, path in times.items():
                points, collapsed = detector_points(path, when == max(times))
                results[name][str(when)] = {"points": points, "collapse": collapsed}
                print(f"{name} epoch {when}: {time.perf_counter() - began:.0f} s", flush=True)
        write_json(file, results)
    print(table(results))


if __name__ == "__main__":
    main()
