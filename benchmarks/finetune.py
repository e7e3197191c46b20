"""Fine-tuning with and without SOS, from the same start and seeds: VOC mAP by the devkit's rules, with intervals.

    python benchmarks/finetune.py                                # digits, which come with the project
    python benchmarks/finetune.py --data voc --shared FOLDER     # FOLDER: data/VOCdevkit, weights/*_coco_backbone.pt
    python benchmarks/finetune.py --variants default,sos --seeds 0,1
    python benchmarks/finetune.py --quick                        # one epoch, one seed: does it run?

Start. All weights of a trained detector but those of its last module, the Detect head, which is drawn anew with torch's
and Ultralytics' own initialisation from the seed of the run: the towers, their BatchNorm and the prediction layers.
The backbone and neck of `digits` are those of data/digits/detector.pt, which has seen the same training images.
Data. `digits`: train to learn, val to choose best.pt, test to evaluate. `voc`: a tenth of trainval, drawn once for all,
to choose best.pt, the rest to learn, test to evaluate. No run sees a test image.
Variants. See VARIANTS. `control` is stock training whose prediction layers are multiplied by 1 + 0.0001 times normal
noise after each epoch from 0.7 of the training on: it differs from stock by luck of training, which shifts have too.
Of a variant that shifts once more at the end, both files are evaluated: as trained, and after the final shift.

Prints a Markdown table. Intervals are 95 %. "images": paired bootstrap over test images, the same images drawn for
both variants and all seeds, of the mean over seeds (each class of each seed is scored as a class of its own, so one
bootstrap of the mean over all of them is that of the mean of the seeds' mAP). "and seeds": the same, widened by the
t-interval of the seeds' differences (half widths added as squares); none for a single seed.

Runs are kept below --out, and one whose result.json is there is not made again; remove its folder to repeat it. The
same command goes on after an interruption. finetune-DATA.json and finetune-DATA.png appear there when all are done.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import DETECTOR, DEVKIT, PLAIN, evaluate_group, find, groups_of, keep_ultralytics_here, squared_norm

from yolo_os import SOS
from yolo_os.files import written_whole
from yolo_os.heads import find_head, last_module
from yolo_os.plots.style import new_figure, save_figure
from yolo_os.training.log import read_rows, shifts_in
from yolo_os.voc import Detections, bootstrap, make_dataset, read_devkit

PALETTE = ("#000000", "#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # by degrees of freedom, from 1
# What the digits' run takes over from the training of the embedded detector (data/train_detector.py).
SCHEDULE = ("batch", "nbs", "optimizer", "lr0", "lrf", "weight_decay", "cls")
AUGMENTATION = ("mosaic", "scale", "degrees", "translate", "fliplr", "hsv_h", "hsv_s", "hsv_v")
COLUMNS = ("image", "class_index", "box", "score")  # of detections, in their files
VOC_TRAINING = {"batch": 16, "nbs": 16, "optimizer": "AdamW", "lr0": 0.001, "lrf": 0.01, "weight_decay": 0.0005}


def jitter(model, size=1e-4, start=0.7):
    """Have the prediction layers disturbed a little when SOS would shift them."""

    def disturb(trainer):
        if trainer.epoch + 1 < start * trainer.epochs:
            return
        noise = torch.Generator().manual_seed(trainer.epoch)
        with torch.no_grad():
            for layer in find_head(trainer.model).layers:
                weight = layer.module.weight
                weight.mul_(1 + size * torch.randn(weight.shape, generator=noise).to(weight))

    model.add_callback("on_train_epoch_end", disturb)


def shifting(recipe=None, **schedule):
    """What attaches an SOS, with a recipe that comes with the package and settings of its schedule, to a YOLO."""

    return lambda model: SOS(recipe, **schedule).attach(model)


# Name: what is done to the YOLO before it is trained.
VARIANTS = {
    "stock": lambda model: None,
    "control": jitter,
    "default": shifting(),
    "sos": shifting("sos"),
    "paper": shifting("sos_paper", every="epoch", start=0.0, final=None),
}


class Digits:
    """The embedded data and detector."""

    imgsz, epochs, seeds = 160, 25, (0, 1, 2)

    def __init__(self, folder, shared):
        self.devkit, self.weights = DEVKIT, DETECTOR

    def training(self, epochs):
        """Settings of the training."""
        from yolo_os.integration.checkpoint import load_checkpoint

        recorded = load_checkpoint(self.weights).contents["train_args"]
        kept = {name: recorded[name] for name in SCHEDULE + AUGMENTATION}
        return kept | {"warmup_epochs": 1, "close_mosaic": epochs // 5}


class Voc:
    """Real VOC images, and a YOLOv5nu with the backbone and neck of COCO."""

    imgsz, epochs, seeds = 320, 6, (0,)

    def __init__(self, folder, shared):
        if shared is None:
            sys.exit("finetune: --data voc needs --shared, a folder with data/VOCdevkit and weights")
        shared = Path(shared).expanduser().resolve()
        self.weights = shared / "weights" / "yolov5nu_coco_backbone.pt"
        self.devkit = folder / "VOCdevkit"
        self.hold_out(shared / "data" / "VOCdevkit" / "VOC2007", self.devkit / "VOC2007")

    def training(self, epochs):
        """Settings of the training."""
        return VOC_TRAINING | {"warmup_epochs": 1, "close_mosaic": epochs // 3}

    @staticmethod
    def hold_out(source, target):
        """A development kit of the same files whose val is a tenth of trainval, and whose train is the rest."""
        shutil.rmtree(target, ignore_errors=True)
        lists = target / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        for name in ("Annotations", "JPEGImages"):
            (target / name).symlink_to(source / name, target_is_directory=True)
        known = {name: (source / "ImageSets" / "Main" / f"{name}.txt").read_text() for name in ("trainval", "test")}
        stems = sorted(known["trainval"].split())
        held = set(np.random.default_rng(0).permutation(stems)[: len(stems) // 10].tolist())
        splits = {
            "train": [stem for stem in stems if stem not in held],
            "val": sorted(held),
            "test": known["test"].split(),
        }
        for name, split in splits.items():
            (lists / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in split))


def reset_head(model, seed):
    """Draw every weight of the last module anew."""
    torch.manual_seed(seed)
    head = last_module(model)
    for module in head.modules():
        if hasattr(module, "reset_parameters") and module not in head.dfl.modules():  # whose weight is 0, 1, 2, ...
            module.reset_parameters()
    head.bias_init()


def train(name, seed, data, dataset, epochs, device, folder, note=None, **settings):
    """Train one variant into a folder, with a callback for each epoch; wall and CPU seconds it took."""
    from ultralytics import YOLO

    model = YOLO(str(data.weights))
    reset_head(model.model, seed)
    VARIANTS[name](model)
    if note:
        model.add_callback("on_fit_epoch_end", note)
    clock, cpu = time.perf_counter(), time.process_time()
    model.train(
        data=str(dataset),
        epochs=epochs,
        imgsz=data.imgsz,
        seed=seed,
        deterministic=True,
        patience=0,
        project=str(folder.parent),
        name=folder.name,
        exist_ok=True,
        **{**PLAIN, "device": device, **data.training(epochs), **settings},
    )
    return time.perf_counter() - clock, time.process_time() - cpu


def warm_up(data, dataset, device, folder):
    """Train on a few images, so that what a process does only once counts for none of the variants."""
    train("stock", 0, data, dataset, 1, device, folder, fraction=0.05)
    shutil.rmtree(folder)


def run(name, seed, data, dataset, epochs, device, folder):
    """Train one variant, keep what it finds on the test images, and write the record of the run."""
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run has left
    norms = []

    def note(trainer):
        if len(norms) == epochs:  # called once more for the best checkpoint
            return
        norms.append(squared_norm(trainer.ema.ema))
        loss = sum(map(float, trainer.label_loss_items(trainer.tloss).values()))
        found = trainer.metrics["metrics/mAP50(B)"]
        text = f"loss {loss:.3f}, mAP50 of val {found:.3f}, squared norm {norms[-1]:.1f}"
        print(f"{folder.name}: epoch {len(norms)} of {epochs}, {text}", flush=True)

    seconds, cpu_seconds = train(name, seed, data, dataset, epochs, device, folder, note)
    record = {
        "variant": name,
        "seed": seed,
        "epochs": epochs,
        "device": device,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "curves": {**read_curves(folder / "results.csv"), "squared_norm": norms},
        "squared_norm": {},
    }
    if (folder / "shifts.csv").is_file():
        record["shifts"] = read_rows(folder / "shifts.csv")
    final = folder / "os" / "best" / "report.json"
    if final.is_file():
        report = json.loads(final.read_text(encoding="utf-8"))
        record["final"] = {name: report[name] for name in ("recipe", "keep", "loss_before", "loss_after")}
    for file in ("best-unshifted", "best"):
        path = folder / "weights" / f"{file}.pt"
        if path.is_file():
            record["squared_norm"][file] = keep_detections(path, data, dataset, device, folder / f"{file}.npz")
    with written_whole(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")


def read_curves(path):
    """Training loss with all its terms, and Ultralytics' mAP50 of val, by epoch."""
    rows = read_rows(path)
    return {
        "loss": [sum(float(value) for key, value in row.items() if key.startswith("train/")) for row in rows],
        "map50": [float(row["metrics/mAP50(B)"]) for row in rows],
    }


