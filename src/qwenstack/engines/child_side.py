"""What an engine's child process does for its parent; `child.py` tells how the two talk."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec

_PR_SET_PDEATHSIG: Final = 1


def take_standard_output() -> int:
    """Keep standard output for reports; whatever else prints goes to standard error."""
    reports = os.dup(1)
    os.dup2(2, 1)
    return reports


def report(reports: int, message: dict[str, object]) -> None:
    """Tell the parent one thing: `{"ready": PORT}` or `{"failed": "why"}`."""
    os.write(reports, msgspec.json.encode(message) + b"\n")


def die_with_parent() -> None:
    """Have the kernel end this process when the other end of standard input closes.

    Loading holds the interpreter's lock, so no Python thread could watch. The parent sends nothing
    after the first line: the only thing that SIGIO can mean is the end.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if sys.platform == "linux":
        # A process that is stopped (SIGSTOP, a debugger, a freezer) acts on no SIGIO.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def be_the_first_to_go() -> None:
    """When memory runs out, the kernel shall end this process and not the ledger's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")
