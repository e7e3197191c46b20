"""Read the pickle of a checkpoint as data: what it holds by whose name, and nothing of it built or called.

A pickle names classes and functions, and unpickling calls them. Here a name is never looked up. A class whose name is
allowed becomes an empty holder (`Recorded`) of the state that the file gives it; the few functions that data need
(tensors, ordered dictionaries, numbers of numpy) are stood in for by our own; everything else is refused by its name,
and a call of an allowed class is, too, since constructors do more than hold data.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yolo_os.integration.yolov5.archive import Archive, Damaged

# The instructions that `torch.save` writes; none of them calls anything that this page does not hand out.
_INSTRUCTIONS = {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE",
    "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT", "FROZENSET",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD",
    "BINPERSID", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "INT", "BININT",
    "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "STRING", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
_MOST_MODULES = 50_000
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
_DTYPES = {
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
}
_TENSORS = (
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
# Their results are not needed: noted as things without content.
_OPAQUE = re.compile(
    r"(numpy\.(_?core\.multiarray\.(_reconstruct|scalar)|dtype|ndarray)|_codecs\.encode|torch\.(Size|device)"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)Path)"
)


class Refused(ValueError):
    """The file holds something that is not let through; the text names it."""


@dataclass(frozen=True)
class Stored:
    """A tensor as the file describes it.

    Attributes:
        key: of its bytes in the archive, which several tensors may share.
        dtype: of the numbers.
        offset, size, stride: in numbers, as of `torch.as_strided`.
    """

    key: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self, archive: Archive) -> Tensor:
        """The tensor, on memory of its own.

        Raises:
            Damaged: if more numbers are asked for than are stored.
        """
        return self.view(archive.bytes_of(self.key)).clone()

    def view(self, stored: bytearray) -> Tensor:
        """The tensor over bytes: what is written into it is written there."""
        last = self.offset + sum((length - 1) * step for length, step in zip(self.size, self.stride))
        whole = len(stored) // self.dtype.itemsize
        if 0 in self.size:
            return torch.empty(self.size, dtype=self.dtype)
        most = max(last + 1, math.prod(self.size))
        if most > whole:
            raise Damaged(f"a tensor in it is larger ({most:,} numbers) than what is stored of it ({whole:,})")
        flat = torch.frombuffer(stored, dtype=self.dtype, count=whole)
        return flat.as_strided(self.size, self.stride, self.offset)


class _Held(type):
    """The type of the holders: calling one would be calling the constructor of the class it stands for."""

    full: str

    def __call__(cls, *args: Any, **named: Any) -> Any:
        raise Refused(f"a call of {cls.full}")


class Recorded(metaclass=_Held):
    """An object of a class that only its name is known of, with the state that the file gives it.

    Attributes:
        full: module and name of its class.
        state: its attributes.
    """

    full = ""
    state: dict[str, Any]

    def __new__(cls) -> Recorded:
        """An empty one; arguments of a constructor are refused by having no place here."""
        made: Recorded = object.__new__(cls)
        made.__dict__["state"] = {}
        return made

    def __setstate__(self, state: Any) -> None:
        """Keep the state, and nothing of it becomes an attribute."""
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise Refused(f"a {self.full} whose state is no dictionary")
        self.__dict__["state"] = state

    @property
    def kind(self) -> str:
        """The name of its class alone."""
        return self.full.rpartition(".")[2]

    @property
    def children(self) -> dict[str, Recorded]:
        """The modules in a module, by name; places that are empty are left out.

        Raises:
            Damaged: if they are no modules.
        """
        held = self.state.get("_modules", {})
        if not isinstance(held, dict):
            raise Damaged(f"the modules of a {self.kind} are damaged")
        found = {str(name): module for name, module in held.items() if module is not None}
        if not all(isinstance(module, Recorded) for module in found.values()):
            raise Damaged(f"the modules of a {self.kind} are damaged")
        return found

    def walk(self) -> Iterator[tuple[str, Recorded]]:
        """Itself and all modules within it, by their full names; the own name is empty.

        Raises:
            Damaged: if there is no end of them.
        """
        waiting, count = [("", self)], 0
        while waiting:
            name, module = waiting.pop()
            yield name, module
            count += 1
            if count > _MOST_MODULES:
                raise Damaged("its modules have no end")
            inside = [(f"{name}.{child}".removeprefix("."), each) for child, each in module.children.items()]
            waiting.extend(reversed(inside))

    def tensors(self) -> dict[str, Stored]:
        """The parameters and buffers of a module and of those within it, by the names of a `state_dict`."""
        found = {}
        for name, module in self.walk():
            passing = module.state.get("_non_persistent_buffers_set")
            for place in ("_parameters", "_buffers"):
                held = module.state.get(place)
                for own, tensor in held.items() if isinstance(held, dict) else ():
                    if isinstance(tensor, Stored) and not (isinstance(passing, set) and own in passing):
                        found[f"{name}.{own}".removeprefix(".")] = tensor
        return found


def read_as_data(archive: Archive, allowed: Callable[[str], bool]) -> Any:
    """What an archive of `torch.save` holds, as data: plain types, `Recorded` objects and `Stored` tensors.

    Args:
        archive: of the file.
        allowed: whether a class of that full name may be held, as data.

    Raises:
        Refused: if it names anything else, or calls what may only be held.
        Damaged: if it can't be read.
    """
    try:
        _check(archive.pickle)
        return _Reader(archive, allowed).load()
    except (Refused, Damaged):
        raise
    except Exception as error:  # whatever a broken pickle makes of the stack
        raise Damaged(f"its contents are damaged ({type(error).__name__}: {' '.join(str(error).split())})") from None


def names_in(archive: Archive) -> list[str]:
    """All functions and classes that a file names, in order; none of them is touched.

    Raises:
        Damaged: if its pickle can't be read.
    """
    found: dict[str, None] = {}
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(archive.pickle):
            if opcode.name == "GLOBAL":
                found[str(argument).replace(" ", ".")] = None
            elif opcode.name == "STACK_GLOBAL":
                found[".".join(texts[-2:])] = None
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception as error:
        raise Damaged(f"its contents are damaged ({type(error).__name__}: {' '.join(str(error).split())})") from None
    return list(found)


def _check(program: bytes) -> None:
    """Refuse instructions that `torch.save` does not write, and places in memory beyond those that it can need."""
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name not in _INSTRUCTIONS:
            raise Refused(f"the pickle instruction {opcode.name}")
        if opcode.name in _MEMO and int(argument or 0) > len(program):
            raise Damaged("its contents are damaged (a place beyond its end)")


class _Function:
    """A function of ours in the place of one that the file names; the file can't give it a state."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def __setstate__(self, state: Any) -> None:
        raise Refused("a state for a function")