def keep_detections(weights, data, dataset, device, path):
    """Write what a checkpoint finds on the test images; the squared norm of its head."""
    from yolo_os.integration.checkpoint import load_checkpoint

    model = load_checkpoint(weights).model
    found = find(model, dataset, read_devkit(data.devkit, split="test"), imgsz=data.imgsz, device=device)
    with written_whole(path) as temporary:
        np.savez_compressed(temporary, **{name: getattr(found, name) for name in COLUMNS})
    return squared_norm(model)


def read_detections(path, truth):
    with np.load(path) as arrays:
        return Detections(truth.classes, truth.images, **{name: arrays[name] for name in COLUMNS})


def compare(result, stock, seeds):
    """Means of one group of classes, and the gain over stock with both intervals."""
    by_seed = np.nanmean(result.ap.reshape(seeds, -1), axis=1)
    gains = by_seed - np.nanmean(stock.ap.reshape(seeds, -1), axis=1)
    row = {"map": float(by_seed.mean()), "map_by_seed": by_seed.tolist()}
    if result is stock:
        return row
    drawn = bootstrap(stock, result).map
    gain = {"value": drawn.value, "low": drawn.low, "high": drawn.high, "by_seed": gains.tolist()}
    if seeds > 1:
        luck = T95[min(seeds - 1, len(T95)) - 1] * float(gains.std(ddof=1)) / seeds**0.5
        gain["low_with_seeds"] = gain["value"] - float(np.hypot(gain["value"] - gain["low"], luck))
        gain["high_with_seeds"] = gain["value"] + float(np.hypot(gain["high"] - gain["value"], luck))
    return {**row, "gain": gain}


