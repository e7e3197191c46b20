"""What an arm of a comparison does to a training, besides its settings: callbacks for a stock `YOLO`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import check_dict_alignment, get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK

from yolo_os.comparison.arms import BACKBONE, Arm
from yolo_os.comparison.plan import Config
from yolo_os.errors import UserError
from yolo_os.evaluation.names import match_names
from yolo_os.files import as_path, is_file
from yolo_os.heads import find_head, last_module, unwrap
from yolo_os.integration.callback import callback_of
from yolo_os.integration.checkpoint import load_checkpoint, write
from yolo_os.integration.data import class_names_of, describe
from yolo_os.integration.runtime import quiet
from yolo_os.recipe import ShiftRecipe
from yolo_os.toward import check_shares

START = "start.pt"  # the weights that a training with a new head started from
JITTER_FROM = 0.7  # of the training, as the shifts that the control stands beside


class Jitter:
    """Multiplies the prediction layers by 1 + size times noise, after each epoch of the last part of a training.

    What it does to mAP is luck of training, which shifts have too: an arm that differs by no more did nothing.
    """

    def __init__(self, size: float) -> None:
        self.size = size

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Disturb the weights."""
        if trainer.epoch + 1 < JITTER_FROM * trainer.epochs:
            return
        noise = torch.Generator().manual_seed(trainer.epoch)
        with torch.no_grad():
            for layer in find_head(unwrap(trainer.model)).layers:
                weight = layer.module.weight
                weight.mul_(1 + self.size * torch.randn(weight.shape, generator=noise).to(weight))


