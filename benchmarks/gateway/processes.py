"""Processes that a benchmark starts, and their certain end.

Each child leads a process group of its own, bound to given CPUs; whatever ends the driver (a
return, an error, SIGINT, SIGTERM), `atexit` ends all groups.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

_RUNNING: list[Child] = []


class StartFailed(Exception):
    """A process ended, or did not answer, before it was ready; the message has the log's end."""


class Child:
    """A running process group."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cpus: Sequence[int],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        """Start `argv` on `cpus`; output goes to `log`; `env` is added to the driver's."""
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(part) for part in argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                user=user,
                start_new_session=True,
            )
        self.pid = self._process.pid
        _bind(self.pid, cpus)
        _RUNNING.append(self)

    @property
    def ended(self) -> bool:
        """Whether the leader has exited."""
        return self._process.poll() is not None

    def tree(self) -> list[psutil.Process]:
        """The process and all that it started and that still runs."""
        try:
            leader = psutil.Process(self.pid)
            return [leader, *leader.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def memory_bytes(self) -> int:
        """Proportional set size of the tree (pages that workers share count once)."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                info = process.memory_full_info()
                total += getattr(info, "pss", 0) or info.rss
        return total

    def cpu_seconds(self) -> float:
        """CPU time that the tree has used."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stop(self, grace_s: float = 5.0) -> None:
        """Ask the group to end, then make it."""
        self._end(signal.SIGTERM, grace_s)

    def kill(self) -> None:
        """End the whole group at once, as a crash or the kernel would."""
        self._end(signal.SIGKILL, 0)

    def _end(self, sign: signal.Signals, grace_s: float) -> None:
        tree = self.tree()
        self._signal(sign)
        if sign is signal.SIGTERM:
            psutil.wait_procs(tree, timeout=grace_s)
        self._signal(signal.SIGKILL)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(tree, timeout=5)
        if self in _RUNNING:
            _RUNNING.remove(self)

    def _signal(self, sign: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, sign)


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(child: Child, ready: Callable[[], bool], timeout_s: float) -> None:
    """Return when `ready` says so; raise `StartFailed` when the child ends or time is up."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if child.ended:
            break
        if ready():
            return
        time.sleep(0.1)
    tail = child.log.read_text(errors="replace")[-600:]
    raise StartFailed(f"not ready within {timeout_s:.0f} s; its log ends: {tail}")


def listening(port: int) -> bool:
    """Whether somebody accepts connections on the loopback's `port`."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end_on_signals() -> None:
    """Turn SIGTERM into an orderly exit, so that `atexit` runs."""
    signal.signal(signal.SIGTERM, _exit)


def _exit(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _bind(pid: int, cpus: Sequence[int]) -> None:
    """Bind at once after the start: what the child starts later inherits it."""
    with contextlib.suppress(psutil.Error, AttributeError):
        psutil.Process(pid).cpu_affinity(list(cpus))


@atexit.register
def _end_all() -> None:
    for child in list(_RUNNING):
        child.kill()
