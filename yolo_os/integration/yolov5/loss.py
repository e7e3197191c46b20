"""The training loss of an anchor-based head (YOLOv5, v5.0 to v7.0), written from what it computes.

An object is learned by every anchor whose sides differ from its own by less than `anchor_t` times, on every level, in
the cell that holds its centre and in the two cells next to it on the sides where the centre lies. With these matches,

    box    mean over the matches of a level of 1 - CIoU, summed over levels
    obj    mean over all anchors of a level of the BCE of its objectness with the IoU of its match, or 0 without one;
           summed over levels with weights (`heads.BALANCE`)
    cls    mean over the matches of a level and the classes of the BCE, summed over levels; none for a single class

times the gains. Where two objects match one anchor in one cell, the better IoU counts (there it is the last written).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from ultralytics.utils.metrics import bbox_iou

from yolo_os.heads import balance_of

# What a file of which no `hyp` is left was most likely trained with: the defaults of v6 and v7, before `scaled_gains`.
DEFAULTS = {"box": 0.05, "cls": 0.5, "obj": 1.0, "cls_pw": 1.0, "obj_pw": 1.0, "anchor_t": 4.0, "label_smoothing": 0.0}
GAINS = ("box", "cls", "obj")


def scaled_gains(gains: Mapping[str, float], classes: int, levels: int, imgsz: int) -> dict[str, float]:
    """Gains of a `hyp` file as a training uses them; those in a checkpoint's model are scaled already."""
    return {
        "box": gains["box"] * 3 / levels,
        "cls": gains["cls"] * classes / 80 * 3 / levels,
        "obj": gains["obj"] * (imgsz / 640) ** 2 * 3 / levels,
    }


@dataclass(frozen=True)
class Matches:
    """Anchors of one level that learn an object: one entry per match, a cell may have several.

    Attributes:
        image, anchor, row, column: which anchor of which cell.
        box: (k, 4), the object's centre from the cell's corner, width and height, in cells.
        label: (k,), its class.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    box: Tensor
    label: Tensor


class AnchorLoss:
    """The criterion of a `ClassicYOLOv5`.

    Args:
        head: its `AnchorDetect`.
        args: gains (scaled, see `scaled_gains`) and settings; names as in `DEFAULTS`.
    """

    def __init__(self, head: Any, args: Mapping[str, Any]) -> None:
        self.anchors: Tensor = head.anchors
        self.classes: int = head.nc
        self.balance = balance_of(head.nl)
        self.settings = {name: float(args.get(name, default)) for name, default in DEFAULTS.items()}

    def __call__(self, predictions: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms times the images of the batch, and the terms by name, as Ultralytics' criteria return them.

        Args:
            predictions: what the model returned, in training or eval mode.
            batch: as Ultralytics' data loaders make it.
        """
        raw: Sequence[Tensor] = predictions[1] if isinstance(predictions, tuple) else predictions
        box, obj, cls = (raw[0].new_zeros(()) for _ in range(3))
        positive, negative = 1 - self.settings["label_smoothing"] / 2, self.settings["label_smoothing"] / 2
        for level, outputs in enumerate(raw):
            matches = self.match(level, outputs.shape[2:4], batch)
            objectness = torch.zeros_like(outputs[..., 4])
            if len(matches.label):
                place = (matches.image, matches.anchor, matches.row, matches.column)
                found = outputs[place]
                iou = bbox_iou(self.boxes(level, found, matches.anchor), matches.box, CIoU=True).squeeze(-1)
                box = box + (1 - iou).mean()
                flat = torch.zeros_like(objectness).flatten()
                index = _flat_index(place, objectness.shape)
                flat.scatter_reduce_(0, index, self.learned_objectness(iou).to(flat.dtype), "amax")
                objectness = flat.view_as(objectness)
                if self.classes > 1:
                    target = torch.full_like(found[:, 5:], negative)
                    target[torch.arange(len(target), device=target.device), matches.label] = positive
                    cls = cls + bce(found[:, 5:], target, pos_weight=found.new_tensor(self.settings["cls_pw"]))
            weight = outputs.new_tensor(self.settings["obj_pw"])
            obj = obj + self.balance[level] * bce(outputs[..., 4], objectness, pos_weight=weight)
        terms = {"box_loss": box, "obj_loss": obj, "cls_loss": cls}
        gained = torch.stack([self.settings[name.removesuffix("_loss")] * term for name, term in terms.items()])
        return gained * len(raw[0]), {name: each.detach() for name, each in zip(terms, gained)}

    def learned_objectness(self, iou: Tensor) -> Tensor:
        """What the objectness of matches is taught: the IoU of their boxes as they are, no part of the gradient."""
        return iou.detach().clamp(min=0)

    def boxes(self, level: int, outputs: Tensor, anchor: Tensor) -> Tensor:
        """(k, 4): the boxes of outputs of one level, in cells from the corner of their own."""
        y = outputs[:, :4].sigmoid()
        size = ((y[:, 2:] * 2).square() * self.anchors[level][anchor]).clamp(min=1e-6)  # 0 / 0 has no angle
        return torch.cat([y[:, :2] * 2 - 0.5, size], 1)

    def match(self, level: int, cells: Sequence[int], batch: Mapping[str, Tensor]) -> Matches:
        """The anchors of a level, of so many rows and columns of cells, that learn the objects of a batch."""
        anchors = self.anchors[level]
        rows, columns = cells
        scale = anchors.new_tensor([columns, rows, columns, rows])
        objects = batch["bboxes"].to(anchors) * scale
        ratio = objects[:, None, 2:] / anchors[None]
        fits = torch.maximum(ratio, 1 / ratio).amax(2) < self.settings["anchor_t"]
        which, anchor = fits.nonzero(as_tuple=True)
        centre = objects[which, :2]
        # How far the centre lies within its cell says which neighbours learn it too; none beyond the border does.
        inside, back = centre % 1, scale[:2] - centre
        near_low = (inside < 0.5) & (centre > 1)
        near_high = (back % 1 < 0.5) & (back > 1)
        own, (left, up), (right, down) = torch.ones_like(near_low[:, 0]), near_low.T, near_high.T
        step = anchors.new_tensor([[0, 0], [0.5, 0], [0, 0.5], [-0.5, 0], [0, -0.5]])
        neighbour, match = torch.stack([own, left, up, right, down]).nonzero(as_tuple=True)
        which, anchor, centre = which[match], anchor[match], centre[match]
        corner = (centre - step[neighbour]).long()
        column, row = corner[:, 0].clamp(0, columns - 1), corner[:, 1].clamp(0, rows - 1)
        cell = torch.stack([column, row], 1).to(centre)
        image = batch["batch_idx"].to(anchor.device).long()[which]
        label = batch["cls"].to(anchor.device).flatten().long()[which]
        return Matches(image, anchor, row, column, torch.cat([centre - cell, objects[which, 2:]], 1), label)


def _flat_index(place: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    index = place[0]
    for each, length in zip(place[1:], shape[1:]):
        index = index * length + each
    return index
