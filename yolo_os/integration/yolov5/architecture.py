"""Build a classic YOLOv5 from the configuration in its file, and fill it with the tensors of the file.

Nothing of the file is run: names of blocks are looked up in a table of ours, texts among their arguments are read by a
few fixed rules. What the file says of its own modules (kernels, strides, shortcuts, activations) is then compared with
what was built: a file whose computation differs from its configuration is refused rather than misread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from yolo_os.errors import UserError
from yolo_os.integration.unpickle import Recorded
from yolo_os.integration.yolov5 import layers
from yolo_os.integration.yolov5.model import AnchorDetect, ClassicYOLOv5
from yolo_os.integration.yolov5.recorded import children, tensors

# Blocks by the name that configurations have for them. Of the first kind, the first argument is a width, which the
# configuration's multiple scales; of the second, a number of repeats goes into the block itself.
_WIDE: dict[str, type[nn.Module]] = {
    "Conv": layers.Conv,
    "DWConv": layers.DWConv,
    "GhostConv": layers.GhostConv,
    "Bottleneck": layers.Bottleneck,
    "GhostBottleneck": layers.GhostBottleneck,
    "SPP": layers.SPP,
    "SPPF": layers.SPPF,
    "Focus": layers.Focus,
    "CrossConv": layers.CrossConv,
    "C3SPP": layers.C3SPP,
    "nn.ConvTranspose2d": nn.ConvTranspose2d,
}
_REPEATING: dict[str, type[nn.Module]] = {
    "BottleneckCSP": layers.BottleneckCSP,
    "C3": layers.C3,
    "C3x": layers.C3x,
    "C3TR": layers.C3TR,
    "C3Ghost": layers.C3Ghost,
}
_OTHERS: dict[str, type[nn.Module]] = {
    "Concat": layers.Concat,
    "Contract": layers.Contract,
    "Expand": layers.Expand,
    "nn.BatchNorm2d": nn.BatchNorm2d,
    "nn.Upsample": nn.Upsample,
    "nn.MaxPool2d": nn.MaxPool2d,
    "nn.AvgPool2d": nn.AvgPool2d,
    "nn.ZeroPad2d": nn.ZeroPad2d,
    "nn.Identity": nn.Identity,
}
BLOCKS = _WIDE | _REPEATING | _OTHERS
_CONSTANTS = {"None": None, "True": True, "False": False}
_ACTIVATIONS = ("SiLU", "Hardswish", "LeakyReLU", "ReLU", "ReLU6", "ELU", "GELU", "Mish", "Sigmoid", "Identity")
# Attributes that say what a module computes, compared between the file and what was built.
_SETTINGS = (
    "kernel_size", "stride", "padding", "dilation", "groups", "transposed", "output_padding", "padding_mode",
    "ceil_mode", "scale_factor", "size", "mode", "add", "d", "gain", "num_heads", "num_features",
)  # fmt: skip
_SAME = {"SyncBatchNorm": "BatchNorm2d", "NonDynamicallyQuantizableLinear": "Linear", "Detect": "AnchorDetect"}
_MOST_LAYERS, _MOST_REPEATS = 1000, 100


def build(recorded: Recorded) -> ClassicYOLOv5:
    """The model that a file describes, in float32 and eval mode, with the file's weights.

    Raises:
        UserError: for a configuration that is no detector, or blocks, settings or tensors that do not fit it.
    """
    config = _config(recorded)
    described = list(_layers_of(recorded))
    head = described[-1].state
    classes = _whole(head.get("nc"), "number of classes")
    with torch.device("meta"):  # nothing is allocated before the file is known to hold tensors of these shapes
        network = _network(config, classes)
    model = ClassicYOLOv5(network, config, _names(recorded, classes))
    _compare(network, children(recorded)["model"], "model")
    _load(model, recorded)
    stride = head.get("stride", recorded.state.get("stride"))
    last: Any = network[-1]
    if not isinstance(stride, torch.Tensor) or tuple(stride.shape) != (last.nl,) or not _are_strides(stride):
        raise UserError("its head has no strides, or they are damaged")
    last.stride = stride.float()
    model.float().eval()
    return model


def _are_strides(stride: torch.Tensor) -> bool:
    return bool(((stride >= 1) & (stride <= 4096)).all())


def _config(recorded: Recorded) -> dict[str, Any]:
    config = recorded.state.get("yaml")
    if not isinstance(config, dict):
        raise UserError(f"its {recorded.kind} holds no configuration to build it from")
    for part in ("backbone", "head"):
        if not isinstance(config.get(part), list):
            raise UserError(f"its configuration has no {part}")
    return config


def _layers_of(recorded: Recorded) -> Sequence[Recorded]:
    sequence = children(recorded).get("model")
    found = list(children(sequence).values()) if sequence else []
    if not found or found[-1].kind != "Detect":
        what = f"its last layer is a {found[-1].kind}" if found else "it has no layers"
        raise UserError(f"{what}, not the Detect of a YOLOv5 detector: segmentation and classification are not read")
    return found


def _names(recorded: Recorded, classes: int) -> list[str]:
    names = recorded.state.get("names") or [str(number) for number in range(classes)]
    if isinstance(names, dict):
        names = [names.get(number) for number in range(len(names))]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError("its class names are damaged")
    if len(names) != classes:
        raise UserError(f"it has {len(names)} class names and outputs for {classes} classes")
    return list(names)


def _network(config: Mapping[str, Any], classes: int) -> nn.Sequential:
    """The layers of a configuration."""
    anchors = config.get("anchors")
    per_level = len(anchors[0]) // 2 if isinstance(anchors, list) else _whole(anchors, "number of anchors")
    outputs = per_level * (classes + 5)
    widths: list[int] = []
    built: list[nn.Module] = []
    entries = [*config["backbone"], *config["head"]]
    if len(entries) > _MOST_LAYERS:
        raise UserError(f"its configuration has {len(entries)} layers")
    for number, entry in enumerate(entries):
        where = f"layer {number} of its configuration"
        if not (isinstance(entry, list) and len(entry) == 4 and isinstance(entry[3], list)):
            raise UserError(f"{where} is no list of source, repeats, block and arguments")
        source, repeats, name, arguments = entry
        sources = source if isinstance(source, list) else [source]
        inputs = [_width_of(each, widths, config, where) for each in sources]
        repeats = _repeats(_whole(repeats, f"number of repeats in {where}"), config)
        if name == "Detect":
            if number != len(entries) - 1:
                raise UserError(f"{where} is a head, but not the last")
            layer: nn.Module = AnchorDetect(classes, per_level, inputs)
            width = outputs
        else:
            given = [_argument(each) for each in arguments]
            layer, width = _layer(name, given, inputs, repeats, outputs, config, where)
        untyped: Any = layer
        untyped.f, untyped.i = source, number
        built.append(layer)
        widths.append(width)
    return nn.Sequential(*built)


def _layer(
    name: Any, given: list[Any], inputs: list[int], repeats: int, outputs: int, config: Mapping[str, Any], where: str
) -> tuple[nn.Module, int]:
    """One block, or several of it in a row, and its width."""
    if not isinstance(name, str) or name not in BLOCKS:
        raise UserError(f"{where} is a {name}: this version builds {', '.join(BLOCKS)}")
    width = inputs[0]
    try:
        if name in _WIDE or name in _REPEATING:
            width = given[0]
            if width != outputs:
                width = math.ceil(width * float(config.get("width_multiple", 1.0)) / 8) * 8
            given = [inputs[0], width, *given[1:]]
            if name in _REPEATING:
                given.insert(2, repeats)
                repeats = 1
        elif name == "nn.BatchNorm2d":
            given = [width]
        elif name == "Concat":
            width = sum(inputs)
        elif name == "Contract":
            width = width * given[0] ** 2
        elif name == "Expand":
            width = width // given[0] ** 2
        made = [BLOCKS[name](*given) for _ in range(repeats)]
    except (TypeError, ValueError, IndexError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{where}, a {name}, can't be built ({' '.join(str(error).split())})") from None
    return (made[0] if repeats == 1 else nn.Sequential(*made)), width


def _width_of(source: Any, widths: list[int], config: Mapping[str, Any], where: str) -> int:
    """The channels of what a layer reads; before the first there is the image."""
    if not widths and source == -1:
        return _whole(config.get("ch", 3), "number of channels")
    if not isinstance(source, int) or not -len(widths) <= source < len(widths):
        raise UserError(f"{where} reads from {source}, which is no layer before it")
    return widths[source]


def _repeats(number: int, config: Mapping[str, Any]) -> int:
    repeats = max(round(number * float(config.get("depth_multiple", 1.0))), 1) if number > 1 else number
    if not 1 <= repeats <= _MOST_REPEATS:
        raise UserError(f"its configuration repeats a block {repeats} times")
    return repeats


def _argument(given: Any) -> Any:
    """An argument of a block; texts stand for constants, or for themselves."""
    if isinstance(given, str):
        return _CONSTANTS.get(given, given.strip("'\""))
    return tuple(map(_argument, given)) if isinstance(given, list) else given


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 100_000:
        raise UserError(f"the {what} is {value!r}")
    return value


def _compare(ours: nn.Module, theirs: Recorded, name: str) -> None:
    """Refuse a module that the file computes otherwise; what has no weight, and constants, are taken from the file."""
    kinds = {_SAME.get(kind, kind) for kind in (theirs.kind, type(ours).__name__)}
    if len(kinds) > 1:
        raise UserError(f"{name} is a {theirs.kind}, and by its configuration a {type(ours).__name__}")
    for setting in _SETTINGS:
        if setting in theirs.state and setting in vars(ours):
            mine, its = vars(ours)[setting], theirs.state[setting]
            if isinstance(its, int | float | str | tuple | bool | None) and mine != its:
                raise UserError(f"the {setting} of {name} is {its}, and by its configuration {mine}")
    if isinstance(ours, nn.BatchNorm2d):
        ours.eps, ours.momentum = float(theirs.state["eps"]), float(theirs.state["momentum"])
    outside = children(theirs)
    inside: dict[str, nn.Module] = dict(ours.named_children())
    for child in sorted(set(inside) | set(outside)):
        full = f"{name}.{child}"
        if child not in outside or child not in inside:
            missing, had = ("file", "configuration") if child in inside else ("configuration", "file")
            fused = ": it was fused, take the unfused file" if child == "bn" else ""
            raise UserError(f"its {had} has a module {full} and its {missing} has none{fused}")
        if child == "act":
            setattr(ours, child, _activation(outside[child], full))
        else:
            _compare(inside[child], outside[child], full)


def _activation(theirs: Recorded, name: str) -> nn.Module:
    if theirs.kind not in _ACTIVATIONS:
        raise UserError(f"{name} is a {theirs.kind}: of activations this version knows {', '.join(_ACTIVATIONS)}")
    made: nn.Module = getattr(nn, theirs.kind)()
    for setting in ("negative_slope", "alpha", "approximate"):
        if setting in vars(made) and isinstance(theirs.state.get(setting), int | float | str):
            setattr(made, setting, theirs.state[setting])
    return made


def _load(model: ClassicYOLOv5, recorded: Recorded) -> None:
    """Put the file's tensors into the model, all of them and no others."""
    wanted = model.state_dict()
    stored = {name: each for name, each in tensors(recorded).items() if not name.endswith(".anchor_grid")}
    for name in sorted(set(wanted) | set(stored)):
        if name not in stored or name not in wanted:
            raise UserError(f"its tensor {name} is {'missing' if name in wanted else 'not in its configuration'}")
        if wanted[name].shape != stored[name].shape:
            raise UserError(
                f"its tensor {name} has the shape {tuple(stored[name].shape)}, and by its configuration "
                f"{tuple(wanted[name].shape)} (a pruned model?)"
            )
        if wanted[name].is_floating_point() != stored[name].is_floating_point():
            raise UserError(f"its tensor {name} has numbers of the kind {stored[name].dtype}")
    single = {name: each.float() if each.is_floating_point() else each for name, each in stored.items()}
    model.load_state_dict({name: each.clone() for name, each in single.items()}, assign=True)
