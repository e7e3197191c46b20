"""Ultralytics under guard: what it reads goes through our readers, and nothing is fetched, unpacked or installed.

Ultralytics trusts what it is given. It unpickles checkpoints and label caches, evaluates parts of architectures, runs
the `download:` of a data set, fetches fonts and weights, installs packages, reads (and deletes) any `.npy` beside an
image. Rather than checking beforehand each path that may lead there, the functions themselves are replaced while one
of our operations runs, wherever Ultralytics keeps a reference to them, and put back afterwards: a `YOLO()` of the
user's own is not touched.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
from ultralytics.data.base import BaseDataset
from ultralytics.data.dataset import YOLODataset
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER, SETTINGS, USER_CONFIG_DIR, YAML

from yolo_os.errors import UserError
from yolo_os.files import clean_runs, written_whole
from yolo_os.integration.contents import announce, check_contents, find_checkpoint, line_of, read_plain
from yolo_os.integration.labelcache import read_label_cache
from yolo_os.integration.layers import MOST_CLASSES, check_architecture
from yolo_os.integration.runtime import quiet
from yolo_os.integration.unpickle import read_archive
from yolo_os.plain_yaml import read_yaml

# Functions that are replaced, by the module that defines them.
_FETCHING = {
    "ultralytics.utils.downloads": ("safe_download", "unzip_file", "get_github_assets", "get_google_drive_file_info"),
    "ultralytics.data.converter": ("convert_ndjson_to_yolo",),
    "ultralytics.utils.checks": ("resolve_platform_uri",),
}
_TEXT_MODELS = ("ultralytics.nn.text_model", "clip")  # importing the first installs the second, where it is missing
_trusting: list[bool] = []  # of each guard that is open, innermost last
_written: dict[Path, tuple[int, int]] = {}  # checkpoints that this process wrote: size and time
_Path: Any = type(Path())
_NUMPY = b"\x93NUMPY"  # how a label cache begins
_NO_FILE = Path(os.devnull) / "none"


@contextmanager
def guarded(trust: bool = False) -> Iterator[None]:
    """Guard Ultralytics for the length of a block.

    Args:
        trust: let checkpoints and architectures be loaded as Ultralytics does, code included; nothing is fetched or
            installed all the same.
    """
    _trusting.append(trust)
    try:
        with ExitStack() as stack:
            if len(_trusting) == 1:
                _replace_all(stack)
            stack.enter_context(_second_lock(not trust))
            yield
    finally:
        _trusting.pop()


class _WholePath(_Path):  # type: ignore[misc]  # which the type of paths is varies with the system
    """A path that bytes appear at whole or not at all."""

    def write_bytes(self, data: Any) -> int:
        """Write a file."""
        with written_whole(Path(self)) as temporary:
            return temporary.write_bytes(data)


class GuardedProcess:
    """Carries the guard into processes that Ultralytics starts: unpickled there, with the callbacks, it sets it up.

    Args:
        trust: as for `guarded`.
    """

    def __init__(self, trust: bool = False) -> None:
        self.trust = trust

    def on_train_start(self, trainer: Any) -> None:
        """Have a trainer write its checkpoints whole or not at all, however it ends."""
        folder = Path(trainer.save_dir)
        clean_runs(folder.with_name(folder.name.rstrip("0123456789-") or folder.name))
        trainer.wdir, trainer.last, trainer.best = map(_WholePath, (trainer.wdir, trainer.last, trainer.best))

    def on_model_save(self, trainer: Any) -> None:
        """Note that what a trainer has just saved is this process's own."""
        note_written(trainer.last)
        if trainer.best_fitness == trainer.fitness:
            note_written(trainer.best)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the guard up, for as long as this process lives."""
        vars(self).update(state)
        guard = guarded(self.trust)
        guard.__enter__()
        vars(self)["_guard"] = guard  # which would close when it is collected

    def __getstate__(self) -> dict[str, Any]:
        """The settings; a guard that is open stays where it is."""
        return {"trust": self.trust}


def note_written(path: str | Path) -> None:
    """Remember a checkpoint that this process has just written: it may be read again whatever it holds."""
    file = Path(path).resolve()
    _written[file] = _stamp(file)


def written_here(path: str | Path) -> bool:
    """Whether this process wrote a file, and nobody changed it since."""
    file = Path(path).resolve()
    return file in _written and file.is_file() and _written[file] == _stamp(file)


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _trusted() -> bool:
    return bool(_trusting) and _trusting[-1]


def _replace_all(stack: ExitStack) -> None:
    fetching = dict(_FETCHING)
    if importlib.util.find_spec(_TEXT_MODELS[1]) is not None:
        fetching[_TEXT_MODELS[0]] = ("build_text_model",)
    for module, names in fetching.items():
        for name in names:
            original = getattr(importlib.import_module(module), name, None)
            if original is not None:  # some came or went with a version
                _replace(stack, original, _refusing(name))
    for module, name, make in _REPLACED:
        original = getattr(importlib.import_module(module), name, None)
        if original is not None:
            _replace(stack, original, make(original))
    _replace_attribute(stack, YAML, "load", classmethod(_load_yaml))
    _replace_attribute(stack, YOLODataset, "_load_or_scan_cache", _own_labels(YOLODataset._load_or_scan_cache))
    _replace_attribute(stack, BaseDataset, "load_image", _without_arrays(BaseDataset.load_image))
    _replace_attribute(stack, BaseDataset, "__init__", _forgetting_arrays(vars(BaseDataset)["__init__"]))


def _replace(stack: ExitStack, original: Any, replacement: Any) -> None:
    """Put a function in the place of another in all of Ultralytics, and back when the stack is closed."""
    _swap(original, replacement)
    stack.callback(_swap, replacement, original)


def _swap(old: Any, new: Any) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("ultralytics") and module is not None:
            for attribute, value in list(vars(module).items()):
                if value is old:
                    setattr(module, attribute, new)


def _replace_attribute(stack: ExitStack, owner: type, name: str, new: Any) -> None:
    stack.callback(setattr, owner, name, vars(owner)[name])
    setattr(owner, name, new)


@contextmanager
def _second_lock(shut: bool) -> Iterator[None]:
    """Ultralytics' own restricted loading, here and in the processes that it starts."""
    variable = "ULTRALYTICS_SAFE_LOAD"
    before, module = os.environ.get(variable), cast(Any, tasks)
    constant = getattr(module, "SAFE_LOAD", None)
    os.environ[variable] = "1" if shut else "0"
    if constant is not None:
        module.SAFE_LOAD = shut
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before
        if constant is not None:
            module.SAFE_LOAD = constant


