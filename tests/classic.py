"""Tiny checkpoints as the YOLOv5 repository writes them, made of stand-ins for its classes.

The stand-ins are modules of the right names, written into `sys.modules` only while something is pickled or loaded. They
compute by themselves, one line after the other, so that they are the reference for what is read from their files.
"""

import contextlib
import copy
import math
import sys
import types

import torch
from torch import nn
from torch.nn import functional as F

HYP = {
    "lr0": 0.01, "box": 0.05, "cls": 0.3, "cls_pw": 1.0, "obj": 0.7, "obj_pw": 1.0, "iou_t": 0.2, "anchor_t": 4.0,
    "fl_gamma": 0.0, "label_smoothing": 0.0,
}  # fmt: skip


class Conv(nn.Module):
    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, act=None):
        super().__init__()
        kernel = k if isinstance(k, tuple) else (k, k)
        padding = tuple(each // 2 for each in kernel) if p is None else p
        self.conv = nn.Conv2d(c1, c2, kernel, s, padding, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU() if act is None else act

    def forward(self, x):
        conv, bn = self.conv, self.bn
        y = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, 1, conv.groups)
        scale = bn.weight / (bn.running_var + 1e-3).sqrt()
        y = y * scale[:, None, None] + (bn.bias - bn.running_mean * scale)[:, None, None]
        return self.act(y)


class DWConv(Conv):
    def __init__(self, c1, c2, k=1, s=1, act=None):
        super().__init__(c1, c2, k, s, None, math.gcd(c1, c2), act)


class Focus(nn.Module):
    def __init__(self, c1, c2, k=1):
        super().__init__()
        self.conv = Conv(4 * c1, c2, k)

    def forward(self, x):
        return self.conv(torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]], 1))


class Bottleneck(nn.Module):
    def __init__(self, c1, c2, shortcut=True, g=1, e=0.5):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, int(c2 * e), 1), Conv(int(c2 * e), c2, 3, 1, None, g)
        self.add = shortcut and c1 == c2

    def forward(self, x):
        return self.cv2(self.cv1(x)) + (x if self.add else 0)


class CrossConv(nn.Module):
    def __init__(self, c1, c2, k=3, s=1, g=1, e=1.0, shortcut=False):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, int(c2 * e), (1, k), (1, s)), Conv(int(c2 * e), c2, (k, 1), (s, 1), None, g)
        self.add = shortcut and c1 == c2

    def forward(self, x):
        return self.cv2(self.cv1(x)) + (x if self.add else 0)


class BottleneckCSP(nn.Module):
    def __init__(self, c1, c2, n=1, shortcut=True):
        super().__init__()
        c = c2 // 2
        self.cv1, self.cv4 = Conv(c1, c, 1), Conv(2 * c, c2, 1)
        self.cv2, self.cv3 = nn.Conv2d(c1, c, 1, bias=False), nn.Conv2d(c, c, 1, bias=False)
        self.bn, self.act = nn.BatchNorm2d(2 * c), nn.LeakyReLU(0.1)
        self.m = nn.Sequential(*[Bottleneck(c, c, shortcut, 1, 1.0) for _ in range(n)])

    def forward(self, x):
        y = torch.cat([self.cv3(self.m(self.cv1(x))), self.cv2(x)], 1)
        scale = self.bn.weight / (self.bn.running_var + 1e-3).sqrt()
        y = (y - self.bn.running_mean[:, None, None]) * scale[:, None, None] + self.bn.bias[:, None, None]
        return self.cv4(torch.where(y > 0, y, 0.1 * y))


class C3(nn.Module):
    def __init__(self, c1, c2, n=1, shortcut=True):
        super().__init__()
        c = c2 // 2
        self.cv1, self.cv2, self.cv3 = Conv(c1, c), Conv(c1, c), Conv(2 * c, c2)
        self.m = nn.Sequential(*[self.part(c, shortcut) for _ in range(n)])

    def part(self, c, shortcut):
        return Bottleneck(c, c, shortcut, 1, 1.0)

    def forward(self, x):
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class C3x(C3):
    def part(self, c, shortcut):
        return CrossConv(c, c, 3, 1, 1, 1.0, shortcut)


