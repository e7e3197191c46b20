"""The matrices of one prediction layer before and after a shift, for those who want to check it by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from yolo_os.capture import LayerStatistics
from yolo_os.errors import UserError
from yolo_os.files import written_whole
from yolo_os.forward import Batch, Progress, run_pass, silent
from yolo_os.heads import Head, PredictionLayer
from yolo_os.linalg import in_float64
from yolo_os.recipe import ShiftRecipe
from yolo_os.statistics import RowSample
from yolo_os.timing import Clock

MOST_ROWS = 4096  # of A, where a method uses all


class LayerMatrices:
    """A, and V and the bias as they are when this is made; `save` adds those of then.

    A is what the layer is given at anchor points of the images: with `sos` the sample that it solves for, else a
    uniform draw of the rows.

    Args:
        model: the bare model, before its shift.
        head: of the model.
        name: of the layer.
        used: the batches that the shift will use.
        recipe: of the shift.
        progress: see `shift_`.

    Raises:
        UserError: if the head has no such layer, or it does not run.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        name: str,
        used: Iterable[Batch],
        recipe: ShiftRecipe,
        progress: Progress = silent,
    ) -> None:
        self._layer = find_layer(head, name)
        sos = recipe.method == "sos"
        size = recipe.rows_for(self._layer.in_features) if sos else MOST_ROWS
        sample = RowSample(size, recipe.sampling if sos else "uniform", recipe.seed, name)
        statistics = LayerStatistics(head, {name: sample})
        run_pass(model, used, Clock(next(model.parameters()).device), progress, "rows to save", statistics)
        statistics.merge()
        if not sample.count:
            raise UserError(f"save={name}: the layer does not run in eval mode, so it has no rows")
        self._rows, self._of = _array(sample.rows), sample.count
        self._before = _state(self._layer)

    def save(self, path: Path) -> None:
        """Write A, Z = A V, V (m, n) and the bias b, before and after, as an `.npz`; all in float64.

        Raises:
            UserError: if the file can't be written.
        """
        (v_before, b_before), (v_after, b_after) = self._before, _state(self._layer)
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                A=self._rows,
                rows_of_A_in_all=np.array(self._of),
                V_before=v_before,
                V_after=v_after,
                b_before=b_before,
                b_after=b_after,
                Z_before=self._rows @ v_before,
                Z_after=self._rows @ v_after,
            )


def find_layer(head: Head, name: str) -> PredictionLayer:
    """The layer of a name.

    Raises:
        UserError: if there is none, naming those that there are.
    """
    found = next((layer for layer in head.layers if layer.name == name), None)
    if found is None:
        raise UserError(
            f"save={name}: names no prediction layer; there is {', '.join(each.name for each in head.layers)}"
        )
    return found


def _state(layer: PredictionLayer) -> tuple[np.ndarray, np.ndarray]:
    bias = layer.module.bias
    return _array(layer.matrix), np.zeros(layer.out_features) if bias is None else _array(bias)


def _array(tensor: Tensor) -> np.ndarray:
    return in_float64(tensor).cpu().numpy().copy()
