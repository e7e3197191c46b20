"""The demo's second half: a detector is fine-tuned for a changed camera, forgets the old one, and gets it back."""

from __future__ import annotations

import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from yolo_os.evaluation.bootstrap import Difference
    from yolo_os.evaluation.voc import VOCResult
    from yolo_os.toward_report import TowardReport

TRAIN_IMAGES = 60
SIDES = ("old", "new")


@dataclass(frozen=True)
class Met:
    """What became of a detector that met a new camera.

    Attributes:
        report: of the step towards the detector as it was.
        results: VOC AP on the test images, by `shipped`, `trained` and `shifted`, and by `old` and `new` camera.
        forgot: of the trained over the shipped detector, by camera.
        gain: of the shifted over the trained one, by camera.
    """

    report: TowardReport
    results: dict[str, dict[str, VOCResult]]
    forgot: dict[str, Difference]
    gain: dict[str, Difference]

    def __str__(self) -> str:
        """The table and a sentence."""
        lines = [f"{'detector':<34}{'old camera':<38}{'new camera':<38}".rstrip()]
        lines.append("-" * 106)
        share = self.report.share
        rows = (
            ("shipped", "as shipped", None),
            ("trained", "fine-tuned for the new camera", self.forgot),
            ("shifted", f"then the step back (share {share:g})", self.gain),
        )
        for key, name, change in rows:
            cells = (
                f"{self.results[key][side].map:.4f}" + ("" if change is None else f"  {_interval(change[side])}")
                for side in SIDES
            )
            lines.append((f"{name:<34}" + "".join(f"{cell:<38}" for cell in cells)).rstrip())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        changes = {"forgot": self.forgot, "gain": self.gain}
        return {
            "share": self.report.share,
            "results": {
                name: {side: each.to_dict() for side, each in found.items()} for name, found in self.results.items()
            },
            **{
                name: {side: {"map": each.value, "low": each.low, "high": each.high} for side, each in change.items()}
                for name, change in changes.items()
            },
        }

    @property
    def sentence(self) -> str:
        """What happened, by what the intervals allow to say."""
        lost, back, new = self.forgot["old"], self.gain["old"], self.gain["new"]
        if self.report.share == 1:
            return f"What happened: the step moved nothing ({self.report.reason})."
        if lost.high >= 0:
            return (
                "What happened: the fine-tuning forgot nothing that 300 images can show, so there was little to mend."
            )
        then = f"got back {back.value:.3f} of it" if back.low > 0 else "got back nothing that 300 images can show"
        cost = "rose" if new.low > 0 else "fell" if new.high < 0 else "changed by no more than chance"
        return (
            f"What happened: the fine-tuning lost {-lost.value:.3f} mAP on the old camera; the step towards the "
            f"shipped weights {then}, and mAP on the new camera {cost} ({new.value:+.3f})."
        )


def changed(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """An image as another camera might give it: inverted, blurred, noisy."""
    import cv2

    blurred = cv2.GaussianBlur(255.0 - image.astype(np.float32), (0, 0), 1.0)
    noisy: NDArray[np.uint8] = np.clip(blurred + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    return noisy


def camera_dataset(devkit: Path, classes: list[str], out: Path, seed: int = 0) -> Path:
    """Make an Ultralytics data set of the changed camera's images, with the devkit's labels; returns its data.yaml.

    TRAIN_IMAGES images of the devkit's train set, drawn by the seed, and all of val and test. The noise of an image
    depends on its name alone, so val and test are the same for all seeds.
    """
    import cv2

    from yolo_os.conversion.dataset import dataset_for

    source = dataset_for(devkit, classes=classes).parent
    for split in ("train", "val", "test"):
        files = sorted((source / "images" / f"{split}2007").iterdir())
        if split == "train":
            drawn = np.random.default_rng(seed).choice(len(files), TRAIN_IMAGES, replace=False)
            files = [files[index] for index in sorted(drawn.tolist())]
        for kind in ("images", "labels"):
            (out / kind / split).mkdir(parents=True, exist_ok=True)
        for file in files:
            random = np.random.default_rng(zlib.crc32(file.stem.encode()))
            image = changed(cv2.imread(str(file)), random)  # type: ignore[arg-type]  # the devkit's images are whole
            cv2.imwrite(str(out / "images" / split / file.name), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            label = source / "labels" / f"{split}2007" / f"{file.stem}.txt"
            if label.exists():
                shutil.copyfile(label, out / "labels" / split / label.name)
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(classes))
    text = f"path: {out.resolve()}\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n{names}"
    (out / "data.yaml").write_text(text, encoding="utf-8")
    return out / "data.yaml"


def meet_new_camera(detector: Path, devkit: Path, folder: Path, options: dict[str, Any]) -> Met:
    """Fine-tune the shipped detector on the changed camera with stock Ultralytics, take the step, test all three."""
    from yolo_os.evaluation.bootstrap import bootstrap
    from yolo_os.evaluation.detections import evaluate_detections, from_boxes
    from yolo_os.evaluation.readers.devkit import read_devkit
    from yolo_os.integration.checkpoint import load_checkpoint
    from yolo_os.integration.data import class_names_of
    from yolo_os.integration.detect import detect
    from yolo_os.integration.train import train
    from yolo_os.modes.shift import KEYS
    from yolo_os.modes.toward import shift_toward_checkpoint

    checkpoint = load_checkpoint(detector)
    classes = class_names_of(checkpoint.model)
    data = camera_dataset(devkit, classes, folder / "camera")
    print(f"\nFine-tuning it on {TRAIN_IMAGES} images of a changed camera, {options['epochs']} epochs ...")
    training = {
        "model": str(detector),
        "data": str(data),
        "epochs": options["epochs"],
        "imgsz": checkpoint.imgsz,
        "workers": 0,
        "amp": False,
        "plots": False,
        "verbose": False,
        "project": str(folder.resolve()),
        "name": "trained",
        "exist_ok": True,
    }
    train(training | ({"device": options["device"]} if options["device"] else {}), None)
    trained = folder / "trained" / "weights" / "best.pt"
    print("\nMoving it towards the shipped weights ...")
    step = {
        **{key.name: key.default for key in KEYS if key.filled},
        "model": str(trained),
        "toward": str(detector),
        "data": str(data),
        "retain": str(devkit),
        "device": options["device"],
        "out": str(folder / "digits-toward.pt"),
        "project": str(folder),
        "name": "toward",
    }
    report, out = shift_toward_checkpoint(step)
    truth = read_devkit(devkit, split="test", classes=classes)
    results: dict[str, dict[str, VOCResult]] = {}
    for name, file in (("shipped", detector), ("trained", trained), ("shifted", out)):
        results[name] = {}
        for side, images in zip(SIDES, (devkit, data)):
            found = detect(file, images, split="test", imgsz=checkpoint.imgsz, device=options["device"] or None)
            results[name][side] = evaluate_detections(truth, from_boxes(found.boxes, found.names, truth))

    def change(before: str, after: str) -> dict[str, Any]:
        pairs = {side: (results[before][side], results[after][side]) for side in SIDES}
        return {side: bootstrap(*pair, replicates=options["replicates"]).map for side, pair in pairs.items()}

    return Met(report, results, change("shipped", "trained"), change("trained", "shifted"))


def _interval(change: Difference) -> str:
    return f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
