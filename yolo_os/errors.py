"""The one error that is meant for the person at the keyboard."""

from __future__ import annotations

# What the evaluator alone (the distribution yolo-os-light) is installed without.
_HEAVY = ("torch", "torchvision", "ultralytics", "cv2", "scipy", "hessian_eigenthings")


class UserError(ValueError):
    """Bad input: says what was wrong, where (file, line, key) and what to do.

    The command line prints it as one line and exits with code 2; from Python it is a `ValueError`.
    """


def what_is_missing(error: ModuleNotFoundError, what: str) -> str | None:
    """What to install where a part of the package is not there; None where something else is missing.

    Args:
        error: of the import that failed.
        what: the mode or name that asked for it.
    """
    name = (error.name or "").partition(".")[0]
    if name not in _HEAVY:
        return None
    return (
        f"{what} needs {name}, which is not installed: install the whole package, yolo-os (`pip install .` in its"
        " clone); yolo-os-light is the evaluator alone"
    )
