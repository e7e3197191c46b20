"""Does the step towards the start of a training help? An old detector meets a new camera; old and new mAP, controls.

    python benchmarks/toward.py --data digits                 # embedded data and detector; hours on one core
    python benchmarks/toward.py --data voc --shared FOLDER    # FOLDER: data/VOCdevkit, weights/voc_yolov5nu.pt; a day
    python benchmarks/toward.py --data voc --shared FOLDER --cameras night --arms stock20,freeze10
    python benchmarks/toward.py --data voc --print            # what was measured so far

Start. A trained detector: data/digits/detector.pt, or a YOLOv5nu that has learned VOC's trainval images.
New camera. The same images as another camera might give them: `night` (dark, bluish, blurred, noisy) and `fog` (low
resolution, low contrast, compressed) for VOC, `inverted` (and blurred and noisy) for the digits. New data: 100 train
and 150 val images of VOC drawn by the seed, 60 train and all val images of the digits. Noise depends on the name of an
image alone, so test images are the same for all seeds. Retained data: val images as the old camera gives them.
Arms. Stock Ultralytics with its defaults, and the usual answers to forgetting; see ARMS. best.pt of each is judged.
Step. `shift_toward_`'s own rule on val: the share by the new data alone, and with retain_drop=0.02. No run and no
choice sees a test image. (The VOC detector has learned from the images of val, by day: its own val mAP is too high.)

Prints Markdown tables of VOC mAP10 on the test images of both cameras (VOC: the mean of bus, car, cat, person, train).
Intervals are 95 %, over seeds and images, by the model of `yolo-os compare` (docs/compare.md).

What a run came to (mAP10 on the test images and on drawn ones, and the shares that val chose) is kept in --measured, a
small file that comes with the project, and such a run is not made again: remove the file to repeat all. Test images are
judged at every share for the first seed of two arms, else only at the shares of a row of the tables, in half the time.
Trainings are kept below --out, and one whose folder holds `done` is not made again either.
"""

from __future__ import annotations

import argparse
import shutil
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from common import DETECTOR, DEVKIT, PLAIN, SOLID, changed_dataset, images_of, keep_ultralytics_here

from yolo_os.comparison.resampling import draws
from yolo_os.comparison.statistics import paired
from yolo_os.evaluation.bootstrap import voc_rankings, voc_score
from yolo_os.evaluation.detections import evaluate_boxes, evaluate_detections, from_boxes
from yolo_os.evaluation.intervals import Evidence, row_means
from yolo_os.evaluation.voc import RECALL_POINTS
from yolo_os.files import written_whole
from yolo_os.modes.camera import changed
from yolo_os.voc import dataset_for, read_devkit

SHARES = (1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)
CURVES = ("stock20", "freeze10")
DROP = 0.02
REPLICATES = 200
SIDES = ("new", "old")
TRUTH = "truth"  # key of `boxes_of` in what is measured
MEASURED = Path(__file__).parent / "measured"
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


def study_of(parser, data, shared):
    """The study of a data set; what it takes for voc is asked for."""
    if data == "digits":
        return Digits(DEVKIT, DETECTOR)
    if shared is None:
        parser.error("--data voc needs --shared, a folder with data/VOCdevkit and weights")
    folder = Path(shared).expanduser().resolve()
    return Voc(folder / "data" / "VOCdevkit", folder / "weights" / "voc_yolov5nu.pt")


def prepare(study, out, camera, draw):
    """The data set of a camera: train and val images drawn by a number, all test images, labels alike."""
    if (out / "data.yaml").exists():
        return out / "data.yaml"
    names, random, splits = class_names(study), np.random.default_rng(draw), {}
    source = dataset_for(study.devkit, classes=names)
    for split, count in (("train", study.train), ("val", study.val), ("test", None)):
        files = images_of(source, split)
        splits[split] = [files[each] for each in random.choice(len(files), count, replace=False)] if count else files

    def change(image, file):
        own = np.random.default_rng(zlib.crc32(f"{camera}/{file.stem}".encode()))
        return CAMERAS[camera](image, own) if camera in CAMERAS else image

    return changed_dataset(out, names, splits, change, ".jpg")


def class_names(study):
    from yolo_os.integration.checkpoint import load_checkpoint
    from yolo_os.integration.data import class_names_of

    return class_names_of(load_checkpoint(study.weights).model)


def train(study, arm, seed, data, old, folder):
    """One training with stock Ultralytics into a folder, marked `done` at its end."""
    from ultralytics import YOLO

    from yolo_os.integration.checkpoint import load_checkpoint
    from yolo_os.integration.compare_arms import Pull

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
        model.add_callback("on_train_start", Pull(pull, load_checkpoint(study.weights).model).on_train_start)
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


