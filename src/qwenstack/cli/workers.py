"""Several worker processes on one listening socket, each restarted when it dies."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from qwenstack.studio.observability import worker_counts

_log = logging.getLogger(__name__)

_RESTART_FIRST_S = 0.5
_RESTART_MAX_S = 30.0
# A worker that lived this long did not die of its start.
_STEADY_S = 30.0
_POLL_S = 0.2


class Workers:
    """Keeps `count` workers running until a SIGTERM or SIGINT, which each gets to drain."""

    def __init__(self, count: int, listener: socket.socket, home: Path) -> None:
        self._count = count
        self._listener = listener
        self._home = home
        self._counts = worker_counts.folder_of(home, listener.getsockname()[1])
        self._stopping = False
        self._running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self._not_before: dict[int, float] = {}
        self._delay_s: dict[int, float] = {}

    def run(self, drain_s: float) -> None:
        """Start the workers and watch over them; returns once all have ended."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._stop)
        worker_counts.begin(self._counts)
        while not self._stopping:
            for place in range(self._count):
                self._watch(place)
            time.sleep(_POLL_S)
        deadline = time.monotonic() + drain_s + 5
        for process, _ in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in self._running.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        worker_counts.end(self._counts)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _watch(self, place: int) -> None:
        now = time.monotonic()
        running = self._running.get(place)
        if running is not None:
            process, since = running
            if process.poll() is None:
                return
            del self._running[place]
            worker_counts.worker_died(worker_counts.Place(self._counts, place))
            delay_s = self._delay_s.get(place, _RESTART_FIRST_S)
            self._delay_s[place] = (
                _RESTART_FIRST_S if now - since > _STEADY_S else min(delay_s * 2, _RESTART_MAX_S)
            )
            self._not_before[place] = now + delay_s
            _log.error(
                "worker %s ended with status %s; another starts in %.1f s",
                place,
                process.returncode,
                delay_s,
            )
        if now >= self._not_before.get(place, 0.0):
            self._running[place] = (self._spawn(place), now)

    def _spawn(self, place: int) -> subprocess.Popen[bytes]:
        descriptor = self._listener.fileno()
        command = [sys.executable, "-m", "qwenstack.cli.main", "serve"]
        return subprocess.Popen(
            [
                *command,
                *("--listener", str(descriptor), "--place", str(place)),
                # It may die before the worker can ask whose child it is.
                *("--supervisor", str(os.getpid())),
            ],
            pass_fds=(descriptor,),
            env={**os.environ, "QWENSTACK_HOME": str(self._home)},
        )
