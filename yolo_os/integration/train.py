"""A stock training from the words of a command line: Ultralytics' own grammar, checks before anything starts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultralytics import RTDETR, YOLO
from ultralytics.cfg import check_dict_alignment, get_cfg, merge_equals_args, parse_key_value_pair
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, WORLD_SIZE

from yolo_os.errors import UserError
from yolo_os.evaluation.readers.devkit import recognises as is_devkit
from yolo_os.files import FULL, as_path, is_file
from yolo_os.integration.callback import SOS, TASKS
from yolo_os.integration.checkpoint import read_contents
from yolo_os.integration.contents import find_checkpoint, line_of
from yolo_os.integration.data import class_names_of, devkit_dataset, read_description, warn_of_problems
from yolo_os.integration.guard import GuardedProcess, guarded
from yolo_os.integration.runtime import check_device, quiet
from yolo_os.integration.trial import check_runs
from yolo_os.plain_yaml import read_yaml
from yolo_os.settings import listed

_LIKE_WEIGHTS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg")  # what optimizers keep in a weight's shape


def split_words(words: Sequence[str], prefixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Words of a command line, joined around lone `=` as Ultralytics does: those with one of our prefixes, the rest."""
    try:
        joined = [word.removeprefix("--") for word in merge_equals_args(list(words))]
    except SyntaxError as error:
        raise UserError(str(error)) from None
    own = [word for word in joined if word.startswith(prefixes) or word == "os"]
    return own, [word for word in joined if word not in own]


def parse_stock(words: Sequence[str], ours: Mapping[str, str]) -> dict[str, Any]:
    """The keys of `yolo train` and their values, as `yolo` itself reads them.

    Args:
        words: of the command line.
        ours: by a name that is none of its keys, the key of ours that was meant.

    Raises:
        UserError: for a word that is no key of it, or a value that it does not take.
    """
    given: dict[str, Any] = {}
    try:
        for word in words:
            word = word.rstrip(",")
            name = word.partition("=")[0]
            if name in ours and name not in DEFAULT_CFG_DICT:
                raise UserError(f"unknown key '{name}': did you mean {ours[name]}?")
            if "=" in word:
                key, value = parse_key_value_pair(word)
                given.update({key: value} if key != "cfg" else _from_file(value, given))
            elif word in TASKS:
                given["task"] = word
            elif isinstance(DEFAULT_CFG_DICT.get(word), bool):
                given[word] = True
            elif word in DEFAULT_CFG_DICT:
                raise UserError(f"'{word}' has no value: write {word}=...")
            else:
                given[word] = ""
        with quiet():
            check_dict_alignment({**DEFAULT_CFG_DICT, "task": None, "mode": None}, given)
            get_cfg(overrides={key: value for key, value in given.items() if key != "task"})
    except (SyntaxError, ValueError, TypeError, AssertionError, NameError) as error:
        raise UserError(" ".join(str(error).split())) from None
    return given


def train(
    given: dict[str, Any], sos: SOS | None, trust: bool = False, prepare: Callable[[Any], None] | None = None
) -> Any:
    """Train as `yolo train` would with these keys, with `sos` attached; Ultralytics' metrics.

    Args:
        given: keys of `yolo train`.
        sos: the shifts; None: none.
        trust: see `load_checkpoint`.
        prepare: is given the `YOLO` before `sos` is attached, for callbacks that come before its own.

    Raises:
        UserError: for a model, data set or device that is not there, before anything is written; and for whatever
            Ultralytics refuses before the first batch, which may leave the folder that it made for the run.
    """
    with guarded(trust):
        return _train(dict(given), sos, trust, prepare)


def _train(given: dict[str, Any], sos: SOS | None, trust: bool, prepare: Callable[[Any], None] | None) -> Any:
    resume = given.get("resume")
    if isinstance(resume, str):
        given.setdefault("model", resume)
    if WORLD_SIZE > 1 and not (given.get("exist_ok") or resume):
        raise UserError("several processes must come to the same run folder: give a new name=... and exist_ok=True")
    for key in ("pretrained", "distill_model"):
        if isinstance(given.get(key), str):
            read_contents(given[key], trust, key)
            given[key] = str(find_checkpoint(given[key], key))
    model = _model(given.pop("model", None), given.pop("task", None))
    if resume and (model.ckpt or {}).get("optimizer") is None:
        raise UserError(f"model={model.ckpt_path}: its training is finished (or was no training): nothing to resume")
    if resume:
        _check_resumed(given, model)
    if isinstance(given.get("freeze"), str):  # one name, such as 22.cv3, of which Ultralytics wants a list
        given["freeze"] = listed(given["freeze"])
    if prepare is not None:
        prepare(model)
    if sos is not None:
        sos.attach(model)
        sos.check(given)
        head = len(model.model.model) - 1
        freeze = given.get("freeze")
        if sos.shifts and head in (range(freeze) if isinstance(freeze, int) else freeze or ()):
            raise UserError(f"freeze={freeze} freezes the head, module {head}: nothing to shift")
    if given.get("data") is not None or not given.get("resume"):
        given["data"] = str(_data(given.get("data"), model))
    check_device(given.get("device"))
    if not resume:
        read = {"model": model.ckpt_path, **{key: given.get(key) for key in ("pretrained", "distill_model")}}
        read["os.toward"] = sos.toward if sos is not None else None
        model.add_callback("on_pretrain_routine_start", lambda trainer: _check_written(trainer, read))
    else:
        model.add_callback("on_train_start", _check_optimizer)
    begun: list[Any] = []
    model.add_callback("on_train_start", begun.append)
    process = GuardedProcess(trust)
    model.add_callback("on_train_start", process.on_train_start)
    model.add_callback("on_model_save", process.on_model_save)
    try:
        return model.train(**given)
    except (UserError, subprocess.CalledProcessError):  # the second: of the processes on several GPUs, at any time
        raise
    except Exception as error:  # Ultralytics raises anything for what it can't set up: images, sizes, optimizers
        if isinstance(error, OSError) and error.errno in FULL:
            folder = getattr(model.trainer, "save_dir", "the folder of the run")
            raise UserError(f"cannot write into {folder}: {error.strerror}; what was finished is kept") from error
        if isinstance(error, FileNotFoundError) and "Image Not Found" in str(error):
            line = next(line for line in str(error).splitlines() if "Image Not Found" in line)
            raise UserError(f"{line}: it can't be read, take it out of the data set") from error
        if begun:
            raise
        said = " ".join(str(error).split())
        raise UserError(f"Ultralytics can't set this training up: {type(error).__name__}: {said}") from error


