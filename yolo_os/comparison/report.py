"""The figures of a comparison as text: Markdown for people, CSV for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_os.comparison.resampling import METRICS
from yolo_os.terminal import counted, in_table

Content = Mapping[str, Any]


def markdown(content: Content) -> str:
    """The whole report."""
    lines = [f"# {title(content)}", "", f"**{content['verdict']}**", "", how(content), ""]
    lines += [f"- {warning}" for warning in content["warnings"]] + ([""] if content["warnings"] else [])
    several = len(content["cells"]) > 1
    lines += ["## All data sets, the mean over them" if several else "## Result", ""]
    lines += [*table(*arm_rows(content["arms"], content)), ""]
    for cell in content["cells"] if several else []:
        lines += [
            f"### {in_table(cell['name'])}: {counted(cell['images'], 'image')}",
            "",
            *table(*arm_rows(cell["arms"], content)),
            "",
        ]
    lines += ["## What it takes to see more", "", *table(*power_rows(content)), "", power_note(content), ""]
    lines += ["## Losses and costs", "", *table(*cost_rows(content["arms"], content)), ""]
    for cell in content["cells"]:
        lines += [f"## Classes: {in_table(cell['name'])}", "", *table(*class_rows(cell, content)), ""]
    if content["failures"]:
        lines += ["## Failed", "", *table(["run", "error"], list(failure_rows(content))), ""]
    return "\n".join(lines)


def title(content: Content) -> str:
    """What was compared."""
    names = ", ".join(in_table(arm["name"]) for arm in content["arms"])
    return f"{names} from {in_table(Path(content['model']).name)}"


def how(content: Content) -> str:
    """What the figures are of."""
    cells = (
        ", ".join(f"{in_table(cell['name'])} ({counted(cell['images'], 'image')})" for cell in content["cells"])
        or "nothing yet"
    )
    runs = content["runs"]
    return (
        f"{content['metric']} (COCO's) of the test images of {cells}; seeds {', '.join(map(str, content['seeds']))}; "
        f"{runs['done']} of {runs['planned']} runs done. Differences are to {in_table(content['reference'])} on the "
        f"same seeds and images; intervals are 95 %, over seeds and images together (Obuchowski and Rockette's model "
        f"with Hillis's degrees of freedom, {content['replicates']} drawn image sets); p by Holm over the arms."
    )


def power_note(content: Content) -> str:
    """How the table of what could be seen is meant."""
    return (
        "Smallest: the true difference that four comparisons out of five like this one would have found, with Holm's "
        "strictest step. Seeds: how many would find a difference as large as the observed one as often; none where the "
        "test images alone leave too much open."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |"


def arm_rows(arms: Sequence[Mapping[str, Any]], content: Content) -> tuple[list[str], list[list[str]]]:
    """Head and rows: mean, difference and verdict of each arm."""
    head = ["arm", "seeds", content["metric"], "std over seeds", f"difference to {content['reference']}", "p (Holm)"]
    head += ["verdict", *(f"{METRICS[metric]}, difference" for metric in ("map07", "map10"))]
    rows = []
    for arm in arms:
        reference = arm["name"] == content["reference"]
        others = [arm["metrics"][name] for name in ("map07", "map10")]
        failed = f" ({arm['failed']} failed)" if arm["failed"] else ""
        rows.append(
            [
                f"{in_table(arm['name'])}{failed}",
                str(len(arm["seeds"])),
                figure(arm["mean"]),
                figure(arm["std"]),
                "" if reference else interval(arm),
                "" if arm.get("p_holm") is None else f"{arm['p_holm']:.2g}",
                arm["word"],
                *(figure(each["mean"]) if reference else f"{figure(each['mean'])} {interval(each)}" for each in others),
            ]
        )
    return head, rows


def power_rows(content: Content) -> tuple[list[str], list[list[str]]]:
    """Head and rows: what this number of seeds could have shown."""
    head = ["arm", "observed", "smallest that would have been seen", "seeds for the observed one", "each seed"]
    rows = []
    for arm in content["arms"]:
        if arm["name"] == content["reference"] or arm["difference"] is None:
            continue
        many = arm.get("seeds_needed")
        seeds = "none" if many is None else str(many)
        by_seed = " ".join(f"{value:+.4f}" for value in arm["by_seed"])
        rows.append([in_table(arm["name"]), f"{arm['difference']:+.4f}", figure(arm["smallest"]), seeds, by_seed])
    return head, rows


def cost_rows(arms: Sequence[Mapping[str, Any]], content: Content) -> tuple[list[str], list[list[str]]]:
    """Head and rows: norm of the head, losses, time and memory."""
    reference = content["reference"]
    head = ["arm", f"head's squared norm / {reference}'s", "train loss", "val loss", "test loss"]
    head += ["seconds of training", f"/ {reference}'s", "peak memory (MB)", f"/ {reference}'s"]
    traced = any(arm["trace"] is not None for arm in arms)
    head += ["trace of the Hessian", f"/ {reference}'s"] if traced else []
    rows = []
    for arm in arms:
        rows.append(
            [
                in_table(arm["name"]),
                figure(arm["squared_norm_ratio"], 3),
                *(figure(arm["loss"][split], 3) for split in ("train", "val", "test")),
                figure(arm["seconds"], 1),
                figure(arm["seconds_ratio"], 2),
                figure(arm["memory"] / 1e6 if arm["memory"] else None, 0),
                figure(arm["memory_ratio"], 2),
                *([figure(arm["trace"], 1), figure(arm["trace_ratio"], 3)] if traced else []),
            ]
        )
    return head, rows


def class_rows(cell: Mapping[str, Any], content: Content) -> tuple[list[str], list[list[str]]]:
    """Head and rows: AP50-95 of each class with the difference of each arm."""
    others = [arm["name"] for arm in content["arms"] if arm["name"] != content["reference"]]
    head = ["class", "boxes", content["reference"], *map(in_table, others)]
    rows = []
    for index, row in enumerate(cell["classes"][content["reference"]]):
        each = [cell["classes"][name][index] for name in others]
        rows.append([in_table(row["name"]), str(row["boxes"]), figure(row["mean"]), *map(interval, each)])
    return head, rows


def failure_rows(content: Content) -> Iterator[list[str]]:
    """A row for each run that failed."""
    for each in content["failures"]:
        yield [
            in_table(f"{each['arm']}, seed {each['seed']}, {each['data']}"),
            " ".join(str(each["error"]).split())[:300],
        ]


def interval(row: Mapping[str, Any]) -> str:
    """A difference with its interval; nothing where there is none."""
    if row.get("difference") is None:
        return ""
    return f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"


def figure(value: float | None, digits: int = 4) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def arms_csv(content: Content) -> str:
    """A line for each arm, of all data sets and of each."""
    plain = ("name", "mean", "std", "difference", "low", "high", "p", "p_holm", "smallest", "seeds_needed", "word")
    costs = ("squared_norm_ratio", "trace", "trace_ratio", "seconds", "seconds_ratio", "memory", "memory_ratio")
    others = [(metric, key) for metric in ("map07", "map10") for key in ("mean", "std", "difference", "low", "high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["data", "fraction", *plain, "seeds", *(f"{metric}_{key}" for metric, key in others)]
        + [f"{split}_loss" for split in ("train", "val", "test")]
        + list(costs)
    )
    scopes = [("", "", content["arms"]), *((cell["data"], cell["fraction"], cell["arms"]) for cell in content["cells"])]
    for data, fraction, arms in scopes:
        for arm in arms:
            writer.writerow(
                [data, fraction, *(arm.get(key) for key in plain), len(arm["seeds"])]
                + [arm["metrics"][metric].get(key) for metric, key in others]
                + [arm["loss"][split] for split in ("train", "val", "test")]
                + [arm[key] for key in costs]
            )
    return out.getvalue()


def classes_csv(content: Content) -> str:
    """A line for each class of each arm and data set."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = ("name", "boxes", "mean", "difference", "low", "high")
    writer.writerow(["data", "fraction", "arm", *keys])
    for cell in content["cells"]:
        for arm, rows in cell["classes"].items():
            for row in rows:
                writer.writerow([cell["data"], cell["fraction"], arm, *(row.get(key) for key in keys)])
    return out.getvalue()
