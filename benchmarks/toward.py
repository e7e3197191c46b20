"""Does the step towards the start of a training help? An old detector meets a new camera; old and new mAP, controls.

    python benchmarks/toward.py --data digits                 # embedded data and detector; hours on one core
    python benchmarks/toward.py --data voc --shared FOLDER    # FOLDER: data/VOCdevkit, weights/voc_yolov5nu.pt; a day
    python benchmarks/toward.py --data voc --shared FOLDER --cameras night --arms stock20,freeze10 --no-train

Start. A trained detector: data/digits/detector.pt, or a YOLOv5nu that has learned VOC's trainval images.
New camera. The same images as another camera might give them: `night` (dark, bluish, blurred, noisy) and `fog` (low
resolution, low contrast, compressed) for VOC, `inverted` (and blurred and noisy) for the digits. New data: 100 train
and 150 val images of VOC drawn by the seed, 60 train and all val images of the digits. Noise depends on the name of an
image alone, so test images are the same for all seeds. Retained data: val images as the old camera gives them.
Arms. Stock Ultralytics with its defaults, and the usual answers to forgetting; see ARMS. best.pt of each is judged.
Step. `shift_toward_`'s own rule on val: the share by the new data alone, and with retain_drop=0.02. No run and no
choice sees a test image. (The VOC detector has learned from the images of val, by day: its own val mAP is too high.)

Prints Markdown tables of VOC mAP10 on the test images of both cameras (VOC: the mean of bus, car, cat, person, train).
Intervals are 95 %: paired bootstrap over test images of the mean over seeds (each class of each seed scored as a class
of its own), widened by the t-interval of the seeds' differences, half widths added as squares.

Trainings are kept below --out, one whose folder holds `done` is not made again, and figures that were judged are kept
beside it: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from common import DETECTOR, DEVKIT, PLAIN, SOLID, keep_ultralytics_here

from yolo_os.evaluation.detections import evaluate_boxes, evaluate_detections, from_boxes
from yolo_os.evaluation.voc import RECALL_POINTS, Matches, average_precisions
from yolo_os.files import written_whole
from yolo_os.modes.camera import changed
from yolo_os.voc import VOCResult, bootstrap, dataset_for, read_devkit

SHARES = (1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)
KEPT = tuple(name for name in Matches.__dataclass_fields__ if name != "det_row")  # what a figure is made of
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # by degrees of freedom, from 1
DROP = 0.02
# Settings of Ultralytics' train(); `mix` adds as many old images, `l2sp` pulls towards the start at every step.
ARMS = {
    "stock20": {"epochs": 20},
    "freeze10": {"epochs": 20, "freeze": 10},
    "stock60": {"epochs": 60},
    "mix": {"epochs": 20, "mix": True},
    "l2sp": {"epochs": 20, "l2sp": 30.0},
    "lowlr": {"epochs": 20, "optimizer": "AdamW", "lr0": 1e-4},
    "freeze22": {"epochs": 20, "freeze": 22},
    "freeze10x60": {"epochs": 60, "freeze": 10},
    "noflip20": {"epochs": 20, "fliplr": 0.0},
    "noflip80": {"epochs": 80, "fliplr": 0.0},
    "stock80": {"epochs": 80},
    "freeze10x80": {"epochs": 80, "freeze": 10},
}


def night(image, random):
    image = image.astype(np.float32) * np.array([0.45, 0.32, 0.22], np.float32)
    image = cv2.GaussianBlur(image, (0, 0), 1.2)
    return np.clip(image + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


def fog(image, random):
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(width // 3, 8), max(height // 3, 8)), interpolation=cv2.INTER_AREA)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    image = 0.4 * image + 0.6 * 205
    image = np.clip(image + random.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 20])
    return cv2.imdecode(code, cv2.IMREAD_COLOR)


CAMERAS = {"night": night, "fog": fog, "inverted": changed}


@dataclass(frozen=True)
class Digits:
    """The embedded data and detector."""

    devkit: Path
    weights: Path
    imgsz: int = 160
    cameras: tuple = ("inverted",)
    arms: tuple = ("stock20", "freeze10", "noflip20", "stock80", "freeze10x80", "noflip80", "mix", "l2sp", "lowlr")
    seeds: tuple = (0, 1, 2, 3, 4)
    train: int = 60
    val: int | None = None
    old_camera: str = "plain"
    counted: tuple = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Voc:
    """Real VOC images, and a YOLOv5nu fine-tuned on their trainval."""

    devkit: Path
    weights: Path
    imgsz: int = 320
    cameras: tuple = ("night", "fog")
    arms: tuple = ("stock20", "freeze10", "stock60", "mix", "l2sp", "lowlr", "freeze22", "freeze10x60")
    seeds: tuple = (0, 1, 2)
    train: int = 100
    val: int | None = 150
    old_camera: str = "day"
    counted: tuple = SOLID


def prepare(study, out, camera, draw):
    """The data set of a camera: train and val images drawn by a number, all test images, labels alike."""
    if (out / "data.yaml").exists():
        return out / "data.yaml"
    shutil.rmtree(out, ignore_errors=True)
    source = dataset_for(study.devkit, classes=class_names(study)).parent
    random = np.random.default_rng(draw)
    for split, count in (("train", study.train), ("val", study.val), ("test", None)):
        files = sorted((source / "images" / f"{split}2007").glob("*.jpg"))
        if count:
            files = [files[index] for index in sorted(random.choice(len(files), count, replace=False))]
        for kind in ("images", "labels"):
            (out / kind / split).mkdir(parents=True, exist_ok=True)
        for file in files:
            own = np.random.default_rng(zlib.crc32(f"{camera}/{file.stem}".encode()))
            image = cv2.imread(str(file))
            image = CAMERAS[camera](image, own) if camera in CAMERAS else image
            cv2.imwrite(str(out / "images" / split / file.name), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            label = source / "labels" / f"{split}2007" / f"{file.stem}.txt"
            if label.exists():
                shutil.copy(label, out / "labels" / split / label.name)
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(class_names(study)))
    text = f"path: {out.resolve()}\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n{names}"
    (out / "data.yaml").write_text(text)
    return out / "data.yaml"


def class_names(study):
    from yolo_os.integration.checkpoint import load_checkpoint
    from yolo_os.integration.data import class_names_of

    return class_names_of(load_checkpoint(study.weights).model)


def train(study, arm, seed, data, old, folder):
    """One training with stock Ultralytics into a folder, marked `done` at its end."""
    from ultralytics import YOLO

    shutil.rmtree(folder, ignore_errors=True)
    settings = dict(ARMS[arm])
    pull, mixed = settings.pop("l2sp", None), settings.pop("mix", False)
    if mixed:
        both = f"train: [{data.parent}/images/train, {old.parent}/images/train]"
        text = data.read_text().replace("train: images/train", both)
        data = data.parent.with_name(f"{data.parent.name}-mix.yaml")
        data.write_text(text)
    model = YOLO(study.weights)
    if pull:
        model.add_callback("on_train_start", lambda trainer: pull_to_start(trainer, pull))
    model.train(
        data=str(data),
        imgsz=study.imgsz,
        batch=16,
        seed=seed,
        project=str(folder.parent),
        name=folder.name,
        exist_ok=True,
        **PLAIN,
        **settings,
    )
    (folder / "done").write_text("")


def pull_to_start(trainer, strength):
    """L2-SP: after every step, parameters shrink towards where they began by the learning rate times a strength."""
    start = {id(each): each.detach().clone() for each in trainer.model.parameters()}

    def pull(optimizer, *_):
        with torch.no_grad():
            for group in optimizer.param_groups:
                for each in group["params"]:
                    each.sub_(min(group["lr"] * strength, 1.0) * (each - start[id(each)]))

    trainer.optimizer.register_step_post_hook(pull)


class Judge:
    """Judges weights at shares of a line on four sets: val and test images of the new and of the old camera."""

    def __init__(self, study, data, old):
        from yolo_os.integration.checkpoint import load_checkpoint
        from yolo_os.integration.detect import Validation
        from yolo_os.integration.toward import read_origin

        self.study = study
        self.origin = read_origin(study.weights, {}, None)
        self.truth = read_devkit(study.devkit, split="test", classes=class_names(study))
        model = load_checkpoint(study.weights).model
        size = {"imgsz": study.imgsz, "device": "cpu"}
        self.val = {name: Validation(each, model, split="val", **size) for name, each in (("new", data), ("old", old))}
        self.test = {
            name: Validation(each, model, split="test", **size) for name, each in (("new", data), ("old", old))
        }

    def line(self, weights):
        """A run's model and the line from the origin to it."""
        from yolo_os.integration.checkpoint import load_checkpoint
        from yolo_os.toward import line_to

        model = load_checkpoint(weights).model
        return model, line_to(model, self.origin)

    def along(self, weights, kept):
        """Figures of a run at all shares, kept in a folder that is marked `done` at the end."""
        model, line = self.line(weights)
        for share in SHARES:
            self.at(model, line, line.values(share), kept, f"{share:g}")
        (kept / "done").write_text("")
        print(f"judged {kept.name}", flush=True)

    def at(self, model, line, values, folder, key, only=None):
        """Figures of a model with some values in place, on all sets or one, kept in files of a folder."""
        from yolo_os.shifter import Weights

        sets = [("val", name, each) for name, each in self.val.items()]
        sets += [("test", name, each) for name, each in self.test.items()]
        sets = [each for each in sets if only in (None, each[:2])]
        wanted = [each for each in sets if not (folder / f"{each[0]}-{each[1]}-{key}.npz").exists()]

        def figures():
            for kind, name, validation in wanted:
                found = validation.run(model, loss=kind == "val")
                score = self.score_val if kind == "val" else self.score_test
                save(score(found), found.loss.get("total"), folder / f"{kind}-{name}-{key}.npz")

        if wanted:
            folder.mkdir(parents=True, exist_ok=True)
            Weights(line.tensors, torch.float16).measure(values, figures)

    def score_val(self, found):
        """As `shift_toward_` scores: labels without difficult objects, and without rare classes."""
        from yolo_os.integration.toward import _without_rare

        truth, _ = _without_rare(found.truth, list(found.truth))
        return evaluate_boxes(found.boxes, truth, list(found.names.values()))

    def score_test(self, found):
        """By the devkit's rules."""
        by_stem = {Path(file).stem: boxes for file, boxes in found.boxes.items()}
        return evaluate_detections(self.truth, from_boxes(by_stem, found.names, self.truth))


