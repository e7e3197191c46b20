"""The paper's own ground: small classifiers that collapse, shifted as the paper does, beside what else flattens.

Handwritten digits of scikit-learn (a dependency of this script alone), 500 images to train on and 1,297 to test. An
MLP and a small residual network, to zero training error and far past it, with and without weight decay, five seeds; the
residual network also with ten times the decay and for five times as long, which is where its features collapse.

    os      exact: outputs kept on all training images; after the training, or of each batch of it (`os_train`)
    sos     outputs kept on 10 or 20 random training images; after it, or every epoch in it (`sos20_train`)
    sam, decay x10, label smoothing     trainings of their own, beside the plain one

and training loss, trace of the Hessian of the training loss (all weights, eval mode), test accuracy, expected
calibration error (15 bins), trace over the last layer alone, squared norm of V, and the Neural-Collapse measure of the
features (within-class variance over between-class, NC1). Differences to the plain training are paired by seed, with
95 % intervals by Student's t.

    python benchmarks/classifier.py --out classifier.json
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from yolo_os import shift_linear_
from yolo_os.files import write_json
from yolo_os.flatness.estimate import Probed, hutchinson, sketch, student
from yolo_os.flatness.operator import Hessian, Objective

TRAIN, BATCH = 500, 50
EPOCHS = {"mlp": 200, "resnet": 60}
COLLAPSED = ("resnet", 5e-3)
LONG = 300  # epochs of that
ARMS = ("os", "sos10", "sos20", "os_train", "sos20_train", "sam", "decay x10", "smoothing")


def digits(seed):
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN], order[TRAIN:]
    return images[train], labels[train], images[test], labels[test]


class Block(nn.Module):
    """Two convolutions with BatchNorm around a skip."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x):
        """Of a residual network."""
        return torch.relu(self.body(x) + self.skip(x))


