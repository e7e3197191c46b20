"""Find the files that come with the project: the demo's data, its detector, the ready recipes."""

from __future__ import annotations

from pathlib import Path

from yolo_os.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """Path of a file or folder that the project ships, such as `configs/sos.yaml`.

    In an installed wheel they lie inside the package, in a clone (also an editable install) at its top.

    Raises:
        UserError: if the installation lacks it.
    """
    for root in (_PACKAGE / "_files", _PACKAGE.parent):
        if (root / name).exists():
            return root / name
    raise UserError(f"this installation of yolo-os lacks its file '{name}': install the package again")