def make_rows(runs, folder, data):
    """A row of the table for each file of each variant; `runs` are records by variant, in order of seeds."""
    truth = read_devkit(data.devkit, split="test")
    groups = groups_of(truth)
    stock = {}
    rows = []
    for name, records in runs.items():
        files = [file for file in ("best-unshifted", "best") if all(file in each["squared_norm"] for each in records)]
        for file in files:
            paths = [folder / f"{name}-{each['seed']}" / f"{file}.npz" for each in records]
            found = [read_detections(path, truth) for path in paths]
            results = {group: evaluate_group(truth, found, classes) for group, classes in groups.items()}
            stock = stock or results
            whole = evaluate_group(truth, found, range(len(truth.classes)))
            ap = whole.ap.reshape(len(records), -1).mean(axis=0)
            label = {"best-unshifted": ", as trained"}.get(file, ", then shifted" if len(files) > 1 else "")
            rows.append(
                {
                    "variant": name,
                    "label": name + label,
                    "final": file == "best" and len(files) > 1,
                    "groups": {group: compare(result, stock[group], len(records)) for group, result in results.items()},
                    "shifts": [count_shifts(each.get("shifts", [])) for each in records],
                    "squared_norm": mean_ratio(records, runs["stock"], lambda each, file=file: norm_of(each, file)),
                    "seconds": mean_ratio(records, runs["stock"], lambda each: each["seconds"]),
                    "cpu_seconds": mean_ratio(records, runs["stock"], lambda each: each["cpu_seconds"]),
                    "ap": {each: None if np.isnan(value) else float(value) for each, value in zip(truth.classes, ap)},
                }
            )
    boxes = np.bincount(truth.class_index[~truth.difficult], minlength=len(truth.classes)).tolist()
    return rows, {"images": len(truth.images), "boxes": dict(zip(truth.classes, boxes))}


def count_shifts(rows):
    """How many shifts of a training stand and were reverted, of the lines of its shifts.csv."""
    made = shifts_in(rows)
    reverted = sum(row["reverted"] == "1" for row in made)
    return len(made) - reverted, reverted


