"""The one error that is meant for the person at the keyboard, and text of strangers made fit for a terminal."""

from __future__ import annotations

_MOST_SHOWN = 2000


class UserError(ValueError):
    """Bad input: says what was wrong, where (file, line, key) and what to do.

    The command line prints it as one line and exits with code 2; from Python it is a `ValueError`.
    """


def shown(text: object, most: int = _MOST_SHOWN) -> str:
    """A text as it may go to a terminal: control codes spelled out, the middle of a very long one left out."""
    plain = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )
    return plain if len(plain) <= most else f"{plain[: most - most // 4]} ... {plain[-most // 8 :]}"
