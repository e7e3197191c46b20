"""What is done to the weights that a training saved, before Ultralytics validates them: a final shift, a final step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.utils import LOGGER, colorstr

from yolo_os._version import __version__
from yolo_os.errors import UserError
from yolo_os.files import write_json, write_text
from yolo_os.heads import unwrap
from yolo_os.integration.checkpoint import load_checkpoint, shift_record, shifted, write, write_stripped
from yolo_os.integration.data import calibration_batches
from yolo_os.integration.on_val import OnVal, judge_on_val
from yolo_os.integration.runtime import progress_bar
from yolo_os.integration.toward import check_retained, read_origin, shift_toward_, toward_record
from yolo_os.plots.shift import plot_report
from yolo_os.plots.toward import plot_shares
from yolo_os.recipe import ShiftRecipe
from yolo_os.shift import shift_batches_
from yolo_os.toward import check_origin

SAYS = colorstr("yolo_os: ")


@dataclass(frozen=True)
class Final:
    """What the final shift of one file came to.

    Attributes:
        metrics: that the file held of the weights before; empty where none moved.
        said: what val says of it, in a line; empty where none moved.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    said: str = ""


def final_shift(trainer: Any, path: Path, recipe: ShiftRecipe) -> Final:
    """Shift the weights saved in a file, as far as the loss on images that the shift did not use allows it.

    What was there before is kept as `NAME-unshifted.pt`; report and plots go into `os/NAME` of the run's folder. Where
    mAP on val is worse beyond its interval, the file stays as it is, unless the recipe has no tolerance.

    Args:
        trainer: Ultralytics' trainer, at its end.
        path: of the checkpoint.
        recipe: of the shift.
    """
    LOGGER.info(f"\n{SAYS}final shift of {path} ({recipe.method})")
    checkpoint = load_checkpoint(path)  # trusted if this very process wrote it
    model = checkpoint.model.to(trainer.device)
    loading = {"imgsz": trainer.args.imgsz, "batch": min(trainer.batch_size, 16), "workers": trainer.args.workers}
    used, held_out = calibration_batches(model, trainer.args.data, recipe, **loading)
    before = copy.deepcopy(model)
    report = shift_batches_(
        model,
        used,
        recipe,
        held_out=held_out,
        precision=checkpoint.precision,
        always_judged=True,
        progress=progress_bar,
    )
    on_val, said = _judged(before, model, trainer, loading) if report.moved else (None, "")
    # A recipe without a tolerance wants the shift whatever it costs.
    taken = bool(report.moved) and not (on_val and on_val.worse and recipe.max_loss_rise is not None)
    if taken:
        if path == trainer.best or not trainer.best.exists():  # save=False leaves last.pt alone
            write_stripped(path, path.with_name(f"{path.stem}-unshifted.pt"))
        write(shifted(checkpoint, model, shift_record(checkpoint, model, recipe.to_dict(), __version__)), path)
        LOGGER.info(f"{SAYS}{path.name}: {report.verdict}")
    else:
        LOGGER.warning(f"{SAYS}{path.name} stays as trained. A final shift was tried: {said or report.verdict}")
    for warning in report.warnings:
        LOGGER.warning(f"{SAYS}{warning}")
    folder = Path(trainer.save_dir) / "os" / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    stays = "" if taken else f"{path.name} stays as trained\n"
    write_text(folder / "report.txt", f"{report}\n{said}{chr(10) if said else ''}{stays}")
    report.save(folder / "report.json")
    if on_val:
        write_json(folder / "val.json", {**on_val.to_dict(), "taken": taken})
    if trainer.args.plots:
        plot_report(report, folder)
    return Final(dict(checkpoint.contents.get("train_metrics") or {}), said) if taken else Final()


def _judged(before: nn.Module, after: nn.Module, trainer: Any, loading: Mapping[str, Any]) -> tuple[OnVal | None, str]:
    """What val says of two models, and that as a line; why it says nothing."""
    try:
        on_val = judge_on_val(before, after, trainer.args.data, device=trainer.device, **loading)
    except UserError as error:
        return None, f"val says nothing of it: {error}"
    return on_val, str(on_val)


def find_origin(toward: str | bool, trainer: Any) -> Path:
    """The file of the weights that a training starts from, before its first batch.

    Args:
        toward: the file; True: the one that the trainer loads its model from.
        trainer: Ultralytics' trainer.

    Raises:
        UserError: if there is no such file.
    """
    if isinstance(toward, str):
        if not Path(toward).is_file():
            raise UserError(f"toward={toward}: no such file")
        return Path(toward).resolve()
    for given in (trainer.args.pretrained, trainer.args.model):
        if str(given).endswith(".pt") and Path(str(given)).is_file():
            return Path(str(given)).resolve()
    raise UserError(f"toward=True: this training starts from no checkpoint file (model={trainer.args.model}); name one")


def check_step(trainer: Any, origin: str, retain: Sequence[str]) -> None:
    """Refuse, before the first batch, an origin or retained data that the final step could do nothing with.

    Raises:
        UserError: as `shift_toward_`.
    """
    model = unwrap(trainer.model)
    check_origin(model, read_origin(origin, {}, None))
    for data in retain:
        check_retained(data, model)


def final_step(
    trainer: Any, path: Path, origin: str, retain: Sequence[str], retain_drop: float | None
) -> dict[str, float]:
    """Move the weights saved in a file towards those that the training started from, as far as val allows.

    What was there before is kept as `NAME-unshifted.pt`; report and plot go into `os/NAME` of the run's folder.

    Args:
        trainer: Ultralytics' trainer, at its end.
        path: of the checkpoint.
        origin: the file of the weights at the start.
        retain, retain_drop: see `shift_toward_`.

    Returns:
        The metrics that the file held of the weights before; empty where none moved.
    """
    LOGGER.info(f"\n{SAYS}final step of {path} towards {origin}")
    checkpoint = load_checkpoint(path)  # trusted if this very process wrote it
    model = checkpoint.model.to(trainer.device)
    loading = {"imgsz": trainer.args.imgsz, "batch": min(trainer.batch_size, 16), "workers": trainer.args.workers}
    start = read_origin(origin, {}, path)
    report = shift_toward_(
        model,
        start,
        trainer.args.data,
        retain=retain,
        retain_drop=retain_drop,
        precision=checkpoint.precision,
        progress=progress_bar,
        **loading,
    )
    moved = report.share < 1
    if moved:
        write_stripped(path, path.with_name(f"{path.stem}-unshifted.pt"))
        record = toward_record(checkpoint, report, __version__, data=str(trainer.args.data), retain=list(retain))
        write(shifted(checkpoint, model, record), path)
    LOGGER.info(f"{SAYS}{path.name}: {report.verdict}")
    folder = Path(trainer.save_dir) / "os" / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "toward.txt", f"{report}\n")
    report.save(folder / "toward.json")
    if trainer.args.plots:
        plot_shares(report.to_dict()["toward"], folder / "toward.png")
    return dict(checkpoint.contents.get("train_metrics") or {}) if moved else {}