def norm_of(record, file):
    """Squared norm of a run's file; stock has one file only."""
    return record["squared_norm"].get(file, record["squared_norm"]["best"])


def mean_ratio(records, stock, value):
    """Mean over seeds of a figure relative to that of stock."""
    return float(np.mean([value(one) / value(other) for one, other in zip(records, stock)]))


def figures(gain):
    return f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def table(rows, seeds):
    """The lines of the Markdown table."""
    groups = list(rows[0]["groups"])
    head = ["variant"]
    for group in groups:
        head += [f"mAP10, {group}", "change to stock [images]"] + (["[images and seeds]"] if seeds > 1 else [])
    if seeds > 1:
        head.append("change of each seed")
    head += ["shifts in training (reverted), all seeds", "head's squared norm / stock's"]
    head += ["training time / stock's (CPU)"]
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    for row in rows:
        cells = [row["label"]]
        for group in groups:
            each = row["groups"][group]
            gain = each.get("gain")
            cells += [f"{each['map']:.4f}", figures(gain) if gain else ""]
            if seeds > 1:
                cells.append(f"[{gain['low_with_seeds']:+.4f}, {gain['high_with_seeds']:+.4f}]" if gain else "")
        if seeds > 1:
            gain = row["groups"][groups[0]].get("gain")
            cells.append(" ".join(f"{value:+.4f}" for value in gain["by_seed"]) if gain else "")
        made, reverted = np.sum(row["shifts"], axis=0).tolist()
        cells.append(f"{made} ({reverted})" if made or reverted else "")
        cells += [f"{row['squared_norm']:.3f}", f"{row['seconds']:.2f} ({row['cpu_seconds']:.2f})"]
        yield f"| {' | '.join(cells)} |"


def headline(rows, seeds):
    """What the default did, by what the intervals allow to say."""
    ours = next((row for row in reversed(rows) if row["variant"] == "default"), None)
    if ours is None:
        return "The default was not among the variants."
    group, each = next(iter(ours["groups"].items()))
    gain = each["gain"]
    ends = ("low_with_seeds", "high_with_seeds") if seeds > 1 else ("low", "high")
    low, high = (gain[end] for end in ends)
    verdict = "lost mAP" if high < 0 else "gained mAP" if low > 0 else "made no difference beyond the interval"
    text = f"The default {verdict}: {gain['value']:+.4f} [{low:+.4f}, {high:+.4f}] over "
    text += f"images and {seeds} seeds" if seeds > 1 else "images, one seed, so luck of training is not in the interval"
    text += f" ({group})"
    control = next((row["groups"][group]["gain"] for row in rows if row["variant"] == "control"), None)
    if control:
        text += f"; the control, which shifts nothing, came to {figures(control)}"
    return f"{text}."


