"""Find the prediction layers of a YOLO head: the last linear layers, which the shift acts on.

Heads are known by their attributes, not by their classes, so nothing of Ultralytics is imported. Scanning for "all
1x1 convolutions" would be wrong: most of those feed a BatchNorm, and equal norm is then not equal function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from yolo_os.errors import UserError

SUPPORTED = (
    "Detect, Segment, Pose and OBB heads of YOLOv3u to YOLO26 (also end-to-end ones), RT-DETR, YOLO-World and YOLOE "
    "(without their embedding layers), and anchor-based YOLOv5"
)

_EMBEDDING = (
    "its outputs are embeddings that a contrastive head normalises and compares with text: outputs equal up to the "
    "least norm are not equal class scores"
)

# Gains of the training losses where a model's args do not say: Ultralytics' defaults, and RT-DETR's own, which its
# criterion does not take from the args.
GAINS = {"cls": 0.5, "dfl": 1.5, "box": 7.5, "pose": 12.0}
RTDETR_GAINS = {"cls": 1.0, "box": 5.0}
ANCHOR_GAINS = {"box": 0.05, "obj": 1.0, "cls": 0.5}

_COMPUTED = (
    "its weight is computed from other tensors (pruning masks, weight_norm, a parametrization), so what is written "
    "into it would spring back: make it permanent first (torch.nn.utils.prune.remove, remove_parametrizations)"
)


@dataclass(frozen=True)
class AnchorLayout:
    """How the outputs of an anchor-based layer are read: of each anchor x, y, w, h, objectness and a logit per class.

    Attributes:
        sizes: (width, height) of each anchor, in units of the level's stride.
        classes: how many.
        balance: the weight of the level in the objectness loss.
    """

    sizes: tuple[tuple[float, float], ...]
    classes: int
    balance: float

    def by_anchor(self, outputs: Tensor) -> Tensor:
        """Outputs (B, n, P) as (B, anchors, 5 + classes, P), without a copy."""
        images, _, points = outputs.shape
        return outputs.view(images, len(self.sizes), 5 + self.classes, points)

    def best_logit(self, outputs: Tensor) -> Tensor:
        """(B, 1, P): the largest of objectness times class probability at each point, as a logit."""
        split = self.by_anchor(outputs)
        objectness, best = split[:, :, 4].float(), split[:, :, 5:].amax(2).float()
        log_score = (logsigmoid(objectness) + logsigmoid(best)).amax(1, keepdim=True).clamp(max=-1e-7)
        return log_score - (-log_score.expm1()).log()


@dataclass(frozen=True, eq=False)
class PredictionLayer:
    """One last linear layer of a head, read as A V = Z with one row of A per anchor point.

    Attributes:
        name: within the head, such as `cv3.0` or `one2one_cv2.1`.
        role: `box`, `cls`, `mask`, `keypoint`, `angle`, or `joint` (anchor-based YOLOv5, all in one layer).
        module: the 1x1 `nn.Conv2d` or `nn.Linear`.
        level: index of the feature map it reads (of the decoder layer, for RT-DETR).
        stride: input pixels per anchor point; None where points are queries.
        group: layers of one group read the same anchor points, so they share scores and labels.
        bins: of each box side, whose distance is the mean of a softmax over them (DFL); 0 for a layer without.
        refused: why it can't be shifted; None for a layer that can.
        layout: of a `joint` layer, which outputs are what; None for another.
    """

    name: str
    role: str
    module: nn.Conv2d | nn.Linear
    level: int
    stride: float | None
    group: str
    bins: int = 0
    refused: str | None = None
    layout: AnchorLayout | None = None

    @property
    def in_features(self) -> int:
        """m, the length of a row of A."""
        return int(self.module.weight.shape[1])

    @property
    def out_features(self) -> int:
        """n, the outputs per anchor point."""
        return int(self.module.weight.shape[0])

    @property
    def matrix(self) -> Tensor:
        """V, (m, n): a view of the module's weight."""
        return self.module.weight.detach().flatten(1).T

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name: `cv3.0.weight` and, where there is one, `cv3.0.bias`."""
        named = {f"{self.name}.weight": self.module.weight, f"{self.name}.bias": self.module.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def values(self, weight: Tensor, bias_change: Tensor | None = None) -> dict[str, Tensor]:
        """V, (m, n), and what is added to the bias, (n,), as values of `tensors`; no change: the bias is left out."""
        bias = self.module.bias
        values = {f"{self.name}.weight": weight.T.reshape(self.module.weight.shape)}
        if bias is not None and bias_change is not None:
            values[f"{self.name}.bias"] = bias.detach() + bias_change.to(bias)
        return values


@dataclass(frozen=True)
class Head:
    """What was found in a model.

    Attributes:
        kind: class name of the head, such as `Detect`.
        layers: the layers that can be shifted.
        refused: prediction layers that can't, each with its reason.
        scorers: by group, the module whose output, squashed by a sigmoid, is the class probability of each anchor
            point; of a `joint` layer as its layout reads it (see `class_logits`).
        branches: the branches of the head in the order in which a training loss runs over them, each with its groups
            from the first level to the last; empty where every group has a loss of its own (a transformer's queries).
        gains: of the training loss, by name, where the model's args do not say.
        gains_in_args: whether the training loss takes its gains from the model's args.
    """

    kind: str
    layers: tuple[PredictionLayer, ...]
    refused: tuple[PredictionLayer, ...] = ()
    scorers: Mapping[str, nn.Module] = field(default_factory=dict)
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=lambda: GAINS)
    gains_in_args: bool = True

    def class_logits(self, group: str, outputs: Tensor) -> Tensor:
        """The class logits of the anchor points of a group, from the outputs of its scorer: (B, classes, P).

        Of a `joint` layer that of the best class alone, (B, 1, P).
        """
        layouts = {layer.group: layer.layout for layer in self.layers if layer.layout is not None}
        return layouts[group].best_logit(outputs) if group in layouts else outputs


def prediction_layers(model: Any) -> list[PredictionLayer]:
    """The layers of a model that can be shifted, in the order of the head.

    Args:
        model: an Ultralytics `YOLO` or `RTDETR`, its `DetectionModel` (fused or not), or one of these wrapped by
            `DistributedDataParallel`, `DataParallel` or `torch.compile`.

    Raises:
        UserError: if the model has no head that can be shifted; names the head and what is supported.
    """
    return list(find_head(model).layers)


def find_head(model: Any) -> Head:
    """The head of a model with its prediction layers, those refused, and its scorers; see `prediction_layers`."""
    head = last_module(unwrap(model))
    kind = type(head).__name__
    if hasattr(head, "dec_score_head"):
        found = _rtdetr(head, kind)
    elif hasattr(head, "cv2") and hasattr(head, "cv3"):
        found = _anchor_free(head, kind)
    elif all(hasattr(head, name) for name in ("m", "na", "nc", "anchors")):
        found = _anchor_based(head, kind)
    else:
        raise UserError(f"a {kind} head has no prediction layers that can be shifted; supported: {SUPPORTED}")
    if not found.layers:
        raise UserError(
            f"no layer of this {kind} head can be shifted: "
            f"{found.refused[0].refused if found.refused else 'it is empty'}"
        )
    return found


def last_module(bare: nn.Module) -> nn.Module:
    """The head of a bare model (see `unwrap`)."""
    sequence: Any = bare.model
    head: nn.Module = sequence[-1]
    return head


def unwrap(model: Any) -> nn.Module:
    """The bare model, whose `.model` is a Sequential that ends in the head, from any wrapping of it.

    Raises:
        UserError: if there is none inside.
    """
    inner = model
    while True:
        if isinstance(
            getattr(inner, "_orig_mod", None), nn.Module
        ):  # first: a compiled model shows its inside's `model`
            inner = inner._orig_mod
        elif isinstance(inner, nn.Module) and isinstance(getattr(inner, "model", None), nn.Sequential):
            return inner
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        elif isinstance(getattr(inner, "model", None), nn.Module):
            inner = inner.model
        else:
            raise UserError(
                f"{type(model).__name__} is no Ultralytics model: "
                "pass a YOLO, RTDETR or DetectionModel made from PyTorch weights"
            )


def _anchor_free(head: Any, kind: str) -> Head:
    roles = {
        "cv2": "box",
        "cv3": "cls",
        "cv4": _role_of_cv4(head),
        "cv4_kpts": "keypoint",
        "cv4_sigma": "keypoint",
        "cv5": "mask",
    }
    layers: list[PredictionLayer] = []
    scorers: dict[str, nn.Module] = {}
    branches: dict[str, tuple[str, ...]] = {}
    bins = head.reg_max if getattr(head, "reg_max", 1) > 1 else 0
    for branch in ("", "one2one_"):
        if getattr(head, f"{branch}cv2", None) is None:  # no such branch, or removed by fusing
            continue
        contrastive = _contrastive(getattr(head, f"{branch}cv4", None))
        for attribute, role in roles.items():
            towers = getattr(head, branch + attribute, None)
            if role is None or towers is None or (attribute == "cv4" and contrastive):
                continue
            for level, tower in enumerate(towers):
                layer = _layer(
                    f"{branch}{attribute}.{level}", role, tower, level, _stride(head, level), f"{branch}{level}"
                )
                if layer is None:
                    continue
                if role == "box":
                    layer = replace(layer, bins=bins)
                embeds = role == "cls" and (contrastive or hasattr(head, "lrpc"))
                layers.append(layer if not embeds else replace(layer, refused=_EMBEDDING))
                if role == "cls":
                    scorers[layer.group] = getattr(head, f"{branch}cv4")[level] if contrastive else layer.module
                    branches[branch] = (*branches.get(branch, ()), layer.group)
    return Head(kind, *_split(layers), scorers, branches)


def _role_of_cv4(head: Any) -> str | None:
    """`cv4` means another thing in each head: told apart by what only that head has."""
    if hasattr(head, "kpt_shape"):
        return "keypoint"
    if hasattr(head, "ne"):
        return "angle"
    return "mask" if hasattr(head, "nm") and not hasattr(head, "cv5") else None


def _contrastive(towers: Iterable[nn.Module] | None) -> bool:
    """Whether `cv4` compares with text; its scale goes when a YOLOE's text is fused into cv3, which is then linear."""
    return towers is not None and any(hasattr(tower, "logit_scale") for tower in towers)


def _stride(head: Any, level: int) -> float | None:
    stride = getattr(head, "stride", None)
    return float(stride[level]) if isinstance(stride, Tensor) and len(stride) > level else None


def _rtdetr(head: Any, kind: str) -> Head:
    decoder = enumerate(zip(head.dec_score_head, head.dec_bbox_head))
    candidates = [
        _layer("enc_score_head", "cls", head.enc_score_head, 0, None, "encoder"),
        _layer("enc_bbox_head", "box", head.enc_bbox_head, 0, None, "queries"),
    ]
    for level, (score, box) in decoder:
        candidates.append(_layer(f"dec_score_head.{level}", "cls", score, level, None, "queries"))
        candidates.append(_layer(f"dec_bbox_head.{level}", "box", box, level, None, "queries"))
    layers, refused = _split(candidates)
    # In eval mode only one decoder layer is scored, and a query keeps its index through all of them.
    scored = head.decoder.eval_idx
    scorers: dict[str, nn.Module] = {"encoder": head.enc_score_head, "queries": head.dec_score_head[scored]}
    return Head(kind, layers, refused, scorers, gains=RTDETR_GAINS, gains_in_args=False)


def _anchor_based(head: Any, kind: str) -> Head:
    found = []
    for level, (convolution, anchors) in enumerate(zip(head.m, head.anchors.tolist())):
        layout = AnchorLayout(tuple(map(tuple, anchors)), head.nc, balance_of(len(head.m))[level])
        layer = _layer(f"m.{level}", "joint", convolution, level, _stride(head, level), str(level))
        found.append(layer and replace(layer, layout=layout))
    layers, refused = _split(found)
    return Head(kind, layers, refused, {layer.group: layer.module for layer in layers}, gains=ANCHOR_GAINS)


def balance_of(levels: int) -> tuple[float, ...]:
    """The weights of the levels of an anchor-based head in its objectness loss, from the finest to the coarsest."""
    if levels == 3:
        return 4.0, 1.0, 0.4
    return (4.0, 1.0, 0.25, 0.06, *[0.02] * levels)[:levels]


def _split(
    layers: Iterable[PredictionLayer | None],
) -> tuple[tuple[PredictionLayer, ...], tuple[PredictionLayer, ...]]:
    """Those that can be shifted, and those that are refused."""
    found = [layer for layer in layers if layer is not None]
    return tuple(each for each in found if each.refused is None), tuple(each for each in found if each.refused)


def _layer(name: str, role: str, tower: Any, level: int, stride: float | None, group: str) -> PredictionLayer | None:
    """The layer at the end of a tower; None for a tower that ends in no linear layer (Pose26's `cv4`)."""
    last = tower.layers[-1] if hasattr(tower, "layers") else tower  # RT-DETR's MLP
    last = last[-1] if isinstance(last, nn.Sequential) else last
    if not isinstance(last, nn.Linear | nn.Conv2d):
        return None
    layer = PredictionLayer(name, role, last, level, stride, group)
    if not {"weight", "bias"} <= set(last._parameters):
        return replace(layer, refused=_COMPUTED)
    if isinstance(last, nn.Conv2d) and (last.kernel_size != (1, 1) or last.groups != 1):
        what = f"kernel {last.kernel_size}, {last.groups} groups"
        return replace(layer, refused=f"not a plain 1x1 convolution ({what})")
    return layer