def save(result, loss, path):
    matches = result.matches
    with written_whole(path) as temporary:
        np.savez_compressed(
            temporary,
            loss=np.nan if loss is None else loss,
            classes=np.array(result.names),
            **{name: getattr(matches, name) for name in KEPT},
        )


def load(path):
    """The figures that `save` kept, and the loss."""
    with np.load(path) as kept:
        fields = {name: kept[name] for name in KEPT}
        loss, classes = float(kept["loss"]), tuple(kept["classes"].tolist())
    matches = Matches(**{**fields, "num_classes": int(fields["num_classes"])})
    return result_of(matches, classes), None if np.isnan(loss) else loss


def result_of(matches, classes=()):
    ap, ap07 = average_precisions(matches, RECALL_POINTS["numpy"])
    return VOCResult(ap, ap07, matches.npos, matches, "numpy", classes)


def counted(results, names):
    """Results of several seeds as one: class c of the i-th seed is class c + i times the number of classes."""
    number = len(results[0].names)
    wanted = [results[0].names.index(name) for name in names]
    parts = {name: [] for name in ("det_image", "det_class", "det_score", "det_true", "gt_image", "gt_class")}
    for seed, result in enumerate(results):
        matches = result.matches
        det, gt = np.isin(matches.det_class, wanted), np.isin(matches.gt_class, wanted)
        for name, values in parts.items():
            each = getattr(matches, name)[det if name.startswith("det") else gt]
            values.append(each + number * seed if name.endswith("class") else each)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return result_of(Matches(results[0].matches.image_ids, **joined, num_classes=number * len(results)))


