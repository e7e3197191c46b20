"""Read what `torch.save` wrote without running anything of the file's: the restricted reader of every checkpoint.

A checkpoint is a zip archive that holds a pickle and the bytes of its tensors. A pickle is a program for a small stack
machine, two of whose instructions call what the file names. Here the machine has only the instructions listed in
`_RUN`, and what a file names is never looked up by its name alone:

- a call (REDUCE) runs one of the few functions of this page: tensors, numpy scalars and arrays, paths, containers;
- a module (NEWOBJ) of torch or Ultralytics is made without its constructor and given its state as data;
- all else is refused by name, the constructors of allowed classes as well: some of Ultralytics' load further files.

What was built is then looked through: a module may hold data, tensors and modules, but no hooks, and nothing in the
place of a method. So nothing a file chose is called later either, but for the `forward` of allowed modules.

`read_as_data` goes further for files of other people's classes: their objects are held as data (`Recorded`), none of
them is made.
"""

from __future__ import annotations

import importlib
import math
import os
import pickletools
import re
import struct
import sys
import types
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

# Home modules of classes whose `forward` does nothing but arithmetic, and whose state may come from a file.
_TORCH_MODULES = (
    "activation", "batchnorm", "channelshuffle", "container", "conv", "dropout", "flatten", "instancenorm", "linear",
    "normalization", "padding", "pixelshuffle", "pooling", "sparse", "transformer", "upsampling",
)  # fmt: skip
_ULTRALYTICS_MODULES = ("activation", "block", "conv", "head", "transformer", "utils")
# Wraps any model of torchvision, by a name and weights to download; none of the detectors uses it.
_REFUSED_CLASSES = {"TorchVision"}
_MODELS = {
    "DetectionModel", "SegmentationModel", "PoseModel", "OBBModel", "RTDETRDetectionModel", "WorldModel", "YOLOEModel",
    "YOLOESegModel", "ClassificationModel", "SemanticSegmentationModel", "DepthModel",
}  # fmt: skip
# Names of former versions, as Ultralytics itself reads them.
_RENAMED = {
    "ultralytics.nn.modules.block.Silence": "torch.nn.modules.linear.Identity",
    "ultralytics.nn.tasks.YOLOv10DetectionModel": "ultralytics.nn.tasks.DetectionModel",
    "ultralytics.yolo.utils.IterableSimpleNamespace": "ultralytics.utils.IterableSimpleNamespace",
}
_NAMESPACES = {"types.SimpleNamespace", "ultralytics.utils.IterableSimpleNamespace"}
# Of the loss that a training leaves on its model: never used from a file, so never built either.
_DROPPED = (
    "ultralytics.utils.loss.", "ultralytics.utils.tal.", "ultralytics.models.utils.loss.",
    "ultralytics.models.utils.ops.", "ultralytics.yolo.utils.loss.", "torch.nn.modules.loss.",
)  # fmt: skip
_HOOKS = (
    "_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_PLACES = {"_parameters": nn.Parameter, "_buffers": torch.Tensor, "_modules": nn.Module}
_PLAIN = (str, int, float, bool, bytes, type(None))
_MOST_NESTED = 200
_LARGEST_PICKLE = 100_000_000  # bytes; tensors lie beside it
_MOST_PARTS = 5_000_000
_MOST_BITS = 256  # of a whole number
_SPARE = 64 * 2**20  # bytes that calls and tensors may take beyond what the file holds of them
_COPIED = (str, bytes, list, tuple, dict, set, frozenset)
_DATA = (torch.Tensor, np.ndarray, np.generic, np.dtype, Path, torch.dtype, torch.device)
_END = object()
_NUMPY_TYPE = re.compile(r"[<>|=]?[biufc]\d{1,2}")
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


class Refused(ValueError):
    """The file holds something that is not let through; the text names it."""


class Damaged(ValueError):
    """The file is no archive of `torch.save`, or not a whole one."""


def read_archive(path: str | Path) -> Any:
    """What `torch.save` wrote into a file, its tensors on the CPU; nothing of the file's is run.

    Raises:
        Refused: if it holds a class, a call or a tensor that is not let through.
        Damaged: if it is truncated, altered or something else.
    """
    return _read(path, lambda name: False)[0]


@dataclass
class Recorded:
    """An object of somebody's class, held as data.

    Attributes:
        full: module and name of the class.
        state: its attributes, as the file gives them.
    """

    full: str
    state: dict[str, Any]

    @property
    def kind(self) -> str:
        """The name of the class alone."""
        return self.full.rpartition(".")[2]


def read_as_data(path: str | Path, held: Callable[[str], bool]) -> tuple[Any, dict[str, torch.UntypedStorage]]:
    """What `torch.save` wrote into a file, with objects of some classes as `Recorded` data in place of themselves.

    Args:
        path: of the file.
        held: whether objects of a class of that full name are held as data; a call of one is refused all the same.

    Returns:
        The contents, and the bytes of all tensors by the key that they have in the archive.

    Raises:
        Refused: if it holds anything else that is not let through.
        Damaged: if it is truncated, altered or something else.
    """
    return _read(path, held)


def _read(path: str | Path, held: Callable[[str], bool]) -> tuple[Any, dict[str, torch.UntypedStorage]]:
    with Archive(path) as archive:
        storages = _Storages(archive)
        try:
            machine = _Machine(archive.pickle, storages, held)
            result = machine.run()
            _look_through(result)
            for name in sorted(machine.names):  # also where nothing is made of one: who loads the file imports it
                if is_foreign(name) and not held(name):
                    raise Refused(name)
        except (Refused, Damaged):
            raise
        except zipfile.BadZipFile as error:
            raise Damaged(_short(error)) from None
        except Exception as error:  # whatever a broken pickle makes of the stack, of numbers and of tensors
            raise Damaged(f"its contents are damaged ({type(error).__name__}: {_short(error)})") from None
    return result, storages.read


def names_in(path: str | Path) -> list[str]:
    """All functions and classes that a file names, in order; none of them is touched.

    Raises:
        Damaged: if it is no archive of `torch.save`.
    """
    found: dict[str, None] = {}
    with Archive(path) as archive:
        try:
            strings: list[str] = []
            for opcode, argument, _ in pickletools.genops(archive.pickle):
                if opcode.name in ("GLOBAL", "INST"):
                    found[".".join(str(argument).split(" ", 1))] = None
                elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                    found[".".join(strings[-2:])] = None
                elif isinstance(argument, str):
                    strings.append(argument)
        except Exception as error:
            raise Damaged(f"its contents are damaged ({type(error).__name__}: {_short(error)})") from None
    return list(found)


def is_foreign(name: str) -> bool:
    """Whether a name in a file is one that is not let through (as far as the name alone tells)."""
    module, _, attribute = name.rpartition(".")
    module, attribute = _today(module, attribute)
    full = f"{module}.{attribute}"
    return not (
        full in _FUNCTIONS
        or full in _NAMESPACES
        or _is_dropped(full)
        or full in ("builtins.object", "numpy.ndarray", "numpy.dtype")
        or (module == "torch" and (attribute in _STORAGES or isinstance(getattr(torch, attribute, None), torch.dtype)))
        or full == "torch.storage.UntypedStorage"
        or module_class(full) is not None
    )


class Archive:
    """The archive of a file, open for the length of a block.

    Attributes:
        prefix: the folder that all its parts are in.
        pickle: the program that builds its objects.
        sizes: of all parts in bytes, by full name.

    Raises:
        Damaged: if `torch.save` did not write it, or not all of it is there.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
            entries = self._zip.infolist()
            names = [entry.filename for entry in entries]
            self.prefix = names[0].split("/")[0]
            self.sizes = {entry.filename: entry.file_size for entry in entries}
            if f"{self.prefix}/data.pkl" not in self.sizes:
                raise Damaged("it is no checkpoint")
            if f"{self.prefix}/constants.pkl" in self.sizes:
                raise Damaged("it is a TorchScript archive, not a checkpoint")
            distinct = {name.lower() for name in names}  # as torch looks parts up
            plain = all(not entry.compress_type and entry.orig_filename == entry.filename for entry in entries)
            if len(distinct) < len(names) or not plain or not _is_one_archive(path):
                raise Damaged(
                    "torch.save did not write it: it has compressed parts, two of one name, or is more than one archive"
                )
            if self.sizes[f"{self.prefix}/data.pkl"] > _LARGEST_PICKLE:
                raise Damaged("its pickle is larger than any checkpoint's")
            self.pickle = self.read("data.pkl")
            order = self.read("byteorder") if f"{self.prefix}/byteorder" in self.sizes else b"little"
        except (zipfile.BadZipFile, IndexError, EOFError, struct.error, NotImplementedError, RuntimeError) as error:
            raise Damaged(_short(error)) from None
        except ValueError as error:
            if isinstance(error, Damaged):
                raise
            raise Damaged(_short(error)) from None
        if order.decode("ascii", "replace") != sys.byteorder:
            raise Damaged("it was written on a machine of another byte order")

    def read(self, name: str) -> bytes:
        """A part, by its name within the folder."""
        return self._zip.read(f"{self.prefix}/{name}")

    def size(self, name: str) -> int | None:
        """The bytes of a part, by its name within the folder; None if there is none."""
        return self.sizes.get(f"{self.prefix}/{name}")

    def __enter__(self) -> Archive:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._zip.close()


def _is_one_archive(path: str | Path) -> bool:
    """Whether the parts and the list of them at the end make up all of a file.

    Where something lies before them, or the list is not where the end says, other readers than Python's find other
    parts: `torch.load` may run what was never looked at here.
    """
    with open(path, "rb") as file:
        start = file.read(4)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 98, 0))
        tail = file.read()
    end, locator, end64 = tail[-22:], tail[-42:-22], tail[-98:-42]
    signature, *_, entries, length, offset, comment = struct.unpack("<4s4H2LH", end)
    listed_until = size - 22
    if locator[:4] == b"PK\x06\x07":  # an archive with 64 bits, as torch writes all of them
        if len(end64) < 56 or end64[:4] != b"PK\x06\x06" or struct.unpack("<Q", locator[8:16])[0] != size - 98:
            return False
        wide = struct.unpack("<3Q", end64[32:])
        if any(narrow not in (most, all_) for narrow, most, all_ in zip((entries, length, offset), _NARROW, wide)):
            return False
        (_, length, offset), listed_until = wide, size - 98
    return start == b"PK\x03\x04" and signature == b"PK\x05\x06" and not comment and offset + length == listed_until


_NARROW = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


@dataclass(frozen=True)
class _Name:
    """What a file calls by name: nothing that could be called, until an instruction takes it for what it may be."""

    full: str


class _Dropped:
    """In the place of an object that is not taken over."""


@dataclass
class _Storage:
    """The bytes of a tensor."""

    bytes: torch.UntypedStorage
    dtype: torch.dtype

    def __len__(self) -> int:
        return int(self.bytes.nbytes()) // self.dtype.itemsize


class _Storages:
    """The records of an archive as storages, each read once."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.read: dict[str, torch.UntypedStorage] = {}
        self.total = 0  # bytes

    def __call__(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise Damaged("a reference to a tensor's data is damaged")
        kind, key, _, count = pid[1:]
        if not (isinstance(kind, _Name) and isinstance(key, str) and isinstance(count, int)):
            raise Damaged("a reference to a tensor's data is damaged")
        module, _, name = kind.full.rpartition(".")
        if module not in ("torch", "torch.storage") or name not in _STORAGES:
            raise Refused(f"{kind.full}, a kind of storage that is not let through")
        dtype = _STORAGES[name]
        if self.archive.size(f"data/{key}") != count * dtype.itemsize:
            raise Damaged(f"the data of tensor {key} are missing or of another size")
        if key not in self.read:
            data = bytearray(self.archive.read(f"data/{key}"))
            tensor = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            self.read[key] = tensor.untyped_storage()
            self.total += len(data)
        return _Storage(self.read[key], dtype)


class _Machine:
    """The stack machine of a pickle, with the instructions of `_RUN` only."""

    def __init__(self, program: bytes, storages: _Storages, held: Callable[[str], bool]) -> None:
        self.program = program
        self.storages = storages
        self.held = held
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()
        self.copied = 0  # bytes and parts that calls were given
        self.tensors = 0  # bytes

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.program):
            if opcode.name == "STOP":
                return self.stack.pop()
            instruction = _RUN.get(opcode.name)
            if instruction is None:
                raise Refused(f"the pickle instruction {opcode.name}")
            instruction(self, argument)
        raise Damaged("its pickle has no end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> list[Any]:
        """What lies above the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def tuple(self, count: int | None) -> None:
        if count is None:
            self.push(tuple(self.top()))
        else:
            at = len(self.stack) - count
            if at < 0:
                raise IndexError("stack")
            self.stack[at:] = [tuple(self.stack[at:])]

    def name(self, module: str, name: str) -> None:
        named = _named(module, name)
        if isinstance(named, _Name):
            self.names.add(named.full)
        self.push(named)

    def global_(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.name(module, name)

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Damaged("a name in it is damaged")
        self.name(module, name)

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise Refused("a call of something that is no function")
        full = function.full
        if full in _NAMESPACES and not arguments:
            self.push(_class(full)())
        elif full in _FUNCTIONS:
            self.copies(arguments)
            self.push(_FUNCTIONS[full](*arguments))
            self.holds(self.stack[-1])
        else:
            raise Refused(f"a call of {full}")

    def copies(self, given: Sequence[Any]) -> None:
        """Count what a call copies: in an honest file each of its arguments stands once."""
        self.copied += sum(len(each) for each in given if isinstance(each, _COPIED))
        if self.copied > len(self.program) + _SPARE:
            raise Refused("data that unfold into more than the file holds")

    def holds(self, made: Any) -> None:
        """Count what tensors take that lie over the same bytes: each is copied where a model is."""
        if isinstance(made, torch.Tensor):
            self.tensors += made.nbytes
            if self.tensors > 4 * self.storages.total + _SPARE:
                raise Refused("tensors that overlap, and together are larger than what is stored of them")

    def newobj(self, _: Any) -> None:
        arguments, named = self.stack.pop(), self.stack.pop()
        if not isinstance(named, _Name):
            raise Refused("an object of something that is no class")
        if _is_dropped(named.full):
            self.push(_Dropped())
            return
        held = self.held(named.full)
        kind = None if held else module_class(named.full)
        if kind is None and not held:
            raise Refused(named.full)
        if arguments != ():
            raise Refused(f"{named.full} made with arguments")
        self.push(Recorded(named.full, {}) if kind is None else object.__new__(kind))

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dropped):
            return
        if isinstance(target, np.ndarray):
            self.copies(state if isinstance(state, tuple) else ())
            _fill_array(target, state)
        elif isinstance(target, np.dtype):
            if not (isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", "|", "=")):
                raise Refused("numbers of another byte order")
        elif isinstance(target, nn.Module | types.SimpleNamespace | OrderedDict | Recorded):
            if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
                raise Refused(f"a {type(target).__name__} whose state is no dictionary")
            if isinstance(target, nn.Module):
                put: Any = target.__setstate__  # which also adds what older versions did not have
                put(state)
            elif isinstance(target, Recorded):
                target.state = state
            elif isinstance(target, types.SimpleNamespace) or state.keys() <= {"_metadata"}:
                vars(target).update(state)
            else:
                raise Refused("a dictionary with attributes")
        else:
            raise Refused(f"a state for a {type(target).__name__}")

    def append(self, _: Any) -> None:
        item, target = self.stack.pop(), self.stack[-1]
        self._extend(target, [item])

    def appends(self, _: Any) -> None:
        items = self.top()
        self._extend(self.stack[-1], items)

    @staticmethod
    def _extend(target: Any, items: list[Any]) -> None:
        if isinstance(target, _Dropped):
            return
        if type(target) is not list:
            raise Refused(f"items for a {type(target).__name__}")
        target.extend(items)

    def setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def setitems(self, _: Any) -> None:
        items = self.top()
        self._set(self.stack[-1], items)

    @staticmethod
    def _set(target: Any, items: list[Any]) -> None:
        if isinstance(target, _Dropped):
            return
        if type(target) not in (dict, OrderedDict):
            raise Refused(f"keys for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_hashable(key)] = value

    def additems(self, _: Any) -> None:
        items = self.top()
        if type(self.stack[-1]) is not set:
            raise Refused(f"elements for a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(map(_hashable, items))

    def frozenset(self, _: Any) -> None:
        self.push(frozenset(map(_hashable, self.top())))

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, place: int) -> None:
        self.push(self.memo[place])

    def persistent(self, _: Any) -> None:
        self.push(self.storages(self.stack.pop()))

    def pop(self, _: Any) -> None:
        self.stack.pop()

    def pop_mark(self, _: Any) -> None:
        self.top()

    def number(self, value: int) -> None:
        if value.bit_length() > _MOST_BITS:
            raise Refused("a whole number of thousands of digits")
        self.push(value)


_RUN: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "TUPLE": lambda machine, _: machine.tuple(None),
    "TUPLE1": lambda machine, _: machine.tuple(1),
    "TUPLE2": lambda machine, _: machine.tuple(2),
    "TUPLE3": lambda machine, _: machine.tuple(3),
    "LIST": lambda machine, _: machine.push(machine.top()),
    "FROZENSET": _Machine.frozenset,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.setitem,
    "SETITEMS": _Machine.setitems,
    "ADDITEMS": _Machine.additems,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.newobj,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _Machine.number),
    **dict.fromkeys(
        (
            "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES",
            "SHORT_BINBYTES", "BINBYTES8", "STRING", "BINSTRING", "SHORT_BINSTRING",
        ),
        _Machine.push,
    ),
}  # fmt: skip


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, *rest: Any, dtype: Any = None
) -> torch.Tensor:
    """A strided tensor over a storage; one that asks for more elements than are stored is refused."""
    if not isinstance(storage, _Storage) or hooks:
        raise Damaged("a tensor in it is damaged")
    wanted = dtype or storage.dtype
    stored = int(storage.bytes.nbytes()) // wanted.itemsize
    for numbers in (size, stride, (offset,)):
        if not isinstance(numbers, tuple) or not all(type(each) is int and 0 <= each < 2**62 for each in numbers):
            raise Damaged("the shape of a tensor in it is damaged")
    if len(size) != len(stride) or len(size) > 16:
        raise Damaged("the shape of a tensor in it is damaged")
    count = math.prod(size)
    end = offset + 1 + sum((length - 1) * step for length, step in zip(size, stride))
    if count and max(count, end) > stored:
        raise Damaged(f"a tensor in it is larger ({max(count, end):,} numbers) than what is stored of it ({stored:,})")
    tensor = torch.empty(0, dtype=wanted).set_(storage.bytes, offset if count else 0, size, stride)
    return tensor.requires_grad_(bool(requires_grad))


def _tensor_of(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> torch.Tensor:
    return _tensor(storage, offset, size, stride, requires_grad, hooks, dtype=_dtype(dtype))


def _dtype(named: Any) -> torch.dtype:
    if not isinstance(named, torch.dtype):
        raise Damaged("the type of a tensor in it is damaged")
    return named


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> nn.Parameter:
    if type(data) is not torch.Tensor or hooks:
        raise Damaged("a parameter in it is damaged")
    if state:
        raise Refused("a parameter with attributes")
    return nn.Parameter(data, requires_grad=bool(requires_grad))


def _getattr(owner: Any, name: Any) -> Any:
    """`Detect.forward`, and the `forward_fuse` of a fused layer: what Ultralytics' own checkpoints look up."""
    if isinstance(owner, _Name) and name == "forward" and module_class(owner.full):
        return _Dropped()  # a reference that current versions do not use
    if isinstance(owner, nn.Module) and name == "forward_fuse" and hasattr(type(owner), name):
        return getattr(owner, name)
    raise Refused(f"a look-up of {name!r}")


def _path(*parts: Any) -> Path:
    if not all(isinstance(part, str) for part in parts):
        raise Refused("a path made of something else than text")
    return Path(*parts)


def _numpy_dtype(text: Any, *rest: Any) -> np.dtype[Any]:
    if not isinstance(text, str) or not _NUMPY_TYPE.fullmatch(text):
        raise Refused(f"a numpy type {text!r:.40}")
    return np.dtype(text)


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise Damaged("a number in it is damaged")
    return np.frombuffer(data, dtype)[0]


def _numpy_array(kind: Any, *rest: Any) -> np.ndarray[Any, Any]:
    if not (isinstance(kind, _Name) and kind.full == "numpy.ndarray"):
        raise Refused("a numpy array of another class")
    return np.zeros(0)


def _fill_array(array: np.ndarray[Any, Any], state: Any) -> None:
    if not (isinstance(state, tuple) and len(state) == 5):
        raise Damaged("an array in it is damaged")
    _, shape, dtype, _, data = state
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
        raise Refused("a numpy array of objects")
    sizes = isinstance(shape, tuple) and all(type(each) is int and each >= 0 for each in shape)
    if not sizes or math.prod(shape) * dtype.itemsize != len(data):
        raise Damaged("an array in it is damaged")
    array.__setstate__(state)


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "utf-8"):
        raise Refused("bytes in a strange encoding")
    return text.encode(encoding)


def _collection(kind: type) -> Callable[..., Any]:
    def make(items: Any = ()) -> Any:
        if not isinstance(items, list | tuple):
            raise Refused(f"a {kind.__name__} of a {type(items).__name__}")
        return kind(map(_hashable, items))

    return make


def _ordered(items: Any = ()) -> OrderedDict[Any, Any]:
    if not isinstance(items, list | tuple):
        raise Refused(f"an OrderedDict of a {type(items).__name__}")
    pairs = [(key, value) for key, value in items]
    return OrderedDict((_hashable(key), value) for key, value in pairs)


def _size(numbers: Any = ()) -> torch.Size:
    return torch.Size([int(each) for each in numbers])


def _device(kind: Any, index: Any = None) -> torch.device:
    return torch.device(str(kind)) if index is None else torch.device(str(kind), int(index))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered,
    "builtins.set": _collection(set),
    "builtins.frozenset": _collection(frozenset),
    "builtins.getattr": _getattr,
    "_codecs.encode": _encoded,
    "numpy.dtype": _numpy_dtype,
    **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _numpy_array for core in ("core", "_core")},
    **{
        f"{module}.{kind}Path": _path
        for module in ("pathlib", "pathlib._local")
        for kind in ("Posix", "Windows", "PurePosix", "PureWindows")
    },
}


