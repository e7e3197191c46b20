"""`yolo-os val`: PASCAL VOC mAP of models or of detection files, with error bars, and two or more side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_os.errors import UserError
from yolo_os.files import (
    RUN_KEYS,
    as_path,
    check_folder,
    check_outputs,
    discard_folder,
    file_name,
    run_folder,
    write_text,
)
from yolo_os.modes.voc import DEVKIT_KEYS, INCOMPLETE, report_problems
from yolo_os.settings import Key
from yolo_os.terminal import in_table

if TYPE_CHECKING:
    from yolo_os.evaluation.annotations import Annotations
    from yolo_os.evaluation.bootstrap import Bootstrap
    from yolo_os.evaluation.detections import Detections
    from yolo_os.evaluation.voc import VOCResult
    from yolo_os.integration.checkpoint import Checkpoint

_CHEAP = 30_000  # detections that pycocotools scores in a few seconds
_REPLICATES = 1000
_INPUTS = ("model", "detections", "data", "devkit", "classes")

KEYS = (
    Key("model", (str, list, type(None)), None, "checkpoint to run; several with commas are compared with the first"),
    Key(
        "detections",
        (str, list, type(None)),
        None,
        "instead of a model: folder of comp4_det_test_CLASS.txt files, or a COCO result file; several with commas",
    ),
    Key("data", (str, type(None)), None, "data set YAML whose VOCdevkit can be found, or a VOCdevkit folder"),
    *DEVKIT_KEYS,
    Key("split", (str,), "test", "image set"),
    Key("iou", (float,), 0.5, "least IoU of a match (that of the suppression of overlaps is nms_iou)"),
    Key("pixel_offset", (float,), 1.0, "1 where boxes are inclusive pixels, as VOC's; 0 where they are continuous"),
    Key("recall_points", (str,), "numpy", "the eleven recalls of AP07", choices=("numpy", "matlab")),
    Key("strict", (bool,), True, "refuse unknown images and classes; False: leave them out and count them"),
    Key("bootstrap", (int, type(None)), None, f"replicates of the error bars; None: {_REPLICATES} to compare, else 0"),
    Key("seed", (int,), 0, "seed of the error bars"),
    Key("coco", (bool, type(None)), None, f"also COCO's numbers; None: when there are at most {_CHEAP:,} detections"),
    Key("json", (str,), None, "also write the figures to this path"),
    Key("plots", (bool,), True, "draw precision-recall curves, and the gains of a comparison"),
    Key("imgsz", (int, type(None)), None, "for a model: image size in pixels; None: that of its training"),
    Key("batch", (int,), 16, "for a model: images per batch"),
    Key("device", (str, int, list, type(None)), None, "for a model: as Ultralytics takes it"),
    Key("workers", (int,), 0, "for a model: loader processes"),
    Key("conf", (float,), 0.001, "for a model: lowest score kept"),
    Key("nms_iou", (float,), 0.7, "for a model: IoU of the suppression of overlaps"),
    Key("max_det", (int,), 300, "for a model: most detections per image"),
    Key("trust", (bool,), False, "for a model: load a checkpoint that could run code of its maker"),
    *RUN_KEYS,
)
EXAMPLES = (
    "yolo-os val model=best.pt data=VOCdevkit",
    "yolo-os val model=a.pt,b.pt data=datasets/voc2007/data.yaml",
    "yolo-os val detections=results/Main devkit=VOCdevkit year=2007 split=test",
    "yolo-os val detections=predictions.json devkit=VOCdevkit bootstrap=1000 json=figures.json",
)


@dataclass(frozen=True)
class _Run:
    """One detector: its name, what it found, its figures."""

    name: str
    came_as_comp4: bool
    detections: Detections
    result: VOCResult
    coco: dict[str, float] | None
    ultralytics_map50: float | None


def run(options: dict[str, Any]) -> int:
    """Evaluate as the keys say; the exit code."""
    sources = _sources(options)
    check_outputs({"json": options["json"]}, {key: options[key] for key in _INPUTS})
    check_folder("val", options)
    models = _load_models(sources, options) if options["model"] is not None else {}
    annotations = _ground_truth(options, models)
    _print_ground_truth(annotations)
    folder = run_folder("val", options)
    report_problems(annotations.problems, f"all of them in {folder / 'problems.txt'}")
    try:
        runs = [_evaluate(name, source, annotations, models.get(name), options) for name, source in sources.items()]
    except BaseException:
        discard_folder(folder)
        raise
    if annotations.problems:
        write_text(folder / "problems.txt", "".join(f"{problem}\n" for problem in annotations.problems))
    replicates = options["bootstrap"]
    if replicates is None:
        replicates = _REPLICATES if len(runs) > 1 else 0
    if len(runs) == 1:
        content = _report_one(runs[0], replicates, options)
    else:
        content = _report_several(runs, replicates, options, folder)
    print(_not_yolo_val(runs))
    _leave_files(runs, folder, options)
    text = json.dumps(content, indent=2) + "\n"
    write_text(folder / "voc.json", text)
    if options["json"]:
        write_text(as_path(options["json"]), text)
    print(f"results in {folder}")
    return INCOMPLETE if annotations.lost else 0


def _sources(options: dict[str, Any]) -> dict[str, str]:
    """The models or detection files by a short name."""
    given = {key: options[key] for key in ("model", "detections") if options[key] is not None}
    if len(given) != 1:
        raise UserError("give either model=... or detections=..., and the ground truth with devkit=... or data=...")
    (value,) = given.values()
    paths = [str(path) for path in value] if isinstance(value, list) else [part.strip() for part in value.split(",")]
    paths = [path for path in paths if path]
    if not paths or len(set(paths)) < len(paths):
        raise UserError(f"{next(iter(given))}={value}: names {'one twice' if paths else 'nothing'}")
    short = [Path(path).stem for path in paths]
    return dict(zip(short if len(set(short)) == len(short) else paths, paths))


def _load_models(sources: dict[str, str], options: dict[str, Any]) -> dict[str, Checkpoint]:
    from yolo_os.integration.checkpoint import load_checkpoint

    return {name: load_checkpoint(path, options["trust"]) for name, path in sources.items()}


def _names(model: Checkpoint) -> dict[int, str]:
    names: Any = model.model.names
    return {int(index): str(name) for index, name in dict(names).items()}


def _ground_truth(options: dict[str, Any], models: dict[str, Checkpoint]) -> Annotations:
    """The annotations; of a devkit whose classes are those of the first model, in the model's order."""
    from yolo_os.evaluation.annotations import read_devkit
    from yolo_os.evaluation.dataset import devkit_of, is_devkit

    devkit, data = options["devkit"], options["data"]
    if (devkit is None) == (data is None):
        raise UserError(
            "give the ground truth once: devkit=... (a VOCdevkit folder) or data=... (that, or a data.yaml)"
        )
    if devkit is None and not is_devkit(data):
        if options["year"] or options["classes"]:
            raise UserError(f"data={data} says its years and classes itself: leave out year= and classes=")
        return devkit_of(data).read(options["split"])
    where = (data if devkit is None else devkit, options["year"], options["split"])
    annotations = read_devkit(*where, options["classes"])
    order = tuple(_names(next(iter(models.values()))).values()) if models else ()
    if options["classes"] is None and set(order) == set(annotations.classes):
        return read_devkit(*where, order)
    return annotations


