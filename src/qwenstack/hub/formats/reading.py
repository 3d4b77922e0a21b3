"""Reading a stated number of bytes from a reader that may give fewer at a time."""

from __future__ import annotations

from typing import Protocol


class Readable(Protocol):
    """What is read front to back: a file, a socket's stream, a member of an archive."""

    def read(self, size: int, /) -> bytes | None:
        """At most `size` bytes; none at the end."""
        ...


def read_up_to(file: Readable, size: int) -> bytes:
    """The next `size` bytes, or what there is before the end."""
    piece = file.read(size) or b""
    if len(piece) == size or not piece:
        return piece
    pieces, left = [piece], size - len(piece)
    while left:
        piece = file.read(left) or b""
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
