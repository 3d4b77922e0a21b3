"""Running one of this package's own functions in a child process with hard limits.

What a chat template or a pickle's opcodes make of time and memory can't be foreseen, so whatever
follows them does it where the kernel ends it: a limit on processor seconds, memory, written files
and open ones, an empty environment, and a clock in the parent.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from typing import Final, TypeVar

import msgspec

_T = TypeVar("_T", bound=msgspec.Struct)

_ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024


class ConfinedError(Exception):
    """The child met a limit, or ended without an answer; the message says which limits it had."""


class Limits(msgspec.Struct, frozen=True):
    """What a child may take. `memory_bytes` is of address space, the interpreter's included."""

    seconds: int = 5
    memory_bytes: int = 512 * 1024 * 1024


def run_confined(module: str, request: msgspec.Struct, answer: type[_T], limits: Limits) -> _T:
    """Run `module` (one that ends in `answer_with`) on `request`; its answer.

    Raises ConfinedError.
    """
    with tempfile.TemporaryFile() as given:
        given.write(msgspec.msgpack.encode(request))
        given.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-I", "-m", module, str(limits.seconds), str(limits.memory_bytes)],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            close_fds=True,
        )
    # Processor time is the child's own limit; this one is for a child that sleeps.
    clock = threading.Timer(4 * limits.seconds, child.kill)
    clock.start()
    try:
        assert child.stdout is not None
        output = child.stdout.read(_ANSWER_BYTES_MAX + 1)
    finally:
        clock.cancel()
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    try:
        return msgspec.msgpack.decode(output, type=answer)
    except msgspec.MsgspecError as error:
        raise ConfinedError(
            f"not done within {limits.seconds} s and {limits.memory_bytes // 2**20} MiB"
        ) from error
