"""Bytes at an offset: of a mapped file, or of anything that can seek, such as a stored content."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class ByteSource(Protocol):
    """Random access to `size` bytes."""

    size: int

    def read(self, offset: int, size: int) -> Bytes:
        """Exactly `size` bytes from `offset`; raises EOFError where the source ends before."""
        ...


class MappedFile:
    """A file in memory as the kernel pages it: reading copies nothing and keeps nothing."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.size = path.stat().st_size
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        self._bytes: Bytes = np.frombuffer(self._map, np.uint8)

    def read(self, offset: int, size: int) -> Bytes:
        """A view, valid as long as this object lives."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise EOFError(f"bytes {offset} to {offset + size} of a file of {self.size}")
        return self._bytes[offset : offset + size]


class SeekableSource:
    """Anything that seeks, such as the hub's store, which joins a content from its segments."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size

    def read(self, offset: int, size: int) -> Bytes:
        """A copy of the bytes."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise EOFError(f"bytes {offset} to {offset + size} of a content of {self.size}")
        self._file.seek(offset)
        pieces = bytearray()
        while len(pieces) < size:
            piece = self._file.read(size - len(pieces))
            if not piece:
                raise EOFError(f"the content ends at {offset + len(pieces)}, not at {self.size}")
            pieces += piece
        return np.frombuffer(pieces, np.uint8)
