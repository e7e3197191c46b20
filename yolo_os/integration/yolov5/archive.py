"""The archive that `torch.save` writes, read part by part, and written again with some tensors replaced.

It is a zip archive without compression: a pickle (`NAME/data.pkl`), the bytes of each tensor (`NAME/data/0`, ...). A
tensor's bytes can be replaced where they lie, so everything else stays as it was, byte for byte.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LOCAL_HEADER = 30  # its fixed part; the lengths of the name and of what follows it are its last two numbers
_HAS_DESCRIPTOR = 0x08  # flag: the checksum follows the bytes and is not in the header before them
_DESCRIPTOR = b"PK\x07\x08"


class Damaged(ValueError):
    """The file is no archive of `torch.save`, or not a whole one."""


class Archive:
    """What `torch.save` wrote into a file.

    Attributes:
        path: of the file.
        pickle: the program that builds its objects.

    Raises:
        Damaged: if it is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as opened:
                self._entries = {entry.filename: entry for entry in opened.infolist()}
                if len(self._entries) < len(opened.infolist()) or any(
                    entry.compress_type != zipfile.ZIP_STORED for entry in self._entries.values()
                ):
                    raise Damaged("torch.save did not write it: it has compressed parts, or two of one name")
                self._name = next((name.split("/")[0] for name in self._entries if name.endswith("/data.pkl")), "")
                if not self._name:
                    raise Damaged("it is no checkpoint")
                self.pickle = opened.read(f"{self._name}/data.pkl")
                order = f"{self._name}/byteorder"
                if order in self._entries and opened.read(order) != b"little":
                    raise Damaged("it was written on a machine of another byte order")
        except (zipfile.BadZipFile, OSError, EOFError, struct.error, NotImplementedError, RuntimeError) as error:
            raise Damaged(" ".join(str(error).split())) from None

    def size(self, key: str) -> int:
        """How many bytes are stored of a tensor.

        Raises:
            Damaged: if there is no such tensor.
        """
        entry = self._entries.get(f"{self._name}/data/{key}")
        if entry is None:
            raise Damaged(f"the data of tensor {key} are missing")
        return entry.file_size

    def bytes_of(self, key: str) -> bytearray:
        """The bytes of a tensor, a copy.

        Raises:
            Damaged: if there are none, or not the ones written.
        """
        self.size(key)
        try:
            with zipfile.ZipFile(self.path) as opened:
                return bytearray(opened.read(f"{self._name}/data/{key}"))
        except (zipfile.BadZipFile, OSError, EOFError, struct.error) as error:
            raise Damaged(" ".join(str(error).split())) from None

    def records(self, folder: str) -> list[dict[str, Any]]:
        """The records that `write` has added under the name of a folder, first to last.

        Raises:
            Damaged: if one can't be read.
        """
        found: list[dict[str, Any]] = []
        with zipfile.ZipFile(self.path) as opened:
            while (name := self._record(folder, len(found))) in self._entries:
                try:
                    record = json.loads(opened.read(name))
                except (zipfile.BadZipFile, ValueError) as error:
                    raise Damaged(f"its record {name} can't be read ({' '.join(str(error).split())})") from None
                if not isinstance(record, dict):
                    raise Damaged(f"its record {name} is no record")
                found.append(record)
        return found

    def write(self, path: Path, replaced: Mapping[str, bytearray], folder: str, record: Mapping[str, Any]) -> None:
        """Write the archive with the bytes of some tensors replaced, and a record added behind all that was there.

        Args:
            path: of the new file.
            replaced: by key of the tensor; as many bytes as it had.
            folder: of the record, within the archive.
            record: what JSON can say; those of earlier writes stay.
        """
        contents = bytearray(self.path.read_bytes())
        for key, new in replaced.items():
            entry = self._entries[f"{self._name}/data/{key}"]
            if len(new) != entry.file_size:
                raise ValueError(f"tensor {key} has {entry.file_size} bytes, not {len(new)}")
            _replace(contents, entry, new)
        path.write_bytes(contents)
        number = len(self.records(folder))
        with zipfile.ZipFile(path, "a") as opened:  # rewrites the directory at its end
            for key, new in replaced.items():
                opened.getinfo(f"{self._name}/data/{key}").CRC = zlib.crc32(new)
            opened.writestr(zipfile.ZipInfo(self._record(folder, number)), json.dumps(record, indent=2))

    def _record(self, folder: str, number: int) -> str:
        return f"{self._name}/{folder}/{number}.json"


def _replace(contents: bytearray, entry: zipfile.ZipInfo, new: bytearray) -> None:
    """Put the bytes of an entry and their checksum into place; the directory is left to who writes it."""
    start = entry.header_offset
    name, extra = struct.unpack_from("<HH", contents, start + _LOCAL_HEADER - 4)
    begin = start + _LOCAL_HEADER + name + extra
    end = begin + entry.file_size
    contents[begin:end] = new
    checksum = start + 14
    if entry.flag_bits & _HAS_DESCRIPTOR:
        checksum = end + (len(_DESCRIPTOR) if contents[end : end + 4] == _DESCRIPTOR else 0)
    struct.pack_into("<L", contents, checksum, zlib.crc32(new))