class Judge:
    """Judges weights on four sets: val and test images of the new and of the old camera."""

    def __init__(self, study, data, old, weights=None, splits=("val", "test")):
        from yolo_os.integration.checkpoint import load_checkpoint
        from yolo_os.integration.detect import Validation
        from yolo_os.integration.toward import read_origin

        self.study = study
        self.origin = read_origin(study.weights, {}, None)
        self.truth = read_devkit(study.devkit, split="test", classes=class_names(study))
        model = load_checkpoint(weights or study.weights).model
        self.sets = {
            (split, side): Validation(each, model, split=split, imgsz=study.imgsz, device="cpu")
            for split in splits
            for side, each in zip(SIDES, (data, old))
        }

    def line(self, weights):
        """A run's model and the line from the origin to it."""
        from yolo_os.integration.checkpoint import load_checkpoint
        from yolo_os.toward import line_to

        model = load_checkpoint(weights).model.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
        return model, line_to(model, self.origin)

    def at(self, model, line, values, split, sides=SIDES):
        """With some values in place: VOC AP on a split of both cameras."""
        from yolo_os.shifter import Weights

        def figures():
            score = self.score_val if split == "val" else self.score_test
            return [score(self.sets[split, side].run(model, loss=False)) for side in sides]

        return Weights(line.tensors, torch.float16).measure(values, figures)

    def on_drawn(self, model, line, values):
        """mAP10 on the test images of both cameras and on drawn ones, shape (2, 1 + replicates)."""
        return np.stack([on_drawn(each, self.study.counted) for each in self.at(model, line, values, "test")])

    def along(self, weights, everywhere):
        """What a run comes to, with BatchNorm statistics moved and left.

        Args:
            weights: the run's.
            everywhere: judge test images at every share, not only where a row of the tables needs them.

        Returns:
            mAP10 by statistics, share and camera, shape (2, shares, 2, 1 + replicates), NaN where test images were not
            judged; and the steps that val chooses, each a share and whether statistics move, shape (3, 2, 2): of all,
            of those with statistics moved, left; by the new data alone, with DROP.
        """
        from yolo_os.toward import ORIGIN, Judged, choose

        model, line = self.line(weights)
        every = dict.fromkeys(step_at(share, way) for share in SHARES for way in (True, False))
        judged = {
            step: dict(zip(SIDES, map(Judged, self.at(model, line, line.values(*step), "val"))))
            for step in every
            if step.share or step == ORIGIN
        }
        kinds = [judged]
        for way in (True, False):
            kinds.append({step: each for step, each in judged.items() if step.share == 1 or step.statistics == way})
        chosen = np.array([[choose(each, drop)[0] for drop in (None, DROP)] for each in kinds])
        named = {step_at(share, not left) for left, share in steps(chosen).values()}
        wanted = every if everywhere else {ORIGIN, *named}
        measured = {step: self.on_drawn(model, line, line.values(*step)) for step in wanted}
        unknown = np.full((len(SIDES), 1 + REPLICATES), np.nan)
        drawn = [[measured.get(step_at(share, way), unknown) for share in SHARES] for way in (True, False)]
        return np.array(drawn), chosen

    def score_val(self, found):
        """As `shift_toward_` scores: labels without difficult objects, and without rare classes."""
        from yolo_os.integration.toward import _without_rare

        truth, _ = _without_rare(found.truth, list(found.truth))
        return evaluate_boxes(found.boxes, truth, list(found.names.values()))

    def score_test(self, found):
        """By the devkit's rules."""
        by_stem = {Path(file).stem: boxes for file, boxes in found.boxes.items()}
        return evaluate_detections(self.truth, from_boxes(by_stem, found.names, self.truth))


def on_drawn(result, counted):
    """Mean AP10 of some classes on the image set and on drawn ones, the same for all results on these images."""
    images = result.matches.image_ids
    weights, score = draws(len(images), REPLICATES), voc_score(RECALL_POINTS["numpy"])
    rankings = [voc_rankings(result, images)[result.names.index(name)] for name in counted]
    return row_means(np.stack([each.figures(weights, score, 2)[0, 0] for each in rankings], axis=-1))


def step_at(share, statistics):
    """The step to a share; at 1 there is one, whatever is done with statistics."""
    from yolo_os.toward import STAY, Step

    return STAY if share == 1 else Step(share, statistics)


def boxes_of(study, measured):
    """The class and image of each box of the test images that counts, shape (boxes, 2); kept with what is measured."""
    if TRUTH not in measured:
        truth = read_devkit(study.devkit, split="test", classes=class_names(study))
        names = [truth.classes[index] for index in truth.class_index]
        rows = zip(names, truth.image, truth.difficult)
        counted = [
            (study.counted.index(name), image) for name, image, hard in rows if name in study.counted and not hard
        ]
        measured[TRUTH] = np.array(counted)
    return measured[TRUTH]


