"""`yolo-os voc`: make an Ultralytics data set of a VOCdevkit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from yolo_os.files import as_path, is_dir
from yolo_os.settings import Key
from yolo_os.terminal import counted

if TYPE_CHECKING:
    from yolo_os.evaluation.annotations import Problem

# Exit code of a command that did its work, though some annotations could not be used.
INCOMPLETE = 3

DEVKIT_KEYS = (
    Key(
        "devkit",
        (str, list, type(None)),
        None,
        "folder that holds VOC2007, or such a folder itself; several with commas",
    ),
    Key("year", (str,), None, "2007, or 2007,2012; None: 2007 where the devkit has it, else the only one it has"),
    Key(
        "classes",
        (str, list, type(None)),
        None,
        "names with commas, or a text file with one a line; None: VOC's 20, or all names the devkit has",
    ),
)
KEYS = (
    replace(DEVKIT_KEYS[0], required=True),
    Key(
        "out",
        (str,),
        None,
        "new folder for the data set, or one made by this command, which is replaced",
        required=True,
    ),
    *DEVKIT_KEYS[1:],
    Key("copy", (bool,), False, "copy the images instead of linking them"),
)
EXAMPLES = (
    "yolo-os voc devkit=VOCdevkit out=datasets/voc2007",
    "yolo-os voc devkit=VOCdevkit out=datasets/voc0712 year=2007,2012",
    "yolo-os voc devkit=mykit/VOC2024 out=datasets/mine classes=labels.txt copy=True",
)


def run(options: dict[str, Any]) -> int:
    """Convert as the keys say; the exit code."""
    from yolo_os.conversion.dataset import convert

    out = as_path(options["out"])
    earlier = is_dir(out) and any(out.iterdir())
    dataset = convert(options["devkit"], options["out"], options["year"], options["classes"], options["copy"])
    if earlier:
        print(f"note: out={options['out']} was there already and has been replaced", file=sys.stderr)
    for note in dataset.notes:
        print(f"note: {note}", file=sys.stderr)
    for warning in dataset.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    missing = {tag: sum(split.missing[tag] for split in dataset.splits.values()) for tag in ("difficult", "truncated")}
    for tag, count in missing.items():
        if count:
            print(f"note: {counted(count, 'object')} without a <{tag}> tag: taken as 0", file=sys.stderr)
    report_problems(dataset.problems, f"all of them in {dataset.yaml.parent / 'problems.txt'}")
    print(dataset)
    return INCOMPLETE if any(problem.lost for problem in dataset.problems) else 0


def report_problems(problems: Sequence[Problem], rest: str, most: int = 10) -> None:
    """Print problems to stderr, those first because of which something was left out; `rest` says where others are."""
    ordered = sorted(problems, key=lambda problem: not problem.lost)
    for problem in ordered[:most]:
        print(f"{'problem' if problem.lost else 'note'}: {problem}", file=sys.stderr)
    if len(ordered) > most:
        print(f"... and {len(ordered) - most} more ({rest})", file=sys.stderr)
