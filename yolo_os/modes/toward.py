"""`yolo-os shift ... toward=`: move a checkpoint towards the weights its training started from, and report that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_os._version import __version__
from yolo_os.errors import UserError
from yolo_os.files import check_outputs, run_folder
from yolo_os.modes.common import checkpoint_paths
from yolo_os.settings import listed

if TYPE_CHECKING:
    from yolo_os.toward_report import TowardReport


def is_toward(options: dict[str, Any]) -> bool:
    """Whether the options ask for a shift towards an origin.

    Raises:
        UserError: if keys of one are given without it.
    """
    asked = options["toward"] not in (None, False) or options["retain"] is not None
    lone = [key for key in ("retain_drop", "shares", "statistics") if options[key] is not None]
    if options["toward"] is False and options["retain"] is not None:
        raise UserError(f"retain={options['retain']} is for toward=, which is False")
    if lone and not asked:
        raise UserError(f"{lone[0]}={options[lone[0]]} is for a shift with toward=")
    return asked


def shift_toward_checkpoint(options: dict[str, Any]) -> tuple[TowardReport, Path]:
    """Move a checkpoint, write it and its report; the report and the path of the new checkpoint.

    Args:
        options: those of `yolo-os shift`, with `recipe.TOWARD_KEYS`.

    Raises:
        UserError: for bad input, before anything is written.
    """
    source, out = checkpoint_paths(options, "-toward")
    if options["retain_drop"] is not None and options["retain"] is None:
        raise UserError(f"retain_drop={options['retain_drop']:g}: says nothing without retain=, the data it is for")
    shares = _numbers(options["shares"])
    retain = listed(options["retain"])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a shift with toward= judges in one process: start it without torchrun")
    toward = options["toward"]

    from yolo_os.integration.checkpoint import load_checkpoint, save_shifted
    from yolo_os.integration.runtime import choose_device, progress_bar
    from yolo_os.integration.toward import read_origin, shift_toward_, toward_record
    from yolo_os.plots.toward import plot_shares

    checkpoint = load_checkpoint(source, options["trust"])
    origin = read_origin(toward, checkpoint.contents, source, options["trust"])
    check_outputs({"out": out, "json": options["json"]}, {"toward": origin.source})  # also where a record names it
    model = checkpoint.model.to(choose_device(options["device"]))
    report = shift_toward_(
        model,
        origin,
        options["data"],
        retain=retain,
        retain_drop=options["retain_drop"],
        shares=shares,
        statistics=options["statistics"],
        imgsz=options["imgsz"],
        batch=options["batch"],
        workers=options["workers"],
        precision=checkpoint.precision,
        progress=progress_bar,
    )
    given = {"data": str(options["data"]), "retain": retain}
    record = toward_record(checkpoint, report, __version__, **given)
    save_shifted(checkpoint, model, record, out)
    folder = run_folder("shift", options)
    settings = f"model={source} toward={origin.source} data={options['data']} retain={','.join(retain)} out={out}"
    (folder / "shift.log").write_text(f"{settings}\n\n{report}\n", encoding="utf-8")
    for path in filter(None, (folder / "report.json", options["json"])):
        report.save(path)
    if options["plots"]:
        plot_shares(report.to_dict()["toward"], folder / "toward.png")
    print(f"{report}\n\nshifted checkpoint: {out}\nreport and plot:    {folder}")
    return report, out


def _numbers(value: Any) -> list[float]:
    """The shares given, or the default ones.

    Raises:
        UserError: for what is no number.
    """
    from yolo_os.toward import SHARES, check_shares  # which imports torch

    if value is None:
        return list(SHARES)
    try:
        return check_shares([float(part) for part in listed(value)])
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"shares={value}: takes numbers between 0 and 1 with commas, such as shares=0.8,0.5") from None
