"""Arms of a comparison: a name, and what is different from the other arms."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolo_os.errors import UserError
from yolo_os.recipe import TOWARD_KEYS, recipe_keys
from yolo_os.settings import listed, parse_value, reject_unknown

PREFIX = "os."
# What an arm may not set: rows of the table are by data, and runs are kept, seeded and resumed by the comparison.
RESERVED = ("data", "seed", "project", "name", "exist_ok", "save_dir", "resume", "mode", "save", "val", "cfg")
BACKBONE = "backbone"  # a value of `freeze`: as many modules as the model's backbone has
_NUMBERS = ("jitter", "pull")  # each above 0
_OWN = (*_NUMBERS, "like", "after", "name")
_SHIFT = ("recipe", *(key.name for key in TOWARD_KEYS))
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,59}")
_FACTOR = re.compile(r"x(\d+(\.\d+)?)")

# The arms that need no description. `x3` is three times what the other arms have.
READY: dict[str, dict[str, Any]] = {
    "stock": {},
    "control": {"jitter": 1e-4},
    "default": {"os": "train"},
    "budget": {"os": "budget"},
    "sos": {"os": "sos"},
    "sos_paper": {"os": "sos_paper", "os.every": "epoch", "os.start": 0.0, "os.final": None},
    "freeze": {"freeze": BACKBONE},
    "low_lr": {"lr0": "x0.1"},
    "weight_decay_x3": {"weight_decay": "x3"},
    "weight_decay_x10": {"weight_decay": "x10"},
    "l2sp": {"pull": 30.0},
    "toward": {"after": "stock", "toward": True},
}


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: that of its row, and of its runs' folders.
        train: keys of `yolo train` that are not those of the other arms; a text such as `x3` is a factor.
        os: keys of `yolo-os train` without their prefix, `os` itself among them; none: no shifts.
        jitter: size of the noise that the prediction layers are multiplied with, for a control.
        pull: how strongly weights are pulled to where they began, as L2-SP does.
        after: the arm whose checkpoints a shift starts from; None: an arm that is trained.
        shift: settings of that shift, as `yolo-os shift` takes them.
    """

    name: str
    train: dict[str, Any] = field(default_factory=dict)
    os: dict[str, Any] = field(default_factory=dict)
    jitter: float | None = None
    pull: float | None = None
    after: str | None = None
    shift: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The settings, in the words that `read_arms` takes."""
        os = {name if name == "os" else f"{PREFIX}{name}": value for name, value in self.os.items()}
        own = {key: getattr(self, key) for key in (*_NUMBERS, "after") if getattr(self, key) is not None}
        if not (self.train or os or own):
            os = {"os": False}  # so that it is not taken for a ready arm of its name
        return {"name": self.name, **own, **self.train, **os, **self.shift}

    def settings(self, common: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Keys of `yolo train` and their values: those of all arms with this arm's in their place, factors applied.

        Args:
            common: keys that all arms share.
            defaults: what Ultralytics takes for keys that are not given.

        Raises:
            UserError: for a factor of something that is no number.
        """
        made = dict(common)
        for key, value in self.train.items():
            factor = factor_of(value)
            if factor is not None and key != "lr0":  # which optimizer=auto takes no notice of: see the callbacks
                base = common.get(key, defaults.get(key))
                if isinstance(base, bool) or not isinstance(base, int | float):
                    raise UserError(f"arm {self.name}: {key}={value} is a factor, and {key}={base} is no number")
                made[key] = base * factor
            elif factor is None:
                made[key] = value
        return made

    @property
    def rate(self) -> float:
        """What the learning rate is multiplied with."""
        return factor_of(self.train.get("lr0")) or 1.0


def factor_of(value: Any) -> float | None:
    """The number in a text such as `x3`; None for any other value."""
    match = _FACTOR.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) if match else None


