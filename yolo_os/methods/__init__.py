"""The methods of a shift, by name: a file in this folder and a line in REGISTRY each. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What is known of a method before it is loaded.

    Attributes:
        home: `module:class`; the class takes no arguments and is a `methods.base.Method`.
        help: what it does, in a few words.
        settings: the settings of a recipe that it looks at and not every method does. A method that looks at
            `max_loss_rise` is judged by the loss after training too; during training every method is.
    """

    home: str
    help: str
    settings: tuple[str, ...]


REGISTRY = {
    "budget": Entry(
        "yolo_os.methods.budget:Budget",
        "the least norm at a given rise of the training loss",
        ("keep", "max_loss_rise"),
    ),
    "os": Entry("yolo_os.methods.least_norm:OS", "keep the outputs on all anchor points of the images", ("rtol",)),
    "sos": Entry(
        "yolo_os.methods.least_norm:SampledOS", "keep them on a small sample", ("samples", "sampling", "rtol")
    ),
}


def users_of(setting: str) -> tuple[str, ...]:
    """The methods that look at a setting of a recipe; none for a setting that does not depend on the method."""
    return tuple(name for name, entry in REGISTRY.items() if setting in entry.settings)


def implied_by(settings: Iterable[str], default: str) -> str | None:
    """The one method that some of these settings are for, where the default method looks at none of them."""
    users = {users[0] for users in map(users_of, settings) if len(users) == 1 and users != (default,)}
    return users.pop() if len(users) == 1 else None


def judged_after_training(method: str) -> bool:
    """Whether a shift of a finished model by this method is judged by the loss before it is taken."""
    return "max_loss_rise" in REGISTRY[method].settings