class _Opaque:
    """Something that is not needed."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Not needed either."""


class _Reader(pickle.Unpickler):
    """The unpickler of the standard library, which builds nothing but what `find_class` hands to it."""

    def __init__(self, archive: Archive, allowed: Callable[[str], bool]) -> None:
        super().__init__(io.BytesIO(archive.pickle))
        self._archive = archive
        self._allowed = allowed
        self._held: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the file."""
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full not in self._held:
            self._held[full] = self._stand_in(full)
        return self._held[full]

    def _stand_in(self, full: str) -> Any:
        home, _, name = full.rpartition(".")
        if home == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if full in _TENSORS:
            return _Function(_tensor if full.endswith("_v2") else _parameter)
        if full == "collections.OrderedDict":
            return _Function(lambda *items: OrderedDict(*items))
        if full == "builtins.set":
            return _Function(lambda *items: set(*items))
        if _OPAQUE.fullmatch(full):
            return _Function(lambda *_: _Opaque())
        if self._allowed(full):
            return _Held(name, (Recorded,), {"full": full})
        raise Refused(full)

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype]:
        """The bytes of a tensor: their key and what numbers they are."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[2], str)):
            raise Damaged("a reference to a tensor's data is damaged")
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype) or not isinstance(count, int):
            raise Damaged("a reference to a tensor's data is damaged")
        if self._archive.size(key) != count * dtype.itemsize:
            raise Damaged(f"the data of tensor {key} are of another size than it says")
        return key, dtype


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stored:
    if not (isinstance(storage, tuple) and isinstance(size, tuple) and isinstance(stride, tuple)):
        raise Damaged("a tensor in it is damaged")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(each) is int and 0 <= each < 2**40 for each in numbers):
        raise Damaged("the shape of a tensor in it is damaged")
    key, dtype = storage
    return Stored(key, dtype, offset, size, stride)


def _parameter(data: Any, *_: Any) -> Stored:
    if not isinstance(data, Stored):
        raise Damaged("a parameter in it is damaged")
    return data