def compare(results, others, names):
    """Mean mAP over seeds, and the gain over other results of the same seeds with its interval."""
    mine, theirs = counted(results, names), counted(others, names)
    seeds = len(results)
    gains = np.nanmean(mine.ap.reshape(seeds, -1), axis=1) - np.nanmean(theirs.ap.reshape(seeds, -1), axis=1)
    drawn = bootstrap(theirs, mine).map
    luck = T95[seeds - 2] * float(gains.std(ddof=1)) / seeds**0.5 if seeds > 1 else 0.0
    low = drawn.value - float(np.hypot(drawn.value - drawn.low, luck))
    high = drawn.value + float(np.hypot(drawn.high - drawn.value, luck))
    return {"map": mine.map, "gain": drawn.value, "low": low, "high": high, "by_seed": gains.tolist()}


class Runs:
    """What was judged of one camera: figures by arm, seed, set and share."""

    def __init__(self, study, folder, camera, arms, seeds):
        self.study, self.folder, self.camera = study, folder, camera
        self.seeds = {
            arm: [seed for seed in seeds if all(self._path(arm, seed, "test-new", share).exists() for share in SHARES)]
            for arm in arms
        }

    def _path(self, arm, seed, where, share):
        return self.folder / f"{self.camera}-{arm}-{seed}" / f"{where}-{share:g}.npz"

    def result(self, arm, seed, where, share):
        """VOC AP of an arm's run on a set at a share."""
        return load(self._path(arm, seed, where, share))[0]

    def chosen(self, arm, seed, drop=None):
        """The share that `shift_toward_` would take."""
        from yolo_os.toward import Judged, choose

        judged = {
            share: {
                "new": Judged(self.result(arm, seed, "val-new", share)),
                "old": Judged(self.result(arm, seed, "val-old", share)),
            }
            for share in SHARES
        }
        return choose(judged, drop)[0]

    def rows(self):
        """By name of a row: results of the seeds for both cameras, and the shares."""
        made = {}
        for arm, seeds in self.seeds.items():
            if not seeds:
                continue
            kinds = {
                arm: dict.fromkeys(seeds, 1.0),
                f"{arm} + step": {seed: self.chosen(arm, seed) for seed in seeds},
                f"{arm} + step, retain_drop={DROP}": {seed: self.chosen(arm, seed, DROP) for seed in seeds},
                f"{arm} at 0.5": dict.fromkeys(seeds, 0.5),
            }
            for name, shares in kinds.items():
                made[name] = (
                    shares,
                    {
                        side: {seed: self.result(arm, seed, f"test-{side}", share) for seed, share in shares.items()}
                        for side in ("new", "old")
                    },
                )
        return made


