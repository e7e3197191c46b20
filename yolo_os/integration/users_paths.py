"""Messages name what the user gave: a data set that was made of it in a cache folder is ours to know of."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from ultralytics.utils import LOGGER

_made: dict[str, str] = {}  # by the folder of a data set in a cache, what the user gave that it was made of


def made_of(folder: Path, given: object) -> None:
    """Remember what a data set in a cache folder was made of; the log then names that in its place."""
    _made[str(folder)] = str(given)
    if not any(isinstance(each, _InUsersPaths) for each in LOGGER.filters):
        LOGGER.addFilter(_InUsersPaths())


def users_path(path: str | Path) -> str:
    """A path as the user knows it: the image that a link in a cache leads to, or what the data set was made of."""
    text = str(path)
    for folder, given in _made.items():
        if text == folder or text.startswith(f"{folder}{os.sep}"):
            return os.path.realpath(text) if os.path.islink(text) else given
    return text


def in_users_paths(text: str) -> str:
    """A text with the user's paths in place of those in a cache."""
    for folder in _made:
        text = re.sub(rf"{re.escape(folder)}[^\s:;,'\"]*", lambda match: users_path(match[0]), text)
    return text


class _InUsersPaths(logging.Filter):
    """Puts the user's paths in place of those in a cache."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the message; every record passes."""
        text = record.getMessage()
        if any(folder in text for folder in _made):
            record.msg, record.args = in_users_paths(text), ()
        return True
