"""MCAP files that their recorder did not close (a crash, a flat battery): read as far as they go.

Such a file has no footer, which readers refuse. Here it gets one in memory, after the last whole record.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"\x89MCAP0\r\n"
_FOOTER = b"\x02" + struct.pack("<QQQI", 20, 0, 0, 0) + _MAGIC  # no summary: readers scan the data
_FOOTER_OPCODES = frozenset({0x02, 0x0F})  # Footer, DataEnd


def is_unfinished_mcap(path: Path) -> bool:
    """An MCAP file whose end is missing."""
    if path.suffix != ".mcap" or not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return False
        size = file.seek(0, io.SEEK_END)
        if size < 2 * len(_MAGIC):
            return True
        file.seek(-len(_MAGIC), io.SEEK_END)
        return file.read() != _MAGIC


class UnfinishedMcap:
    """Stands for the path of an unfinished MCAP file; what it opens looks finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.suffix = path.suffix

    def __str__(self) -> str:
        return str(self._path)

    def exists(self) -> bool:
        return self._path.exists()

    def is_dir(self) -> bool:
        return False

    def open(self, *_: Any) -> BinaryIO:
        """The whole records of the file and a footer, for reading."""
        file = self._path.open("rb")
        return io.BufferedReader(_WithFooter(file, _end_of_records(file)))


def _end_of_records(file: BinaryIO) -> int:
    """Where the last whole record before the summary ends."""
    size = file.seek(0, io.SEEK_END)
    end = len(_MAGIC)
    for opcode, start, stop in _records(file, size):
        if opcode in _FOOTER_OPCODES:
            return start
        end = stop
    return end


def _records(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """Opcode, start and end of every whole record."""
    start = len(_MAGIC)
    while start + 9 <= size:
        file.seek(start)
        opcode, length = struct.unpack("<BQ", file.read(9))
        stop = start + 9 + length
        if opcode == 0 or stop > size:
            return
        yield opcode, start, stop
        start = stop


class _WithFooter(io.RawIOBase):
    """The first ``end`` bytes of a file, then the footer."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file = file
        self._end = end
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end + len(_FOOTER)}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer)
        if self._at < self._end:
            self._file.seek(self._at)
            data = self._file.read(min(wanted, self._end - self._at))
        else:
            past = self._at - self._end
            data = _FOOTER[past : past + wanted]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
