"""`yolo-os val`: mAP of models or of detection files, with error bars, and two or more side by side."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_os.errors import UserError
from yolo_os.files import (
    RUN_KEYS,
    as_path,
    check_folder,
    check_outputs,
    discard_folder,
    is_file,
    run_folder,
    write_json,
    write_text,
)
from yolo_os.modes.common import say_replaced
from yolo_os.modes.provenance import provenance
from yolo_os.modes.voc import DEVKIT_KEYS, INCOMPLETE, report_problems
from yolo_os.settings import Key, listed
from yolo_os.terminal import counted, kept_output

if TYPE_CHECKING:
    from yolo_os.evaluation.annotations import Annotations
    from yolo_os.evaluation.arrays import Flags
    from yolo_os.integration.checkpoint import Checkpoint
    from yolo_os.integration.detect import Detected
    from yolo_os.modes.val_coco import Parts
    from yolo_os.modes.val_report import Run

_REPLICATES = 1000
_INPUTS = ("model", "detections", "data", "devkit", "classes", "images", "groups")

KEYS = (
    Key("model", (str, list, type(None)), None, "checkpoint to run; several with commas are compared with the first"),
    Key(
        "detections",
        (str, list, type(None)),
        None,
        "instead of a model: folder of comp4_det_test_CLASS.txt files, COCO result file, or folder of YOLO's text files"
        " with confidences; several with commas",
    ),
    Key(
        "data",
        (str, type(None)),
        None,
        "ground truth: a data.yaml, a VOCdevkit, COCO's JSON of annotations, or a folder of VOC XML files",
    ),
    *DEVKIT_KEYS,
    Key(
        "task",
        (str,),
        "detect",
        "detect: boxes; segment, pose, obb: COCO's metric of masks, keypoints, rotated boxes, of a data.yaml or JSON",
        choices=("detect", "segment", "pose", "obb"),
    ),
    Key("images", (str, type(None)), None, "with COCO's JSON or XML files: folder of the images, if not beside them"),
    Key("split", (str,), "test", "split of the ground truth; COCO's JSON is one split"),
    Key("iou", (float,), 0.5, "least IoU of a match (that of the suppression of overlaps is nms_iou)"),
    Key("pixel_offset", (float,), 1.0, "of VOC XML: 1 where boxes are inclusive pixels, 0 where they are continuous"),
    Key("recall_points", (str,), "numpy", "the eleven recalls of AP07", choices=("numpy", "matlab")),
    Key("strict", (bool,), True, "refuse unknown images and classes; False: leave them out and count them"),
    Key(
        "first_category",
        (int, type(None)),
        None,
        "category_id of the first class in a COCO result file that names none, 0 or 1; None: as the ids show",
    ),
    Key("bootstrap", (int, type(None)), None, f"replicates of the error bars; None: {_REPLICATES} to compare, else 0"),
    Key("min_boxes", (int,), 10, "classes with fewer boxes are marked, and left out of a second mean", minimum=0),
    Key("seed", (int,), 0, "seed of the error bars", minimum=0),
    Key("coco", (bool,), True, "also COCO's numbers, kinds of errors, and figures by the size of objects"),
    Key("groups", (str, type(None)), None, "CSV of image,group: the same figures for each group of images"),
    Key("json", (str,), None, "also write the figures to this path"),
    Key("plots", (bool,), True, "draw precision-recall curves, and the gains of a comparison"),
    Key("imgsz", (int, type(None)), None, "for a model: image size in pixels; None: that of its training", minimum=32),
    Key("batch", (int,), 16, "for a model: images per batch", minimum=1),
    Key("device", (str, int, list, type(None)), None, "for a model: as Ultralytics takes it"),
    Key("workers", (int,), 0, "for a model: loader processes", minimum=0),
    Key("conf", (float,), 0.001, "for a model: lowest score kept"),
    Key("nms_iou", (float,), 0.7, "for a model: IoU of the suppression of overlaps"),
    Key("max_det", (int,), 300, "for a model: most detections per image", minimum=1),
    Key("trust", (bool,), False, "for a model: load a checkpoint that could run code of its maker"),
    *RUN_KEYS,
)
EXAMPLES = (
    "yolo-os val model=best.pt data=VOCdevkit",
    "yolo-os val model=a.pt,b.pt data=my.yaml split=val",
    "yolo-os val detections=predictions.json data=annotations/instances_val.json",
    "yolo-os val detections=results/Main devkit=VOCdevkit year=2007 split=test",
    "yolo-os val detections=predictions.json devkit=VOCdevkit bootstrap=1000 json=figures.json",
)


def run(options: dict[str, Any]) -> int:
    """Evaluate as the keys say; the exit code."""
    with kept_output() as printed:
        return _run(options, printed)


def _run(options: dict[str, Any], printed: list[str]) -> int:
    """The run itself; what it has printed so far is kept beside its figures."""
    from yolo_os.modes.val_report import draw_compared, leave_files, not_yolo_val, report_one, report_several

    sources = _sources(options)
    _check_numbers(options)
    check_outputs({"json": options["json"]}, {key: options[key] for key in _INPUTS})
    check_folder("val", options)
    say_replaced({"json": options["json"]})
    models = _load_models(sources, options) if options["model"] is not None else {}
    _say_tasks(models, options["task"])
    if options["task"] != "detect":
        return _run_task(sources, models, options, printed)
    annotations = _ground_truth(options, models)
    _groups(annotations, options)  # which may be refused, better now than after the models have run
    folder = run_folder("val", options)
    try:
        found = {name: _detect(model, annotations, options) for name, model in models.items()}
        annotations = _settled(annotations, found)
        _print_ground_truth(annotations)
        report_problems(annotations.problems, f"all of them in {folder / 'problems.txt'}")
        groups, notes = _groups(annotations, options)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        runs = [_evaluate(name, source, annotations, found.get(name), options) for name, source in sources.items()]
        parts = _parts(runs, annotations, groups, options)
    except BaseException:
        discard_folder(folder)
        raise
    if annotations.problems:
        write_text(folder / "problems.txt", "".join(f"{problem}\n" for problem in annotations.problems))
    replicates = _replicates(options, len(runs), len(annotations.images))
    if len(runs) == 1:
        content = report_one(runs[0], replicates, parts, options)
    else:
        content = report_several(runs, replicates, parts, options, folder)
        if options["plots"]:
            draw_compared(runs, annotations, folder)
    print(not_yolo_val(runs))
    leave_files(runs, folder, options)
    content["made"] = _made(options, sources, models, annotations)
    write_text(folder / "val.log", f"{content['made']['command']}\n\n{''.join(printed)}")
    text = json.dumps(content, indent=2) + "\n"
    write_text(folder / "voc.json", text)
    if options["json"]:
        write_text(as_path(options["json"]), text)
    print(f"results in {folder}")
    return INCOMPLETE if annotations.lost else 0


def _check_numbers(options: dict[str, Any]) -> None:
    """Refuse numbers that no evaluation takes, before a model has run for nothing."""
    iou = options["iou"]
    if not 0 < iou <= 1:
        raise UserError(f"iou={iou:g} (iou_threshold={iou}): takes a number above 0, and at most 1")
    for key in ("conf", "nms_iou"):
        if not 0 <= options[key] <= 1:
            raise UserError(f"{key}={options[key]:g}: takes a number from 0 to 1")
    for key in ("pixel_offset", "first_category"):
        if options[key] not in (None, 0, 1):
            raise UserError(f"{key}={options[key]:g}: takes 0 or 1")
    if options["bootstrap"] is not None and (options["bootstrap"] < 0 or options["bootstrap"] == 1):
        raise UserError(f"bootstrap={options['bootstrap']}: takes a number of replicates from 2 on, or 0 for none")


def _replicates(options: dict[str, Any], detectors: int, images: int) -> int:
    """How many image sets are drawn: unless asked for, none for one detector, nor of a single image."""
    if options["bootstrap"] is not None:
        return int(options["bootstrap"])
    if detectors > 1 and images < 2:
        print("note: no intervals: of a single image none can be given", file=sys.stderr)
        return 0
    return _REPLICATES if detectors > 1 else 0


def _say_tasks(models: dict[str, Checkpoint], task: str) -> None:
    """Say of models that give more than boxes that boxes are what is judged."""
    if not models or task != "detect":
        return
    from yolo_os.integration.data import task_of

    for name, model in models.items():
        own = task_of(model.model)
        if own in ("segment", "pose"):
            what = {"segment": "masks", "pose": "keypoints"}[own]
            print(f"note: {name}: its boxes are judged; task={own} judges its {what}", file=sys.stderr)


def _run_task(
    sources: dict[str, str], models: dict[str, Checkpoint], options: dict[str, Any], printed: list[str]
) -> int:
    """The run for masks, keypoints or rotated boxes."""
    from yolo_os.evaluation.tasks import evaluate_task, read_task_detections, read_task_truth, task_rows
    from yolo_os.modes.val_tasks import TaskRun, report_task

    task = options["task"]
    if options["devkit"] is not None or options["data"] is None:
        raise UserError(f"task={task}: give the ground truth with data=, a data.yaml or COCO's JSON")
    if models and as_path(options["data"]).suffix.lower() == ".json":
        raise UserError(f"task={task}: a model is run over a data.yaml; with COCO's JSON give detections=")
    truth = read_task_truth(options["data"], task, options["split"], options["images"])
    _print_ground_truth(truth.annotations)
    runs = []
    for name, source in sources.items():
        if name in models:
            from yolo_os.integration.data import class_names_of
            from yolo_os.integration.predictions import predictions

            model = models[name]
            named = {key: options[key] for key in ("split", "batch", "device", "workers", "conf", "max_det")}
            named |= {"imgsz": options["imgsz"] or model.imgsz, "iou": options["nms_iou"]}
            found = predictions(model.model, options["data"], task, **named)
            rows, others = task_rows(found, dict(enumerate(class_names_of(model.model))), truth)
            left_out = f"; {others} of classes or images that the ground truth lacks left out" if others else ""
        else:
            rows, left_out = read_task_detections(source, truth), ""
        print(f"{name}: {counted(len(rows), 'detection')}{left_out}")
        runs.append(TaskRun(name, *evaluate_task(truth, rows), len(rows)))
    folder = run_folder("val", options)
    report_problems(truth.annotations.problems, f"all of them in {folder / 'problems.txt'}")
    if truth.annotations.problems:
        write_text(folder / "problems.txt", "".join(f"{problem}\n" for problem in truth.annotations.problems))
    replicates = _replicates(options, len(runs), len(truth.annotations.images))
    content = report_task(runs, truth, replicates, options)
    content["made"] = _made(options, sources, models, truth.annotations)
    write_text(folder / "val.log", f"{content['made']['command']}\n\n{''.join(printed)}")
    for path in filter(None, (folder / "voc.json", options["json"])):
        write_json(as_path(path), content)
    print(f"results in {folder}")
    return INCOMPLETE if truth.annotations.lost else 0


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
    from yolo_os.integration.data import class_names_of
    from yolo_os.integration.runtime import choose_device
    from yolo_os.shifter import check_finite

    if options["device"] is not None:
        choose_device(",".join(listed(options["device"])))
    models = {name: load_checkpoint(path, options["trust"]) for name, path in sources.items()}
    for name, model in models.items():
        check_finite(model.model)
        if not class_names_of(model.model):
            raise UserError(
                f"model={sources[name]}: it names no classes, and those of the annotations are found by name"
            )
    return models


def _ground_truth(options: dict[str, Any], models: dict[str, Checkpoint]) -> Annotations:
    """The annotations; with the classes in the order of the first model where the format leaves that open."""
    from yolo_os.evaluation.readers import data_yaml, devkit, reader_of

    if (options["devkit"] is None) == (options["data"] is None):
        raise UserError(
            "give the ground truth once: devkit=... (a VOCdevkit folder) or data=... (that, a data.yaml, COCO's JSON,"
            " or a folder of VOC XML files)"
        )
    source = options["data"] if options["devkit"] is None else options["devkit"]
    reader = devkit if options["devkit"] is not None else reader_of(source)
    reading = {key: options[key] for key in ("split", "year", "classes", "images")}
    annotations = reader.read(source, **reading)
    if not models or options["classes"] is not None or reader is data_yaml:
        return annotations
    from yolo_os.integration.data import class_names_of, class_order

    order = class_order(annotations.classes, class_names_of(next(iter(models.values())).model))
    return annotations.in_order(order) if len(order) == len(annotations.classes) else annotations


def _detect(model: Checkpoint, annotations: Annotations, options: dict[str, Any]) -> Detected:
    """Run a model over the images, as a data set with the classes in this model's order; a data.yaml may have it."""
    from yolo_os.evaluation.readers import data_yaml, devkit, reader_of
    from yolo_os.integration.data import class_names_of, class_order, devkit_dataset

    names, classes = class_names_of(model.model), list(annotations.classes)
    source = options["data"] if options["devkit"] is None else options["devkit"]
    reader = devkit if options["devkit"] is not None else reader_of(source)
    order = class_order(classes, names)
    if reader is data_yaml and (order == classes or set(order) != set(names)):
        return _over(model, source, classes, options, options["split"])
    if reader is devkit and options["split"] in data_yaml.SPLITS:
        made = devkit_dataset(source, names, year=options["year"], classes=classes)
        return _over(model, made, order, options, options["split"])
    from yolo_os.conversion.dataset import dataset_of
    from yolo_os.integration.users_paths import made_of

    with tempfile.TemporaryDirectory() as folder:
        made = dataset_of(annotations.in_order(order), Path(folder), options["split"])
        made_of(Path(folder), source)
        return _over(model, made, order, options, "val")