def tables(runs, title):
    """The lines of the Markdown tables, and all of it as data."""
    rows, names = runs.rows(), runs.study.counted
    if not rows:
        return [f"{title}: nothing judged yet"], {}
    first = next(iter(rows))
    shares, results = rows[first]
    arm = first
    start = {
        side: counted([runs.result(arm, next(iter(shares)), f"test-{side}", 0.0)], names).map for side in ("new", "old")
    }
    content = {"start": start, "rows": {}}
    lines = [title, "", "| | seeds | share | new camera | change to stock | old camera | change to stock |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [f"| the old detector | | | {start['new']:.4f} | | {start['old']:.4f} | |"]
    for name, (taken, found) in rows.items():
        both = [seed for seed in taken if seed in shares]
        cells = {
            side: compare([found[side][seed] for seed in both], [results[side][seed] for seed in both], names)
            for side in ("new", "old")
        }
        content["rows"][name] = {"shares": taken, **cells}
        given = sorted(set(taken.values()))
        label = f"{given[0]:g}" if len(given) == 1 else " ".join(f"{share:g}" for share in taken.values())
        text = [f"{each['map']:.4f} | {'' if name == first else interval(each)}" for each in cells.values()]
        lines.append(f"| {name} | {len(both)} | {label} | {' | '.join(text)} |")
    for step in (f"{first} + step", f"{first} at 0.5"):
        lines += ["", f"{step} against each control (mean over the seeds both have)", ""]
        lines += ["| control | seeds | new camera | old camera |", "| --- | --- | --- | --- |"]
        taken, found = rows[step]
        for name, (given, other) in rows.items():
            both = [seed for seed in taken if seed in given]
            if name.startswith(first) or name.endswith("at 0.5") or not both:
                continue
            cells = [
                interval(compare([found[side][seed] for seed in both], [other[side][seed] for seed in both], names))
                for side in ("new", "old")
            ]
            lines.append(f"| {name} | {len(both)} | {' | '.join(cells)} |")
    return lines, content


def curves(runs):
    """The lines of a table of mAP by share, mean over seeds."""
    lines = ["| arm | camera | " + " | ".join(f"{share:g}" for share in SHARES) + " |"]
    lines += ["| --- " * (len(SHARES) + 2) + "|"]
    drawn = {}
    for arm, seeds in runs.seeds.items():
        for side in ("new", "old") if seeds else ():
            by_share = [
                counted([runs.result(arm, seed, f"test-{side}", share) for seed in seeds], runs.study.counted).map
                for share in SHARES
            ]
            drawn[arm, side] = by_share
            lines.append(
                f"| {arm} ({len(seeds)} seeds) | {side} | " + " | ".join(f"{each:.4f}" for each in by_share) + " |"
            )
    return lines, drawn


def interval(each):
    return f"{each['gain']:+.4f} [{each['low']:+.4f}, {each['high']:+.4f}]"


def draw(drawn, path, title):
    """The picture: new mAP against old mAP along the line of each arm."""
    from yolo_os.plots.style import new_figure, save_figure

    palette = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#7B3294")
    figure, axis = new_figure(1, 1, (7.4, 5.2), grid="both")
    arms = list(dict.fromkeys(arm for arm, _ in drawn))
    for arm, colour in zip(arms, palette * 2):
        new, old = drawn[arm, "new"], drawn[arm, "old"]
        axis.plot(old, new, color=colour, marker=".", linewidth=1.3, label=arm)
        axis.plot(old[0], new[0], color=colour, marker="o", markersize=8)
    axis.plot(drawn[arms[0], "old"][-1], drawn[arms[0], "new"][-1], "k*", markersize=13, label="the old detector")
    axis.set_xlabel("mAP10 on test images of the old camera")
    axis.set_ylabel("mAP10 on test images of the new camera")
    axis.set_title(
        f"{title}\nlarge dot: as trained; small dots: shares {', '.join(f'{s:g}' for s in SHARES[1:])}", fontsize=10
    )
    axis.legend(fontsize=8, frameon=False)
    return save_figure(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "voc"), default="digits")
    parser.add_argument("--shared", help="for voc: folder with data/VOCdevkit and weights/voc_yolov5nu.pt")
    parser.add_argument("--cameras", help="with commas; night,fog for voc if not given")
    parser.add_argument("--arms", help=f"with commas, of {','.join(ARMS)}")
    parser.add_argument("--seeds", help="with commas; 0 to 4 for digits and 0,1,2 for voc if not given")
    parser.add_argument("--out", default="runs/toward")
    parser.add_argument("--no-train", action="store_true", help="judge and print what is there")
    parser.add_argument("--no-judge", action="store_true", help="print what was judged")
    options = parser.parse_args()
    if options.data == "voc":
        if options.shared is None:
            parser.error("--data voc needs --shared, a folder with data/VOCdevkit and weights")
        shared = Path(options.shared).expanduser().resolve()
        study = Voc(shared / "data" / "VOCdevkit", shared / "weights" / "voc_yolov5nu.pt")
    else:
        study = Digits(DEVKIT, DETECTOR)
    cameras = options.cameras.split(",") if options.cameras else study.cameras
    arms = options.arms.split(",") if options.arms else study.arms
    seeds = [int(seed) for seed in options.seeds.split(",")] if options.seeds else study.seeds
    out = Path(options.out).expanduser().resolve()
    out.mkdir(parents=True, exist_ok=True)
    keep_ultralytics_here(out / "settings")
    torch.set_num_threads(1)
    for camera in cameras:
        for seed in seeds:
            folders = {arm: out / "runs" / f"{camera}-{arm}-{seed}" for arm in arms}
            if options.no_train:
                folders = {arm: folder for arm, folder in folders.items() if (folder / "done").exists()}
            if folders:
                data = prepare(study, out / "data" / f"{camera}{seed}", camera, seed)
                old = prepare(study, out / "data" / f"{study.old_camera}{seed}", study.old_camera, seed + 100)
            judge = None
            for arm, folder in folders.items():
                if not (folder / "done").exists():
                    train(study, arm, seed, data, old, folder)
                kept = out / "judged" / folder.name
                if not options.no_judge and not (kept / "done").exists():
                    judge = judge or Judge(study, data, old)
                    judge.along(folder / "weights" / "best.pt", kept)
        judged = Runs(study, out / "judged", camera, arms, seeds)
        title = f"{options.data}, camera {camera}: {study.weights.stem}, {study.imgsz} px, VOC mAP10 of the test images"
        lines, content = tables(judged, title)
        shares, drawn = curves(judged)
        print("\n".join(["", *lines, "", *shares]))
        if drawn:
            draw(drawn, out / f"{options.data}-{camera}.png", f"{options.data}, camera {camera}")
        with written_whole(out / f"{options.data}-{camera}.json") as temporary:
            curve = {f"{arm} {side}": values for (arm, side), values in drawn.items()}
            temporary.write_text(json.dumps({**content, "shares": SHARES, "curves": curve}, indent=2))


if __name__ == "__main__":
    main()
