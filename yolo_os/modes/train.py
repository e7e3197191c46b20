"""`yolo-os train`: `yolo train`, with shifts during the training and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from yolo_os.recipe import recipe_keys, training_settings, warn_unused
from yolo_os.settings import Key, parse_pairs
from yolo_os.training.schedule import SCHEDULE_KEYS

if TYPE_CHECKING:
    from yolo_os.integration.callback import SOS

PREFIX = "os."
# Of a recipe's settings, those of the images that a shift of a finished model draws; during training there are batches.
_NOT_IN_TRAINING = ("images", "held_out")
_SHIPPED = training_settings()
_OWN = (
    *SCHEDULE_KEYS,
    Key(
        "final",
        (str, type(None)),
        None,
        "recipe of the shift of the saved weights at the end, a file or a shipped name; None: none",
        filled=False,
    ),
    Key(
        "toward",
        (bool, str, type(None)),
        None,
        "at the end move all layers towards the weights that the training starts from, as far as val allows: True, or "
        "their file; no other shift is then made unless os.every or os.final is given",
        filled=False,
    ),
    Key("retain", (str, list, type(None)), None, "with os.toward: data that must not get worse", filled=False),
    Key(
        "retain_drop",
        (float, type(None)),
        None,
        "with os.toward: most mAP that may be lost on retained data; None: the new data alone decide",
        filled=False,
    ),
    *(key for key in recipe_keys() if key.name not in _NOT_IN_TRAINING),
    Key(
        "trust",
        (bool,),
        False,
        "unpickle a checkpoint with classes of neither torch nor Ultralytics, its code included",
        filled=False,
    ),
)
KEYS = (
    Key(
        "os",
        (str, bool),
        "train",
        "settings in YAML, a file or a shipped name (train, sos, sos_paper); False: stock training",
        filled=False,
    ),
    *(replace(key, name=f"{PREFIX}{key.name}", default=_SHIPPED.get(key.name, key.default)) for key in _OWN),
)
NOTE = (
    "and every key of `yolo train`, which go to Ultralytics as they are; data= may also be a VOCdevkit folder. What is "
    "written where, and what the final shift does: docs/training.md"
)
EXAMPLES = (
    "yolo-os train model=yolo11n.pt data=my.yaml epochs=100",
    "yolo-os train model=yolo11n.pt data=VOCdevkit epochs=50 imgsz=320 os.every=2epochs os.start=0.5",
    "yolo-os train model=old.pt data=new.yaml epochs=50 os.toward=True os.retain=old.yaml",
    "yolo-os train model=yolo11n.pt data=my.yaml epochs=100 device=0,1 os=sos os.every=100",
    "yolo-os train model=runs/detect/train/weights/last.pt resume=True",
)


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Options from the words after the mode: our own keys by our own grammar, the rest by Ultralytics'.

    Raises:
        UserError: for an unknown key or a bad value of either.
    """
    from yolo_os.integration.callback import settings_of
    from yolo_os.integration.train import parse_stock, split_words

    own, others = split_words(words, ("os=", PREFIX))
    given = parse_pairs(own, KEYS)
    stock = parse_stock(others, {key.name.removeprefix(PREFIX): key.name for key in KEYS})
    if stock.get("resume") and "os" not in given:  # a training goes on as it was begun
        interrupted = stock["resume"] if isinstance(stock["resume"], str) else stock.get("model")
        begun = settings_of(interrupted) if interrupted else None
        if begun or not given:
            given["os"] = str(begun) if begun else False
    return {"sos": sos_from(given), "trust": given.get(f"{PREFIX}trust", False), "stock": stock}


def sos_from(given: Mapping[str, Any]) -> SOS | None:
    """The callback that the keys describe, over the settings of the file in `os`; None for `os=False`.

    Raises:
        UserError: for an unknown setting or a bad value, naming where it stands.
    """
    from yolo_os.integration.callback import callback_of

    choice = given.get("os")
    settings = {name.removeprefix(PREFIX): value for name, value in given.items() if name.startswith(PREFIX)}
    settings.pop("trust", None)
    sos = callback_of({"os": choice, **settings})
    if sos is not None:
        warn_unused([name for name in settings if name != "max_loss_rise"], sos.recipe.method, PREFIX)
    return sos


def run(options: dict[str, Any]) -> int:
    """Train as the keys say; the exit code."""
    from yolo_os.integration.train import train

    train(options["stock"], options["sos"], options["trust"])
    return 0
