"""A classic YOLOv5 as a model that Ultralytics' validator and this package run like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import BaseModel

from yolo_os.integration.yolov5.loss import AnchorLoss


class AnchorDetect(nn.Module):
    """The anchor-based head: one 1x1 convolution per level, whose outputs hold box, objectness and classes.

    Of each of the `na` anchors of a level: x, y, w, h, objectness, a logit per class. In eval mode it also decodes
    them, as Ultralytics' heads do, so that theirs and its outputs go through the same suppression of overlaps.

    Attributes:
        nc, na, nl: classes, anchors per level, levels.
        m: the convolutions.
        anchors: (levels, anchors, 2), width and height in units of the level's stride.
        stride: input pixels per point, by level.
    """

    anchors: Tensor
    stride: Tensor

    def __init__(self, classes: int, anchors: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.nc, self.na, self.nl = classes, anchors, len(widths)
        self.register_buffer("anchors", torch.ones(len(widths), anchors, 2))
        self.register_buffer("stride", torch.ones(len(widths)), persistent=False)
        self.m = nn.ModuleList(nn.Conv2d(width, anchors * (classes + 5), 1) for width in widths)

    def forward(self, features: list[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of each level, (B, anchors, H, W, 5 + classes); in eval mode (B, 4 + classes, N) before them.

        These are boxes as x, y, w, h in input pixels, and scores, the objectness times the probability of the class.
        """
        raw = [self._by_anchor(convolution(each)) for convolution, each in zip(self.m, features)]
        return raw if self.training else (torch.cat([self._decoded(i, each) for i, each in enumerate(raw)], 2), raw)

    def _by_anchor(self, outputs: Tensor) -> Tensor:
        images, _, height, width = outputs.shape
        return outputs.view(images, self.na, self.nc + 5, height, width).permute(0, 1, 3, 4, 2)

    def _decoded(self, level: int, raw: Tensor) -> Tensor:
        images, _, height, width, _ = raw.shape
        y = raw.sigmoid()
        stride = self.stride[level]
        rows, columns = (torch.arange(n, device=raw.device, dtype=raw.dtype) for n in (height, width))
        corner = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (H, W, 2)
        centre = (y[..., :2] * 2 - 0.5 + corner) * stride
        size = (y[..., 2:4] * 2).square() * (self.anchors[level] * stride)[:, None, None]
        return torch.cat([centre, size, y[..., 4:5] * y[..., 5:]], -1).reshape(images, -1, self.nc + 4).mT


class ClassicYOLOv5(BaseModel):  # type: ignore[misc]
    """The network.

    Args:
        layers: each with where it reads from (`f`) and its number (`i`); the last is the head.
        config: as the file has it.
        names: of the classes.
    """

    def __init__(self, layers: nn.Sequential, config: Mapping[str, Any], names: Sequence[str]) -> None:
        super().__init__()
        self.model = layers
        self.yaml = dict(config)
        self.names = dict(enumerate(names))
        self.nc = len(names)
        self.task = "detect"
        self.save = sorted({source for layer in layers for source in _sources(layer)})
        self.args: Any = {}

    @property
    def stride(self) -> Tensor:
        """Input pixels per point, by level of the head."""
        head: Any = self.model[-1]
        return head.stride  # type: ignore[no-any-return]

    def init_criterion(self) -> AnchorLoss:
        """The loss that it was trained with."""
        args = self.args if isinstance(self.args, Mapping) else vars(self.args)
        return AnchorLoss(self.model[-1], args)


def _sources(layer: Any) -> list[int]:
    """The numbers of the layers that a layer reads, but for the one before it."""
    sources = [layer.f] if isinstance(layer.f, int) else layer.f
    return [source % layer.i for source in sources if source != -1]
