"""The recipe of a shift: every setting, validated when it is made, read from YAML and from `key=value`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from yolo_os.errors import UserError
from yolo_os.files import as_path, is_file
from yolo_os.methods import REGISTRY, implied_by, users_of
from yolo_os.plain_yaml import read_yaml
from yolo_os.resources import resource
from yolo_os.settings import Key, reject_unknown

SAMPLINGS = ("uniform", "foreground", "balanced")
ROLES = ("box", "cls", "mask", "keypoint", "angle", "joint")
# A rise of the held-out training loss beyond this is called harm in a report: five times what a shift may cost by
# default. Most shifts beyond it lost mAP, most of those below it did not (docs/results.md).
HARMFUL_RISE = 0.01
# What a shift of all layers towards an origin takes.
TOWARD_KEYS = (
    Key(
        "toward",
        (str, bool, type(None)),
        None,
        "move all layers towards this checkpoint, which the training started from; True: the one its record names",
    ),
    Key(
        "retain",
        (str, list, type(None)),
        None,
        "with toward: data that must not get worse, judged on its val split; several with commas",
    ),
    Key(
        "retain_drop",
        (float, type(None)),
        None,
        "with toward: most mAP that may be lost on retained data; None: the new data alone decide",
        minimum=0,
    ),
    Key(
        "shares",
        (list, float, str, type(None)),
        None,
        "with toward: what may be left of the way from there, to be judged; None: 0.9, 0.8, 0.6, 0.5, 0.4, 0.2",
    ),
    Key(
        "statistics",
        (bool, type(None)),
        None,
        "with toward: BatchNorm statistics move too (True) or stay as trained (False); None: both are judged",
    ),
)


def _setting(default: Any, types: tuple[type, ...], help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"types": types, "help": help, "choices": choices})


@dataclass(frozen=True)
class ShiftRecipe:
    """All settings of a shift.

    Raises:
        UserError: on construction, naming the setting, what it takes and what it got.
    """

    method: str = _setting("budget", (str,), "")  # `recipe_keys` asks the registry which there are
    keep: float = _setting(
        0.6, (float,), "budget: share of the squared norm of the layers shifted that is left, or more if the guard says"
    )
    max_loss_rise: float | None = _setting(
        0.002,
        (float, type(None)),
        "largest relative rise of the training loss that a shift may cause; budget, and any method in the final shift "
        "of a training: on held-out images; any method during training: on the batch; None: no guard",
    )
    samples: int | float = _setting(
        0.75,
        (int, float),
        "sos: rows of A per layer, a whole number, or below 1 a share of the layer's input features m",
    )
    sampling: str = _setting(
        "foreground",
        (str,),
        "sos: which anchor points; uniform as in the paper, foreground: drawn by their largest class probability, "
        "balanced: foreground, taking turns over the classes that the training loss assigns",
        SAMPLINGS,
    )
    layers: str = _setting(
        "all",
        (str,),
        "which prediction layers: all, or a comma-separated list of roles (cls, box, mask, keypoint, angle, joint) "
        "and name patterns (cv3.*, one2one_cv2.0)",
    )
    images: int = _setting(256, (int,), "calibration images, drawn from the data split, whose features are used")
    held_out: int = _setting(
        128, (int,), "further images, not used for the shift, on which drift and loss are measured"
    )
    seed: int = _setting(0, (int,), "seed of the images drawn and of the anchor points sampled")
    rtol: float | None = _setting(
        None,
        (float, type(None)),
        "os, sos: singular values of A below rtol times the largest count as zero; None: float32 rounding times the "
        "larger of m and the rows of a sample, or of m and n for os",
    )

    def __post_init__(self) -> None:
        """Check every setting."""
        for key in recipe_keys():
            object.__setattr__(self, key.name, key.check(getattr(self, key.name)))
        _require(self.samples > 0, "samples", self.samples, "a whole number from 1, or a share of m between 0 and 1")
        _require(
            isinstance(self.samples, int) or self.samples < 1,
            "samples",
            self.samples,
            "a share below 1, or a whole number",
        )
        _require(0 < self.keep < 1, "keep", self.keep, "a share between 0 and 1")
        tolerance = self.max_loss_rise
        _require(tolerance is None or tolerance >= 0, "max_loss_rise", tolerance, "a share from 0, or None")
        _require(self.images >= 1, "images", self.images, "at least 1")
        _require(self.held_out >= 0, "held_out", self.held_out, "at least 0")
        _require(0 <= self.seed < 2**31, "seed", self.seed, "a whole number from 0 to 2147483647")
        _require(self.rtol is None or 0 < self.rtol < 1, "rtol", self.rtol, "a number between 0 and 1")

    @property
    def words(self) -> tuple[str, ...]:
        """The roles and patterns in `layers`."""
        return tuple(word.strip() for word in self.layers.split(",") if word.strip())

    def selects(self, name: str, role: str) -> bool:
        """Whether `layers` names the layer of this name and role."""
        return any(matches(word, name, role) for word in self.words)

    def rows_for(self, features: int) -> int:
        """How many rows a layer with m = `features` inputs is given."""
        return self.samples if isinstance(self.samples, int) else max(1, int(self.samples * features))

    def replace(self, **changes: Any) -> ShiftRecipe:
        """A copy with other settings."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(
        cls, settings: Mapping[str, Any], where: str = "recipe", base: ShiftRecipe | None = None
    ) -> ShiftRecipe:
        """A recipe from settings by name; those left out are those of `base`, or have their defaults.

        Raises:
            UserError: for an unknown name (with the nearest known ones) or a bad value; says `where`, if anywhere.
        """
        try:
            reject_unknown(settings, [setting.name for setting in fields(cls)])
            return (base or cls()).replace(**settings)
        except UserError as error:
            raise UserError(f"{where}: {error}" if where else str(error)) from None

    @classmethod
    def given(cls, recipe: Given, base: ShiftRecipe | None = None) -> ShiftRecipe | None:
        """A recipe from what Python code gives: a recipe, its settings, or the name or file of one; None stays None.

        Args:
            recipe: settings that are left out are those of `base`, or have their defaults.

        Raises:
            UserError: for anything else, an unknown setting or a bad value.
        """
        if recipe is None or isinstance(recipe, ShiftRecipe):
            return recipe
        if isinstance(recipe, Mapping):
            return cls.from_dict(recipe, "", base)
        if isinstance(recipe, str | Path):
            settings, file = read_settings(recipe)
            return cls.from_dict(settings, str(file), base)
        raise UserError(f"recipe={recipe!r}: takes a ShiftRecipe, a dictionary of settings, or the name or file of one")

    @classmethod
    def from_yaml(cls, path: str | Path) -> ShiftRecipe:
        """A recipe from a YAML file, or from one that comes with the package by its bare name, such as `sos`.

        Raises:
            UserError: if there is no such file, or it is not a mapping of known settings.
        """
        settings, file = read_settings(path)
        return cls.from_dict(settings, str(file))