def _named(module: str, name: str) -> Any:
    """What a name stands for on the stack: a type of numbers for what it is, all else a name without use of its own."""
    module, name = _today(module, name)
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    return _Name(f"{module}.{name}")


def _today(module: str, name: str) -> tuple[str, str]:
    """A name as Python 3 and the current version of Ultralytics have it."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    elif module in IMPORT_MAPPING:
        module = IMPORT_MAPPING[module]
    full = _RENAMED.get(f"{module}.{name}", f"{module}.{name}")
    module, _, name = full.rpartition(".")
    return module, name


def _is_dropped(full: str) -> bool:
    """Whether a name is that of a loss; one of several parts could be anything that its module has imported."""
    return any(full.startswith(home) and full[len(home) :].isidentifier() for home in _DROPPED)


def module_class(full: str) -> type[nn.Module] | None:
    """The class of modules of that name, if it is one that may come from a file."""
    home, _, name = full.rpartition(".")
    if not home.startswith(("torch.nn.modules", "ultralytics.nn.modules", "ultralytics.nn.tasks")):
        return None
    module = sys.modules.get(home) or (importlib.import_module("ultralytics.nn.tasks") and sys.modules.get(home))
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)) or found.__name__ in _REFUSED_CLASSES:
        return None
    allowed = (  # where it is at home, whatever module it was asked of
        found.__module__ in {f"torch.nn.modules.{each}" for each in _TORCH_MODULES}
        or found.__module__ in {f"ultralytics.nn.modules.{each}" for each in _ULTRALYTICS_MODULES}
        or (found.__module__ == "ultralytics.nn.tasks" and found.__name__ in _MODELS)
    )
    return found if allowed else None


def _class(full: str) -> Any:
    module, _, name = full.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _hashable(key: Any) -> Any:
    """A key; tuples in tuples are refused, for their checksum can take for ever."""
    if isinstance(key, _PLAIN) or (isinstance(key, tuple) and all(isinstance(each, _PLAIN) for each in key)):
        return key
    raise Refused(f"a {type(key).__name__} as a key")


def _look_through(root: Any) -> None:
    """Refuse what was built if any part of it could be called later, is nothing but a name, or unfolds without end.

    Raises:
        Refused: naming the part.
    """
    sizes: dict[int, int] = {}  # of what is done, all that it holds counted as often as it is held
    path: list[tuple[Any, Iterator[Any]]] = [(root, _parts(root))]
    open_: set[int] = {id(root)}
    totals = [1]
    while path:
        value, parts = path[-1]
        part = next(parts, _END)
        if part is _END:
            path.pop()
            open_.discard(id(value))
            sizes[id(value)] = size = totals.pop()
            if size > _MOST_PARTS:
                raise Refused(f"data that unfold into more than {_MOST_PARTS:,} parts")
            if totals:
                totals[-1] += size
        elif isinstance(part, _PLAIN):
            totals[-1] += 1
        elif id(part) in sizes:
            totals[-1] += sizes[id(part)]
        elif id(part) in open_:
            raise Refused(f"a {type(part).__name__} that holds itself")
        elif len(path) > _MOST_NESTED:
            raise Refused(f"data nested more than {_MOST_NESTED} deep")
        else:
            path.append((part, _parts(part)))
            open_.add(id(part))
            totals.append(1)


def _parts(value: Any) -> Iterator[Any]:
    """What a value holds, each part checked; what was dropped becomes None."""
    if isinstance(value, _Name):
        raise Refused(f"{value.full} as data")
    if isinstance(value, nn.Module):
        _check_module(value)
        return iter([part for part in vars(value).values() if not isinstance(part, types.MethodType)])
    if isinstance(value, types.SimpleNamespace | Recorded):
        value = vars(value) if isinstance(value, types.SimpleNamespace) else value.state
    if isinstance(value, dict):
        value.update((key, None) for key, part in list(value.items()) if isinstance(part, _Dropped))
        return iter([*value.values(), *(vars(value).values() if isinstance(value, OrderedDict) else ())])
    if isinstance(value, list):
        value[:] = [None if isinstance(part, _Dropped) else part for part in value]
        return iter(value)
    if isinstance(value, tuple | set | frozenset):
        return iter(value)
    if isinstance(value, (*_PLAIN, *_DATA)):
        return iter(())
    raise Refused(f"a {type(value).__name__} as data")


def _check_module(module: nn.Module) -> None:
    """Refuse a module whose state has hooks, something else than tensors and modules in their places, or a method."""
    kind, state = type(module), vars(module)
    for name in _HOOKS:
        if state.get(name):
            raise Refused(f"a {kind.__name__} with hooks ({name})")
    if _is_code(kind, "init_criterion"):  # a model, which makes its loss anew when it is needed
        state.pop("criterion", None)
        for place in _PLACES:
            if isinstance(state.get(place), dict):
                state[place].pop("criterion", None)
    for name, wanted in _PLACES.items():
        held = state.get(name)
        if not isinstance(held, dict) or not all(each is None or isinstance(each, wanted) for each in held.values()):
            raise Refused(f"a {kind.__name__} whose {name} are something else")
    for name, value in list(state.items()):
        if isinstance(value, _Dropped):
            state[name] = None  # a loss, which is made anew when it is needed
        elif isinstance(value, types.MethodType):
            if name != "forward" or value.__self__ is not module:
                raise Refused(f"a method as {name} of a {kind.__name__}")
        elif _is_code(kind, name) and not (name == "type" and isinstance(value, str)):  # which Ultralytics sets
            raise Refused(f"{name} of a {kind.__name__} replaced")
    if not all(isinstance(name, str) for held in _PLACES for name in state[held]):
        raise Refused(f"a {kind.__name__} whose parts have no names")


def _is_code(kind: type, name: str) -> bool:
    """Whether a name of a class is a method (a property is looked up in the class, whatever the instance holds)."""
    found = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    return (callable(found) and not isinstance(found, nn.Module)) or isinstance(found, classmethod | staticmethod)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
