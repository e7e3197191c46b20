"""The data of a comparison: what is learned from, what chooses, and what is touched once at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.utils import LOGGER

from yolo_os.comparison.plan import DATA, TESTS, TRUTH, WHOLE, Config, plain
from yolo_os.comparison.resampling import Truth
from yolo_os.errors import UserError
from yolo_os.evaluation.readers.data_yaml import RECORD, devkit_of
from yolo_os.evaluation.readers.devkit import recognises as is_devkit
from yolo_os.files import as_path, write_json, write_text
from yolo_os.integration.data import devkit_dataset, read_description, warn_of_problems
from yolo_os.integration.guard import guarded
from yolo_os.plain_yaml import read_yaml
from yolo_os.terminal import counted

# With fewer images than this no part of train is drawn off: a test on a dozen images says nothing.
LEAST_TRAIN = 100
_FEW = 50  # images to test on, of which fewer bring a caution


@dataclass(frozen=True)
class Prepared:
    """One data set, its splits settled.

    Attributes:
        folder: where its files of the comparison lie.
        train_yaml: what trainings read: train without what was drawn off, and val.
        test_yaml, test_split: what is evaluated on.
        train_images, test_images: how many there are.
        made_of: the settings that this follows from.
        warnings: what the reader of a figure has to know.
    """

    folder: str
    train_yaml: str
    test_yaml: str
    test_split: str
    train_images: int
    test_images: int
    made_of: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def truth(self) -> Path:
        """The file of the ground truth."""
        return Path(self.folder) / TRUTH


def prepare(config: Config, name: str, folder: Path, classes: list[str], task: str) -> Prepared:
    """Settle the splits of one data set, in a folder; what was settled before stays so.

    Args:
        config: of the comparison.
        name: short name of the data set.
        folder: of its files, those of this comparison.
        classes: the model's, in whose order a VOCdevkit's are numbered.
        task: the model's.

    Raises:
        UserError: for data that can't be used.
    """
    data = config.names()[name]
    made_of = {"data": data, "test": config.test, "held_out": config.held_out}
    record = folder / DATA
    if record.is_file():
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["made_of"] == plain(made_of) and Path(known["train_yaml"]).is_file():
            return Prepared(**{**known, "warnings": tuple(known["warnings"])})
    folder.mkdir(parents=True, exist_ok=True)
    prepared = _prepare(config, data, folder, classes, task, made_of)
    write_json(record, asdict(prepared))
    return prepared


def _prepare(
    config: Config, data: str, folder: Path, classes: list[str], task: str, made_of: dict[str, Any]
) -> Prepared:
    source = as_path(data)
    if is_devkit(source):
        source = devkit_dataset(source, classes)
        warn_of_problems(source, data)
    described = read_description(source, data)
    for split in ("train", "val"):
        if not described.get(split):
            raise UserError(f"data={data}: it has no split '{split}', which a training needs")
    warnings = []
    if described["train"] == described["val"]:
        warnings.append(f"{data}: val is train, so every checkpoint is chosen on images that it has learned")
    original = str(described.get("yaml_file") or source)
    train = files_of(described, "train", task)
    test, said = _choose_test(config.test, described, len(train), data)
    warnings += said
    train_yaml, test_yaml = original, original
    if test == "train":
        order = np.random.default_rng(0).permutation(len(train)).tolist()
        count = max(1, round(config.held_out * len(train)))
        held, kept = ([train[place] for place in sorted(part)] for part in (order[:count], order[count:]))
        train_yaml = str(write_data(described, folder / "data.yaml", {"train": kept, "test": held}))
        test_yaml, test, train = train_yaml, "test", kept
    truth = read_truth(test_yaml, test, task)
    seen = set(train) & set(truth.files)
    if seen and test == "test":
        raise UserError(
            f"data={data}: {len(seen)} images are in both train and test, such as {min(seen)}: take them out of one, "
            "or give test=train, which draws images off train"
        )
    if len(truth.files) < _FEW:
        warnings.append(
            f"{data}: {counted(len(truth.files), 'image')} to test on: intervals are wide, and what so few hold by"
            f" chance is in every difference; {_FEW} or more say more"
        )
    truth.save(folder / TRUTH)
    return Prepared(
        str(folder), train_yaml, test_yaml, test, len(train), len(truth.files), plain(made_of), tuple(warnings)
    )


def _choose_test(wanted: str | None, described: Mapping[str, Any], train: int, data: str) -> tuple[str, list[str]]:
    """What is evaluated on, and what is to be said of it."""
    if wanted is not None and wanted not in TESTS:
        raise UserError(f"test={wanted}: use one of {', '.join(TESTS)}")
    if wanted == "val":
        return "val", [_on_val(data, "as asked for")]
    apart = bool(described.get("test")) and described["test"] not in (described["val"], described["train"])
    if wanted == "test" or (wanted is None and apart):
        if not described.get("test"):
            raise UserError(f"data={data}: it has no split 'test': give test=train, or test=val")
        if not apart:
            raise UserError(
                f"data={data}: its test split is its val or train, which choose and learn: give test=train, which "
                "draws images off train"
            )
        return "test", []
    if wanted == "train" or train >= LEAST_TRAIN:
        why = "its test split is its val or train" if described.get("test") else "it has no test split"
        said = [] if wanted else [f"{data}: {why}, so a part of train is drawn off to be evaluated on, and not learned"]
        return "train", said
    return "val", [_on_val(data, f"it has no test split of its own, and {counted(train, 'image')} to learn from")]


def _on_val(data: str, why: str) -> str:
    return f"{data} is evaluated on val ({why}), which has chosen the checkpoints too: figures are too good for all"


def train_yaml(prepared: Prepared, fraction: float | int, seed: int, task: str) -> str:
    """The data set with a part of train, drawn by the seed: the same for all arms, smaller parts within larger ones.

    Raises:
        UserError: if there are not as many images.
    """
    if isinstance(fraction, float) and fraction == WHOLE:
        return prepared.train_yaml
    file = Path(prepared.folder) / f"train-{fraction}-{seed}.yaml"
    if file.is_file():
        return str(file)
    described = read_description(prepared.train_yaml, prepared.train_yaml)
    files = files_of(described, "train", task)
    count = count_of(fraction, len(files), prepared.train_yaml)
    order = np.random.default_rng(seed).permutation(len(files)).tolist()
    return str(write_data(described, file, {"train": sorted(files[place] for place in order[:count])}))


def count_of(fraction: float | int, images: int, data: str) -> int:
    """How many of the images of train a fraction is.

    Raises:
        UserError: if there are not as many.
    """
    count = fraction if isinstance(fraction, int) else max(1, round(fraction * images))
    if count > images:
        raise UserError(f"fraction={fraction}: {data} has {counted(images, 'image')} to learn from")
    return count


def files_of(described: Mapping[str, Any], split: str, task: str) -> list[str]:
    """The images of a split that Ultralytics would use."""
    return [str(label["im_file"]) for label in _labels(described, split, task)]


def read_truth(data_yaml: str, split: str, task: str) -> Truth:
    """The ground truth of a split: its labels, or the XML files that a data set of a VOCdevkit was made of."""
    described = read_description(data_yaml, data_yaml)
    labels = _labels(described, split, task)
    files = tuple(str(label["im_file"]) for label in labels)
    classes = tuple(str(described["names"][number]) for number in sorted(described["names"]))
    if RECORD in read_yaml(data_yaml):
        annotations = devkit_of(data_yaml).read(split)
        place = {Path(file).stem: number for number, file in enumerate(files)}
        once = max(Counter(annotations.stems).values(), default=1) == 1
        if once and annotations.classes == classes and set(place) <= set(annotations.stems):
            known = annotations.only(np.array([stem in place for stem in annotations.stems], dtype=bool))
            at = np.array([place[stem] for stem in known.stems], dtype=np.int64)
            return Truth(classes, files, at[known.image], known.class_index, known.box, known.difficult)
    boxes = [_pixels(label) for label in labels]
    image = np.repeat(np.arange(len(boxes)), [len(each) for each in boxes])
    label_of = np.concatenate([np.zeros(0), *(label["cls"].reshape(-1) for label in labels)]).astype(np.int64)
    return Truth(
        classes, files, image, label_of, np.concatenate([np.zeros((0, 4)), *boxes]), np.zeros(len(image), dtype=bool)
    )


def _pixels(label: Mapping[str, Any]) -> Any:
    """The boxes of an image, 1-based and inclusive as those of annotations."""
    height, width = label["shape"]
    boxes = np.asarray(label["bboxes"], dtype=np.float64).reshape(-1, 4)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    return np.concatenate([low, high], axis=1) * [width, height, width, height] + [1, 1, 0, 0]


def _labels(described: Mapping[str, Any], split: str, task: str) -> list[dict[str, Any]]:
    cfg = get_cfg(overrides={"task": task, "imgsz": 640, "rect": False})
    level = LOGGER.level
    try:
        with guarded():
            LOGGER.setLevel("ERROR")
            made = build_yolo_dataset(cfg, described[split], 16, dict(described), mode="val", rect=False, stride=32)
    except UserError:
        raise
    except Exception as error:  # Ultralytics raises anything from AssertionError to SyntaxError here
        raise UserError(f"data={described.get('yaml_file')}: {' '.join(str(error).split())}") from None
    finally:
        LOGGER.setLevel(level)
    labels: list[dict[str, Any]] = made.labels
    return labels


def write_data(described: Mapping[str, Any], file: Path, lists: Mapping[str, list[str]]) -> Path:
    """A data set like another, with lists of images for some of its splits."""
    left_out = ("path", "train", "val", "test", "minival", "yaml_file", "download", "nc", RECORD)
    content = {key: value for key, value in described.items() if key not in left_out}
    content["path"] = str(file.parent)
    for split in ("train", "val", "test"):
        if split in lists:
            content[split] = f"{file.stem}-{split}.txt"
            write_text(file.parent / content[split], "".join(f"{each}\n" for each in lists[split]))
        elif described.get(split):
            content[split] = described[split]
    write_text(file, yaml.safe_dump(plain(content) | {"names": dict(described["names"])}, sort_keys=False))
    return file