class _Unchanged(Exception):
    """Nothing was written."""


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(*given: Any, **named: Any) -> Any:
        what = str(given[0] if given else named.get("url") or named.get("file") or "")
        raise ConnectionError(
            f"Ultralytics would fetch or unpack {what[:200]}: yolo-os downloads and unpacks nothing, do it beforehand"
        )

    refuse.__name__ = name
    return refuse


def through_the_gate(path: str | Path, key: str = "model") -> dict[str, Any]:
    """All that a checkpoint holds, checked: the one gate for every checkpoint that Ultralytics or we load.

    Args:
        path: of the `.pt` file; never downloaded.
        key: what an error calls the file.

    Raises:
        UserError: if there is no such file, it is no checkpoint, or, where the guard does not trust it, it holds
            something that is not let through.
    """
    file = find_checkpoint(path, key)
    own = written_here(file)
    if own or _trusted():
        if not own:
            announce(file, key)
        try:
            contents = _torch_safe_load(str(file), safe_only=False)[0]
        except Exception as error:  # whatever a damaged file makes the unpickler raise
            raise UserError(f"{key}={path}: can't be loaded ({line_of(error)})") from None
    else:
        contents = read_plain(file, f"{key}={path}")
    try:
        check_contents(contents, own or _trusted())
    except UserError as error:
        raise UserError(f"{key}={path}: {error}") from None
    return contents  # type: ignore[no-any-return]  # which check_contents has seen to


_torch_safe_load = tasks.torch_safe_load


def _gated(original: Callable[..., Any]) -> Callable[..., Any]:
    """`torch_safe_load`, from which all of Ultralytics gets its models."""

    def torch_safe_load(weight: Any, safe_only: bool | None = None) -> tuple[dict[str, Any], str]:
        path = Path(str(weight).strip().replace("'", ""))
        kept = Path(str(SETTINGS["weights_dir"])) / path  # where Ultralytics keeps its own
        path = kept if not path.exists() and kept.exists() else path
        return through_the_gate(path), str(path)

    return torch_safe_load


