"""Move a model's weights towards those that its training started from, as far as unseen images say it helps.

Of all weights that serve as well, take those nearest to an origin. A shift of prediction layers has zero as origin;
here it is the weights W0 before the training, for every layer. With a share a of the way from there to the trained
weights W, W' = W0 + a (W - W0): a = 1 leaves the model as it is, a = 0 is the origin. Small shares give back what the
training forgot; how small is decided by mAP on images that it did not learn from (docs/toward.md).

The parts: `Line` says what moves between which ends, `choose` which share is taken, `move_toward_` does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from yolo_os.errors import UserError
from yolo_os.evaluation.bootstrap import Difference, bootstrap
from yolo_os.evaluation.voc import VOCResult
from yolo_os.forward import Progress, silent
from yolo_os.heads import find_head, last_module
from yolo_os.linalg import in_float64
from yolo_os.shifter import Weights
from yolo_os.toward_report import Figure, MovedTensor, Part, ShareTrial, StayedTensor, TowardReport

# Judged besides 1, the model as it is, and 0, the origin: those two are the ends that a step is compared with.
SHARES = (0.9, 0.8, 0.6, 0.5, 0.4, 0.2)
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Origin:
    """Weights that a training started from.

    Attributes:
        state: parameters and buffers by name.
        classes: names of the classes in their order.
        task: of the model, such as `detect`.
        source: what a report calls it.
    """

    state: Mapping[str, Tensor]
    classes: tuple[str, ...]
    task: str
    source: str


@dataclass(frozen=True, eq=False)
class Line:
    """The straight line from an origin to a model, over the tensors that both have.

    Attributes:
        tensors: the model's own, by name.
        origin: their counterparts, class rows in the model's order, on the devices of the tensors.
        stayed: the model's other tensors.
        head: name of the module that predicts, such as `model.22`.
        source: what a report calls the origin.
        complete: whether share 0 is the origin: whether only what no output depends on stays.
    """

    tensors: dict[str, Tensor]
    origin: dict[str, Tensor]
    stayed: tuple[StayedTensor, ...]
    head: str
    source: str
    complete: bool

    @property
    def has_statistics(self) -> bool:
        """Whether BatchNorm statistics are on it."""
        return any(map(_is_statistic, self.tensors))

    def values(self, share: float, statistics: bool = True) -> dict[str, Tensor]:
        """The weights at a share of the way: bit for bit the model's at 1 and the origin's at 0.

        Args:
            share: of the way from the origin to the model.
            statistics: whether BatchNorm statistics are among them.
        """
        names = [name for name in self.tensors if statistics or not _is_statistic(name)]
        if share == 1:
            return {name: self.tensors[name].detach().clone() for name in names}
        if share == 0:
            return {name: self.origin[name] for name in names}
        return {name: _between(self.origin[name], self.tensors[name], share) for name in names}

    def distances(self) -> dict[str, float]:
        """How far each tensor is from its counterpart, now."""
        return {name: _distance(tensor, self.origin[name]) for name, tensor in self.tensors.items()}


class Step(NamedTuple):
    """What may be left of the way from the origin, and whether BatchNorm statistics go it too or stay as trained."""

    share: float
    statistics: bool = True


STAY, ORIGIN = Step(1.0), Step(0.0)


def line_to(model: nn.Module, origin: Origin, task: str | None = None) -> Line:
    """What of a model can move towards an origin, and between which ends.

    Args:
        model: the bare model (see `heads.unwrap`), not fused.
        origin: of the same architecture; its head may be one for other classes.
        task: of the model; compared with the origin's where given.

    Raises:
        UserError: if the two do not belong together, or their weights are the same or not finite.
    """
    mine = named_tensors(model)
    classes = _class_names(model)
    _check(mine, origin, task)
    rows = None if classes == origin.classes else _order(classes, origin.classes)
    by_class = _tensors_by_class(model, len(classes))
    head = next(name for name, module in model.named_modules() if module is last_module(model))
    tensors, ends, stayed = {}, {}, []
    for name, tensor in mine.items():
        end = origin.state.get(name)
        if end is None:
            stayed.append(StayedTensor(name, "the origin has no tensor of this name"))
            continue
        if end.shape != tensor.shape:
            stayed.append(StayedTensor(name, "the origin's has another shape"))
            continue
        if not tensor.is_floating_point():
            stayed.append(StayedTensor(name, "it counts batches: whole numbers are not moved"))
            continue
        if name in by_class and classes != origin.classes:
            if rows is None or not by_class[name]:
                why = "others" if rows is None else "in another order"
                reason = f"its outputs are classes, and the origin's are {why}"
                stayed.append(StayedTensor(name, reason, _distance(tensor, end)))
                continue
            end = end[torch.tensor(rows)]
        end = end.detach().to(tensor)
        if torch.equal(end, tensor):
            stayed.append(StayedTensor(name, "it did not change in the training", 0.0))
        else:
            tensors[name], ends[name] = tensor, end
    if not tensors:
        raise UserError(f"toward={origin.source}: its weights are those of the model: there is no way to go")
    complete = all(each.distance == 0 or "batches" in each.reason for each in stayed)
    return Line(tensors, ends, tuple(stayed), head, origin.source, complete)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a model by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@dataclass(frozen=True, eq=False)
class Judged:
    """What one set of images says of the weights in place.

    Attributes:
        result: VOC AP on the images that decide.
        unused: VOC AP on images that no decision may use; None where there are too few to set apart.
        loss: the model's own training loss on all of them; None where it can't be taken.
        rare: classes that are there, but too rarely to count in mAP.
    """

    result: VOCResult
    unused: VOCResult | None = None
    loss: float | None = None
    rare: tuple[str, ...] = ()


Judging = Callable[[], Mapping[str, Judged]]


def move_toward_(
    line: Line,
    judge: Judging,
    *,
    shares: Sequence[float] | float = SHARES,
    statistics: bool | None = None,
    retain_drop: float | None = None,
    precision: torch.dtype | None = None,
    progress: Progress = silent,
    warnings: Sequence[str] = (),
) -> TowardReport:
    """Judge a few shares of a line and move the model to the one that `choose` takes, in place.

    Args:
        line: of the model.
        judge: judges the weights in place: the new data first, then retained sets, by name. Its images must be none
            that the training learned from.
        shares: between 0 and 1; 1 is always judged, and 0 where the line ends at the origin.
        statistics: whether BatchNorm statistics move too; None: both are judged at every share.
        retain_drop: see `choose`.
        precision: see `Weights`.
        progress: wraps the steps, with a title, to show a progress bar.
        warnings: what the caller knows already.

    Raises:
        UserError: for shares that are none.
    """
    shares = check_shares(shares)
    ways = [True] if not line.has_statistics else [True, False] if statistics is None else [statistics]
    steps = [Step(share, way) for way in ways for share in shares]
    weights = Weights(line.tensors, precision)
    before = line.distances()
    with weights.put_back_on_error():
        judged = {
            step: weights.measure(line.values(*step), judge)
            for step in progress([STAY, *steps, *([ORIGIN] if line.complete else [])], "shares")
        }
        taken, reason = choose(judged, retain_drop)
        if taken != STAY:
            weights.write_(line.values(*taken))
    after = line.distances()
    moved = [] if taken == STAY else list(line.values(*taken))
    why = "staying is best" if taken == STAY else "BatchNorm statistics stay as the training left them"
    stayed = [StayedTensor(name, why, before[name]) for name in line.tensors if name not in moved]
    unused = None
    stay, now = (next(iter(judged[each].values())) for each in (STAY, taken))
    if stay.unused is not None and now.unused is not None:
        unused = stay.unused.map, Figure(now.unused.map, _gain(stay.unused, now.unused), None)
    distance = _relative(line, {name: value for name, value in before.items() if not _is_statistic(name)})
    trials = {step: _trial(step, step.share * distance, judged[step], judged[STAY]) for step in judged}
    ends = (STAY, ORIGIN)
    way = ways[0] if taken == STAY else taken.statistics
    return TowardReport(
        taken.share,
        way,
        reason,
        tuple(trials[each] for each in trials if each in ends or each.statistics == way),
        tuple(trials[each] for each in trials if each not in ends and each.statistics != way),
        tuple(MovedTensor(name, before[name], after[name]) for name in moved),
        (*line.stayed, *stayed),
        tuple(_parts(line, before, after)),
        line.source,
        {name: len(each.result.matches.image_ids) for name, each in judged[STAY].items()},
        unused,
        0 if stay.unused is None else len(stay.unused.matches.image_ids),
        retain_drop,
        str(precision or next(iter(line.tensors.values())).dtype).removeprefix("torch."),
        (*warnings, *_warnings(judged, taken, line)),
    )


def choose(judged: Mapping[Step, Mapping[str, Judged]], retain_drop: float | None = None) -> tuple[Step, str]:
    """Which step to take, and why: the largest within one standard error of the best.

    The best is that of the highest mAP on the new data; where that is the model as it is, nothing moves. Its lead need
    not be beyond chance: a step is no risk that evidence has to outweigh, it is the smaller change (docs/toward.md has
    what a stricter rule gives away). Of the steps whose mAP lies at most one standard error of the paired difference
    below the best, that of the smallest share is taken, and of one share that which moves the statistics too: the
    nearest to the origin of those that serve as well. The origin itself, share 0, is judged for comparison and never
    taken.

    Args:
        judged: by step, `STAY` among them, what each set of images says: the new data first, then retained sets.
        retain_drop: most mAP that may be lost on any retained set, against the best step there; steps that lose more,
            staying included, are out. None: retained sets decide nothing.
    """
    new = next(iter(judged[STAY]))
    score = {step: each[new].result.map for step, each in judged.items()}
    if math.isnan(score[STAY]):
        return STAY, "the images that decide hold no objects, so there is no mAP to judge by"
    allowed = [step for step in judged if step.share != 0 and _retains(judged, step, retain_drop)]
    if not allowed:
        return STAY, f"every share loses more than retain_drop={retain_drop:g} on a retained set"
    best = max(allowed, key=lambda step: (score[step], -step.share))
    if STAY in allowed and score[best] <= score[STAY]:
        return STAY, "no share beats staying on the val images"
    near = [step for step in allowed if _nearness(step) < _nearness(best)]
    near = [step for step in near if _within_error(judged[step][new], judged[best][new])]
    kept = " of those that keep the retained sets" if len(allowed) < sum(step.share != 0 for step in judged) else ""
    if not near:
        return best, f"the best on the val images{kept}"
    return min(near, key=_nearness), f"the largest step within one standard error of the best{kept} ({best.share:g})"


def _nearness(step: Step) -> tuple[float, bool]:
    """How near to the origin a step comes: less is nearer."""
    return step.share, not step.statistics


def check_shares(shares: Sequence[float] | float) -> list[float]:
    """Shares to judge, or a single one, largest step last.

    Raises:
        UserError: if one is no number between 0 and 1.
    """
    if isinstance(shares, int | float):
        shares = [shares]
    if not shares:
        raise UserError("shares=: takes one share at least, such as shares=0.8,0.5")
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise UserError(f"shares={share}: takes numbers between 0 (the origin) and 1 (the model as it is)")
    return sorted({float(share) for share in shares}, reverse=True)


def check_origin(model: nn.Module, origin: Origin, task: str | None = None) -> None:
    """Refuse an origin that does not belong to a model; one with the same weights is none of them.

    Raises:
        UserError: in one line, saying why.
    """
    _check(named_tensors(model), origin, task)


def _check(mine: Mapping[str, Tensor], origin: Origin, task: str | None) -> None:
    """Refuse an origin that does not belong to a model.

    Raises:
        UserError: in one line, saying why.
    """
    source, state = f"toward={origin.source}", origin.state
    if task is not None and task != origin.task:
        raise UserError(f"{source}: a model of the task '{origin.task}', and this one's is '{task}'")
    for whose, tensors in (("the model's", mine), ("the origin's", state)):
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(f"{whose} weights are not finite: {name} holds NaN or infinity")
    for whose, tensors in (("the model is", mine), (f"{source}: it is", state)):
        if not any(name.endswith(_STATISTICS) for name in tensors):
            raise UserError(
                f"{whose} fused: its BatchNorm layers are gone, so weights can't be told apart; take the file"
            )
    channels = [_input_channels(tensors) for tensors in (mine, state)]
    if channels[0] != channels[1]:
        raise UserError(f"{source}: it takes images of {channels[1]} channels, and the model of {channels[0]}")
    floats = [name for name, tensor in mine.items() if tensor.is_floating_point()]
    fitting = sum(name in state and state[name].shape == mine[name].shape for name in floats)
    if fitting < len(floats) / 2:
        raise UserError(
            f"{source}: another architecture: {fitting} of the model's {len(floats)} tensors have a counterpart there"
        )


def _input_channels(tensors: Mapping[str, Tensor]) -> int | None:
    """Of the first convolution."""
    return next((tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 4), None)


def _class_names(model: nn.Module) -> tuple[str, ...]:
    names: Any = getattr(model, "names", None) or {}
    return tuple(str(names[key]) for key in sorted(names)) if isinstance(names, Mapping) else tuple(map(str, names))


def _order(classes: tuple[str, ...], given: tuple[str, ...]) -> list[int] | None:
    """Where each class stands among the given ones; None if these are not the same classes, each once."""
    if len(set(given)) < len(given) or sorted(classes) != sorted(given):
        return None
    return [given.index(name) for name in classes]


def _tensors_by_class(model: nn.Module, classes: int) -> dict[str, bool]:
    """Names of the tensors that tell classes apart, and whether they hold one row for each class, in their order.

    Those of the class prediction layers; of layers that predict boxes and classes at once, whose rows are mixed; and
    RT-DETR's embedding of labels, which only its training uses. A layer of embeddings that are compared with texts has
    no order of classes.
    """
    head = find_head(model)
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    found = {}
    for layer in (*head.layers, *head.refused):
        if layer.role == "joint" or (layer.role == "cls" and "embeddings" not in (layer.refused or "")):
            for tensor in (layer.module.weight, layer.module.bias):
                if tensor is not None:
                    found[names[id(tensor)]] = layer.role == "cls" and layer.out_features == classes
    return {**found, **{name: True for name in names.values() if "denoising_class_embed" in name}}


def _between(origin: Tensor, tensor: Tensor, share: float) -> Tensor:
    """W0 + a (W - W0), computed in float64; exact where the two are equal."""
    start = in_float64(origin)
    return start + share * (in_float64(tensor) - start)


def _distance(tensor: Tensor, origin: Tensor) -> float:
    return float((in_float64(tensor) - in_float64(origin).to(in_float64(tensor).device)).norm())


def _is_statistic(name: str) -> bool:
    return name.endswith(_STATISTICS)


def _relative(line: Line, distances: Mapping[str, float]) -> float:
    """Distances of some tensors taken together, relative to the norm of their origin."""
    norm = math.hypot(*(float(in_float64(line.origin[name]).norm()) for name in distances))
    return math.hypot(*distances.values()) / norm if norm else 0.0


def _parts(line: Line, before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[Part]:
    """The head and what lies before it, parameters and BatchNorm statistics apart: these are of other sizes."""
    for place, inside in (("backbone and neck", False), (f"head ({line.head})", True)):
        for kind, statistic in (("weights", False), ("BatchNorm statistics", True)):
            names = [
                name
                for name in line.tensors
                if name.startswith(f"{line.head}.") == inside and _is_statistic(name) == statistic
            ]
            if names:
                distances = (_relative(line, {name: each[name] for name in names}) for each in (before, after))
                yield Part(f"{place}, {kind}", len(names), *distances)


def _gain(stay: VOCResult, other: VOCResult) -> Difference:
    """The paired difference of mAP over images."""
    difference = bootstrap(stay, other).map
    assert isinstance(difference, Difference)
    return difference


def _within_error(judged: Judged, best: Judged) -> bool:
    """Whether a share's mAP lies at most one standard error of the paired difference below the best."""
    lost = _gain(judged.result, best.result)
    return lost.value <= lost.stderr


