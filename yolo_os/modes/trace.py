"""`yolo-os trace`: how flat the training loss is around one model, or around several side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_os.errors import UserError
from yolo_os.files import RUN_KEYS, as_path, check_folder, check_outputs, run_folder, write_json
from yolo_os.modes.common import DATA_KEYS, MODEL_KEYS
from yolo_os.settings import Key, listed

if TYPE_CHECKING:
    from yolo_os.flatness.report import TraceReport

KEYS = (
    Key(
        "model",
        (str, list),
        None,
        "the checkpoint (.pt), never changed; several with commas are compared with the first",
        required=True,
    ),
    MODEL_KEYS[1],
    Key("data", (str,), None, "data set YAML, its shipped name, or a VOCdevkit folder", required=True),
    Key(
        "layers",
        (str, list),
        "all",
        "which weights: all, head (the prediction layers, exact), a role, or patterns (cv3.*, model.0.*)",
    ),
    Key("images", (int,), 64, "images that the loss is over", minimum=1),
    *DATA_KEYS,
    Key("seed", (int,), 0, "seed of the images drawn and of the probes", minimum=0),
    Key("tolerance", (float,), 0.05, "standard error to reach, as a share of the trace"),
    Key("probes", (int,), 400, "most random probes of a batch", minimum=2),
    Key(
        "estimator",
        (str,),
        "auto",
        "plain random probes, or after the largest directions are taken out",
        choices=("auto", "hutchinson", "deflated"),
    ),
    Key(
        "measures",
        (str, list),
        "trace",
        "also normalised, gauss_newton, eigenvalue, sharpness; several with commas, or all",
    ),
    Key(
        "plots",
        (bool,),
        True,
        "of several models: trace against norm, and the loss along the line through the first two",
    ),
    Key("surface", (bool,), False, "also the loss over a plane that holds the first two"),
    Key("json", (str,), None, "also write the figures to this path"),
    *RUN_KEYS,
)
EXAMPLES = (
    "yolo-os trace model=best.pt data=my.yaml",
    "yolo-os trace model=best.pt,best-os.pt data=my.yaml layers=head images=256",
    "yolo-os trace model=best.pt,best-os.pt data=VOCdevkit measures=all json=flat.json",
)


def run(options: dict[str, Any]) -> int:
    """Measure as the keys say; the exit code."""
    models = [as_path(each) for each in listed(options["model"])]
    if not models:
        raise UserError("model= names no checkpoint")
    check_outputs({"json": options["json"]}, {"model": models, "data": options["data"]})
    check_folder("trace", options)

    from yolo_os.integration.flatness import hessian_trace, trace_bar

    names = (
        "images",
        "split",
        "imgsz",
        "batch",
        "workers",
        "device",
        "tolerance",
        "probes",
        "seed",
        "estimator",
        "trust",
    )
    with trace_bar() as notice:
        report = hessian_trace(
            models,
            options["data"],
            layers=listed(options["layers"]),
            measures=listed(options["measures"]),
            notice=notice,
            **{name: options[name] for name in names},
        )
    if report.images < options["images"]:
        print(f"note: images={options['images']}: {options['split']} has {report.images}", file=sys.stderr)
    folder = run_folder("trace", options)
    for path in filter(None, (folder / "report.json", options["json"])):
        report.save(path)
    print(f"{report}\n\nreport: {folder}")
    if len(models) > 1 and (options["plots"] or options["surface"]):
        _draw(models, report, folder, options)
    return 0


def _draw(models: list[Path], report: TraceReport, folder: Path, options: dict[str, Any]) -> None:
    """The pictures, with their data as JSON beside them."""
    from yolo_os.integration.flatness import landscape, trace_bar
    from yolo_os.plots.flatness import plot_line, plot_norms, plot_surface

    plot_norms([each.to_dict() for each in report.models], folder / "norms.png")
    names = ("images", "split", "imgsz", "batch", "workers", "device", "seed", "trust", "surface")
    try:
        with trace_bar() as notice:
            made = landscape(
                models[0], models[1], options["data"], notice=notice, **{name: options[name] for name in names}
            )
    except UserError as error:
        print(f"no line drawn: {error}")
        return
    write_json(folder / "landscape.json", made)
    ends = {name: made[name] for name in ("before", "after")}
    plot_line({**ends, **made["line"]}, folder / "line.png")
    if "surface" in made:
        plot_surface({**ends, **made["surface"]}, folder / "surface.png")
    print(f"pictures: {', '.join(sorted(path.name for path in folder.glob('*.png')))} in {folder}")