class Pull:
    """L2-SP (arXiv 1802.01483): after every step, weights shrink towards where they began.

    By the learning rate times a strength, as decoupled weight decay shrinks them towards 0, which goes on beside it.
    What the start has not learned goes free: a head for other classes, or one that is drawn anew.
    """

    def __init__(self, strength: float, start: nn.Module, new_head: bool = False) -> None:
        """Take the start.

        Args:
            strength: of the pull.
            start: the model that the training starts from.
            new_head: whether its head is drawn anew.
        """
        self.strength, self.start, self.new_head = strength, start, new_head

    def on_train_start(self, trainer: Any) -> None:
        """Have the optimizer pull after each of its steps."""
        model, start = unwrap(trainer.model), dict(self.start.named_parameters())
        free: set[int] = set()
        if self.new_head or not _same_classes(class_names_of(model), class_names_of(self.start)):
            free = set(map(id, last_module(model).parameters()))
        began = {
            id(weight): start[name].detach().to(weight)
            for name, weight in model.named_parameters()
            if id(weight) not in free and name in start and start[name].shape == weight.shape
        }

        def pull(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            with torch.no_grad():
                for group in optimizer.param_groups:
                    rate = min(group["lr"], group.get("initial_lr", group["lr"]))  # warm-up has a larger one for biases
                    for weight in group["params"]:
                        if id(weight) in began:
                            weight.sub_(min(rate * self.strength, 1.0) * (weight - began[id(weight)]))

        trainer.optimizer.register_step_post_hook(pull)


def _same_classes(names: list[str], others: list[str]) -> bool:
    """Whether these are the same classes in the same order, by COCO's or VOC's names."""
    same = {number: number for number in range(len(names))}
    return len(names) == len(others) and match_names(dict(enumerate(names)), others) == same


class ScaledRate:
    """Multiplies the learning rate, also that which `optimizer=auto` chooses."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        """Scale what the schedule starts from: of a training that is resumed too, whose groups were scaled before."""
        base = [rate * self.factor for rate in trainer.scheduler.base_lrs]
        trainer.scheduler.base_lrs = base
        for group, rate in zip(trainer.optimizer.param_groups, base):
            group["initial_lr"] = group["lr"] = rate


class NewHead:
    """Draws every weight of the last module anew by a seed, with torch's and Ultralytics' own initialisation."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        """Draw them, for the model and its average, and keep the start for what moves back towards it."""
        if trainer.resume:
            return
        model = unwrap(trainer.model)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            draw_head(model)
        trainer.ema.ema.load_state_dict(model.state_dict())
        if RANK in (-1, 0):
            self._keep(trainer)

    @staticmethod
    def _keep(trainer: Any) -> None:
        write({"model": trainer.ema.ema, "train_args": vars(trainer.args)}, Path(trainer.wdir) / START)


def draw_head(model: nn.Module) -> None:
    """Draw every weight of the last module anew."""
    head: Any = last_module(model)
    fixed = set(head.dfl.modules()) if isinstance(getattr(head, "dfl", None), nn.Module) else set()
    for module in head.modules():
        if hasattr(module, "reset_parameters") and module not in fixed:  # the weight of `dfl` is 0, 1, 2, ...
            module.reset_parameters()
    if hasattr(head, "bias_init"):
        head.bias_init()


def attach(model: Any, run: Mapping[str, Any]) -> None:
    """Have a `YOLO` call what the arm of a run does besides its settings; before any shifts are attached to it."""
    if run["new_head"]:
        model.add_callback("on_pretrain_routine_end", NewHead(run["seed"]).on_pretrain_routine_end)
    if run["rate"] != 1:
        model.add_callback("on_pretrain_routine_end", ScaledRate(run["rate"]).on_pretrain_routine_end)
    if run["pull"]:
        start = load_checkpoint(run["train"]["model"], run["trust"]).model
        model.add_callback("on_train_start", Pull(run["pull"], start, run["new_head"]).on_train_start)
    if run["jitter"]:
        model.add_callback("on_train_epoch_end", Jitter(run["jitter"]).on_train_epoch_end)


def recipe_of(shift: Mapping[str, Any]) -> ShiftRecipe:
    """The recipe of a shift of the prediction layers after a training.

    Raises:
        UserError: for a recipe that can't be read, or a bad value.
    """
    base = ShiftRecipe.given(shift.get("recipe")) or ShiftRecipe()
    return base.replace(**{key: value for key, value in shift.items() if key != "recipe"})


def check_shift(arm: Arm) -> None:
    """Look at the values of a shift after a training, and at the files that it names, before anything is trained.

    Raises:
        UserError: for a bad value, or a file that is not there.
    """
    toward = arm.shift.get("toward")
    try:
        if arm.after and not toward:
            recipe_of(arm.shift)
        if arm.shift.get("shares") is not None:
            check_shares(arm.shift["shares"])
        if isinstance(toward, str) and not is_file(as_path(toward)):
            raise UserError(f"toward={toward}: no such file")
        for data in arm.shift.get("retain") or ():
            describe(data, "val", None)
    except UserError as error:
        raise UserError(f"arm {arm.name}: {error}") from None


def settings_for(arm: Arm, config: Config, backbone: int | None) -> dict[str, Any]:
    """The keys of `yolo train` of an arm, complete but for data, seed and folder.

    Args:
        arm: a trained one.
        config: of the comparison.
        backbone: how many modules the model's backbone has; None: unknown.

    Raises:
        UserError: for an unknown key or a bad value.
    """
    made = arm.settings({"model": config.model, **config.train}, DEFAULT_CFG_DICT)
    if made.get("freeze") == BACKBONE:
        if backbone is None:
            raise UserError(
                f"arm {arm.name}: freeze={BACKBONE} and model={made['model']} says of no backbone; a number"
            )
        made["freeze"] = backbone
    if "lr0" in arm.train and arm.rate == 1 and str(made.get("optimizer", "auto")).lower() == "auto":
        LOGGER.warning(
            f"arm {arm.name}: optimizer=auto takes no notice of lr0={arm.train['lr0']}, so this arm is like one "
            "without: name an optimizer, or give a factor, such as lr0: x0.1"
        )
    if arm.pull and not str(made["model"]).endswith(".pt"):
        raise UserError(f"arm {arm.name}: pull= is towards a checkpoint's weights, and model={made['model']} is none")
    if arm.pull and made.get("pretrained") not in (None, True):
        raise UserError(
            f"arm {arm.name}: pull= is towards the weights of model=, and with pretrained={made['pretrained']} the "
            "training does not start from these"
        )
    own = [key for key, given in (("pull", arm.pull), ("jitter", arm.jitter), ("new_head", config.new_head)) if given]
    if own and made.get("distill_model"):
        raise UserError(f"arm {arm.name}: {own[0]}= and distill_model= do not go together")
    for key in ("single_cls", "classes"):
        if made.get(key):
            raise UserError(f"arm {arm.name}: {key}={made[key]} changes what is evaluated: prepare the data instead")
    try:
        with quiet():
            check_dict_alignment({**DEFAULT_CFG_DICT, "task": None, "mode": None}, made)
            get_cfg(overrides={key: value for key, value in made.items() if key != "task"})
        callback_of(arm.os)
    except (SyntaxError, ValueError, TypeError, AssertionError) as error:
        raise UserError(f"arm {arm.name}: {' '.join(str(error).split())}") from None
    return made
