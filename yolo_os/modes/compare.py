"""`yolo-os compare`: trainings against each other, over seeds, with intervals over seeds and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_os.comparison.arms import RESERVED, Arm, read_arms
from yolo_os.comparison.plan import MARGIN, REPORT, TESTS, WHOLE, Config
from yolo_os.errors import UserError
from yolo_os.files import as_path, check_outputs, is_dir, write_json
from yolo_os.plain_yaml import read_yaml
from yolo_os.resources import resource
from yolo_os.settings import Key, join_spaced, listed, parse_pairs

_SEEDS = 3
_RUN_ONLY = ("config", "folder", "dry_run", "json", "project", "name", "workers", "ray", "cpus", "gpus")
KEYS = (
    Key("config", (str,), None, "settings in YAML, by the names of these keys; what is given here comes first"),
    Key(
        "model",
        (str,),
        None,
        "what trainings start from: a checkpoint (.pt) or an architecture (.yaml); an arm may have its own",
    ),
    Key("data", (list, str), None, "a data set YAML or a VOCdevkit folder; several with commas"),
    Key(
        "arms",
        (list, str),
        None,
        "with commas, the reference first: stock, control, default, budget, sos, sos_paper, freeze, low_lr, "
        "weight_decay_x3, weight_decay_x10, l2sp, toward; arms of your own in the file of config=",
    ),
    Key("seeds", (int, list), None, f"how many, or which, such as [0,7]; None: {_SEEDS}"),
    Key(
        "fraction",
        (list, float, int),
        None,
        "part of train that is learned from, drawn by the seed: a share, or a number of images from 2 on; several with "
        "commas; None: all",
    ),
    Key(
        "test",
        (str, type(None)),
        None,
        "what is evaluated on at the end: test, a part of train that is drawn off, or val; None: test where there is "
        "one, else train, else val with a warning",
        choices=TESTS,
    ),
    Key("held_out", (float,), None, "share of train that is drawn off where there is no test split; None: 0.2"),
    Key("new_head", (bool,), None, "draw the last module's weights anew from the seed, whatever the model has learned"),
    Key(
        "trace",
        (bool, str),
        None,
        "also take the trace of the loss's Hessian: True for the prediction layers, or layers as `yolo-os trace` has",
    ),
    Key(
        "loader_workers", (int,), None, "loader processes of each training, which `yolo train` calls workers", minimum=0
    ),
    Key("workers", (int,), 1, "trainings at a time, each in a process of its own; 0: all in this process", minimum=0),
    Key(
        "ray",
        (bool, str, type(None)),
        None,
        "run on a Ray cluster: auto (the one this machine is in), its address, or True for a new one here",
    ),
    Key("cpus", (float,), 1.0, "with ray: CPUs that each training takes"),
    Key("gpus", (float, type(None)), None, "with ray: GPUs that each training takes; None: 1 where there are any"),
    Key("replicates", (int,), 400, "drawn image sets behind the intervals", minimum=10),
    Key("margin", (float,), MARGIN, "a difference whose interval is within this is called none", minimum=0),
    Key("dry_run", (bool,), False, "print the plan and how long it would take, and do nothing"),
    Key("folder", (str,), None, "print and draw again what a comparison in this folder came to so far"),
    Key("json", (str,), None, "also write the figures as JSON to this path"),
    Key("project", (str,), None, "folder for the comparison's folder; None: runs/compare"),
    Key("name", (str,), "exp", "name of that folder; the comparison in it is gone on with where there is one"),
    Key(
        "trust",
        (bool,),
        None,
        "unpickle checkpoints with classes of neither torch nor Ultralytics, their code included",
    ),
)
NOTE = (
    "and every key of `yolo train` (but workers, which is loader_workers here), for all arms alike. What an arm can "
    "be, and how the figures are made: docs/compare.md"
)
EXAMPLES = (
    "yolo-os compare model=yolo11n.pt data=my.yaml epochs=50 arms=stock,budget,sos seeds=5",
    "yolo-os compare config=compare.yaml dry_run=True",
    "yolo-os compare model=old.pt data=a.yaml,b.yaml epochs=50 arms=stock,freeze,toward seeds=3 workers=2",
    "yolo-os compare model=yolo11n.pt data=my.yaml epochs=50 arms=stock,sos seeds=5 fraction=0.05,0.2,1.0",
    "yolo-os compare folder=runs/compare/exp",
)


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Options from the words after the mode: our own keys by our own grammar, the rest by Ultralytics'.

    Raises:
        UserError: for an unknown key or a bad value of either.
    """
    own = {key.name for key in KEYS}
    joined = [word.removeprefix("--") for word in join_spaced(words)]
    ours = [word for word in joined if word.partition("=")[0].strip() in own]
    others = [word for word in joined if word not in ours]
    options = parse_pairs(ours, KEYS)
    typed = {word.partition("=")[0].strip() for word in ours}
    if options["folder"] is not None:
        more = [*others, *sorted(typed - {"folder", "json", "replicates", "margin"})]
        if more:
            raise UserError(f"folder= prints what is there: leave {more[0]} away")
        return {**options, "train": {}}
    from_file = _from_file(options["config"])
    known = {key.name: key for key in KEYS}
    for name, value in from_file.items():
        if name in known and name not in _RUN_ONLY and name not in typed:
            options[name] = value if name == "arms" else known[name].check(value)
    if "arms" in typed and from_file.get("arms") is not None:
        options["arms"] = [arm.to_dict() for arm in read_arms(options["arms"], from_file["arms"])]
    train = {name: value for name, value in from_file.items() if name not in own}
    if others:
        from yolo_os.integration.train import parse_stock

        train |= parse_stock(others, {"seed": "seeds"})
    for name in train:
        if name in RESERVED:
            hint = ": did you mean seeds?" if name == "seed" else ""
            raise UserError(f"{name}= is made by the comparison{hint}")
    if options["loader_workers"] is not None:
        train["workers"] = options["loader_workers"]
    return {**options, "train": train}


