"""What a shift's capturing and solving cost, against plain eval forwards of the same images through the same loader.

    python benchmarks/shift_cost.py                                    # the embedded detector and data
    python benchmarks/shift_cost.py --model best.pt --data my.yaml --imgsz 640 --images 128

Prints, for each method, the ratio of (loading, forward, capture, solve) to (loading, forward), pair by pair in one run
since machines drift, and the solve's share. The training loss is another matter, and its seconds stand apart.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from common import DETECTOR, DEVKIT

from yolo_os.forward import eval_mode, run_pass
from yolo_os.heads import find_head
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.data import calibration_batches
from yolo_os.integration.runtime import choose_device
from yolo_os.loss import gains_of
from yolo_os.methods import REGISTRY
from yolo_os.recipe import ShiftRecipe
from yolo_os.shift import silent
from yolo_os.shifter import Shifter, plan
from yolo_os.timing import Clock


class Images:
    """The images of labelled batches without their labels, so that no loss is taken."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        """Batches with nothing but `img`."""
        return ({"img": batch["img"]} for batch in self.batches)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DETECTOR))
    parser.add_argument("--data", default=str(DEVKIT))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()

    device = choose_device(options.device)
    model = load_checkpoint(options.model).model.to(device)
    head = find_head(model)
    recipe = ShiftRecipe(images=options.images, held_out=0)
    labelled, _ = calibration_batches(model, options.data, recipe, imgsz=options.imgsz, batch=options.batch)
    batches = Images(labelled)

    def plain():
        with eval_mode(model), torch.no_grad():
            for batch in batches:
                predictions = model(batch["img"].to(device).to(next(model.parameters()).dtype) / 255)
        del predictions  # kept until the next batch has its own, as in a pass

    def shift(chosen, clock):
        shifter = Shifter(head, chosen, gains_of(model, head), plan(head, chosen))
        before = {name: tensor.clone() for name, tensor in shifter.weights.tensors.items()}
        run_pass(model, batches, Clock(device), silent, "", shifter.statistics)
        with clock("solve"):
            shifter.shift_(None)
        shifter.weights.write_(before)

    plain()
    with_loss = Clock(device)
    run_pass(model, labelled, with_loss, silent, "")
    phases = ", ".join(f"{phase} {spent:.2f}" for phase, spent in with_loss.seconds().items())
    print(f"{labelled.images} images, batches of {options.batch}, {device}; a pass with the loss, seconds: {phases}")
    for method in REGISTRY:
        pairs = []
        for _ in range(options.repeats):
            clock = Clock(device)
            with clock("plain"):
                plain()
            with clock("shift"):
                shift(recipe.replace(method=method), clock)
            pairs.append(clock.seconds())
        ratios = [pair["shift"] / pair["plain"] for pair in pairs]
        share = statistics.median(pair["solve"] / pair["shift"] for pair in pairs)
        print(
            f"{method:<8} capture and solve / plain forwards: median {statistics.median(ratios):.3f} "
            f"(min {min(ratios):.3f}, max {max(ratios):.3f}); solve {share:.2%} of it",
            flush=True,
        )


if __name__ == "__main__":
    main()
