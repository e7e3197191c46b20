"""How large a sample SOS needs: sample size against norm, drift, loss and VOC mAP (the paper's first experiments).

    python benchmarks/sample_size.py                              # the embedded detector and data; about 2 minutes
    python benchmarks/sample_size.py --model best.pt --data VOCdevkit --images 400 --held-out 192

Prints a Markdown table: one row a sample size and way of sampling, each against the detector as it was, on the same
test images, with the paired bootstrap interval of the change in mAP.
"""

from __future__ import annotations

import argparse
import copy

from common import DETECTOR, DEVKIT, find

from yolo_os import ShiftRecipe, shift_
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.data import calibration_batches
from yolo_os.voc import bootstrap, evaluate_detections, read_devkit

SHARES = (0.25, 0.5, 0.625, 0.75, 0.875, 0.95)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DETECTOR))
    parser.add_argument("--data", default=str(DEVKIT))
    parser.add_argument("--images", type=int, default=225)
    parser.add_argument("--held-out", type=int, default=75)
    options = parser.parse_args()

    checkpoint = load_checkpoint(options.model)
    recipe = ShiftRecipe(method="sos", images=options.images, held_out=options.held_out)
    used, unused = calibration_batches(checkpoint.model, options.data, recipe)
    truth = read_devkit(options.data, split="test", classes=list(checkpoint.model.names.values()))

    def score(model):
        return evaluate_detections(truth, find(model, options.data, truth, imgsz=checkpoint.imgsz))

    before = score(checkpoint.model)
    print("| sampling | rows | keep | held-out drift (median) | held-out loss | VOC mAP | change [95 %] |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(f"| none | | 1 | 0 | | {before.map:.4f} | |")
    for sampling in ("uniform", "foreground", "balanced"):
        for share in SHARES:
            model = copy.deepcopy(checkpoint.model)
            report = shift_(model, used, recipe.replace(samples=share, sampling=sampling), held_out=unused)
            drift = sorted(layer.drift for layer in report.layers)[len(report.layers) // 2]
            after = score(model)
            gain = bootstrap(before, after).map
            print(
                f"| {sampling} | {share:g} m | {report.keep:.3f} | {drift:.3f} | {report.loss.rise:+.1%} "
                f"| {after.map:.4f} | {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] |",
                flush=True,
            )


if __name__ == "__main__":
    main()