def draw(runs, rows, path, title):
    """The picture: curves over the epochs, and the changes on the test images."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    colours = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(VARIANTS)}
    figure, ((loss, validation), (norm, change)) = new_figure(2, 2, (11, 7.6), grid="both")
    curves = (
        (loss, "loss", "training loss, all terms"),
        (validation, "map50", "mAP50 of val, as Ultralytics has it"),
        (norm, "squared_norm", "squared norm of the prediction layers (EMA)"),
    )
    for axis, key, label in curves:
        for name, records in runs.items():
            lines = np.array([record["curves"][key] for record in records])
            epochs = np.arange(1, lines.shape[1] + 1)
            if len(lines) > 1:
                axis.plot(epochs, lines.T, color=colours[name], linewidth=0.7, alpha=0.35)
            # Stock lies broad and pale below the others, which follow it for the most part.
            look = {"linewidth": 6, "alpha": 0.3} if name == "stock" else {"linewidth": 1.5, "marker": "."}
            axis.plot(epochs, lines.mean(axis=0), color=colours[name], label=name, **look)
        axis.set_ylabel(label)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    loss.legend(frameon=False, fontsize=9)
    several = len(next(iter(runs.values()))) > 1
    group = next(iter(rows[0]["groups"]))
    shown = [row for row in rows if "gain" in row["groups"][group]]
    for place, row in enumerate(shown):
        gain = row["groups"][group]["gain"]
        look = {"color": colours[row["variant"]], "capsize": 3, "elinewidth": 1.4, "zorder": 2}
        bars = [[max(0, gain["value"] - gain["low"])], [max(0, gain["high"] - gain["value"])]]
        filled = {} if row["final"] or not row["label"].endswith("trained") else {"markerfacecolor": "white"}
        if "low_with_seeds" in gain:
            change.plot(
                [100 * gain["low_with_seeds"], 100 * gain["high_with_seeds"]],
                [place, place],
                color=colours[row["variant"]],
                linewidth=0.8,
                linestyle=":",
            )
            change.plot(
                [100 * value for value in gain["by_seed"]],
                [place + 0.16] * len(gain["by_seed"]),
                color=colours[row["variant"]],
                linestyle="none",
                marker="|",
                markersize=8,
            )
        change.errorbar(
            [100 * gain["value"]], [place], xerr=100 * np.array(bars), marker="o", markersize=6, **look, **filled
        )
    change.set_yticks(range(len(shown)), [row["label"] for row in shown])
    change.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    change.axvline(0, color="black", linewidth=0.8)
    low, high = change.get_xlim()
    change.set_xscale("symlog", linthresh=1, linscale=1.2)  # losses of points beside gains of hundredths
    ticks = (-50, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10)
    change.set_xticks([tick for tick in ticks if min(low, -0.5) <= tick <= max(high, 0.5)], minor=False)
    change.xaxis.set_minor_locator(NullLocator())
    change.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    change.set_xlabel(f"change of test mAP10 to stock, points\n({group}; log scale beyond 1)")
    how = "bar: 95 % over images; dotted: and seeds; ticks: each seed" if several else "bar: 95 % over images; one seed"
    change.set_title(how, fontsize=9)
    figure.suptitle(title, fontsize=12)
    save_figure(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "voc"), default="digits")
    parser.add_argument("--shared", help="for voc: folder with data/VOCdevkit and weights/yolov5nu_coco_backbone.pt")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"of {','.join(VARIANTS)}; stock always runs")
    parser.add_argument("--seeds", help="with commas; 0,1,2 for digits and 0 for voc if not given")
    parser.add_argument("--epochs", type=int, help="25 for digits and 6 for voc if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="runs/finetune")
    parser.add_argument("--quick", action="store_true", help="one epoch and the first seed, in the folder quick")
    options = parser.parse_args()
    unknown = set(options.variants.split(",")) - set(VARIANTS)
    if unknown:
        parser.error(f"--variants: {', '.join(sorted(unknown))}: choose from {', '.join(VARIANTS)}")

    out = Path(options.out).expanduser().resolve() / ("quick" if options.quick else "")
    kind = {"digits": Digits, "voc": Voc}[options.data]
    seeds = [int(seed) for seed in options.seeds.split(",")] if options.seeds else list(kind.seeds)
    epochs = options.epochs or kind.epochs
    if options.quick:
        seeds, epochs = seeds[:1], 1
    names = [name for name in VARIANTS if name == "stock" or name in options.variants.split(",")]
    keep_ultralytics_here(out / "settings")
    folder = out / f"{options.data}-{epochs}-epochs"
    folder.mkdir(parents=True, exist_ok=True)
    data = kind(folder, options.shared)
    dataset = make_dataset(data.devkit, folder / "dataset")

    results = {(name, seed): folder / f"{name}-{seed}" / "result.json" for seed in seeds for name in names}
    missing = [key for key, result in results.items() if not result.is_file()]
    if missing:
        warm_up(data, dataset, options.device, folder / "warm-up")
    for key in missing:
        run(*key, data, dataset, epochs, options.device, results[key].parent)
    runs = {name: [json.loads(results[name, seed].read_text(encoding="utf-8")) for seed in seeds] for name in names}

    rows, test = make_rows(runs, folder, data)
    title = (
        f"{options.data}: {data.weights.stem}, {data.imgsz} px, epochs: {epochs}, seeds: {', '.join(map(str, seeds))}"
    )
    print(f"\n{title}; VOC mAP10 of {test['images']} test images, 95 % intervals\n")
    print("\n".join(table(rows, len(seeds))))
    print(f"\n{headline(rows, len(seeds))}")
    content = {
        "title": title,
        "headline": headline(rows, len(seeds)),
        "training": {"imgsz": data.imgsz, "epochs": epochs, "seeds": seeds, **data.training(epochs)},
        "test": test,
        "rows": rows,
        "runs": runs,
    }
    with written_whole(out / f"finetune-{options.data}.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    draw(runs, rows, out / f"finetune-{options.data}.png", title)


if __name__ == "__main__":
    main()
