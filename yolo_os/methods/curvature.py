"""The curvature of the training loss in a prediction layer's outputs, and its sums over anchor points. No labels.

The loss is read to second order in the outputs z_ij = a_i . v_j + b_j (anchor point i, output j):

    rise  =  1/2 sum_ij h_ij (z'_ij - z_ij)^2,      h_ij = d^2 loss / d z_ij^2

For classes (BCE) and for the bins of box distances (DFL, a softmax cross entropy) h holds no label: it is the diagonal
of the Fisher information of the model's own prediction. For classes `rise` is to second order the divergence
KL(old || new) of the predictions, in units of the loss; for DFL it is that bin by bin, cross terms left out:

    class    h_ij = cls * p (1 - p)                  p = sigmoid(z_ij)
    DFL      h_ij = dfl / 4 * q (1 - q) * s_i        q = softmax over the bins of a side
    other    h_ij = gain * s_i / (n Var_s(z_j))      mask, keypoint, angle, direct boxes: a change of an output by one
                                                     standard deviation costs gain / 2, spread over the n outputs

each divided by the sum of s over all anchor points of the branch. s_i, the sum of class probabilities, stands for the
target score of the assigner: BCE trains it to be that in expectation. Both branches of an end-to-end head count the
same.

An anchor-based layer (role `joint`, YOLOv5 classic) holds box, objectness and classes of each of its anchors. Its loss
means objectness over all N anchors of a level, the others over the anchors of the level that learn an object. How
likely that is, the objectness q = sigmoid(z) is trained to say (its target is the IoU, 0 for background), so with S
the sum of q over the level, at least 1 a batch:

    objectness  h_ij = obj * balance * q (1 - q) / N       balance: the weight of the level
    class       h_ij = cls / classes * p (1 - p) * q / S   none for a single class, which has no class loss
    box         h_ij = box * 4 / (pi l) * (du_j/dz)^2 * q / S

The box loss, 1 - IoU, has a kink where the box fits and no second derivative there, but its mean over targets has one.
For a shift by a share t of the side, and a side that changes by the factor e^v, it is to first order the larger of
2 |t| and |v|, summed over both axes; u_j is that 2 t or v. With errors of the model that are normally distributed, of
one spread in all four u, and come to a mean box loss l, the second derivative of the mean is 4 / (pi l). As q learns
the IoU, l = 1 - sum q^2 / sum q.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from yolo_os.distributed import add_up, gather
from yolo_os.heads import PredictionLayer
from yolo_os.linalg import Shrinkage, centred
from yolo_os.statistics import Anchors, Gram, generator_for, sent_to

# Anchor points per image and level whose curvature is used: at most so many, and at most this share of them. Few of
# them hold an object, and the draw prefers those (docs/method.md).
ROWS, ROWS_SHARE = 64, 1 / 32
# Anchor points per image and level that enter the sums with equal weight, for the floor, the rank and the residual.
UNIFORM = 256
# The curvature that every anchor point has at least, as a share of the mean: keeps weights with next to no curvature,
# such as those that rank rare classes, from vanishing.
FLOOR = 0.01
# Of an anchor-based layer, the classes of an anchor share one sum above so many bytes of sums, its curvature then being
# their mean: n is 255 for COCO, and m goes to 1280.
SHARED_ABOVE = 2**29


class CurvatureGram:
    """Sums over anchor points of w [a; 1] [a; 1]^T: with w = h for each output, and with w = 1; in float64.

    Memory (n + 1) (m + 1)^2, for any number of images. Of each batch, some anchor points an image (ROWS) enter the
    weighted sums, drawn with inclusion probabilities that follow their share of the curvature and weighted by the
    inverse: unbiased, and the same whichever process sees the batch.

    Args:
        layer: whose features these are.
        gains: of the training loss, by name (see `loss.gains_of`).
        seed: of the anchor points drawn.

    Attributes:
        seen: anchor points seen.
        all: the plain Gram matrix, of at most UNIFORM anchor points an image, drawn evenly.
        presence: the sum of s over all anchor points that the layer's loss looks at: all levels of its branch.
        kinds: of each weighted sum, what its outputs are: those of one kind share a floor.
        groups: (n,), which of the weighted sums is that of each output; None: each has its own.
    """

    groups: Tensor | None = None

    def __init__(self, layer: PredictionLayer, gains: Mapping[str, float], seed: int) -> None:
        self.layer = layer
        self.all = Gram()
        self.seen = 0
        self.presence = torch.zeros((), dtype=torch.float64)
        self.kinds: tuple[str, ...] = (layer.role,) * layer.out_features
        self._gains = gains
        self._seed = seed
        self._weighted: Tensor | None = None  # (n, m + 1, m + 1), or (1, ...) where the outputs share w = s

    @property
    def count(self) -> int:
        """Rows of the plain Gram matrix."""
        return self.all.count

    def add(self, features: Tensor, outputs: Tensor, anchors: Anchors) -> None:
        """Take in one batch: features (B, m, P), outputs (B, n, P)."""
        images, _, points = features.shape
        self.seen += images * points
        generator = generator_for(torch.device("cpu"), self._seed, self.layer.name, anchors.batch)
        some = sent_to(torch.randperm(points, generator=generator)[:UNIFORM], features.device)
        self.all.add(features[:, :, some], outputs[:, :, some], anchors)
        presence, total = self._presence(outputs, anchors)
        rows_wanted = images * min(ROWS, max(4, round(ROWS_SHARE * points)))
        chance = _chances(self._share(outputs, anchors, presence).flatten(), rows_wanted)
        drawn = (sent_to(torch.rand(len(chance), generator=generator), chance.device) < chance).nonzero()[:, 0]
        image, point = torch.div(drawn, points, rounding_mode="floor"), drawn % points
        rows = features[image, :, point].float()
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)  # (k, m + 1)
        curvature = self._curvature(outputs[image, :, point].float(), presence[image, point].float())  # (k, n or 1)
        weights = (curvature / chance[drawn, None]).T
        where = "cpu" if rows.device.type == "mps" else rows.device  # MPS has no float64
        weighted = ((weights[:, :, None] * rows).mT @ rows).to(where)
        self._weighted = weighted.double() if self._weighted is None else self._weighted.add_(weighted)
        self.presence = self.presence.to(where) + total.to(where, torch.float64)

    def merge(self) -> None:
        """Add up the sums of all processes."""
        self.all.merge()
        self.seen = sum(gather(self.seen))
        self.presence = add_up(self.presence)
        if self._weighted is not None:
            self._weighted = add_up(self._weighted)

    def _presence(self, outputs: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """s of each anchor point, (B, P), and what is summed up of it over all that the layer's loss looks at."""
        images, _, points = outputs.shape
        presence, total = anchors.presence, anchors.branch_presence
        if presence is None or total is None or presence.shape != (images, points):
            presence = outputs.new_ones(images, points)
            total = presence.sum()
        return presence, total

    def _share(self, outputs: Tensor, anchors: Anchors, presence: Tensor) -> Tensor:
        """(B, P): what inclusion probabilities follow: the share of the curvature, or a cheap stand-in for it.

        Each class has an equal share, however rare; for the other layers curvature goes with presence.
        """
        p = anchors.probability
        if self.layer.role != "cls" or p is None or p.shape[::2] != presence.shape:
            return presence.float()
        curvature = p * (1 - p)
        mass = curvature.sum((0, 2)).clamp(min=torch.finfo(torch.float32).tiny)
        return torch.einsum("bnp,n->bp", curvature, 1 / mass)

    def _curvature(self, outputs: Tensor, presence: Tensor) -> Tensor:
        """h of k anchor points, up to factors known only at the end: (k, n), or (k, 1) where the outputs share it."""
        if self.layer.role == "cls":
            return self._gains["cls"] * bernoulli(outputs)
        if self.layer.bins:
            return self._gains["dfl"] / 4 * categorical(outputs, self.layer.bins) * presence[:, None]
        return presence[:, None]

    def moments(self) -> Tensor:
        """Sums of h [a; 1] [a; 1]^T in units of the loss, (n, m + 1, m + 1)."""
        assert self._weighted is not None
        moments = self._weighted / max(float(self.presence), torch.finfo(torch.float64).tiny)
        if self.layer.role == "cls" or self.layer.bins:
            return moments
        gain = self._gains["pose" if self.layer.role == "keypoint" else "box"] + self._gains.get("dfl", 0.0)
        gram, _ = centred(moments)
        weight = self.layer.matrix.to(gram)
        variance = (weight * (gram[0] @ weight)).sum(0) / moments[0, -1, -1].clamp(min=torch.finfo(gram.dtype).tiny)
        felt = variance > 1e-12 * variance.max()
        scale = torch.where(felt, gain / (len(felt) * variance.where(felt, torch.ones_like(variance))), 0.0)
        return moments * scale[:, None, None]

    @property
    def uniform(self) -> Tensor:
        """Sums of [a; 1] [a; 1]^T over all anchor points, (m + 1, m + 1), scaled up from those that were summed."""
        return self.all.moments * (self.seen / max(self.all.count, 1))

    def energy(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """The sum over all rows a of ||a @ weight + bias||^2."""
        return self.all.energy(weight, bias)


class JointGram(CurvatureGram):
    """The same of an anchor-based layer.

    `presence` holds S, the sum of q, and that of q^2.
    """

    def __init__(self, layer: PredictionLayer, gains: Mapping[str, float], seed: int) -> None:
        super().__init__(layer, gains, seed)
        assert layer.layout is not None
        self.presence = torch.zeros(2, dtype=torch.float64)
        self._layout = layer.layout
        anchors, classes = len(layer.layout.sizes), layer.layout.classes
        self._shared = layer.out_features * (layer.in_features + 1) ** 2 * 8 > SHARED_ABOVE
        each = ("box",) * 4 + ("obj",) + ("cls",) * (1 if self._shared else classes)
        self.kinds = each * anchors
        if self._shared:
            own = torch.cat([torch.arange(5), torch.full((classes,), 5)])
            self.groups = (own + len(each) * torch.arange(anchors)[:, None]).flatten().to(layer.module.weight.device)

    def _presence(self, outputs: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """The sum of q over the anchors of a point."""
        q = self._objectness(outputs)
        return q.sum(1), torch.stack([q.sum().clamp(min=1), q.square().sum()])

    def _share(self, outputs: Tensor, anchors: Anchors, presence: Tensor) -> Tensor:
        """Half of it goes with the curvature of the objectness, half with q, which the others have in common."""
        q = self._objectness(outputs)
        parts = [(q * (1 - q)).sum(1), presence]
        tiny = torch.finfo(torch.float32).tiny
        return torch.stack([part / part.sum().clamp(min=tiny) for part in parts]).sum(0)

    def _objectness(self, outputs: Tensor) -> Tensor:
        """q, (B, anchors, P)."""
        return self._layout.by_anchor(outputs)[:, :, 4].float().sigmoid()

    def _curvature(self, outputs: Tensor, presence: Tensor) -> Tensor:
        """Those of one anchor after the other, as the outputs are; what is divided by comes at the end."""
        sizes = torch.tensor(self._layout.sizes, device=outputs.device)
        y = outputs.view(len(outputs), len(sizes), -1)  # (k, anchors, 5 + classes)
        q = y[..., 4:5].sigmoid()
        classes = self._gains["cls"] / self._layout.classes * bernoulli(y[..., 5:]) * q
        if self._layout.classes == 1:
            classes = torch.zeros_like(classes)
        if self._shared:
            classes = classes.mean(2, keepdim=True)
        box = self._gains["box"] * boxes_felt(y[..., :4], sizes).square() * q
        objectness = self._gains["obj"] * self._layout.balance / len(sizes) * q * (1 - q)
        return torch.cat([box, objectness, classes], 2).flatten(1)

    def moments(self) -> Tensor:
        """Sums of h [a; 1] [a; 1]^T in units of the loss, one for each of `kinds`."""
        assert self._weighted is not None
        learnt, squares = (float(each) for each in self.presence)
        loss = min(max(1 - squares / learnt, 0.01), 1.0)
        scale = {"box": 4 / (math.pi * loss) / learnt, "obj": 1 / self.seen, "cls": 1 / learnt}
        return self._weighted * self._weighted.new_tensor([scale[kind] for kind in self.kinds])[:, None, None]


def curvature_gram(layer: PredictionLayer, gains: Mapping[str, float], seed: int) -> CurvatureGram:
    """The collector of a layer's role."""
    return (CurvatureGram if layer.layout is None else JointGram)(layer, gains, seed)


def shrinkages(grams: Sequence[CurvatureGram]) -> dict[str, Shrinkage]:
    """The layers ready to be shrunk, by name: curvatures in units of the loss, floor included.

    Raises:
        ValueError: if features or weights hold NaN or infinity.
    """
    moments = {gram.layer.name: gram.moments() for gram in grams}
    mass: dict[str, float] = {}
    points: dict[str, int] = {}
    for gram in grams:
        for kind, each in zip(gram.kinds, moments[gram.layer.name][:, -1, -1].tolist()):
            mass[kind] = mass.get(kind, 0.0) + each
            points[kind] = points.get(kind, 0) + gram.seen
    ready = {}
    for gram in grams:
        sums = moments.pop(gram.layer.name)
        floor = sums.new_tensor([FLOOR * mass[kind] / points[kind] for kind in gram.kinds])
        sums += floor[:, None, None] * gram.uniform
        ready[gram.layer.name] = Shrinkage.from_moments(sums, gram.layer.matrix, gram.groups)
    return ready


def bernoulli(logits: Tensor) -> Tensor:
    """p (1 - p), the second derivative of binary cross entropy in its logit."""
    p = logits.sigmoid()
    return p * (1 - p)


def categorical(logits: Tensor, bins: int) -> Tensor:
    """q (1 - q), the second derivative of softmax cross entropy in each logit: (k, 4 bins), a softmax a side."""
    q = logits.reshape(len(logits), 4, bins).softmax(2)
    return (q * (1 - q)).flatten(1)


def boxes_felt(logits: Tensor, sizes: Tensor) -> Tensor:
    """How far 1 - IoU of a box that fits goes for a small step of each of x, y, w, h: (k, anchors, 4).

    The box of an anchor: its centre 2 sigmoid(z) cells from that of the cell's corner, its side (2 sigmoid(z))^2 times
    the anchor's.
    """
    y = logits.sigmoid()
    centre, side = y[..., :2], y[..., 2:]
    shares = 2 * centre * (1 - centre) / ((2 * side).square() * sizes).clamp(min=1e-3)
    return torch.cat([2 * shares, 2 * (1 - side)], -1)


def _chances(share: Tensor, rows: int) -> Tensor:
    """Inclusion probabilities, (P,), proportional to the share: `rows` in expectation, none above 1."""
    chance = torch.zeros_like(share)
    for _ in range(4):  # what exceeds 1 is cut and given to the others; the host does not wait
        free = chance < 1
        left = (rows - (~free).sum()).clamp(min=0)
        raised = share * (left / share.where(free, torch.zeros_like(share)).sum().clamp(min=1e-30))
        chance = torch.where(free, raised, chance).clamp(max=1)
    return chance
