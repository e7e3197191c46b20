"""The final shift of a training: of the weights that it saved, before Ultralytics validates them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.torch_utils import strip_optimizer

from yolo_os._version import __version__
from yolo_os.integration.checkpoint import load_checkpoint, shift_record, shifted, write
from yolo_os.integration.data import calibration_batches
from yolo_os.integration.runtime import progress_bar
from yolo_os.plots.shift import plot_report
from yolo_os.recipe import ShiftRecipe
from yolo_os.shift import shift_batches_

SAYS = colorstr("yolo_os: ")


def final_shift(trainer: Any, path: Path, recipe: ShiftRecipe) -> dict[str, float]:
    """Shift the weights saved in a file, as far as the loss on images that the shift did not use allows it.

    What was there before is kept as `NAME-unshifted.pt`; report and plots go into `os/NAME` of the run's folder.

    Args:
        trainer: Ultralytics' trainer, at its end.
        path: of the checkpoint.
        recipe: of the shift.

    Returns:
        The metrics that the file held of the weights before; empty where none moved.
    """
    LOGGER.info(f"\n{SAYS}final shift of {path} ({recipe.method})")
    checkpoint = load_checkpoint(path, trust=True)  # written by this very process
    model = checkpoint.model.to(trainer.device)
    loading = {"imgsz": trainer.args.imgsz, "batch": min(trainer.batch_size, 16), "workers": trainer.args.workers}
    used, held_out = calibration_batches(model, trainer.args.data, recipe, **loading)
    report = shift_batches_(
        model,
        used,
        recipe,
        held_out=held_out,
        precision=checkpoint.precision,
        always_judged=True,
        progress=progress_bar,
    )
    if report.moved:
        if path == trainer.best or not trainer.best.exists():  # save=False leaves last.pt alone
            strip_optimizer(path, path.with_name(f"{path.stem}-unshifted.pt"))
        write(shifted(checkpoint, model, shift_record(checkpoint, model, recipe.to_dict(), __version__)), path)
        LOGGER.info(f"{SAYS}{path.name}: {report.verdict}")
    else:
        LOGGER.warning(f"{SAYS}{path.name} stays as trained. A final shift was tried: {report.verdict}")
    for warning in report.warnings:
        LOGGER.warning(f"{SAYS}{warning}")
    folder = Path(trainer.save_dir) / "os" / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(f"{report}\n", encoding="utf-8")
    report.save(folder / "report.json")
    if trainer.args.plots:
        plot_report(report, folder)
    return dict(checkpoint.contents.get("train_metrics") or {}) if report.moved else {}