def _reading_archives(original: Callable[..., Any]) -> Callable[..., Any]:
    """`torch_load`, which reads what a training has written, and caches of text features beside a data set."""

    def torch_load(*given: Any, **named: Any) -> Any:
        if _trusted() or not isinstance(given[0], str | Path) or written_here(given[0]):
            return original(*given, **named)
        return read_archive(given[0])

    return torch_load


def _checking_architectures(original: Callable[..., Any]) -> Callable[..., Any]:
    def parse_model(d: Any, *given: Any, **named: Any) -> Any:
        if not _trusted():
            check_architecture(d)
        return original(d, *given, **named)

    return parse_model


def _without_downloads(original: Callable[..., Any]) -> Callable[..., Any]:
    def check_det_dataset(dataset: Any, autodownload: bool = True, split: str = "") -> Any:
        file = Path(str(dataset))
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UserError(f"{file}: it is no ordinary file")  # but a pipe, which would be waited for
        return original(dataset, False, split) if split else original(dataset, False)

    return check_det_dataset


def _local_font(original: Callable[..., Any]) -> Callable[..., Any]:
    def check_font(font: str = "Arial.ttf") -> Any:
        file = Path(USER_CONFIG_DIR) / Path(font).name
        return file if file.is_file() else None  # plots fall back to a font that is there

    return check_font


def _offline(original: Callable[..., Any]) -> Callable[..., Any]:
    def is_url(url: Any, check: bool = False) -> bool:
        return False if check else bool(original(url))

    return is_url


def _without_installing(original: Callable[..., Any]) -> Callable[..., Any]:
    def check_requirements(*given: Any, **named: Any) -> Any:
        return original(*given, **{**named, "install": False})

    return check_requirements


def _stripping_whole(original: Callable[..., Any]) -> Callable[..., Any]:
    """`strip_optimizer`, which writes over the checkpoint that it reads."""

    def strip_optimizer(f: Any = "best.pt", s: Any = "", updates: Any = None) -> Any:
        target = Path(str(s or f))
        try:
            with written_whole(target) as temporary, quiet():
                result = original(f, str(temporary), updates)
                if not result:
                    raise _Unchanged
        except _Unchanged:  # it is no checkpoint, and stays as it is
            return {}
        LOGGER.info(f"Optimizer stripped from {f}{f', saved as {s}' if s else ''}, {target.stat().st_size / 1e6:.1f}MB")
        return result

    return strip_optimizer


def _skipping_without_weights(original: Callable[..., Any]) -> Callable[..., Any]:
    """`check_amp`, which tries mixed precision with weights that it would download, and goes on where it can't."""

    def check_amp(model: Any) -> bool:
        try:
            return bool(original(model))
        except UserError as error:
            LOGGER.warning(
                f"AMP: not checked on this GPU, nothing is downloaded for that ({error}); if mAP stays at 0 or losses "
                "become NaN, train with amp=False"
            )
            return True

    return check_amp


def _never(original: Callable[..., Any]) -> Callable[..., Any]:
    def check_pip_update_available() -> bool:
        return False

    return check_pip_update_available


def _leaving_images(original: Callable[..., Any]) -> Callable[..., Any]:
    """`_replace_image`, by which a JPEG that lacks its end is written anew in its place: only whether it could be."""

    def _replace_image(im_file: Any, write: Callable[[Any], Any]) -> None:
        write(io.BytesIO())

    return _replace_image


def _of_files(original: Callable[..., Any]) -> Callable[..., Any]:
    """`check_file_speeds`, which opens what is called like an image, and waits where that is a pipe."""

    def check_file_speeds(files: Any, *given: Any, **named: Any) -> Any:
        return original([file for file in files if Path(file).is_file()], *given, **named)

    return check_file_speeds


def _saying_so(original: Callable[..., Any]) -> Callable[..., Any]:
    def check_image(im_file: Any) -> Any:
        if not Path(im_file).is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        said, shape = original(im_file)
        return (f"{im_file}: a JPEG without its end, used as it is" if said else said), shape

    return check_image


def _over_caches_only(original: Callable[..., Any]) -> Callable[..., Any]:
    """`save_dataset_cache_file`, which deletes whatever has the name of its file."""

    def save_dataset_cache_file(prefix: str, path: Path, x: Any, version: str) -> None:
        foreign = path.is_symlink()  # through which a file elsewhere would be written
        if foreign or (path.exists() and not (path.is_file() and path.read_bytes()[:6] == _NUMPY)):
            LOGGER.warning(f"{prefix}{path} is no label cache and stays as it is: labels are scanned at every start")
            x["version"] = version
            return
        with suppress(FileNotFoundError):  # another process, that scans the same labels, has just deleted it
            original(prefix, path, x, version)

    return save_dataset_cache_file


