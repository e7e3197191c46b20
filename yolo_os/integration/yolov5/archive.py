"""Write an archive of `torch.save` again with the bytes of some tensors replaced, all else as it was, byte for byte.

The archive is a zip file without compression, so that bytes of equal number can be replaced where they lie. A record
goes into a part of its own behind all others, where readers of checkpoints do not look.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo_os.integration.unpickle import Archive, Damaged

_LOCAL_HEADER = 30  # its fixed part; the lengths of the name and of what follows it are its last two numbers
_HAS_DESCRIPTOR = 0x08  # flag: the checksum follows the bytes and is not in the header before them
_DESCRIPTOR = b"PK\x07\x08"


def records(path: Path, folder: str) -> list[dict[str, Any]]:
    """The records that `rewrite` has added under the name of a folder, first to last.

    Raises:
        Damaged: if one can't be read.
    """
    found: list[dict[str, Any]] = []
    with Archive(path) as archive:
        while archive.size(name := f"{folder}/{len(found)}.json") is not None:
            try:
                record = json.loads(archive.read(name))
            except (zipfile.BadZipFile, ValueError, RecursionError) as error:
                raise Damaged(f"its record {name} can't be read ({' '.join(str(error).split())})") from None
            if not isinstance(record, dict):
                raise Damaged(f"its record {name} is no record")
            found.append(record)
    return found


def rewrite(source: Path, path: Path, replaced: Mapping[str, bytes], folder: str, record: Mapping[str, Any]) -> None:
    """Write an archive with the bytes of some tensors replaced and a record added.

    Args:
        source: the archive.
        path: of the new file.
        replaced: new bytes by key of the tensor, as many as it had.
        folder: of the record, within the archive; records of earlier writes stay.
        record: what JSON can say.
    """
    number = len(records(source, folder))
    with Archive(source) as archive:
        prefix = archive.prefix
    contents = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as opened:
        for key, new in replaced.items():
            _replace(contents, opened.getinfo(f"{prefix}/data/{key}"), new)
    path.write_bytes(contents)
    with zipfile.ZipFile(path, "a") as opened:  # which writes the directory at its end anew
        for key, new in replaced.items():
            opened.getinfo(f"{prefix}/data/{key}").CRC = zlib.crc32(new)
        opened.writestr(zipfile.ZipInfo(f"{prefix}/{folder}/{number}.json"), json.dumps(record, indent=2))


def _replace(contents: bytearray, entry: zipfile.ZipInfo, new: bytes) -> None:
    """Put the bytes of an entry and their checksum into place; the directory is left to who writes it."""
    if len(new) != entry.file_size:
        raise ValueError(f"{entry.filename} has {entry.file_size} bytes, not {len(new)}")
    start = entry.header_offset
    name, extra = struct.unpack_from("<HH", contents, start + _LOCAL_HEADER - 4)
    begin = start + _LOCAL_HEADER + name + extra
    end = begin + entry.file_size
    contents[begin:end] = new
    checksum = start + 14
    if entry.flag_bits & _HAS_DESCRIPTOR:
        checksum = end + (len(_DESCRIPTOR) if contents[end : end + 4] == _DESCRIPTOR else 0)
    struct.pack_into("<L", contents, checksum, zlib.crc32(new))
