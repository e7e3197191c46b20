"""`yolo-os demo`: shift the detector that comes with the package, and see what that does to its mAP.

First the prediction layers, by each method; then, after fine-tuning for a changed camera (`camera`), all layers towards
the weights that the fine-tuning started from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_os.files import RUN_KEYS, run_folder, write_json
from yolo_os.modes.camera import Met, meet_new_camera
from yolo_os.resources import resource
from yolo_os.settings import Key

if TYPE_CHECKING:
    from yolo_os.evaluation.bootstrap import Difference
    from yolo_os.evaluation.voc import VOCResult
    from yolo_os.report import ShiftReport

RECIPES = ("os", "sos_paper", "sos", "budget")

KEYS = (
    Key("device", (str,), "", "cpu, 0, cuda:0, mps; a GPU where there is one if not given"),
    Key("replicates", (int,), 1000, "bootstrap replicates of the intervals", minimum=2),
    Key("epochs", (int,), 20, "of the fine-tuning on the changed camera; 0: leave that half out", minimum=0),
    *RUN_KEYS,
)
EXAMPLES = ("yolo-os demo",)


@dataclass(frozen=True)
class _Row:
    """One line of the demo's table: a shift, its test result, and the paired gain over the detector as it was."""

    name: str
    report: ShiftReport
    result: VOCResult
    gain: Difference


def run(options: dict[str, Any]) -> int:
    """Run the demo; the exit code."""
    import yolo_os.integration.detect  # noqa: F401  # what is not installed is said before files that are not there
    from yolo_os.evaluation.bootstrap import bootstrap
    from yolo_os.modes.shift import KEYS as SHIFT_KEYS
    from yolo_os.modes.shift import shift_checkpoint

    detector, devkit = resource("data/digits/detector.pt"), resource("data/digits/VOCdevkit")
    folder = run_folder("demo", options)
    print("Evaluating the detector as it is on 300 test images ...")
    before = _evaluate(detector, devkit, options["device"])
    defaults = {key.name: key.default for key in SHIFT_KEYS if key.filled}
    rows = []
    for name in RECIPES:
        print(f"\nShifting it: recipe={name} ...")
        shift = {
            **defaults,
            "model": str(detector),
            "data": str(devkit),
            "device": options["device"],
            "recipe": name,
            "out": str(folder / f"digits-{name}.pt"),
            "project": str(folder),
            "name": name,
        }
        report, out = shift_checkpoint(shift)
        result = _evaluate(out, devkit, options["device"])
        gain = bootstrap(before, result, replicates=options["replicates"]).map
        rows.append(_Row(name, report, result, gain))  # type: ignore[arg-type]  # a paired bootstrap holds differences
    print(f"\n{_table(before, rows)}\n\n{_sentence(rows)}")
    met = meet_new_camera(detector, devkit, folder, options) if options["epochs"] else None
    if met is not None:
        print(f"\nVOC mAP of 300 test images of each camera, change to the line above [95% interval]\n\n{met}")
        print(f"\n{met.sentence}")
    print(f"\nshifted detectors, reports and plots: {folder}")
    _save(before, rows, met, folder / "demo.json")
    return 0


def _evaluate(model: Path, devkit: Path, device: str) -> VOCResult:
    from yolo_os.evaluation.detections import evaluate_detections, from_boxes
    from yolo_os.evaluation.readers.devkit import read_devkit
    from yolo_os.integration.detect import detect

    found = detect(model, devkit, split="test", device=device)
    truth = read_devkit(devkit, split="test", classes=list(found.names.values()))
    return evaluate_detections(truth, from_boxes(found.boxes, found.names, truth))


def _table(before: VOCResult, rows: list[_Row]) -> str:
    head = f"{'recipe':<11}{'layers moved':>13}{'keep':>13}{'held-out loss':>15}{'VOC mAP':>9}"
    head += "   gain [95% interval]"
    lines = [head, "-" * (len(head) + 6), f"{'(none)':<11}{'':>13}{1:>13.3f}{'':>15}{before.map:>9.4f}"]
    for row in rows:
        rise = "-" if row.report.loss.rise is None else f"{row.report.loss.rise:+.2%}"
        moved = f"{len(row.report.moved)} of {len(row.report.layers)}"
        interval = f" [{row.gain.low:+.4f}, {row.gain.high:+.4f}]" if row.report.moved else ""  # the same detector
        lines.append(
            f"{row.name:<11}{moved:>13}{row.report.keep:>13.3f}{rise:>15}{row.result.map:>9.4f}"
            f"   {row.gain.value:+.4f}{interval}"
        )
    return "\n".join(lines)


def _sentence(rows: list[_Row]) -> str:
    """What happened, by what the intervals allow to say."""
    still = [row.name for row in rows if not row.report.moved]
    worse = [row.name for row in rows if row.report.moved and row.gain.high < 0]
    better = [row.name for row in rows if row.report.moved and row.gain.low > 0]
    same = [row.name for row in rows if row.report.moved and row.name not in worse + better]
    parts = []
    if still:
        parts.append(f"{_list(still)} moved nothing (the features have full rank)")
    if same:
        parts.append(f"{_list(same)} made the weights smaller at no difference in mAP that 300 images can show")
    if worse:
        parts.append(f"{_list(worse)} lost mAP beyond chance")
    if better:
        parts.append(f"{_list(better)} gained mAP beyond chance")
    return f"What happened: {'; '.join(parts)}."


def _list(names: list[str]) -> str:
    return " and ".join(names)


def _save(before: VOCResult, rows: list[_Row], met: Met | None, path: Path) -> None:
    content = {
        "before": before.to_dict(),
        "shifts": {
            row.name: {
                "keep": row.report.keep,
                "norm_ratio": row.report.norm_ratio,
                "loss_rise": row.report.loss.rise,
                "after": row.result.to_dict(),
                "gain": {"map": row.gain.value, "low": row.gain.low, "high": row.gain.high, "p": row.gain.p},
            }
            for row in rows
        },
        "verdict": _sentence(rows),
        "camera": None if met is None else met.to_dict(),
    }
    write_json(path, content)