def evidence_of(boxes):
    """What the test images hold, from the class and image of each box."""
    return Evidence.of([boxes[boxes[:, 0] == label, 1] for label in np.unique(boxes[:, 0])])


class Measured:
    """Arrays of numbers from 0 to 1, or NaN, or of whole numbers, by key, in one file that is whole after each."""

    _ONE = 60000  # so that 0.1 is a whole number
    _NAN = 65535

    def __init__(self, path):
        self.path = path
        with np.load(path) if path.exists() else nullcontext({}) as kept:
            self._kept = {key: kept[key] for key in kept}

    def __contains__(self, key):
        """Whether something is kept by a key."""
        return key in self._kept

    def __getitem__(self, key):
        """What is kept by a key."""
        kept = self._kept[key]
        if kept.dtype == np.int64:
            return kept
        return np.where(kept == self._NAN, np.nan, kept / self._ONE)

    def __setitem__(self, key, values):
        """Keep it, and write the file."""
        values = np.asarray(values)
        if values.dtype != np.int64:
            values = np.nan_to_num(np.round(values * self._ONE), nan=self._NAN).astype(np.uint16)
        self._kept[key] = values
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **dict(sorted(self._kept.items())))


def rows(measured, camera, arms, seeds):
    """By name of a row, and seed: the share, and mAP10 of both cameras, shape (2, 1 + replicates)."""
    made = {}
    for arm in arms:
        for seed in seeds:
            key = f"{camera} {arm} {seed}"
            if key in measured:
                for name, (left, share) in steps(measured[f"{key} chosen"]).items():
                    found = measured[key][left, SHARES.index(share)]
                    made.setdefault(arm + name, {})[seed] = share, found
    return made


def steps(chosen):
    """By name of a step: whether statistics are left alone, and the share."""
    named = {
        " + step": chosen[0, 0],
        f" + step, retain_drop={DROP}": chosen[0, 1],
        " + step, statistics moved": chosen[1, 0],
        " + step, statistics left": chosen[2, 0],
        " at 0.5, statistics moved": (0.5, 1),
        " at 0.5, statistics left": (0.5, 0),
    }
    return {"": (0, 1.0), **{name: (1 - int(way), share) for name, (share, way) in named.items()}}


def change(mine, theirs, evidence):
    """The paired differences of rows, over the seeds that both have, for each camera."""
    both = [seed for seed in mine if seed in theirs]
    drawn = np.stack([mine[seed][1] - theirs[seed][1] for seed in both])
    return len(both), [str(paired(drawn[:, side], evidence)) for side in range(len(SIDES))]


def tables(measured, camera, arms, seeds, evidence):
    """The lines of the Markdown tables."""
    found = rows(measured, camera, arms, seeds)
    if not found:
        yield "nothing judged yet"
        return
    first = next(iter(found))
    seed = next(iter(found[first]))
    start = measured[f"{camera} {first} {seed}"][0, -1, :, 0]
    yield "| | seeds | share | new camera | change to stock | old camera | change to stock |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    yield f"| the old detector | | | {start[0]:.4f} | | {start[1]:.4f} | |"
    for name, mine in found.items():
        _, changes = change(mine, found[first], evidence)
        shares = [share for share, _ in mine.values()]
        label = " ".join(f"{share:g}" for share in (shares if len(set(shares)) > 1 else shares[:1]))
        means = np.mean([drawn[:, 0] for _, drawn in mine.values()], axis=0)
        cells = [f"{mean:.4f} | {'' if name == first else each}" for mean, each in zip(means, changes)]
        yield f"| {name} | {len(mine)} | {label} | {' | '.join(cells)} |"
    yield from ("", "each training with its step against itself without", "")
    yield "| training | seeds | new camera | old camera |"
    yield "| --- | --- | --- | --- |"
    for name in arms:
        if name in found:
            number, changes = change(found[f"{name} + step"], found[name], evidence)
            yield f"| {name} | {number} | {' | '.join(changes)} |"
    steps_of_first = (f"{first} + step", f"{first} + step, retain_drop={DROP}")
    yield from ("", f"{first} with its step against each control (over the seeds both have)", "")
    yield f"| control | seeds | step: new camera | old camera | retain_drop={DROP}: new camera | old camera |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, theirs in found.items():
        if not name.startswith(first) and " at 0.5" not in name and ", statistics" not in name:
            against = [change(found[step], theirs, evidence) for step in steps_of_first]
            yield f"| {name} | {against[0][0]} | {' | '.join(each for _, changes in against for each in changes)} |"


