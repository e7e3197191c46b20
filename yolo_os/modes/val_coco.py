"""What `yolo-os val` says of COCO's numbers, of kinds of errors, and of parts of the image set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolo_os.evaluation.bootstrap import Bars, Bootstrap, bootstrap, class_dicts
from yolo_os.evaluation.coco import ERROR_TYPES, CocoResult, coco_bootstrap
from yolo_os.evaluation.intervals import Interval
from yolo_os.evaluation.slices import Slice
from yolo_os.evaluation.voc import none_if_nan
from yolo_os.terminal import counted, in_table


@dataclass(frozen=True)
class Coco:
    """COCO's figures of one detector: the twelve numbers, AP by class, and what errors cost, where that is known."""

    numbers: dict[str, float]
    result: CocoResult
    errors: dict[str, dict[str, float]] | None


@dataclass(frozen=True)
class Parts:
    """Parts of the image set: objects by size, and groups of images."""

    size: list[Slice] = field(default_factory=list)
    group: list[Slice] = field(default_factory=list)


def coco_facts(coco: Coco) -> dict[str, Any]:
    """For the JSON file, of one detector."""
    numbers = {name: none_if_nan(value) for name, value in coco.numbers.items()}
    classes = {
        name: {key: none_if_nan(value) for key, value in row.items()} for name, row in coco.result.by_class().items()
    }
    return {"coco": numbers | {"classes": classes}} | ({"errors": coco.errors} if coco.errors else {})


def coco_line(coco: Coco | None) -> str:
    """The numbers that people look for."""
    if coco is None:
        return "COCO's numbers are skipped: coco=False"
    shown = ", ".join(f"{name} {_figure(coco.numbers[name])}" for name in ("AP", "AP50", "AP75", "AR 100"))
    return f"COCO's numbers, without difficult objects: {shown}"


def coco_bars(bars: Mapping[str, Bars], classes: Sequence[str]) -> dict[str, Any]:
    """Intervals for the JSON file: of each figure's mean, of its classes, and of the mean of those with many boxes."""
    return {
        name: each.mean.to_dict()
        | {"min_boxes": each.many.to_dict(), "classes": dict(zip(classes, class_dicts(each.classes, each.holm)))}
        for name, each in bars.items()
    }


def voc_bars(bars: Bootstrap, names: Sequence[str]) -> dict[str, Any]:
    """VOC's error bars for the JSON file, with classes by name."""
    content = bars.to_dict()
    return content | {key: dict(zip(names, content[key])) for key in ("ap", "ap07")}


def errors_table(names: Sequence[str], errors: Sequence[dict[str, dict[str, float]] | None]) -> str | None:
    """What each kind of error costs each detector, and the differences of two to the first; None where not known."""
    known = [each for each in errors if each]
    if len(known) < len(errors) or not known:
        return None
    columns = [max(15, len(in_table(name))) for name in names]
    title = "".join(f"  {in_table(name):>{size}}" for name, size in zip(names, columns))
    rows = [f"{'AP50 lost to':<14}{title}" + ("       change" if len(known) == 2 else "")]
    for kind in ERROR_TYPES:
        cells = [f"{each[kind]['AP50']:.4f} ({each[kind]['count']:,})" for each in known]
        change = f"{known[1][kind]['AP50'] - known[0][kind]['AP50']:+13.4f}" if len(known) == 2 else ""
        rows.append(f"  {kind:<12}" + "".join(f"  {cell:>{size}}" for cell, size in zip(cells, columns)) + change)
    return "\n".join(rows)


def errors_change(old: Coco, new: Coco) -> dict[str, dict[str, float]] | None:
    """By how much each kind of error costs more, and how many more there are."""
    if not old.errors or not new.errors:
        return None
    return {
        kind: {key: new.errors[kind][key] - old.errors[kind][key] for key in ("AP50", "count")} for kind in ERROR_TYPES
    }


def report_parts(
    names: Sequence[str], parts: Parts, replicates: int, seed: int, min_boxes: int
) -> tuple[str, dict[str, Any]]:
    """The figures of each part as a table and for the JSON file; with intervals if there are replicates.

    Of several detectors those of the first, and each other's gain over it.
    """
    settings = {"replicates": replicates, "seed": seed, "min_boxes": min_boxes}
    lines: list[str] = []
    content: dict[str, Any] = {}
    for kind, slices in (("size", parts.size), ("group", parts.group)):
        for part in slices:
            title = f"{part.name} objects" if kind == "size" else f"group {in_table(part.name)}"
            counts = counted(part.boxes, "box", "es", True)
            counts += "" if kind == "size" else f", {counted(part.images, 'image', thousands=True)}"
            rows, facts = _part(names, part, settings)
            lines += [f"{title}: none"] if not part.boxes else [f"{title} ({counts})", *rows]
            content.setdefault(kind, {})[part.name] = facts
    return "\n".join(lines), content


def _part(names: Sequence[str], part: Slice, settings: dict[str, int]) -> tuple[list[str], dict[str, Any]]:
    """A part's rows, and what the JSON file says of it."""
    bars = settings["replicates"] > 0 and part.images > 1 and part.boxes > 0
    rows: list[str] = []
    facts: dict[str, Any] = {"images": part.images, "boxes": part.boxes, "detectors": {}}
    for index, name in enumerate(names):
        coco: dict[str, Any] = {key: none_if_nan(value) for key, value in part.coco[index].means.items()}
        figures: dict[str, Any] = {"coco": coco} | (part.voc[index].to_dict() if part.voc else {})
        facts["detectors"][name] = figures
        if len(names) == 1 and bars:
            drawn = coco_bootstrap(part.coco[0], None, **settings)
            shown: dict[str, Interval] = {key: each.mean for key, each in drawn.items()}
            figures["bootstrap"] = {"coco": coco_bars(drawn, part.coco[0].classes)}
            if part.voc:
                voc = bootstrap(part.voc[0], None, **settings)
                figures["bootstrap"] |= voc_bars(voc, part.voc[0].names)
                shown = {"mAP10": voc.map, **shown}
            rows += [f"  {key:<6} {each}" for key, each in shown.items()]
        else:
            voc_figure = {"mAP10": part.voc[index].map} if part.voc else {}
            shown_means = ", ".join(
                f"{key} {_figure(value)}" for key, value in (voc_figure | part.coco[index].means).items()
            )
            rows.append(f"  {in_table(name)}: {shown_means}")
    if len(names) > 1 and bars:
        facts["gains"] = {}
        for index, name in enumerate(names[1:], 1):
            gain = coco_bootstrap(part.coco[0], part.coco[index], **settings)
            entry: dict[str, Any] = {"over": names[0], "coco": coco_bars(gain, part.coco[0].classes)}
            if part.voc:
                voc_gain = bootstrap(part.voc[0], part.voc[index], **settings)
                entry |= voc_bars(voc_gain, part.voc[0].names)
                rows.append(f"  gain of {in_table(name)}: mAP10 {voc_gain.map}")
            rows.append(f"  gain of {in_table(name)}: " + "; ".join(f"{key} {each.mean}" for key, each in gain.items()))
            facts["gains"][name] = entry
    return rows, facts


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == value else "-"