def _over(model: Checkpoint, data: str | Path, classes: Sequence[str], options: dict[str, Any], split: str) -> Detected:
    """Run a model over a split of a data set with these classes."""
    from yolo_os.integration.data import class_names_of
    from yolo_os.integration.detect import detect

    named = {key: options[key] for key in ("batch", "device", "workers", "conf", "max_det")} | {"split": split}
    called = options["data"] if options["devkit"] is None else options["devkit"]
    named |= {"imgsz": options["imgsz"] or model.imgsz, "iou": options["nms_iou"]}
    found = detect(model.model, data, called=called, **named)
    # What `yolo val` calls its mAP50 is of these classes only if the data number them as the model does.
    return found if list(classes) == class_names_of(model.model) else replace(found, ultralytics_map50=None)


def _settled(annotations: Annotations, found: dict[str, Detected]) -> Annotations:
    """The annotations of the images that all models saw, with what is to be said of their classes."""
    from yolo_os.evaluation.annotations import said_of_classes
    from yolo_os.evaluation.detections import seen_only

    problems, notes = said_of_classes([annotations])
    notes = [*annotations.notes, *notes]
    annotations = replace(annotations, problems=(*annotations.problems, *problems), notes=tuple(notes))
    return seen_only(annotations, [each.boxes for each in found.values()]) if found else annotations