def curves(measured, camera, arms, seeds):
    """By arm: how many seeds, and mAP10 by statistics (moved, left), share and camera, shape (2, shares, 2)."""
    found = {}
    for arm in arms:
        done = [measured[key][..., 0] for key in (f"{camera} {arm} {seed}" for seed in seeds) if key in measured]
        done = [each for each in done if not np.isnan(each).any()]
        if done:
            found[arm] = len(done), np.mean(done, axis=0)
    return found


def curve_table(found):
    """The lines of a table of mAP by share, mean over seeds."""
    yield "| arm | statistics | camera | " + " | ".join(f"{share:g}" for share in SHARES) + " |"
    yield "| --- " * (len(SHARES) + 3) + "|"
    for arm, (seeds, means) in found.items():
        for left, word in enumerate(("moved", "left")):
            for side, name in enumerate(SIDES):
                cells = " | ".join(f"{each:.4f}" for each in means[left, :, side])
                yield f"| {arm} ({seeds} seeds) | {word} | {name} | {cells} |"


def draw(drawn, path, title):
    """The picture: new mAP against old mAP along the line of each arm."""
    from yolo_os.plots.style import new_figure, save_figure

    palette = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#7B3294")
    figure, axis = new_figure(1, 1, (7.4, 5.2), grid="both")
    for (arm, (_, means)), colour in zip(drawn.items(), palette * 2):
        new, old = means[0].T
        axis.plot(*means[1].T[::-1], color=colour, marker=".", linewidth=1.0, linestyle="--")
        axis.plot(old, new, color=colour, marker=".", linewidth=1.3, label=arm)
        axis.plot(old[0], new[0], color=colour, marker="o", markersize=8)
    axis.plot(old[-1:], new[-1:], "k*", markersize=13, label="the old detector")
    axis.set_xlabel("mAP10 on test images of the old camera")
    axis.set_ylabel("mAP10 on test images of the new camera")
    axis.set_title(
        f"{title}\nlarge dot: as trained; small dots: shares {', '.join(f'{s:g}' for s in SHARES[1:])}; "
        "dashed: BatchNorm statistics left",
        fontsize=9,
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
    parser.add_argument("--measured", help="file of what runs came to; measured/toward-DATA.npz beside this script")
    parser.add_argument("--print", action="store_true", help="only what was measured")
    options = parser.parse_args()
    study = study_of(parser, options.data, options.shared or ("." if options.print else None))
    cameras = options.cameras.split(",") if options.cameras else study.cameras
    arms = options.arms.split(",") if options.arms else study.arms
    seeds = [int(seed) for seed in options.seeds.split(",")] if options.seeds else study.seeds
    out = Path(options.out).expanduser().resolve()
    out.mkdir(parents=True, exist_ok=True)
    keep_ultralytics_here(out / "settings")
    torch.set_num_threads(1)
    measured = Measured(Path(options.measured or MEASURED / f"toward-{options.data}.npz"))
    for seed in () if options.print else seeds:
        for camera in cameras:
            measure(study, camera, seed, arms, out, measured)
    evidence = evidence_of(boxes_of(study, measured))
    for camera in cameras:
        print(f"\n{options.data}, camera {camera}: {study.weights.stem}, {study.imgsz} px, mAP10 of the test images\n")
        print("\n".join(tables(measured, camera, arms, seeds, evidence)))
        if found := curves(measured, camera, arms, seeds):
            print("\n".join(["", *curve_table(found)]))
            draw(found, out / f"{options.data}-{camera}.png", f"{options.data}, camera {camera}")


def measure(study, camera, seed, arms, out, measured):
    """Make the trainings of a camera and seed that were not measured yet, and judge them."""
    left = [arm for arm in arms if f"{camera} {arm} {seed}" not in measured]
    if not left:
        return
    data = prepare(study, out / "data" / f"{camera}{seed}", camera, seed)
    old = prepare(study, out / "data" / f"{study.old_camera}{seed}", study.old_camera, seed + 100)
    judge = Judge(study, data, old)
    for arm in left:
        folder = out / "runs" / f"{camera}-{arm}-{seed}"
        if not (folder / "done").exists():
            train(study, arm, seed, data, old, folder)
        by_share, chosen = judge.along(folder / "weights" / "best.pt", seed == study.seeds[0] and arm in CURVES)
        measured[f"{camera} {arm} {seed} chosen"] = chosen
        measured[f"{camera} {arm} {seed}"] = by_share
        print(f"measured {camera} {arm} {seed}", flush=True)


if __name__ == "__main__":
    main()