def read_arms(given: Any, described: Any = ()) -> tuple[Arm, ...]:
    """Arms from what a user gives: names of ready arms with commas, or a list or mapping of a YAML file.

    A list holds names of ready arms and mappings with a `name`; a mapping has the names as its keys. A setting `like`
    names an arm before it, one that is described, or a ready one, whose settings the arm has too.

    Args:
        given: the arms.
        described: arms, given likewise, that a name alone may mean too; these come before the ready ones.

    Raises:
        UserError: for an unknown name or setting, a name given twice, or an `after` that names no arm before it.
    """
    own = [(name, settings) for name, settings in _entries(described) if settings]
    known, names = {**READY, **dict(own)}, [name for name, _ in own]
    made: dict[str, Arm] = {}
    for name, settings in _entries(given):
        if not _NAME.fullmatch(name):
            raise UserError(f"arm '{name}': a name has letters, digits and . _ + - only, and at most 60")
        if name in made:
            raise UserError(f"arm {name} is given twice")
        if names.count(name) > 1 and not settings:
            raise UserError(f"arm {name} is described twice")
        made[name] = _arm(name, settings, made, known)
    if len(made) < 2:
        raise UserError(f"arms={given}: takes at least two, the first of which the others are compared with")
    first = next(iter(made.values()))
    if first.after:
        raise UserError(f"arm {first.name}: the first arm is the reference and has to be one that is trained")
    return tuple(made.values())


def _entries(given: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",") if part.strip()]
    if isinstance(given, Mapping):
        given = [{"name": name, **_mapping(name, settings)} for name, settings in given.items()]
    if not isinstance(given, Sequence):
        raise UserError(f"arms={given}: takes names with commas, a list, or a mapping of names to settings")
    for entry in given:
        if isinstance(entry, Mapping):
            name = str(entry.get("name", ""))
            yield name, {str(key): value for key, value in entry.items() if key != "name"}
        else:
            yield str(entry), {}


def _mapping(name: Any, settings: Any) -> dict[str, Any]:
    if settings is not None and not isinstance(settings, Mapping):
        raise UserError(f"arm {name}: {settings} is no mapping of settings")
    return dict(settings or {})


def _arm(name: str, settings: dict[str, Any], before: Mapping[str, Arm], known: Mapping[str, Mapping[str, Any]]) -> Arm:
    if not settings:
        if name not in known:
            raise UserError(f"arm {name}: has no settings and is none of the arms {', '.join(known)}")
        settings = dict(known[name])
    likes = [name]  # a described arm may be like another one, or change the ready one of its name
    while (like := settings.pop("like", None)) is not None:
        like = str(like)
        if like in before:
            base = {key: value for key, value in before[like].to_dict().items() if key != "name"}
        elif like in known and like not in likes:
            base = dict(known[like])
        elif like in READY:
            base = dict(READY[like])
        else:
            raise UserError(f"arm {name}: like={like} is no arm before it and none of {', '.join(known)}")
        likes.append(like)
        settings = {**base, **settings}
    after = settings.pop("after", None)
    settings = {key: parse_value(value) if isinstance(value, str) else value for key, value in settings.items()}
    if after is not None:
        return _post_shift(name, str(after), settings, before)
    numbers = {key: value for key in _NUMBERS if (value := settings.pop(key, None)) is not None}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise UserError(f"arm {name}: {key}={value} takes a number above 0")
    for key in settings:
        if key in RESERVED:
            raise UserError(f"arm {name}: {key}= is the same for all arms, or made by the comparison")
    os = {key.removeprefix(PREFIX): value for key, value in settings.items() if key == "os" or key.startswith(PREFIX)}
    train = {key: value for key, value in settings.items() if key != "os" and not key.startswith(PREFIX)}
    return Arm(name, train, {} if os == {"os": False} else os, **numbers)


def _post_shift(name: str, after: str, settings: dict[str, Any], before: Mapping[str, Arm]) -> Arm:
    if after not in before:
        raise UserError(f"arm {name}: after={after} is no arm before it")
    if before[after].after:
        raise UserError(f"arm {name}: after={after} is a shift itself; start from an arm that is trained")
    try:
        reject_unknown(settings, [*_SHIFT, *(key.name for key in recipe_keys())])
        settings |= {key.name: key.check(settings[key.name]) for key in TOWARD_KEYS if key.name in settings}
    except UserError as error:
        raise UserError(f"arm {name}: {error}") from None
    step = [key for key in _SHIFT if key in settings and key not in ("recipe", "toward")]
    shift = [key for key in settings if key not in (*step, "toward")]
    if settings.get("toward") in (None, False):
        settings.pop("toward", None)
        if step:
            raise UserError(f"arm {name}: {step[0]}= says nothing without toward=")
    elif shift:
        raise UserError(f"arm {name}: {shift[0]}= is for a shift of the prediction layers, not for one with toward=")
    if settings.get("retain") is not None:
        settings["retain"] = listed(settings["retain"])
    return Arm(name, after=after, shift=settings)