def run(options: dict[str, Any]) -> int:
    """Compare as the keys say; the exit code."""
    import scipy.special  # noqa: F401  (where it is not installed that is what to say, not which key is missing)

    if options["folder"] is not None:
        return _again(options)
    config = config_of(options)
    folder = as_path(options["project"] or Path("runs") / "compare") / options["name"]
    named = [value for arm in config.arms for part in (arm.train, arm.os, arm.shift) for value in part.values()]
    inputs = {"model": config.model, "data": list(config.data), "config": options["config"]}
    inputs |= {"arms": [each for value in named if isinstance(value, str | list) for each in listed(value)]}
    _check_json(options["json"], folder, inputs)

    from yolo_os.integration.compare import compare, dry_run

    if options["dry_run"]:
        dry_run(config, folder, options["workers"])
        return 0
    content = compare(
        config,
        folder,
        workers=options["workers"],
        ray=options["ray"],
        cpus=options["cpus"],
        gpus=options["gpus"],
        replicates=options["replicates"],
        margin=options["margin"],
        say=_say,
    )
    _print(content, folder, options["json"])
    return 1 if content["failures"] else 0


def config_of(options: Mapping[str, Any]) -> Config:
    """The comparison that the options describe.

    Raises:
        UserError: if one of them is missing or bad.
    """
    for name in ("model", "data", "arms"):
        if options[name] is None:
            raise UserError(f"{name}=... is missing: {next(key.help for key in KEYS if key.name == name)}")
    seeds = options["seeds"] if options["seeds"] is not None else _SEEDS
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    if not seeds or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise UserError(f"seeds={options['seeds']}: takes a number from 1 on, or whole numbers such as [0,7]")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={options['seeds']}: names one twice")
    data = tuple(_found(each) for each in listed(options["data"]))
    if len(set(data)) < len(data):
        raise UserError(f"data={options['data']}: names one data set twice")
    held_out = 0.2 if options["held_out"] is None else options["held_out"]
    if not 0 < held_out < 1:
        raise UserError(f"held_out={held_out}: takes a share between 0 and 1")
    return Config(
        model=_found(options["model"]),
        data=data,
        arms=tuple(_with_model_found(arm) for arm in read_arms(options["arms"])),
        seeds=tuple(seeds),
        fractions=_fractions(options["fraction"]),
        train=dict(options["train"]),
        test=options["test"],
        held_out=held_out,
        new_head=bool(options["new_head"]),
        trust=bool(options["trust"]),
        trace="head" if options["trace"] is True else options["trace"] or None,
    )


def _fractions(given: Any) -> tuple[float | int, ...]:
    parts = [given] if isinstance(given, int | float) else given or [WHOLE]
    made: list[float | int] = []
    for part in parts:
        fine = isinstance(part, int | float) and not isinstance(part, bool) and part > 0
        if not fine or (isinstance(part, float) and part > 1):
            raise UserError(f"fraction={given}: takes shares up to 1.0 and numbers of images from 2 on, with commas")
        made.append(WHOLE if part == 1 else part)
    if len(set(made)) < len(made):
        raise UserError(f"fraction={given}: names one twice")
    return tuple(made)


def _with_model_found(arm: Arm) -> Arm:
    if "model" not in arm.train:
        return arm
    return replace(arm, train={**arm.train, "model": _found(str(arm.train["model"]))})


def _check_json(json: str | None, folder: Path, inputs: Mapping[str, Any]) -> None:
    """Refuse to write over what the comparison is made of, or made so far.

    Raises:
        UserError: naming the file.
    """
    made = [each for each in folder.rglob("*") if each.name != REPORT] if json and is_dir(folder) else []
    check_outputs({"json": json}, {**inputs, "folder": made})


def _found(name: str) -> str:
    """A path as given, or that of a file which comes with the package where there is none of that name."""
    if not as_path(name).exists() and str(name).startswith("data/"):
        try:
            return str(resource(str(name)))
        except UserError:
            return str(name)
    return str(name)


def _from_file(config: str | None) -> dict[str, Any]:
    """The settings of a configuration; keys of `yolo train` are checked with those of the arms."""
    if config is None:
        return {}
    content = read_yaml(as_path(config))
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"config={config}: no dictionary of settings")
    for name in content:
        if name in _RUN_ONLY:
            raise UserError(f"config={config}: {name} belongs on the command line")
    return content


def _again(options: Mapping[str, Any]) -> int:
    from yolo_os.comparison.results import recorded, summarise
    from yolo_os.plots.compare_page import write_report

    folder = as_path(options["folder"])
    _check_json(options["json"], folder, {})
    measured = recorded(folder, options["replicates"])
    content = summarise(measured, options["margin"])
    write_report(content, measured, folder)
    _print(content, folder, options["json"])
    return 0


def _print(content: Mapping[str, Any], folder: Path, json: str | None) -> None:
    from yolo_os.comparison.report import markdown

    if json:
        write_json(as_path(json), content)
    print(f"\n{markdown(content)}\nreport, figures and pictures: {folder / 'report.html'}\n\n{content['verdict']}")


def _say(line: str) -> None:
    print(line, flush=True)