def _evaluate(
    name: str, source: str, annotations: Annotations, model: Checkpoint | None, options: dict[str, Any]
) -> _Run:
    from yolo_os.evaluation.detections import evaluate_detections, read_detections, suspect_offset

    offset, map50 = options["pixel_offset"], None
    if model is None:
        detections = read_detections(source, annotations, options["split"], options["strict"], offset)
        if offset == 1 and (suspicion := suspect_offset(annotations, detections)):
            print(f"warning: {source}: {suspicion}", file=sys.stderr)
    else:
        detections, map50 = _detect(model, annotations, options)
    for note in detections.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{name}: {detections}")
    if not len(detections.score):
        print(f"warning: no detections of {source} are left: every AP is 0", file=sys.stderr)
    result = evaluate_detections(annotations, detections, options["iou"], offset, options["recall_points"])
    coco = None
    if options["coco"] or (options["coco"] is None and len(detections.score) <= _CHEAP):
        from yolo_os.evaluation.coco import coco_numbers

        coco = coco_numbers(annotations, detections, offset)
    return _Run(name, model is None and Path(source).is_dir(), detections, result, coco, map50)


def _detect(model: Checkpoint, annotations: Annotations, options: dict[str, Any]) -> tuple[Detections, float | None]:
    """Run a model over the images; what `yolo val` calls its mAP50, if it numbers the classes as the data do."""
    from yolo_os.evaluation.dataset import dataset_for, is_devkit
    from yolo_os.evaluation.detections import from_boxes
    from yolo_os.integration.detect import detect

    names = _names(model)
    order = tuple(names.values()) if set(names.values()) == set(annotations.classes) else annotations.classes
    data = options["data"]
    if data is None or is_devkit(data):
        data = dataset_for(options["devkit"] if data is None else data, options["year"], order)
    else:
        order = annotations.classes
    named = {key: options[key] for key in ("split", "batch", "device", "workers", "conf", "max_det")}
    found = detect(model.model, data, imgsz=options["imgsz"] or model.imgsz, iou=options["nms_iou"], **named)
    comparable = order == tuple(names.values())
    detections = from_boxes(found.boxes, found.names, annotations, options["pixel_offset"])
    return detections, found.ultralytics_map50 if comparable else None


