"""Study 2 of docs/studies.md: do shifts in a training help other heads? YOLOv5u, YOLO11, YOLO26 on the embedded data.

    python benchmarks/heads.py                          # YOLOv8 is configs/compare/digits.yaml
    python benchmarks/heads.py --families yolo26 --seeds 5

Each family at half the width of its nano scale learns the digits from scratch once, with the recipe of the embedded
detector in 30 epochs. From there it goes on as in configs/compare/digits.yaml: its head drawn anew by the seed, 10
epochs, stock against the defaults of `yolo-os train`. Both parts go on where they were.

Expected beforehand (difference of AP50-95 to stock): within luck (0.003) for all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import DETECTOR, DEVKIT, FAMILIES, PLAIN, keep_ultralytics_here, small_architecture

from yolo_os.cli import main as yolo_os
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.voc import dataset_for

CONFIG = Path(__file__).parents[1] / "configs" / "compare" / "digits.yaml"
RECIPE = ("batch", "nbs", "optimizer", "lr0", "lrf", "weight_decay", "warmup_epochs", "mosaic", "cls", "scale")
RECIPE += ("degrees", "translate", "fliplr", "hsv_h", "hsv_s", "hsv_v", "patience")


def start(family, out, epochs):
    """A detector of a family, trained once."""
    from ultralytics import YOLO

    folder = out / f"{family}-start"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        trained = load_checkpoint(DETECTOR)
        settings = {name: trained.contents["train_args"][name] for name in RECIPE}
        settings |= {"data": str(dataset_for(DEVKIT, classes=list(trained.model.names.values()))), "imgsz": 160}
        settings |= {"epochs": epochs, "close_mosaic": epochs // 5, "seed": 0, **PLAIN}
        YOLO(small_architecture(family, folder)).train(project=str(out), name=folder.name, exist_ok=True, **settings)
        (folder / "done").write_text("")
    return folder / "weights" / "best.pt"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="yolov5,yolo11,yolo26", help=f"with commas, of {', '.join(FAMILIES)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30, help="of the first training")
    parser.add_argument("--out", default="runs/heads")
    options = parser.parse_args()
    out = Path(options.out).resolve()
    keep_ultralytics_here(out / "settings")
    for family in options.families.split(","):
        words = [f"model={start(family, out, options.epochs)}", "arms=stock,default", f"seeds={options.seeds}"]
        yolo_os(["compare", f"config={CONFIG}", *words, f"project={out}", f"name={family}"])


if __name__ == "__main__":
    main()
