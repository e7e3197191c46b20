"""The building blocks that configurations of the YOLOv5 repository name, v5.0 to v7.0, as functions of their input.

Written from what they compute; names of parts are those of the checkpoints, whose tensors are loaded into them. The
convolution with BatchNorm and the transformer are Ultralytics' own, which it still has from there: the first can be
fused. Its other blocks of the same names have gone other ways since (SPPF lost an activation, Bottleneck has other
kernels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.conv import Conv, DWConv
from ultralytics.nn.modules.transformer import TransformerBlock

__all__ = ["Conv", "DWConv"]


class Focus(nn.Module):
    """Each 2x2 square of pixels becomes one point with four times the channels, which a convolution reads."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv(4 * inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Order of the corners: top left, bottom left, top right, bottom right."""
        corners = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(corners, 1))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """A 1x1 convolution, a 3x3 one, and the input added where the channels allow it."""

    def __init__(self, inputs: int, outputs: int, shortcut: bool = True, groups: int = 1, e: float = 0.5) -> None:
        super().__init__()
        inner = int(outputs * e)
        self.cv1 = Conv(inputs, inner, 1, 1)
        self.cv2 = Conv(inner, outputs, 3, 1, g=groups)
        self.add = shortcut and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The sum, or the second convolution alone."""
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class CrossConv(nn.Module):
    """A convolution along rows and one along columns."""

    def __init__(
        self, inputs: int, outputs: int, k: int = 3, s: int = 1, g: int = 1, e: float = 1.0, shortcut: bool = False
    ) -> None:
        super().__init__()
        inner = int(outputs * e)
        self.cv1 = Conv(inputs, inner, (1, k), (1, s))
        self.cv2 = Conv(inner, outputs, (k, 1), (s, 1), g=g)
        self.add = shortcut and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The sum, or the second convolution alone."""
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class BottleneckCSP(nn.Module):
    """Two ways through the block, one of them through bottlenecks; normalised together."""

    def __init__(
        self, inputs: int, outputs: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5
    ) -> None:
        super().__init__()
        inner = int(outputs * e)
        self.cv1 = Conv(inputs, inner, 1, 1)
        self.cv2 = nn.Conv2d(inputs, inner, 1, 1, bias=False)
        self.cv3 = nn.Conv2d(inner, inner, 1, 1, bias=False)
        self.cv4 = Conv(2 * inner, outputs, 1, 1)
        self.bn = nn.BatchNorm2d(2 * inner)
        self.act: nn.Module = nn.SiLU()
        self.m = nn.Sequential(*(Bottleneck(inner, inner, shortcut, g, 1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Bottlenecks first in the order of channels."""
        both = torch.cat([self.cv3(self.m(self.cv1(x))), self.cv2(x)], 1)
        return self.cv4(self.act(self.bn(both)))  # type: ignore[no-any-return]


class C3(nn.Module):
    """Two ways through the block, one of them through what a subclass puts into `m`."""

    def __init__(
        self, inputs: int, outputs: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5
    ) -> None:
        super().__init__()
        inner = int(outputs * e)
        self.cv1 = Conv(inputs, inner, 1, 1)
        self.cv2 = Conv(inputs, inner, 1, 1)
        self.cv3 = Conv(2 * inner, outputs, 1)
        self.m = self.inside(inner, n, shortcut, g)

    def inside(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """Bottlenecks."""
        return nn.Sequential(*(Bottleneck(width, width, shortcut, g, 1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """`m` first in the order of channels."""
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))  # type: ignore[no-any-return]


class C3x(C3):
    """With cross convolutions."""

    def inside(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """Cross convolutions."""
        return nn.Sequential(*(CrossConv(width, width, 3, 1, g, 1.0, shortcut) for _ in range(n)))


class C3TR(C3):
    """With a transformer of four heads."""

    def inside(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """Layers of a transformer."""
        block: nn.Module = TransformerBlock(width, width, 4, n)
        return block


class C3SPP(C3):
    """With pooling over several sizes."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        k: Sequence[int] = (5, 9, 13),
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
    ) -> None:
        super().__init__(inputs, outputs, n, shortcut, g, e)
        inner = int(outputs * e)
        self.m = SPP(inner, inner, k)


class C3Ghost(C3):
    """With ghost bottlenecks."""

    def inside(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """Ghost bottlenecks."""
        return nn.Sequential(*(GhostBottleneck(width, width) for _ in range(n)))


class GhostConv(nn.Module):
    """Half of the channels from a convolution, the other half from a cheap one of these."""

    def __init__(self, inputs: int, outputs: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1 = Conv(inputs, half, k, s, None, g, act=act)
        self.cv2 = Conv(half, half, 5, 1, None, half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Both halves."""
        y = self.cv1(x)
        return torch.cat([y, self.cv2(y)], 1)


class GhostBottleneck(nn.Module):
    """Two ghost convolutions, with a shortcut beside them."""

    def __init__(self, inputs: int, outputs: int, k: int = 3, s: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        strided = s == 2
        self.conv = nn.Sequential(
            GhostConv(inputs, half, 1, 1),
            DWConv(half, half, k, s, act=False) if strided else nn.Identity(),
            GhostConv(half, outputs, 1, 1, act=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if strided:
            self.shortcut = nn.Sequential(
                DWConv(inputs, inputs, k, s, act=False), Conv(inputs, outputs, 1, 1, act=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        y: Tensor = self.conv(x) + self.shortcut(x)
        return y


class SPP(nn.Module):
    """The largest values around each point, over several sizes."""

    def __init__(self, inputs: int, outputs: int, k: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        inner = inputs // 2
        self.cv1 = Conv(inputs, inner, 1, 1)
        self.cv2 = Conv(inner * (len(k) + 1), outputs, 1, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in k)

    def forward(self, x: Tensor) -> Tensor:
        """The point itself first, then from the smallest size on."""
        y = self.cv1(x)
        return self.cv2(torch.cat([y, *(pool(y) for pool in self.m)], 1))  # type: ignore[no-any-return]


class SPPF(nn.Module):
    """The same by one small size, three times over."""

    def __init__(self, inputs: int, outputs: int, k: int = 5) -> None:
        super().__init__()
        inner = inputs // 2
        self.cv1 = Conv(inputs, inner, 1, 1)
        self.cv2 = Conv(inner * 4, outputs, 1, 1)
        self.m = nn.MaxPool2d(k, stride=1, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        """The point itself first, then from the smallest size on."""
        pooled = [self.cv1(x)]
        for _ in range(3):
            pooled.append(self.m(pooled[-1]))
        return self.cv2(torch.cat(pooled, 1))  # type: ignore[no-any-return]


class Concat(nn.Module):
    """Several feature maps as one."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, x: list[Tensor]) -> Tensor:
        """In the order given."""
        return torch.cat(x, self.d)


class Contract(nn.Module):
    """Squares of gain x gain points become one point with more channels."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """The place within the square is the slowest index of the new channels."""
        b, c, h, w = x.shape
        s = self.gain
        squares = x.reshape(b, c, h // s, s, w // s, s).permute(0, 3, 5, 1, 2, 4)
        return squares.reshape(b, c * s * s, h // s, w // s)


class Expand(nn.Module):
    """The other way: channels become squares of gain x gain points."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """The place within the square is the slowest index of the old channels."""
        b, c, h, w = x.shape
        s = self.gain
        points = x.reshape(b, s, s, c // s**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return points.reshape(b, c // s**2, h * s, w * s)
