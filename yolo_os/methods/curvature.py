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
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from yolo_os.distributed import add_up, gather
from yolo_os.heads import PredictionLayer
from yolo_os.linalg import Shrinkage, centred
from yolo_os.statistics import Anchors, Gram, generator_for

# Anchor points per image and level whose curvature is used: at most so many, and at most this share of them. Few of
# them hold an object, and the draw goes by that, so more change nothing that can be measured (docs/results.md).
ROWS, ROWS_SHARE = 64, 1 / 32
# Anchor points per image and level that enter the sums with equal weight, for the floor, the rank and the residual.
UNIFORM = 256
# The curvature that every anchor point has at least, as a share of the mean: keeps what the loss hardly feels today,
# such as the ranking of rare classes, from going altogether.
FLOOR = 0.01


class CurvatureGram:
    """Sums over anchor points of w [a; 1] [a; 1]^T: with w = h for each output, and with w = 1; in float64.

    Memory (n + 1) (m + 1)^2, for any number of images. Of each batch, some anchor points an image (ROWS) enter the
    weighted sums, drawn with chances that follow their share of the curvature and weighted by 1 / chance: unbiased,
    and the same whichever process sees the batch.

    Args:
        layer: whose features these are.
        gains: of the training loss, by name (see `loss.gains_of`).
        seed: of the anchor points drawn.

    Attributes:
        seen: anchor points seen.
        all: the plain Gram matrix, of at most UNIFORM anchor points an image, drawn evenly.
        presence: the sum of s over all anchor points that the layer's loss looks at: all levels of its branch.
    """

    def __init__(self, layer: PredictionLayer, gains: Mapping[str, float], seed: int) -> None:
        self.layer = layer
        self.all = Gram()
        self.seen = 0
        self.presence = torch.zeros((), dtype=torch.float64)
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
        generator = generator_for(features.device, self._seed, self.layer.name, anchors.batch)
        some = torch.randperm(points, generator=generator, device=features.device)[:UNIFORM]
        self.all.add(features[:, :, some], outputs[:, :, some], anchors)
        presence, total = anchors.presence, anchors.branch_presence
        if presence is None or total is None or presence.shape != (images, points):
            presence = features.new_ones(images, points)
            total = presence.sum()
        rows_wanted = images * min(ROWS, max(4, round(ROWS_SHARE * points)))
        chance = _chances(self._share(anchors, presence).flatten(), rows_wanted)
        drawn = (torch.rand(len(chance), generator=generator, device=features.device) < chance).nonzero()[:, 0]
        image, point = torch.div(drawn, points, rounding_mode="floor"), drawn % points
        rows = features[image, :, point].float()
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)  # (k, m + 1)
        curvature = self._curvature(outputs[image, :, point].float(), presence[image, point].float())  # (k, n or 1)
        weights = (curvature / chance[drawn, None]).T
        where = "cpu" if rows.device.type == "mps" else rows.device  # MPS has no float64
        weighted = ((weights[:, :, None] * rows).mT @ rows).to(where, torch.float64)
        self._weighted = weighted if self._weighted is None else self._weighted + weighted
        self.presence = self.presence.to(where) + total.to(where, torch.float64)

    def merge(self) -> None:
        """Add up the sums of all processes."""
        self.all.merge()
        self.seen = sum(gather(self.seen))
        self.presence = add_up(self.presence)
        if self._weighted is not None:
            self._weighted = add_up(self._weighted)

    def _share(self, anchors: Anchors, presence: Tensor) -> Tensor:
        """(B, P): what the chance of an anchor point follows, its share of the curvature or a near cheap thing to it.

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


def shrinkages(grams: Sequence[CurvatureGram]) -> dict[str, Shrinkage]:
    """The layers ready to be shrunk, by name: curvatures in units of the loss, floor included.

    Raises:
        ValueError: if features or weights hold NaN or infinity.
    """
    moments = {gram.layer.name: gram.moments() for gram in grams}
    floor: dict[str, float] = {}
    for role in {gram.layer.role for gram in grams}:
        same = [gram for gram in grams if gram.layer.role == role]
        mass = sum(float(moments[gram.layer.name][:, -1, -1].sum()) for gram in same)
        floor[role] = FLOOR * mass / sum(gram.seen * len(moments[gram.layer.name]) for gram in same)
    return {
        gram.layer.name: Shrinkage.from_moments(
            moments[gram.layer.name] + floor[gram.layer.role] * gram.uniform, gram.layer.matrix
        )
        for gram in grams
    }


def bernoulli(logits: Tensor) -> Tensor:
    """p (1 - p), the second derivative of binary cross entropy in its logit."""
    p = logits.sigmoid()
    return p * (1 - p)


def categorical(logits: Tensor, bins: int) -> Tensor:
    """q (1 - q), the second derivative of softmax cross entropy in each logit: (k, 4 bins), a softmax a side."""
    q = logits.reshape(len(logits), 4, bins).softmax(2)
    return (q * (1 - q)).flatten(1)


def _chances(share: Tensor, rows: int) -> Tensor:
    """The chance of each anchor point, (P,), going with its share: `rows` in expectation, none above 1."""
    chance = torch.zeros_like(share)
    for _ in range(4):  # chances that pass 1 are cut, and what they leave is given to the others; no host wait
        free = chance < 1
        left = (rows - (~free).sum()).clamp(min=0)
        raised = share * (left / share.where(free, torch.zeros_like(share)).sum().clamp(min=1e-30))
        chance = torch.where(free, raised, chance).clamp(max=1)
    return chance
