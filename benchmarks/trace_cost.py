"""What a trace costs, and which estimator pays: standard errors at equal numbers of products with the Hessian.

On the embedded detector, one batch: plain probes (Hutchinson), the library's Hutch++, and this package's (Lanczos'
directions, then probes), each by as many products, over several selections of weights. The standard error of one run is
itself noisy, so runs are repeated and the scatter of their estimates is printed beside the mean of the errors that they
state. Then the time of `yolo-os trace` as a user runs it.

    python benchmarks/trace_cost.py --products 24 --runs 6
"""

from __future__ import annotations

import argparse
import time

import torch
from common import DETECTOR, DEVKIT

from yolo_os import hessian_trace
from yolo_os.flatness.detector import chosen, detector_objective, labelled_batches
from yolo_os.flatness.estimate import DIRECTIONS, Probed, eigenthings, hutchinson, sketch
from yolo_os.flatness.operator import Hessian, times
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.data import calibration_batches
from yolo_os.recipe import ShiftRecipe

SELECTIONS = ("all", "model.0", "*.cv3.0.1.conv.weight", "cv2.0", "cv3.0")


def probed(matrix, parameters, seed, products, directions):
    """The estimate by plain probes, or with so many directions taken out first, by so many products in all."""
    taken_out = sketch(matrix, seed, directions) if directions else None
    scales = {"trace": [1.0] * len(parameters)}
    [found] = hutchinson([Probed(matrix, scales, taken_out)], lambda all_: False, seed=seed, most=products - directions)
    return found.estimate("trace")


def hutch_plus_plus(matrix, seed, products):
    """The library's."""
    library = eigenthings()
    like = matrix.objective.tensors[0]
    operator = library.LambdaOperator(
        lambda vector: times(matrix, vector), matrix.objective.size, like.device, like.dtype
    )
    return library.hutch_plus_plus(operator, num_matvecs=products, seed=seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=24)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--imgsz", type=int, default=96)
    parser.add_argument("--selections", default=",".join(SELECTIONS))
    parser.add_argument("--whole", action="store_true", help="also time `hessian_trace` of 64 images at 160 pixels")
    options = parser.parse_args()
    model = load_checkpoint(DETECTOR).model
    drawn, _ = calibration_batches(model, DEVKIT, ShiftRecipe(images=16, held_out=0), imgsz=options.imgsz)
    batches = labelled_batches(drawn)
    print(f"{'weights':<24}{'numbers':>9}  {'estimator':<12}{'mean':>10}{'scatter':>10}{'stated':>10}{'seconds':>9}")
    for words in options.selections.split(","):
        parameters = chosen(model, words)
        with detector_objective(model, batches, parameters) as objective:
            matrix = Hessian(objective)
            for name in ("hutchinson", "hutch++", "deflated"):
                began, values, errors = time.perf_counter(), [], []
                for seed in range(options.runs):
                    if name == "hutch++":
                        found = hutch_plus_plus(matrix, seed, options.products)
                        values.append(found.estimate)
                    else:
                        directions = DIRECTIONS if name == "deflated" else 0
                        found = probed(matrix, parameters, seed, options.products, directions)
                        values.append(found.value)
                    errors.append(found.stderr)
                seconds = (time.perf_counter() - began) / options.runs
                scatter = float(torch.tensor(values).std())
                print(
                    f"{words:<24}{objective.size:>9}  {name:<12}{sum(values) / len(values):>10.4g}{scatter:>10.3g}"
                    f"{sum(errors) / len(errors):>10.3g}{seconds:>9.2f}",
                    flush=True,
                )
    if options.whole:
        for layers in ("head", "all"):
            report = hessian_trace(DETECTOR, DEVKIT, layers=layers)
            print(f"\nlayers={layers}, {torch.get_num_threads()} threads:\n{report}", flush=True)


if __name__ == "__main__":
    main()
