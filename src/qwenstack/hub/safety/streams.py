"""Bytes front to back: unpacked with a bound on what comes out, or from a file that can skip."""

from __future__ import annotations

import bz2
import importlib
import io
import lzma
import zlib
from contextlib import suppress
from typing import Any, BinaryIO, Final, Literal, Protocol

import lz4.frame  # type: ignore[import-untyped]

from qwenstack.hub.formats.reading import Readable
from qwenstack.hub.safety.budget import BOMB_BYTES_MIN, RATIO_MAX, Budget, LimitReached

_QUIET_BYTES_MAX: Final = 16 * 1024 * 1024
_PIECE_BYTES: Final = 64 * 1024
_XZ_MEMORY_BYTES_MAX: Final = 96 * 1024 * 1024

# Honest frames have a window of at most 128 MiB, what decoders allow unless told otherwise.
_ZSTD_WINDOW_LOG_MAX: Final = 27

Compression = Literal["gzip", "bzip2", "xz", "zlib", "lz4", "zstd"]


class BombFound(Exception):
    """More came out than any honest file holds; the message has the figures."""


class StreamDamaged(Exception):
    """The compressed bytes can't be unpacked."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


class _Inflate:
    """zlib's object with the interface of the other two."""

    def __init__(self, window: int) -> None:
        self._inflate = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)


def _zstd() -> Any:
    """Python's own zstd module (3.14), or the same for older ones where it is installed."""
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return importlib.import_module(name)
    return None


ZSTD: Final = _zstd()
"""None where nothing here reads zstd streams."""

_DAMAGED: Final = (
    zlib.error,
    lzma.LZMAError,
    OSError,
    EOFError,
    RuntimeError,  # of lz4
    *(() if ZSTD is None else (ZSTD.ZstdError,)),
)


def _decompressor(kind: Compression) -> _Decompressor:
    if kind == "lz4":
        frame: _Decompressor = lz4.frame.LZ4FrameDecompressor()
        return frame
    if kind == "zstd":
        longest = {ZSTD.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG_MAX}
        opened: _Decompressor = ZSTD.ZstdDecompressor(options=longest)
        return opened
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    if kind == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY_BYTES_MAX)
    return _Inflate(31 if kind == "gzip" else 15)


class Unpacked:
    """What a compressed stream holds; reading raises BombFound and StreamDamaged.

    Streams that follow each other count as one, as their own programs read them. What comes out
    is charged to the budget, which raises LimitReached.
    """

    def __init__(self, packed: Readable, kind: Compression, budget: Budget) -> None:
        self._packed = packed
        self._budget = budget
        self._kind = kind
        self._decompressor = _decompressor(kind)
        self._in = 0
        self._out = 0
        self._full = False
        self._ahead = b""
        self._is_later = False

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        size = min(size, _PIECE_BYTES)
        if size <= 0:
            return b""  # to zlib, no bytes at most means no bound
        while not self._decompressor.eof or self._goes_on():
            data, self._ahead = self._ahead, b""
            # After a full piece more may be ready within, also with all input consumed.
            if not data and self._decompressor.needs_input and not self._full:
                data = self._take()
                if not data:
                    raise StreamDamaged("it ends in the middle")
            try:
                piece = self._decompressor.decompress(data, size)
            except _DAMAGED as error:
                if self._is_later:
                    return b""  # what follows the first stream is no stream: padding, most often
                raise StreamDamaged(str(error)) from error
            self._full = len(piece) == size
            if piece:
                self._count(len(piece))
                return piece
        return b""

    def _goes_on(self) -> bool:
        """Whether another stream follows the one that ended; if so, it is begun."""
        rest = self._decompressor.unused_data or self._take()
        if not rest.strip(b"\0") or self._kind == "zlib":
            return False
        self._budget.spend_member()
        self._decompressor = _decompressor(self._kind)
        self._ahead, self._is_later, self._full = rest, True, False
        return True

    def _take(self) -> bytes:
        data = self._packed.read(_PIECE_BYTES) or b""
        self._in += len(data)
        if self._in > _QUIET_BYTES_MAX and self._out < self._in // 64:
            raise LimitReached(f"{self._in} packed bytes that hold next to nothing")
        return data

    def _count(self, count: int) -> None:
        self._out += count
        self._budget.spend_bytes(count)
        if self._out > max(BOMB_BYTES_MIN, RATIO_MAX * self._in):
            raise BombFound(f"{self._in} bytes unpack to {self._out} and more")


class Seekable:
    """A seekable file as a stream that skips without reading."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self._file = file
        self._file_bytes = file_bytes

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        return self._file.read(size)

    def skip(self, count: int) -> bool:
        """Go on by `count` bytes; false where the file ends before."""
        at = self._file.tell() + count
        if at > self._file_bytes:
            return False
        self._file.seek(at)
        return True


def buffered(file: BinaryIO) -> BinaryIO:
    """The same file, read through a buffer where it has none; closing it closes both."""
    if isinstance(file, io.RawIOBase):
        return io.BufferedReader(file, 64 * 1024)
    return file