def _evaluate(name: str, source: str, annotations: Annotations, found: Detected | None, options: dict[str, Any]) -> Run:
    from yolo_os.evaluation.detection_files import comp4, format_of, read_detections
    from yolo_os.evaluation.detections import (
        evaluate_detections,
        from_boxes,
        refuse_fractions,
        refuse_inverted,
        suspect_offset,
    )
    from yolo_os.modes.val_report import Run

    offset = _offset(annotations, options)
    if found is None:
        reading = {key: options[key] for key in ("split", "strict", "first_category")}
        detections = read_detections(source, annotations, pixel_offset=offset, **reading)
        name_of_source = f"detections={source}"
        refuse_inverted(
            detections.box, name_of_source, "x1, y1, x2, y2 are read, and of COCO's JSON x, y, width, height"
        )
        refuse_fractions(detections.box, annotations.box, name_of_source)
        if offset == 1 and (suspicion := suspect_offset(annotations, detections)):
            print(f"warning: {source}: {suspicion}", file=sys.stderr)
    else:
        detections = from_boxes(found.boxes, found.names, annotations, offset)
    for note in detections.notes:
        print(f"note: {note}", file=sys.stderr)
    for warning in detections.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{name}: {detections}")
    if not len(detections.score):
        print(f"warning: no detections of {source} are left: every AP is 0", file=sys.stderr)
    result = evaluate_detections(annotations, detections, options["iou"], offset, options["recall_points"])
    coco = None
    if options["coco"]:
        from yolo_os.evaluation.coco import coco_numbers, coco_result, error_types
        from yolo_os.modes.val_coco import Coco

        given = annotations, detections, offset
        coco = Coco(coco_numbers(*given), coco_result(*given), error_types(*given))
    came_as_comp4 = found is None and format_of(source) is comp4
    return Run(name, came_as_comp4, detections, result, coco, None if found is None else found.ultralytics_map50)


