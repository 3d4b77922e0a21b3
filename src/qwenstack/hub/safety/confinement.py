"""The child's side of `confined`: take the limits on, read the request, write the answer."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec

_R = TypeVar("_R", bound=msgspec.Struct)


def answer_with(work: Callable[[_R], msgspec.Struct], request: type[_R]) -> None:
    """Do `work` on the request that the parent gave. The limits come first, from the arguments."""
    seconds, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=request)
    sys.stdout.buffer.write(msgspec.msgpack.encode(work(given)))
    sys.stdout.buffer.flush()