def _retains(judged: Mapping[Step, Mapping[str, Judged]], step: Step, drop: float | None) -> bool:
    """Whether a step loses no more than `drop` mAP on any retained set, against the best step there."""
    _, *retained = judged[step]
    if drop is None:
        return True
    return all(
        judged[step][name].result.map >= max(each[name].result.map for each in judged.values()) - drop
        for name in retained
    )


def _trial(step: Step, distance: float, judged: Mapping[str, Judged], stay: Mapping[str, Judged]) -> ShareTrial:
    figures = [
        Figure(each.result.map, None if step == STAY else _gain(stay[name].result, each.result), each.loss)
        for name, each in judged.items()
    ]
    return ShareTrial(step.share, step.statistics, distance, figures[0], dict(zip([*judged][1:], figures[1:])))


def _warnings(judged: Mapping[Step, Mapping[str, Judged]], taken: Step, line: Line) -> Iterator[str]:
    new = next(iter(judged[STAY]))
    images = len(judged[STAY][new].result.matches.image_ids)
    if judged[STAY][new].unused is None:
        yield f"the figures are of the {images} val images that the share was chosen on: too few to set some apart"
    for name, each in judged[STAY].items():
        if each.rare:
            some = ", ".join(each.rare[:3]) + (", ..." if len(each.rare) > 3 else "")
            yield f"{len(each.rare)} classes have too few val boxes in the {name} data to count in mAP: {some}"
    if not line.complete:
        yield "a part of the model stays as trained, so the origin itself was not judged: see what is unchanged"
    elif judged[ORIGIN][new].result.map > judged[taken][new].result.map:
        yield "the origin itself does better on the val images than what was taken: did this training teach anything?"
