"""What is kept of the features of prediction layers: rows sampled or summed, never all of them.

A prediction layer's input is held as (B, m, P): B images, m features, P anchor points per image (a feature map's
H * W, or a transformer's queries); column p of image b is one row of A. Whatever the number of images, what is kept
is bounded: `samples` rows, or sums of m x m (`curvature`: n of them). Nothing else leaves the device, and sampling and
summing do not make the host wait for it.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from yolo_os.distributed import add_up, gather, world_size


@dataclass(frozen=True)
class Branch:
    """The class logits of all anchor points that one loss looks at together: the levels of a branch of the head.

    Attributes:
        logits: (B, n, P) for each level.
    """

    logits: tuple[Tensor, ...]

    @cached_property
    def presence(self) -> Tensor:
        """The sum of class probabilities over all its anchor points, a scalar."""
        return torch.stack([logits.float().sigmoid().sum(1).sum() for logits in self.logits]).sum()


@dataclass(frozen=True)
class Anchors:
    """What is known of the anchor points of one group in one batch, besides their features.

    Attributes:
        logits: (B, n, P), class logits at each point; None where the head has no scores.
        label: (B, P), the class that the training loss assigns to each point, -1 for background; None without labels.
        batch: number of the batch in the data, whichever process sees it.
        branch: all anchor points that one loss looks at together with these; None where these have one of their own.
    """

    logits: Tensor | None = None
    label: Tensor | None = None
    batch: int = 0
    branch: Branch | None = None

    @cached_property
    def score(self) -> Tensor | None:
        """(B, P), the largest class probability."""
        return None if self.logits is None else self.logits.amax(1).sigmoid()

    @cached_property
    def probability(self) -> Tensor | None:
        """(B, n, P), class probabilities."""
        return None if self.logits is None else self.logits.float().sigmoid()

    @cached_property
    def presence(self) -> Tensor | None:
        """(B, P), the sum of class probabilities: what the model expects the assigned target scores to add up to."""
        return None if self.probability is None else self.probability.sum(1)

    @property
    def branch_presence(self) -> Tensor | None:
        """The sum of presence over all anchor points that one loss looks at, a scalar."""
        if self.branch is not None:
            return self.branch.presence
        return None if self.presence is None else self.presence.sum()


class Collector(Protocol):
    """Takes in the features of one layer batch by batch and keeps what a solve needs."""

    @property
    def count(self) -> int:
        """Rows taken in."""

    def add(self, features: Tensor, outputs: Tensor, anchors: Anchors) -> None:
        """Take in one batch: features (B, m, P), the layer's outputs (B, n, P)."""

    def merge(self) -> None:
        """Add up what all processes took in; nothing to do for one."""

    def energy(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """The sum over all rows a taken in of ||a @ weight + bias||^2; weight (m, n), bias (n,)."""


def generator_for(device: torch.device, *key: object) -> torch.Generator:
    """A random generator for a seed, a layer and the number of a batch: the same whichever process sees the batch.

    A GPU draws other numbers than a CPU. What a shift draws is few and drawn on the CPU, so that a seed means the same
    shift on both.
    """
    # 32 bits: a CPU generator ignores any above them.
    return torch.Generator(device).manual_seed(zlib.crc32("/".join(map(str, key)).encode()))


def sent_to(drawn: Tensor, device: torch.device) -> Tensor:
    """What was drawn on the CPU, on another device; the CPU does not wait until a GPU comes to that."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


class RowSample:
    """A sample of at most `size` rows, the same as if all rows had been there at once to choose from.

    Every row draws a random key; the rows with the largest keys stay (reservoir sampling with priorities). With
    key = log(u) / w that is a weighted sample without replacement, of weights w (Efraimidis and Spirakis,
    2006): w = 1 for `uniform`, the largest class probability for `foreground` and `balanced`. `balanced` takes turns
    over classes: the best-keyed row of every class that occurs, then every second-best, and so on; background comes
    last. A row's class is the one that the training loss assigns; without labels there is none, and `balanced`
    falls back to `foreground`.
    """

    def __init__(self, size: int, sampling: str, seed: int, name: str) -> None:
        self.size = size
        self.sampling = sampling
        self.drawn = "uniform"  # what the sampling came to: foreground needs scores, balanced needs labels too
        self.count = 0
        self._seed, self._name = seed, name
        self._rows: Tensor | None = None  # (k, m)
        self._keys: Tensor | None = None  # (k,)
        self._labels: Tensor | None = None  # (k,), -1 for background

    @property
    def rows(self) -> Tensor:
        """The sample, (at most `size`, m), in the precision of the features."""
        return torch.empty(0, 0) if self._rows is None else self._rows

    def add(self, features: Tensor, outputs: Tensor, anchors: Anchors) -> None:
        """Take in one batch: features (B, m, P); outputs don't matter."""
        images, _, points = features.shape
        self.count += images * points
        generator = generator_for(torch.device("cpu"), self._seed, self._name, anchors.batch)
        uniform = sent_to(torch.rand(images * points, generator=generator), features.device)
        keys = uniform.clamp(min=1e-30).log()
        if self.sampling != "uniform" and anchors.score is not None and anchors.score.shape == (images, points):
            keys = keys / anchors.score.flatten().to(keys.dtype).clamp(min=1e-12)
            self.drawn = "foreground"
        labels = torch.full((images * points,), -1, device=features.device)
        if self.sampling == "balanced" and anchors.label is not None:
            labels = anchors.label.flatten().to(labels.dtype)
            self.drawn = "balanced"
        best = self._best(keys, labels)
        rows = features[torch.div(best, points, rounding_mode="floor"), :, best % points]
        keys, labels = keys[best], labels[best]
        self._keep([rows], [keys], [labels])

    def merge(self) -> None:
        """Choose among the samples of all processes."""
        if world_size() == 1 or self._rows is None or self._keys is None or self._labels is None:
            return
        device = self._rows.device
        everyone = gather((self._rows.cpu(), self._keys.cpu(), self._labels.cpu()))
        self._rows = self._keys = self._labels = None
        rows, keys, labels = ([each.to(device) for each in column] for column in zip(*everyone))
        self._keep(rows, keys, labels)
        self.count = sum(gather(self.count))

    def _keep(self, rows: list[Tensor], keys: list[Tensor], labels: list[Tensor]) -> None:
        """Of what is kept so far and these, keep the best."""
        if self._rows is not None and self._keys is not None and self._labels is not None:
            rows, keys, labels = [self._rows, *rows], [self._keys, *keys], [self._labels, *labels]
        all_keys, all_labels = torch.cat(keys), torch.cat(labels)
        best = self._best(all_keys, all_labels)
        self._rows, self._keys, self._labels = torch.cat(rows)[best], all_keys[best], all_labels[best]

    def _best(self, keys: Tensor, labels: Tensor) -> Tensor:
        """Indices of the `size` rows to keep, best first.

        Exact in a stream: a row that is dropped had `size` rows before it in the order (turn, key). Later rows can only
        push its turn back; they never take rows out of the turns before it.
        """
        if self.sampling != "balanced":
            return keys.topk(min(self.size, len(keys))).indices
        order = keys.argsort(descending=True)
        order = order[labels[order].argsort(stable=True)]  # by class, best key first
        by_class = labels[order]
        starts = torch.searchsorted(by_class, by_class)  # where the class begins
        turn = torch.arange(len(order), device=order.device) - starts
        turn = torch.where(by_class < 0, turn + len(order), turn)  # background after all turns of all classes
        sorted_keys = keys[order].argsort(descending=True)
        final = sorted_keys[turn[sorted_keys].argsort(stable=True)]
        return order[final[: self.size]]

    def energy(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """The sum over the sampled rows a of ||a @ weight + bias||^2."""
        outputs = self.rows.to(weight) @ weight + (0.0 if bias is None else bias)
        return float(outputs.square().sum())


class Gram:
    """A^T A of all rows, with their number and sum, in float64: O(m^2) memory for any number of images."""

    def __init__(self) -> None:
        self.count = 0
        self._matrix: Tensor | None = None
        self._sum: Tensor | None = None

    def add(self, features: Tensor, outputs: Tensor, anchors: Anchors) -> None:
        """Take in one batch: features (B, m, P); outputs and anchors don't matter, every row counts the same."""
        self.count += features.shape[0] * features.shape[2]
        where = "cpu" if features.device.type == "mps" else features.device  # MPS has no float64
        for image in features:  # one image at a time: a copy in float64 of a whole batch would be its largest tensor
            columns = image.to(where, torch.float64)
            if self._matrix is None or self._sum is None:
                self._matrix = columns.new_zeros(len(columns), len(columns))
                self._sum = columns.new_zeros(len(columns))
            self._matrix.addmm_(columns, columns.T)
            self._sum += columns.sum(1)

    def merge(self) -> None:
        """Add up the Gram matrices of all processes."""
        if world_size() > 1 and self._matrix is not None and self._sum is not None:
            self._matrix, self._sum = add_up(self._matrix), add_up(self._sum)
            self.count = sum(gather(self.count))

    @property
    def matrix(self) -> Tensor:
        """A^T A, (m, m), float64."""
        return torch.zeros(0, 0, dtype=torch.float64) if self._matrix is None else self._matrix

    @property
    def moments(self) -> Tensor:
        """The sum of [a; 1] [a; 1]^T, (m + 1, m + 1), float64."""
        if self._matrix is None or self._sum is None:
            return torch.zeros(0, 0, dtype=torch.float64)
        column = self._sum[:, None]
        corner = column.new_full((1, 1), self.count)
        return torch.cat([torch.cat([self._matrix, column], 1), torch.cat([column.T, corner], 1)])

    def energy(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """The sum over all rows a of ||a @ weight + bias||^2."""
        if self._matrix is None or self._sum is None:
            return 0.0
        weight = weight.to(self._matrix)
        total = (weight * (self._matrix @ weight)).sum()
        if bias is not None:
            bias = bias.to(self._matrix)
            total = total + 2 * (self._sum @ weight @ bias) + self.count * bias.square().sum()
        return float(total.clamp(min=0))


def relative_change(collector: Collector, before: Tensor, after: Tensor, bias_change: Tensor | None = None) -> float:
    """||Z' - Z|| / ||Z|| over the rows of a collector, Z = A V the outputs without their bias; nan without rows."""
    size = collector.energy(before)
    change = collector.energy(after - before, bias_change)
    return math.sqrt(change / size) if size > 0 else (math.nan if collector.count == 0 else math.inf if change else 0.0)