def network(kind, seed):
    """The features and the last layer, m inputs and 10 outputs."""
    torch.manual_seed(seed)
    if kind == "mlp":
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    else:
        stem = [nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        body = nn.Sequential(
            *stem, Block(8, 8, 1), Block(8, 16, 2), Block(16, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    return nn.Sequential(body, nn.Linear(64, 10))


def schedule_of(kind, decay):
    """Epochs of the learning rate's schedule."""
    return LONG if (kind, decay) == COLLAPSED else EPOCHS[kind]


def fit(kind, data, seed, schedule, epochs=None, decay=0.0, smoothing=0.0, rho=0.0, shift=None):
    """Train from scratch, for some epochs or (None) until every training image is right; the model and that epoch."""
    images, labels = data[:2]
    model = network(kind, seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=decay)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule, eta_min=0.001)
    generator = torch.Generator().manual_seed(seed)
    done = None
    for epoch in range(epochs or schedule):
        model.train()
        for part in torch.randperm(len(labels), generator=generator).split(BATCH):
            x, y = images[part], labels[part]
            if rho:
                climb_and_grad(model, x, y, rho)
            else:
                optimizer.zero_grad()
                features = model[0](x)
                cross_entropy(model[1](features), y, label_smoothing=smoothing).backward()
            optimizer.step()
            if shift == "os":  # the paper's: the batch of the step is A
                shift_linear_(model[1], features.detach())
        rate.step()
        if shift == "sos20":
            with torch.no_grad():
                model.eval()
                some = torch.randperm(len(labels), generator=generator)[:20]
                shift_linear_(model[1], model[0](images[some]))
        if done is None and accuracy(model, images, labels) == 1:
            done = epoch + 1
            if epochs is None:
                break
    return model, done


def climb_and_grad(model, x, y, rho):
    """SAM's gradient: that at the worst point of a ball to first order, left in `.grad`."""
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(cross_entropy(model(x), y), parameters)
    length = math.sqrt(sum(float(slope.square().sum()) for slope in slopes)) + 1e-12
    with torch.no_grad():
        for each, slope in zip(parameters, slopes):
            each.add_(slope, alpha=rho / length)
    model.zero_grad()
    cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for each, slope in zip(parameters, slopes):
            each.sub_(slope, alpha=rho / length)


@torch.no_grad()
def accuracy(model, images, labels):
    return float((model.eval()(images).argmax(1) == labels).double().mean())


@torch.no_grad()
def calibration_error(model, images, labels, bins=15):
    chances, guesses = model.eval()(images).softmax(1).max(1)
    right, error = (guesses == labels).double(), 0.0
    for low in range(bins):
        inside = (chances > low / bins) & (chances <= (low + 1) / bins)
        if inside.any():
            error += float(inside.double().mean()) * abs(float(right[inside].mean() - chances[inside].double().mean()))
    return error


@torch.no_grad()
def collapse(model, images, labels):
    """NC1: variance within classes over that between them, of the features of training images."""
    features = model.eval()[0](images).double()
    means = torch.stack([features[labels == each].mean(0) for each in range(10)])
    within = (features - means[labels]).square().sum(1).mean()
    return float(within / (means - means.mean(0)).square().sum(1).mean())


def traces(model, images, labels, tolerance):
    """Of the Hessian of the training loss: over all weights, and in closed form over the last layer."""
    model.eval()
    parameters = dict(model.named_parameters())
    objective = Objective(
        parameters, [1.0], lambda batch: model(images), lambda batch, made: cross_entropy(made, labels)
    )
    objective.check_determinism()
    matrix = Hessian(objective)
    probed = Probed(matrix, {"trace": [1.0] * len(parameters)}, sketch(matrix, 0, 16))
    [found] = hutchinson([probed], lambda all_: all_[0].estimate("trace").within(tolerance), most=400)
    with torch.no_grad():
        features = model[0](images).double()
        chances = model[1](features.float()).double().softmax(1)
        last = float(((features.square().sum(1) + 1) * (chances * (1 - chances)).sum(1)).mean())
    return found.estimate("trace"), last


def figures(model, data, tolerance):
    images, labels, test_images, test_labels = data
    trace, last = traces(model, images, labels, tolerance)
    with torch.no_grad():
        loss = float(cross_entropy(model(images), labels))
    return {
        "loss": loss,
        "trace": trace.value,
        "stderr": trace.stderr,
        "last": last,
        "norm": float(model[1].weight.detach().double().square().sum()),
        "train": accuracy(model, images, labels),
        "test": accuracy(model, test_images, test_labels),
        "ece": calibration_error(model, test_images, test_labels),
        "nc1": collapse(model, images, labels),
    }


def cell(kind, decay, past, seed, tolerance):
    """All arms of one network, weight decay, length and seed: figures by arm."""
    data = digits(seed)
    images = data[0]
    schedule = schedule_of(kind, decay)
    plain, done = fit(kind, data, seed, schedule, schedule if past else None, decay)
    given = (kind, data, seed, schedule, schedule if past else done or schedule)
    arms = {"plain": plain}
    with torch.no_grad():
        features = plain.eval()[0](images)
    generator = torch.Generator().manual_seed(seed)
    for name, rows in (("os", features), ("sos10", 10), ("sos20", 20)):
        arms[name] = copy.deepcopy(plain)
        some = features[torch.randperm(len(features), generator=generator)[:rows]] if isinstance(rows, int) else rows
        shift_linear_(arms[name][1], some)
    arms["os_train"] = fit(*given, decay, shift="os")[0]
    arms["sos20_train"] = fit(*given, decay, shift="sos20")[0]
    arms["sam"] = fit(*given, decay, rho=0.05)[0]
    arms["decay x10"] = fit(*given, 10 * (decay or 5e-4))[0]
    arms["smoothing"] = fit(*given, decay, smoothing=0.1)[0]
    return {
        "epochs": given[-1],
        "rank": int(torch.linalg.matrix_rank(features)),
        "arms": {name: figures(each, data, tolerance) for name, each in arms.items()},
    }


def paired(values):
    """Mean and half of the 95 % interval of paired differences or log ratios."""
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), student(0.975, len(values) - 1) * float(found.std()) / math.sqrt(len(values))


def table(cells):
    """One block for each network, weight decay and length: means of the plain training, then each arm against it."""
    lines = []
    groups = {}
    for each in cells:
        groups.setdefault((each["kind"], each["decay"], each["past"]), []).append(each)
    for (kind, decay, past), group in groups.items():
        base = [each["arms"]["plain"] for each in group]
        mean = {name: sum(each[name] for each in base) / len(base) for name in base[0]}
        length = "/".join(str(each["epochs"]) for each in group)
        lines += [
            f"\n{kind}, weight decay {decay:g}, {'past' if past else 'to'} zero error ({length} epochs)",
            f"plain: loss {mean['loss']:.2e}, trace {mean['trace']:.4g}, of the last layer {mean['last']:.3g}, test "
            f"{mean['test']:.4f}, ECE {mean['ece']:.4f}, NC1 {mean['nc1']:.4f}, rank of the features "
            + "/".join(str(each["rank"]) for each in group),
            f"{'arm':<13}{'keep':>7}{'loss x':>9}{'trace x':>9}{'95 %':>17}{'last x':>8}{'test, points':>18}"
            f"{'ECE, points':>18}{'NC1':>9}",
        ]
        for arm in ARMS:
            own = [each["arms"][arm] for each in group]
            ratio, change = {}, {}
            for name in ("loss", "trace", "last", "norm"):
                pairs = [(max(one[name], 1e-12), max(other[name], 1e-12)) for one, other in zip(own, base)]
                ratio[name] = paired([math.log(one / other) for one, other in pairs])
            for name in ("test", "ece"):
                middle, half = paired([100 * (one[name] - other[name]) for one, other in zip(own, base)])
                change[name] = f"{middle:+.2f} +- {half:.2f}"
            middle, half = ratio["trace"]
            factors = {name: math.exp(each) for name, (each, _) in ratio.items()}
            lines.append(
                f"{arm:<13}{factors['norm']:>7.3f}{factors['loss']:>9.3g}{factors['trace']:>9.3f}"
                f"{f'[{math.exp(middle - half):.3f}, {math.exp(middle + half):.3f}]':>17}{factors['last']:>8.3f}"
                f"{change['test']:>18}{change['ece']:>18}{sum(each['nc1'] for each in own) / len(own):>9.4f}"
            )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("classifier.json"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", default="mlp,resnet")
    parser.add_argument("--tolerance", type=float, default=0.02)
    options = parser.parse_args()
    cells = json.loads(options.out.read_text()) if options.out.exists() else []  # goes on where it was ended
    done = {(each["kind"], each["decay"], each["past"], each["seed"]) for each in cells}
    wanted = [(kind, decay, past) for kind in EPOCHS for decay in (0.0, 5e-4) for past in (False, True)]
    wanted = [each for each in [*wanted, (*COLLAPSED, True)] if each[0] in options.kinds.split(",")]
    for kind, decay, past in wanted:
        for seed in range(options.seeds):
            if (kind, decay, past, seed) in done:
                continue
            began = time.perf_counter()
            found = cell(kind, decay, past, seed, options.tolerance)
            cells.append({"kind": kind, "decay": decay, "past": past, "seed": seed, **found})
            write_json(options.out, cells)
            seconds = time.perf_counter() - began
            print(f"{kind} {decay:g} {'past' if past else 'to'} seed {seed}: {seconds:.0f} s", flush=True)
    print(table(cells))


if __name__ == "__main__":
    main()