def _offset(annotations: Annotations, options: dict[str, Any]) -> float:
    """What to add to x2 - x1 for the width."""
    return 1.0 if annotations.continuous else options["pixel_offset"]  # those have become inclusive pixels


def _parts(runs: Sequence[Run], annotations: Annotations, groups: dict[str, Flags], options: dict[str, Any]) -> Parts:
    """The detectors' figures on parts of the image set."""
    from yolo_os.evaluation.slices import by_group, by_size
    from yolo_os.modes.val_coco import Parts

    found, offset = [run.detections for run in runs], _offset(annotations, options)
    return Parts(
        by_size(annotations, found, offset) if options["coco"] else [],
        by_group(annotations, found, groups, options["iou"], offset, options["recall_points"]),
    )


def _groups(annotations: Annotations, options: dict[str, Any]) -> tuple[dict[str, Flags], list[str]]:
    """The groups of images that are asked for, and notes on them."""
    if options["groups"] is None:
        return {}, []
    from yolo_os.evaluation.slices import read_groups

    return read_groups(as_path(options["groups"]), annotations)


def _made(
    options: dict[str, Any], sources: dict[str, str], models: dict[str, Checkpoint], annotations: Annotations
) -> dict[str, Any]:
    """Where the figures come from."""
    truth = "data" if options["devkit"] is None else "devkit"
    read = {"model" if models else "detections": sources}
    if is_file(as_path(str(options[truth]))):
        read[truth] = {truth: options[truth]}
    made = provenance("val", options, KEYS, read)
    where = [{"folder": str(root), "split": split} for root, split in zip(annotations.roots, annotations.sets)]
    made["ground_truth"] = {"path": options[truth], "read": where, "images": len(annotations.images)}
    made["imgsz"] = {name: options["imgsz"] or model.imgsz for name, model in models.items()}
    return made


def _print_ground_truth(annotations: Annotations) -> None:
    for note in annotations.notes:
        print(f"note: {note}", file=sys.stderr)
    for warning in annotations.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    where = ", ".join(f"{split} of {root.name}" for root, split in zip(annotations.roots, annotations.sets))
    print(f"{where}: {annotations}")
