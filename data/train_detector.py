"""Train the detector that comes with the project on the digits data set, from scratch, with stock Ultralytics.

    python data/train_detector.py               # trains, writes data/digits/detector.pt, prints its mAP
    python data/train_detector.py --only-val    # prints the mAP of data/digits/detector.pt

It learns from `train` and is chosen on `val`; `test` is looked at only after the detector is written. On one machine
the same build of torch gives the same weights again; on others the figures differ a little.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VOC = HERE / "digits" / "VOCdevkit" / "VOC2007"
ARCHITECTURE = HERE / "digits" / "detector.yaml"
DETECTOR = HERE / "digits" / "detector.pt"
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMGSZ = 160  # pixels

# The augmentation is mild on purpose: the detector shall over-fit its 300 images somewhat, as detectors fine-tuned on
# little data do, for there to be something that a flatter minimum could improve. Digits must not be mirrored.
RECIPE: dict[str, Any] = {
    "epochs": 150,
    "batch": 16,
    "nbs": 16,
    "optimizer": "AdamW",
    "lr0": 0.003,
    "lrf": 0.02,
    "weight_decay": 0.0005,
    "warmup_epochs": 3,
    "mosaic": 0.7,
    "close_mosaic": 30,
    "cls": 1.0,  # telling the digits apart is the harder part, not finding them
    "scale": 0.4,
    "degrees": 5.0,
    "translate": 0.1,
    "fliplr": 0.0,
    "hsv_h": 0.1,
    "hsv_s": 0.5,
    "hsv_v": 0.3,
    "patience": 0,
    "seed": 0,
    "deterministic": True,
}


def write_yolo(voc: Path, out: Path) -> Path:
    """Copy the images of a VOC data set to `out` with labels as Ultralytics reads them; returns its data.yaml.

    A VOC box covers the pixels xmin..xmax, counted from 1; as a stretch on an axis that starts at the image's edge
    that is xmin - 1 .. xmax. Difficult objects are left out, so to the detector they are background.
    """
    for split in ("train", "val", "test"):
        images, labels = out / "images" / split, out / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for stem in (voc / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
            root = ET.parse(voc / "Annotations" / f"{stem}.xml").getroot()
            width, height = (int(root.findtext(f"size/{tag}", "")) for tag in ("width", "height"))
            lines = []
            for item in root.iter("object"):
                if item.findtext("difficult") == "1":
                    continue
                x0, y0, x1, y1 = (int(item.findtext(f"bndbox/{tag}", "")) for tag in ("xmin", "ymin", "xmax", "ymax"))
                x, y, w, h = (x0 - 1 + x1) / 2, (y0 - 1 + y1) / 2, x1 - x0 + 1, y1 - y0 + 1
                index = CLASSES.index(item.findtext("name", ""))
                lines.append(f"{index} {x / width:.6f} {y / height:.6f} {w / width:.6f} {h / height:.6f}\n")
            (labels / f"{stem}.txt").write_text("".join(lines))
            shutil.copyfile(voc / "JPEGImages" / f"{stem}.jpg", images / f"{stem}.jpg")
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES))
    data = out / "digits.yaml"
    data.write_text(
        f"path: {out}\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n{names}", encoding="utf-8"
    )
    return data


def neutral(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint without the names of folders and branches of the machine that trained it."""
    names = {
        "model": "data/digits/detector.yaml",
        "data": "data/digits/digits.yaml",
        "project": "runs",
        "name": "detector",
        "save_dir": "runs/detector",
    }
    model = checkpoint["model"]
    model.yaml["yaml_file"] = names["model"]
    for holder in (checkpoint["train_args"], model.args):
        holder.update({key: value for key, value in names.items() if key in holder})
    checkpoint["git"] = dict.fromkeys(checkpoint.get("git") or {})
    return checkpoint


def train(data: Path, work: Path) -> None:
    """Train and write DETECTOR; `work` is a scratch folder."""
    import torch
    from ultralytics import YOLO

    model = YOLO(str(ARCHITECTURE), task="detect")
    model.train(
        data=str(data),
        imgsz=IMGSZ,
        device="cpu",
        workers=0,  # loading is cheap beside a step; also the same order of random numbers everywhere
        amp=False,
        plots=False,
        pretrained=False,
        project=str(work),
        name="detector",
        **RECIPE,
    )
    checkpoint = torch.load(work / "detector" / "weights" / "best.pt", map_location="cpu", weights_only=False)
    new = work / "detector.pt"
    torch.save(neutral(checkpoint), new)
    shutil.copyfile(new, DETECTOR.with_suffix(".tmp"))
    DETECTOR.with_suffix(".tmp").replace(DETECTOR)


def measure(data: Path, work: Path, split: str) -> tuple[float, float]:
    """The detector's mAP50 and mAP50-95 on a split by Ultralytics' own validation."""
    from ultralytics import YOLO

    found = YOLO(str(DETECTOR)).val(
        data=str(data),
        split=split,
        imgsz=IMGSZ,
        device="cpu",
        workers=0,
        plots=False,
        verbose=False,
        project=str(work),
        name=f"val-{split}",
    )
    return float(found.box.map50), float(found.box.map)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit status."""
    parser = argparse.ArgumentParser(description="Train the detector that comes with the project.")
    parser.add_argument("--only-val", action="store_true", help="train nothing, print the mAP of the one that is there")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for torch (default 2)")
    args = parser.parse_args(argv)
    if not VOC.is_dir():
        print(f"train_detector: {VOC} is missing: run data/make_digits.py first", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="train-detector-") as temporary:
        work = Path(temporary).resolve()
        # Keep Ultralytics from writing settings to the user's folder and from looking for anything on the network.
        os.environ["YOLO_CONFIG_DIR"] = str(work / "settings")
        os.environ["YOLO_OFFLINE"] = "true"
        (work / "settings" / "Ultralytics").mkdir(parents=True)
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
        import torch

        torch.set_num_threads(args.threads)
        data = write_yolo(VOC, work / "data")
        start = time.perf_counter()
        if not args.only_val:
            train(data, work)
            print(f"trained in {time.perf_counter() - start:.0f} s: {DETECTOR}")
        for split in ("train", "val", "test"):
            map50, map95 = measure(data, work, split)
            print(f"{split:5s} mAP50 {map50:.3f}  mAP50-95 {map95:.3f}")
        print(f"{DETECTOR.name}: {DETECTOR.stat().st_size / 1e6:.2f} MB; {time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