class GhostConv(nn.Module):
    def __init__(self, c1, c2, k=1, s=1, act=None):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c2 // 2, k, s, act=act), Conv(c2 // 2, c2 // 2, 5, 1, None, c2 // 2, act)

    def forward(self, x):
        first = self.cv1(x)
        return torch.cat([first, self.cv2(first)], 1)


class GhostBottleneck(nn.Module):
    def __init__(self, c1, c2, k=3, s=1):
        super().__init__()
        plain = nn.Identity
        middle = DWConv(c2 // 2, c2 // 2, k, s, plain()) if s == 2 else plain()
        self.conv = nn.Sequential(GhostConv(c1, c2 // 2), middle, GhostConv(c2 // 2, c2, act=plain()))
        beside = nn.Sequential(DWConv(c1, c1, k, s, plain()), Conv(c1, c2, 1, 1, act=plain()))
        self.shortcut = beside if s == 2 else plain()

    def forward(self, x):
        return self.conv(x) + self.shortcut(x)


class C3Ghost(C3):
    def part(self, c, shortcut):
        return GhostBottleneck(c, c)


class TransformerLayer(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.q, self.k, self.v, self.fc1, self.fc2 = (nn.Linear(c, c, bias=False) for _ in range(5))
        self.ma = nn.MultiheadAttention(c, heads)

    def forward(self, x):
        x = self.ma(self.q(x), self.k(x), self.v(x))[0] + x
        return self.fc2(self.fc1(x)) + x


class TransformerBlock(nn.Module):
    def __init__(self, c, heads, layers):
        super().__init__()
        self.conv = None
        self.linear, self.c2 = nn.Linear(c, c), c
        self.tr = nn.Sequential(*[TransformerLayer(c, heads) for _ in range(layers)])

    def forward(self, x):
        points = x.flatten(2).permute(2, 0, 1)
        return self.tr(points + self.linear(points)).permute(1, 2, 0).reshape(x.shape)


class C3TR(C3):
    def __init__(self, c1, c2, n=1, shortcut=True):
        super().__init__(c1, c2, 1, shortcut)
        self.m = TransformerBlock(c2 // 2, 4, n)


class SPP(nn.Module):
    def __init__(self, c1, c2, k=(5, 9, 13)):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c1 // 2), Conv(c1 // 2 * (len(k) + 1), c2)
        self.m = nn.ModuleList([nn.MaxPool2d(kernel_size=each, stride=1, padding=each // 2) for each in k])

    def forward(self, x):
        x = self.cv1(x)
        return self.cv2(torch.cat([x] + [F.max_pool2d(x, m.kernel_size, 1, m.padding) for m in self.m], 1))


class SPPF(nn.Module):
    def __init__(self, c1, c2, k=5):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c1 // 2), Conv(c1 // 2 * 4, c2)
        self.m = nn.MaxPool2d(kernel_size=k, stride=1, padding=k // 2)

    def forward(self, x):
        x = self.cv1(x)
        sizes = [F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13)]  # what three times 5 comes to
        return self.cv2(torch.cat([x, *sizes], 1))


class C3SPP(C3):
    def __init__(self, c1, c2, k=(5, 9, 13)):
        super().__init__(c1, c2)
        self.m = SPP(c2 // 2, c2 // 2, k)


class Concat(nn.Module):
    def __init__(self, dimension=1):
        super().__init__()
        self.d = dimension

    def forward(self, x):
        return torch.cat(x, self.d)


class Contract(nn.Module):
    def __init__(self, gain=2):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        s = self.gain
        return torch.cat([x[:, :, i::s, j::s] for i in range(s) for j in range(s)], 1)


class Expand(nn.Module):
    def __init__(self, gain=2):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        b, c, h, w = x.shape
        s = self.gain
        y = x.new_zeros(b, c // s**2, h * s, w * s)
        for i in range(s):
            for j in range(s):
                start = (i * s + j) * (c // s**2)
                y[:, :, i::s, j::s] = x[:, start : start + c // s**2]
        return y


class Detect(nn.Module):
    def __init__(self, nc, anchors, widths, strides, grid_buffer=False):
        super().__init__()
        self.nc, self.no, self.nl, self.na = nc, nc + 5, len(anchors), len(anchors[0]) // 2
        self.grid = [torch.zeros(1)] * self.nl
        pixels = torch.tensor(anchors).float().view(self.nl, -1, 2)
        self.stride = torch.tensor(strides).float()
        self.register_buffer("anchors", pixels / self.stride.view(-1, 1, 1))
        if grid_buffer:
            self.register_buffer("anchor_grid", pixels.clone().view(self.nl, 1, -1, 1, 1, 2))
        self.m = nn.ModuleList(nn.Conv2d(width, self.no * self.na, 1) for width in widths)

    def forward(self, features):
        """Boxes and scores, one anchor of one cell after the other, and the raw outputs."""
        rows, raw = [], []
        for level, x in enumerate(features):
            b, _, h, w = x.shape
            out = self.m[level](x).view(b, self.na, self.no, h, w)
            raw.append(out.permute(0, 1, 3, 4, 2))
            for a in range(self.na):
                for i in range(h):
                    for j in range(w):
                        y = out[:, a, :, i, j].sigmoid()
                        s, anchor = self.stride[level], self.anchors[level, a] * self.stride[level]
                        centre = torch.stack([(2 * y[:, 0] - 0.5 + j) * s, (2 * y[:, 1] - 0.5 + i) * s], 1)
                        rows.append(torch.cat([centre, (2 * y[:, 2:4]) ** 2 * anchor, y[:, 4:5] * y[:, 5:]], 1))
        return torch.stack(rows, 2), raw


class Model(nn.Module):
    def __init__(self, layers, config, names, hyp):
        super().__init__()
        self.model = nn.Sequential(*[layer for layer, _ in layers])
        for number, (layer, source) in enumerate(layers):
            layer.i, layer.f, layer.type, layer.np = number, source, type(layer).__name__, 0
        self.yaml, self.names, self.inplace = config, names, True
        self.stride = layers[-1][0].stride
        self.nc = layers[-1][0].nc
        if hyp:
            self.hyp = hyp

    def forward(self, x):
        seen = []
        for layer in self.model:
            source = [layer.f] if isinstance(layer.f, int) else layer.f
            given = [(seen[-1] if seen else x) if each == -1 else seen[each] for each in source]
            seen.append(layer(given[0] if isinstance(layer.f, int) else given))
        return seen[-1]


class DetectionModel(Model):
    pass


class SegmentationModel(Model):
    pass


_YOLO = (Model, DetectionModel, SegmentationModel, Detect)
_COMMON = (
    Conv, DWConv, Focus, Bottleneck, CrossConv, BottleneckCSP, C3, C3x, C3TR, C3SPP, C3Ghost, TransformerBlock,
    TransformerLayer, GhostConv, GhostBottleneck, SPP, SPPF, Concat, Contract, Expand,
)  # fmt: skip


@contextlib.contextmanager
def repository():
    """The stand-ins under the names of the repository, for the length of a block."""
    homes = {"models": (), "models.yolo": _YOLO, "models.common": _COMMON}
    made = {name: types.ModuleType(name) for name in homes}
    for name, classes in homes.items():
        for each in classes:
            setattr(made[name], each.__name__, each)
            each.__module__ = name
    assert not set(made) & set(sys.modules)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, classes in homes.items():
            del sys.modules[name]
            for each in classes:
                each.__module__ = __name__


def network(version, nc):
    """Layers with where they read from, and the configuration that says the same. Widths are a quarter of its own."""
    anchors = [[5, 6, 8, 14, 16, 11], [10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 80, 40]]
    if version == "v5.0":
        backbone = [[-1, 1, "Focus", [32, 3]], [-1, 1, "Conv", [64, 3, 2]], [-1, 3, "C3", [64]]]
        backbone += [[-1, 1, "Conv", [128, 3, 2]], [-1, 1, "SPP", [128, [5, 9, 13]]], [-1, 3, "C3", [128, False]]]
        first = [(Focus(3, 8, 3), -1), (Conv(8, 16, 3, 2), -1), (C3(16, 16), -1)]
        first += [(Conv(16, 32, 3, 2), -1), (SPP(32, 32), -1), (C3(32, 32, 1, False), -1)]
    else:
        backbone = [[-1, 1, "Conv", [32, 6, 2, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 6, "C3", [64]]]
        backbone += [[-1, 1, "Conv", [128, 3, 2]], [-1, 3, "C3", [128]], [-1, 1, "SPPF", [128, 5]]]
        first = [(Conv(3, 8, 6, 2, 2), -1), (Conv(8, 16, 3, 2), -1), (C3(16, 16, 2), -1)]
        first += [(Conv(16, 32, 3, 2), -1), (C3(32, 32), -1), (SPPF(32, 32), -1)]
    up = [None, 2, "nearest"] if version == "v7.0" else ["None", 2, "nearest"]
    head = [[-1, 1, "Conv", [64, 1, 1]], [-1, 1, "nn.Upsample", up], [[-1, 2], 1, "Concat", [1]]]
    head += [[-1, 3, "C3", [64, False]], [-1, 1, "Conv", [64, 3, 2]], [[-1, 6], 1, "Concat", [1]]]
    head += [[-1, 3, "C3", [128, False]]]
    last = [(Conv(32, 16), -1), (nn.Upsample(None, 2, "nearest"), -1), (Concat(), [-1, 2])]
    last += [(C3(32, 16, 1, False), -1), (Conv(16, 16, 3, 2), -1), (Concat(), [-1, 6]), (C3(32, 32, 1, False), -1)]
    reads, widths, strides = [9, 12], [16, 32], [4, 8]
    if version == "P6":
        head += [[-1, 1, "Conv", [128, 3, 2]], [-1, 1, "Conv", [256, 3, 2]]]
        last += [(Conv(32, 32, 3, 2), -1), (Conv(32, 64, 3, 2), -1)]
        reads, widths, strides = [9, 12, 13, 14], [16, 32, 32, 64], [4, 8, 16, 32]
    anchors = anchors[: len(reads)]
    head += [[reads, 1, "Detect", ["nc", "anchors"]]]
    layers = [*first, *last, (Detect(nc, anchors, widths, strides, version == "v5.0"), reads)]
    return layers, {"nc": nc, "depth_multiple": 0.33, "width_multiple": 0.25, "anchors": anchors, "ch": 3,
                    "backbone": backbone, "head": head}  # fmt: skip


def one_block(name, block, arguments, width, stride=1):
    """A network of a convolution, one block and a head."""
    layers = [(Conv(3, 8, 3, 2), -1), (block, -1), (Detect(2, [[10, 13, 16, 30]], [width], [2 * stride]), [1])]
    backbone = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, name, arguments]]
    return layers, {"nc": 2, "anchors": [[10, 13, 16, 30]], "backbone": backbone,
                    "head": [[[1], 1, "Detect", ["nc", "anchors"]]]}  # fmt: skip


def stand_in(layers, config, names=None, hyp=None, kind=Model, seed=0):
    """A model of stand-ins with random weights, as it is after a training: its numbers are those that float16 has."""
    generator = torch.Generator().manual_seed(seed)
    model = kind(layers, config, names or [f"thing {i}" for i in range(config["nc"])], HYP if hyp is None else hyp)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.03
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    for parameter in model.parameters():
        start, spread = (1.0, 0.2) if parameter.ndim == 1 else (0.0, 1 / math.sqrt(parameter[0].numel()))
        parameter.data = start + torch.randn(parameter.shape, generator=generator) * spread
    for convolution in layers[-1][0].m:  # few objects
        convolution.bias.data -= 3
    return model.half().float().eval()


def write_classic(path, model, half=True, **entries):
    """Save a model of stand-ins as the repository does; its file and a copy of the model in float32."""
    stored = copy.deepcopy(model).half() if half else copy.deepcopy(model)
    contents = {"epoch": -1, "best_fitness": None, "model": stored, "ema": None, "updates": None, "optimizer": None}
    with repository():
        torch.save({**contents, **entries}, path)
    return path


def classic(path, version="v6.0", nc=3, **options):
    """Write the checkpoint of a version; the stand-in that is in it."""
    entries = {name: options.pop(name) for name in ("half", "opt", "ema", "date") if name in options}
    if version == "v7.0":
        options.setdefault("kind", DetectionModel)
        options.setdefault("names", {i: f"thing {i}" for i in range(nc)})
        entries.setdefault("opt", {"imgsz": 96, "weights": "", "single_cls": False})
    model = stand_in(*network(version, nc), **options)
    write_classic(path, model, **entries)
    return model


def load_as_the_repository_does(path):
    """The model that the repository would run, through its own classes (here the stand-ins)."""
    with repository():
        contents = torch.load(path, map_location="cpu", weights_only=False)
    return (contents.get("ema") or contents["model"]).float().eval()
