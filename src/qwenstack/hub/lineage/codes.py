"""A million fingerprints searched in milliseconds: sign bits scanned first, then codes compared.

The matrix lies in a folder as plain arrays that are only ever appended to, and is mapped, not
read: four planes of 64 sign bits, the token codes, and each entry's key. A row counts once all of
its files hold it, so that a process killed while appending leaves a tail that the next one cuts
off. It is a cache of what the database holds and can be deleted at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from qwenstack.hub.lineage.fingerprint import MISSING, PAIRS, Codes, Fingerprint, correlations

KEY_BYTES: Final = 32
_PLANES: Final = 4
_RANGES: Final = 3
_ROW_BYTES: Final = _RANGES * PAIRS
_BLOCK: Final = 1 << 16
_NEAR: Final = 256  # compared code by code
_BITS_START: Final = 72  # of 256: two models out of a million strangers differ in about 90

Planes = npt.NDArray[np.uint64]


def sign_planes(codes: Codes) -> Planes:
    """256 signs of one table's codes, as four words."""
    chosen = np.concatenate([codes[0, : PAIRS // 2], codes[1, : PAIRS // 2]])
    return np.packbits(chosen > 0).view(np.uint64)


class CodeMatrix:
    """The codes of many models by key; one writer at a time, which the caller sees to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files = [(folder / f"plane{number}.u64", 8) for number in range(_PLANES)]
        self._files += [(folder / "tokens.i8", _ROW_BYTES), (folder / "keys.bin", KEY_BYTES)]
        self._map()

    def __len__(self) -> int:
        return self._count

    def keys(self) -> set[bytes]:
        """The keys of all rows."""
        return {self._keys[row].tobytes() for row in range(self._count)}

    def append(self, entries: Iterable[tuple[bytes, Fingerprint]]) -> int:
        """Add rows; returns how many. They are on disk when this returns."""
        rows = [(key, print_.token_codes()[0]) for key, print_ in entries]
        if not rows:
            return 0
        codes = np.stack([codes[:_RANGES] for _, codes in rows])
        planes = np.stack([sign_planes(row) for row in codes])
        self.extend(planes, codes.reshape(len(rows), -1), [key for key, _ in rows])
        return len(rows)

    def extend(self, planes: Planes, tokens: Codes, keys: Sequence[bytes]) -> None:
        """Add rows given as arrays: (n, 4) words, (n, codes) and n keys of 32 bytes."""
        self._unmap()
        data = [np.ascontiguousarray(planes[:, number]).tobytes() for number in range(_PLANES)]
        data += [np.ascontiguousarray(tokens).tobytes(), b"".join(keys)]
        for (path, width), rows in zip(self._files, data, strict=True):
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.truncate(self._count * width)
                file.seek(self._count * width)
                file.write(rows)
                file.flush()
                os.fsync(file.fileno())
        self._map()

    def nearest(self, print_: Fingerprint, count: int) -> list[tuple[bytes, float]]:
        """Keys of the `count` most alike rows and their token correlation, best first."""
        best: dict[bytes, float] = {}
        for codes in print_.token_codes():
            if (codes[0] == MISSING).all():
                continue
            rows = self._candidates(sign_planes(codes))
            for row, value in zip(rows.tolist(), self._correlate(codes, rows), strict=True):
                key = self._keys[row].tobytes()
                best[key] = max(value, best.get(key, -1.0))
        return sorted(best.items(), key=lambda item: -item[1])[:count]

    def _candidates(self, query: Planes) -> npt.NDArray[np.int64]:
        """The rows of least Hamming distance, a few hundred at most."""
        distance = np.empty(self._count, np.uint8)
        word = np.empty(_BLOCK, np.uint64)
        bits = np.empty(_BLOCK, np.uint8)
        for start in range(0, self._count, _BLOCK):
            stop = min(start + _BLOCK, self._count)
            block, w, b = distance[start:stop], word[: stop - start], bits[: stop - start]
            for number in range(_PLANES):
                np.bitwise_xor(self._planes[number][start:stop], query[number], out=w)
                np.bitwise_count(w, out=block if number == 0 else b)
                if number:
                    np.add(block, b, out=block)  # 256 equal signs wrap to 0 only for a negative
        limit = _BITS_START
        while limit < 128 and np.count_nonzero(distance <= limit) < min(_NEAR, self._count):
            limit += 6
        rows = np.flatnonzero(distance <= limit)
        if len(rows) > _NEAR:
            rows = rows[np.argsort(distance[rows], kind="stable")[:_NEAR]]
        return rows

    def _correlate(self, codes: Codes, rows: npt.NDArray[np.int64]) -> list[float]:
        if not len(rows):
            return []
        theirs = self._tokens[rows].reshape(len(rows), _RANGES, PAIRS)
        values = correlations(theirs, codes[None, :_RANGES])
        known = np.isfinite(values)
        total = np.where(known, values, 0.0).sum(axis=1)
        means: list[float] = (total / np.maximum(known.sum(axis=1), 1)).tolist()
        return means

    def _map(self) -> None:
        sizes = [
            path.stat().st_size // width if path.exists() else 0 for path, width in self._files
        ]
        self._count = count = min(sizes)
        if not count:
            self._planes: list[npt.NDArray[np.uint64]] = [np.zeros(0, np.uint64)] * _PLANES
            self._tokens: Codes = np.zeros((0, _ROW_BYTES), np.int8)
            self._keys: npt.NDArray[np.uint8] = np.zeros((0, KEY_BYTES), np.uint8)
            return
        paths = [path for path, _ in self._files]
        self._planes = [np.memmap(path, np.uint64, "r", shape=(count,)) for path in paths[:_PLANES]]
        self._tokens = np.memmap(paths[-2], np.int8, "r", shape=(count, _ROW_BYTES))
        self._keys = np.memmap(paths[-1], np.uint8, "r", shape=(count, KEY_BYTES))

    def _unmap(self) -> None:
        self._planes, self._tokens, self._keys = (
            [],
            np.zeros((0, 1), np.int8),
            np.zeros((0, 1), np.uint8),
        )