def _print_ground_truth(annotations: Annotations) -> None:
    for note in annotations.notes:
        print(f"note: {note}", file=sys.stderr)
    where = ", ".join(f"{split} of {root.name}" for root, split in zip(annotations.roots, annotations.sets))
    print(f"{where}: {annotations}")


def _report_one(run: _Run, replicates: int, options: dict[str, Any]) -> dict[str, Any]:
    """Print the figures of one detector; returns what goes into the JSON file."""
    content = run.result.to_dict() | _facts(run)
    if replicates:
        from yolo_os.evaluation.bootstrap import bootstrap

        bars = bootstrap(run.result, replicates=replicates, seed=options["seed"])
        print(f"\n{_table_with_bars(run.result, bars)}")
        print(f"95% intervals from {bars.replicates} bootstrap replicates of the {bars.images} images")
        content["bootstrap"] = _named(bars, run.result.names)
    else:
        print(f"\n{run.result}")
    print(_coco_line(run))
    return content


def _report_several(runs: Sequence[_Run], replicates: int, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Print detectors side by side, and the gain of each over the first; returns what goes into the JSON file."""
    from yolo_os.evaluation.bootstrap import bootstrap
    from yolo_os.plots.evaluation import plot_differences

    first = runs[0]
    print(f"\n{_side_by_side(runs)}")
    for run in runs:
        print(f"{run.name}: {_coco_line(run)}")
    content: dict[str, Any] = {"detectors": {run.name: run.result.to_dict() | _facts(run) for run in runs}}
    content["gains"] = {}
    for run in runs[1:] if replicates else []:
        gain = bootstrap(first.result, run.result, replicates=replicates, seed=options["seed"])
        print(f"\ngain of {run.name} over {first.name} on the same {gain.images} images, 95% paired intervals")
        print(f"  mAP07 {gain.map07}\n  mAP10 {gain.map}")
        sure = [
            f"{name} {each.value:+.4f}"
            for name, each in sorted(zip(first.result.names, gain.ap), key=lambda pair: -pair[1].value)
            if each.low > 0 or each.high < 0
        ]
        print(f"  classes whose AP10 interval leaves out 0: {', '.join(sure) or 'none'}")
        content["gains"][run.name] = {"over": first.name} | _named(gain, first.result.names)
        if options["plots"]:
            title = f"{run.name} against {first.name}"
            plot_differences(
                first.result.names, gain, title, folder / f"{file_name(run.name.replace('/', '_'))}_gain.png"
            )
    print()
    return content


def _facts(run: _Run) -> dict[str, Any]:
    """What the JSON file says besides the figures."""
    from yolo_os.evaluation.voc import none_if_nan

    facts: dict[str, Any] = {"detections": len(run.detections.score), "left_out": run.detections.dropped}
    if run.coco:
        facts["coco_without_difficult"] = {name: none_if_nan(value) for name, value in run.coco.items()}
    if run.ultralytics_map50 is not None:
        facts["yolo_val_map50"] = none_if_nan(run.ultralytics_map50)
    return facts


def _named(bars: Bootstrap, names: Sequence[str]) -> dict[str, Any]:
    """Error bars with classes by name."""
    content = bars.to_dict()
    return content | {key: dict(zip(names, content[key])) for key in ("ap", "ap07")}


def _table_with_bars(result: VOCResult, bars: Bootstrap) -> str:
    names = [*map(in_table, result.names), "mean"]
    width = max(map(len, names))
    rows = [f"{'class':<{width}}  {'AP07':<24}  {'AP10':<24}  npos"]
    entries = zip(names, (*bars.ap07, bars.map07), (*bars.ap, bars.map), (*result.npos, result.npos.sum()))
    rows += [f"{name:<{width}}  {ap07!s:<24}  {ap!s:<24}  {npos:>4}" for name, ap07, ap, npos in entries]
    return "\n".join(rows).replace("nan [nan, nan]", "-             ")


def _side_by_side(runs: Sequence[_Run]) -> str:
    """AP10 of each class for each detector, and both means."""
    first = runs[0].result
    names, titles = [*map(in_table, first.names)], [in_table(run.name) for run in runs]
    width = max(map(len, (*names, "mean AP10")))
    columns = [max(6, len(title)) for title in titles]
    rows = [f"{'AP10':<{width}}  " + "  ".join(f"{title:>{size}}" for title, size in zip(titles, columns)) + "    npos"]
    for index, name in enumerate(names):
        values = "  ".join(f"{_figure(run.result.ap[index]):>{size}}" for run, size in zip(runs, columns))
        rows.append(f"{name:<{width}}  {values}  {first.npos[index]:>6}")
    for label, means in (
        ("mean AP10", [run.result.map for run in runs]),
        ("mean AP07", [run.result.map07 for run in runs]),
    ):
        rows.append(f"{label:<{width}}  " + "  ".join(f"{_figure(mean):>{size}}" for mean, size in zip(means, columns)))
    return "\n".join(rows)


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == value else "-"


def _coco_line(run: _Run) -> str:
    if run.coco is None:
        return f"COCO's numbers: skipped for {len(run.detections.score):,} detections; coco=True computes them"
    return "COCO's numbers, without difficult objects: " + ", ".join(
        f"{name} {run.coco[name]:.4f}" for name in ("AP", "AP50", "AP75", "AR 100")
    )


def _not_yolo_val(runs: Sequence[_Run]) -> str:
    """The one line on how these figures differ from `yolo val`'s."""
    known = [f"{run.ultralytics_map50:.4f}" for run in runs if run.ultralytics_map50 is not None]
    figure = f" ({', '.join(known)} here)" if known else ""
    return (
        f"yolo val's mAP50 of the same detections{figure} is another number: it counts hits on difficult objects as"
        " false, averages 101 recalls, gives a second hit the next free box, and Ultralytics' own VOC labels lie half a"
        " pixel off (docs/voc.md)"
    )


def _leave_files(runs: Sequence[_Run], folder: Path, options: dict[str, Any]) -> None:
    """Precision-recall plots, and the devkit's text files of what did not come as such."""
    from yolo_os.evaluation.detections import write_comp4

    for run in runs:
        label = file_name(run.name.replace("/", "_"))
        if options["plots"]:
            run.result.plot(folder / ("pr_curves.png" if len(runs) == 1 else f"{label}_pr_curves.png"))
        if not run.came_as_comp4:
            write_comp4(
                run.detections, folder / "comp4" if len(runs) == 1 else folder / "comp4" / label, options["split"]
            )