def _check_optimizer(trainer: Any) -> None:
    """Refuse to go on with an optimizer whose state in the checkpoint is not one of these weights.

    Raises:
        UserError: if a tensor of it has another shape than its parameter.
    """
    for parameter, state in trainer.optimizer.state.items():
        for name, value in state.items():
            if name in _LIKE_WEIGHTS and getattr(value, "shape", None) != parameter.shape:
                raise UserError(f"{trainer.args.model}: the state of its optimizer ({name}) does not fit its weights")


def _check_written(trainer: Any, read: Mapping[str, Any]) -> None:
    """Refuse a training into the folder of a checkpoint that it starts from, which `exist_ok` would let it write over.

    Raises:
        UserError: naming the key.
    """
    for key, value in read.items():
        if isinstance(value, str | Path) and Path(value).resolve().parent == Path(trainer.wdir).resolve():
            raise UserError(
                f"{key}={value} lies in the folder that this training would write to, {trainer.save_dir}: the input is "
                "never changed, choose another name="
            )


def _from_file(path: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The keys of a `cfg=` file that were not given before it."""
    if not is_file(str(path)):
        raise UserError(f"cfg={path}: no such file")
    settings = read_yaml(path)
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise UserError(f"cfg={path}: no dictionary of settings")
    return {key: value for key, value in settings.items() if key != "cfg" and key not in given}


def _check_resumed(given: dict[str, Any], model: Any) -> None:
    """Refuse a training whose checkpoint would have it read or write elsewhere than where the checkpoint lies.

    Raises:
        UserError: if its data are not there, or its run's folder is another.
    """
    recorded = model.ckpt.get("train_args") or {}
    if not given.get("data"):
        read_description(str(recorded.get("data")), recorded.get("data"))
    if given.get("save_dir"):
        return
    file = Path(model.ckpt_path).resolve()
    if file.parent.name != "weights":
        raise UserError(
            f"model={file}: a training goes on in the folder of its run, and this file lies in none (RUN/weights/"
            f"{file.name}); give the folder with save_dir="
        )
    given["save_dir"] = str(file.parent.parent)


def _model(name: Any, task: str | None) -> Any:
    if name is None:
        raise UserError("model=... is missing: a checkpoint (.pt) or an architecture (.yaml)")
    if Path(str(name)).suffix in (".yaml", ".yml"):
        try:
            return RTDETR(str(name)) if "rtdetr" in Path(str(name)).stem.lower() else YOLO(str(name), task=task)
        except UserError as error:
            raise UserError(f"model={name}: {error}") from None
        except Exception as error:  # FileNotFoundError, KeyError, SyntaxError, YAML errors
            raise UserError(f"model={name}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    file = find_checkpoint(str(name))
    try:
        model = YOLO(str(file))  # through the gate; an RTDETR for one of its checkpoints
    except UserError:
        raise
    except Exception as error:  # whatever damage makes of it
        raise UserError(f"model={name}: its model can't be loaded ({line_of(error)})") from None
    try:
        check_runs(model.model)
    except UserError as error:
        raise UserError(f"model={name}: {error}") from error
    return model


def _data(data: Any, model: Any) -> Path:
    """The YAML of a data set; that of a VOCdevkit is made, its classes in the model's order where it knows them."""
    if data is None:
        raise UserError("data=... is missing: a data set YAML or a VOCdevkit folder")
    source = as_path(str(data))
    if is_devkit(source):
        source = devkit_dataset(source, class_names_of(model.model))
        warn_of_problems(source, data)
        LOGGER.info(f"data={data}: trained on as an Ultralytics data set, which was made of it in a cache folder")
    described = read_description(source, data)
    for split in ("train", "val"):
        if not described.get(split):
            raise UserError(f"data={data}: it has no split '{split}', which a training needs")
    return source