def _plain_caches(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_dataset_cache_file(path: Any) -> dict[str, Any]:
        return read_label_cache(Path(path))

    return load_dataset_cache_file


_REPLACED: tuple[tuple[str, str, Callable[[Callable[..., Any]], Callable[..., Any]]], ...] = (
    ("ultralytics.nn.tasks", "torch_safe_load", _gated),
    ("ultralytics.utils.patches", "torch_load", _reading_archives),
    ("ultralytics.nn.tasks", "parse_model", _checking_architectures),
    ("ultralytics.data.utils", "check_det_dataset", _without_downloads),
    ("ultralytics.data.utils", "load_dataset_cache_file", _plain_caches),
    ("ultralytics.data.utils", "save_dataset_cache_file", _over_caches_only),
    ("ultralytics.data.utils", "_replace_image", _leaving_images),
    ("ultralytics.data.utils", "check_image", _saying_so),
    ("ultralytics.data.utils", "check_file_speeds", _of_files),
    ("ultralytics.utils.checks", "check_amp", _skipping_without_weights),
    ("ultralytics.utils.checks", "check_font", _local_font),
    ("ultralytics.utils.checks", "check_requirements", _without_installing),
    ("ultralytics.utils.checks", "check_pip_update_available", _never),
    ("ultralytics.utils.downloads", "is_url", _offline),
    ("ultralytics.utils.torch_utils", "strip_optimizer", _stripping_whole),
)


def _load_yaml(_: type, file: Any = "data.yaml", append_filename: bool = False) -> dict[str, Any]:
    """`YAML.load`, by our reader."""
    if not str(file).lower().endswith((".yaml", ".yml")):
        raise UserError(f"{file}: no YAML file")
    content = read_yaml(file) or {}
    if not isinstance(content, dict):
        raise UserError(f"{file}: no dictionary of settings")
    classes = content.get("nc")
    if isinstance(classes, int | float) and not 0 <= classes <= MOST_CLASSES:  # each of which gets a name
        raise UserError(f"{file}: nc={classes!r:.40}: takes a number up to {MOST_CLASSES:,}")
    if append_filename:
        content["yaml_file"] = str(file)
    return content


def _own_labels(original: Callable[..., Any]) -> Callable[..., Any]:
    """`_load_or_scan_cache`, which takes any labels for those of a data set whose names and sizes fit."""

    def _load_or_scan_cache(self: Any, cache_path: Path, *given: Any) -> Any:
        cache, loaded = original(self, cache_path, *given)
        images, classes = set(map(str, self.im_files)), len(self.data["names"])
        if loaded and not all(each["im_file"] in images and (each["cls"] < classes).all() for each in cache["labels"]):
            return self.cache_labels(cache_path), False
        return cache, loaded

    return _load_or_scan_cache


def _without_arrays(original: Callable[..., Any]) -> Callable[..., Any]:
    """`load_image`, which takes no `.npy` for an image (nor deletes it) where the user did not ask for such caches."""

    def load_image(self: Any, i: int, *given: Any, **named: Any) -> Any:
        if self.cache != "disk":
            self.npy_files[i] = _NO_FILE
        else:
            _check_array(self.npy_files[i])
        return original(self, i, *given, **named)

    return load_image


def _forgetting_arrays(original: Callable[..., None]) -> Callable[..., None]:
    """`BaseDataset.__init__`, for loader processes that start anew and know nothing of this guard."""

    def __init__(self: Any, *given: Any, **named: Any) -> None:
        original(self, *given, **named)
        if self.cache != "disk":
            forget_arrays(self)

    return __init__


def forget_arrays(dataset: Any) -> None:
    """Have a data set read its images, whatever `.npy` lies beside them."""
    dataset.npy_files = [_NO_FILE] * len(dataset.npy_files)


def _check_array(file: Path) -> None:
    """Refuse a `.npy` beside an image that holds no image: Ultralytics would delete it.

    Raises:
        UserError: naming it.
    """
    if not file.exists():
        return
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        fine = array.ndim in (2, 3) and array.dtype in (np.uint8, np.uint16)
    except Exception:
        fine = False
    if not fine:
        raise UserError(f"cache=disk: {file} is no image kept by Ultralytics; move it away, or leave cache=disk out")