Given = ShiftRecipe | Mapping[str, Any] | str | Path | None


def read_settings(path: str | Path) -> tuple[dict[str, Any], Path]:
    """The settings in a YAML file, or in one that comes with the package by its bare name, and the path of the file.

    Raises:
        UserError: if there is no such file, or it is not a mapping.
    """
    file = as_path(path)
    if not file.suffix and not is_file(file):
        shipped = sorted(each.stem for each in resource("configs").glob("*.yaml"))
        if str(path) not in shipped:
            raise UserError(f"recipe={path}: no such file, and none that comes with the package: {', '.join(shipped)}")
        file = resource(f"configs/{path}.yaml")
    try:
        settings = read_yaml(file)
    except UserError as error:
        raise UserError(f"cannot read the recipe {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"the recipe {file} holds no settings: write lines such as `method: sos`")
    return settings, file


def training_settings() -> dict[str, Any]:
    """The defaults of a training with shifts, for the command line and for `SOS()` alike: `configs/train.yaml`."""
    return read_settings("train")[0]


def with_implied_method(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as given, and the method that they are for where it was not given; said on stderr."""
    method = implied_by(given, ShiftRecipe.method)
    if "method" in given or method is None:
        return dict(given)
    names = " and ".join(f"{prefix}{name}=" for name in given if users_of(name) == (method,))
    print(f"note: {names} is for {method}, so the method is {method}", file=sys.stderr)
    return {**given, "method": method}


def warn_unused(given: Iterable[str], method: str, prefix: str = "") -> None:
    """Say on stderr which of the settings that were given the method does not look at."""
    for name in given:
        users = users_of(name)
        if users and method not in users:
            print(f"warning: {prefix}{name}= is for {' and '.join(users)}; {method} ignores it", file=sys.stderr)


def matches(word: str, name: str, role: str) -> bool:
    """Whether one word of `layers` names the layer of this name and role."""
    return word in ("all", role) or fnmatchcase(name, word)


def recipe_keys() -> list[Key]:
    """The settings as keys of the command line, left out where not given, so that they can override a recipe file."""
    keys = [Key(each.name, default=each.default, filled=False, **each.metadata) for each in fields(ShiftRecipe)]
    helps = "; ".join(f"{name}: {entry.help}" for name, entry in REGISTRY.items())
    return [replace(key, choices=tuple(REGISTRY), help=helps) if key.name == "method" else key for key in keys]


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise UserError(f"{name}={value}: takes {wanted}")
