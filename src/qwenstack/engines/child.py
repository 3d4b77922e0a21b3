"""A child process that serves on loopback: started, watched, bounded in memory, restarted.

The protocol with the child is small. The parent writes one line (the child's configuration, with
its secrets, which so stand in no process list) and keeps the pipe open: its end is the child's
order to exit, and also comes when the parent is killed. The child writes JSON lines on its standard
output: `{"ready": PORT}` or `{"failed": "why"}`. What it writes on standard error is kept, bounded,
to explain its death.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import psutil

from qwenstack.engines.interface import EngineError, EngineUnavailable

_MEMORY_POLL_S: Final = 0.2
_STOP_GRACE_S: Final = 3.0
_WORDS_KEPT: Final = 40
_WORD_BYTES_MAX: Final = 500
_LINE_BYTES_MAX: Final = 64 * 1024


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run and within which bounds.

    `module` is run as `python -m`; `configuration` is its line of input. `memory_bytes_max` bounds
    its resident memory (0: none). A child that lived `steady_s` has earned a quick restart when it
    dies; one that dies sooner waits for twice as long as before, `backoff_s_max` at most.
    """

    name: str
    module: str
    configuration: bytes
    memory_bytes_max: int = 0
    start_timeout_s: float = 600.0
    backoff_s: float = 0.25
    backoff_s_max: float = 60.0
    steady_s: float = 60.0
    loaded_bytes: int = 0
    probe_every_s: float = 5.0
    probe_timeout_s: float = 120.0


class _Report(msgspec.Struct):
    ready: int | None = None
    failed: str | None = None


class Child:
    """Supervises one child process.

    `on_ready` is called with the port each time that a child comes up, `on_down` each time that it
    is gone. `probe`, where given, asks the child whether it still works: one that raises or takes
    longer than its limit gets the child killed. `explain` finds the reason for a failed start in
    what the child wrote on standard error; `on_word` is called with each line of that as it comes.
    """

    def __init__(
        self,
        spec: ChildSpec,
        *,
        on_ready: Callable[[int], Awaitable[None]],
        on_down: Callable[[], Awaitable[None]],
        on_loading: Callable[[float], None] = lambda _: None,
        probe: Callable[[], Awaitable[None]] | None = None,
        explain: Callable[[Sequence[str]], str | None] = lambda _: None,
        on_word: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._spec = spec
        self._on_ready = on_ready
        self._on_down = on_down
        self._on_loading = on_loading
        self._probe = probe
        self._explain = explain
        self._on_word = on_word
        self._process: asyncio.subprocess.Process | None = None
        self._words: collections.deque[str] = collections.deque(maxlen=_WORDS_KEPT)
        self._supervision: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._verdict: str | None = None
        self._closed = False
        self.last_failure: str | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The process id of the child that runs now."""
        return None if self._process is None else self._process.pid

    @property
    def ready(self) -> bool:
        """Whether a child runs and has said that it serves."""
        return self._up.is_set() and self._lives()

    def words(self) -> tuple[str, ...]:
        """The last lines that the child wrote on standard error, oldest first."""
        return tuple(self._words)

    def resident_bytes(self) -> int:
        """The child's resident memory; 0 when none runs."""
        process = self._process
        if process is None or process.returncode is not None:
            return 0
        try:
            return int(psutil.Process(process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    async def start(self) -> None:
        """Start the child and wait until it serves.

        Raises EngineUnavailable with the child's own reason; nothing runs on then.
        """
        if self._supervision is not None:
            return
        self._closed = False
        await self._launch()
        self._supervision = asyncio.create_task(self._supervise(), name=self._spec.name)

    async def close(self) -> None:
        """Stop the child: politely, then by force."""
        self._closed = True
        if self._supervision is not None:
            self._supervision.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervision
            self._supervision = None
        await self._stop()

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait while a child is coming up; raises EngineUnavailable when none is in time."""
        if self.ready:
            return
        if self._supervision is None:
            raise EngineUnavailable(f"{self._spec.name} is not started")
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ready:
                    # Up but dead: its death is about to be noticed.
                    await (asyncio.sleep(0.01) if self._up.is_set() else self._up.wait())
        except TimeoutError:
            raise EngineUnavailable(
                f"{self._spec.name} is restarting after it failed: {self.last_failure}"
            ) from None

    def _lives(self) -> bool:
        """Whether the process lives at this instant, without waiting for the event of its death."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        try:
            if hasattr(os, "waitid"):  # not on macOS before Python 3.13
                options = os.WEXITED | os.WNOHANG | os.WNOWAIT
                return os.waitid(os.P_PID, process.pid, options) is None
            return psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
        except (ChildProcessError, psutil.Error):
            return False

    def kill(self, why: str) -> None:
        """Kill the child that runs; it is restarted. `why` becomes the reason of its death."""
        process = self._process
        if process is not None and process.returncode is None:
            self._verdict = why
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _launch(self) -> None:
        """Start one process and wait until it is ready; on failure nothing is left running."""
        self._words.clear()
        self._verdict = None
        process = self._process = await asyncio.create_subprocess_exec(
            # -P keeps the folder that the user stands in off the import path. A session of its own
            # keeps the terminal's Ctrl-C with the parent, which drains first.
            *(sys.executable, "-P", "-m", self._spec.module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
            start_new_session=True,
        )
        try:
            self._refuse_if_closed()  # closed while the process was being made
            async with asyncio.timeout(self._spec.start_timeout_s):
                port = await self._until_ready(process)
            await self._on_ready(port)
            self._refuse_if_closed()
        except TimeoutError:
            await self._stop()
            raise EngineUnavailable(
                f"{self._spec.name} did not come up in {self._spec.start_timeout_s:g} s"
            ) from None
        except BaseException:
            await self._stop()
            await self._on_down()
            raise
        self._up.set()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineUnavailable(f"{self._spec.name} is closed")

    async def _until_ready(self, process: asyncio.subprocess.Process) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        failed: str | None = None
        words = asyncio.create_task(self._keep_words(process.stderr))
        memory = asyncio.create_task(self._watch_memory(process))
        process.stdin.write(self._spec.configuration + b"\n")
        # Both tasks end with the process. Their exceptions have no other reader than this.
        for task in (words, memory):
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        async for line in process.stdout:
            try:
                report = msgspec.json.decode(line, type=_Report)
            except msgspec.MsgspecError:
                continue
            if report.ready is not None:
                # A quick start can end between two looks at its memory.
                self._hold_to_memory()
                if self._verdict is None:
                    return report.ready
            if report.failed is not None:
                failed = report.failed
                break
        await process.wait()
        await asyncio.wait([words], timeout=1.0)
        reason = self._explain(self._words) or failed or self._obituary(process)
        raise EngineUnavailable(f"{self._spec.name} did not start: {reason}")

    async def _supervise(self) -> None:
        spec = self._spec
        backoff_s = spec.backoff_s
        while True:
            since = time.monotonic()
            if self._up.is_set():
                await self._until_death()
            if time.monotonic() - since >= spec.steady_s:
                backoff_s = spec.backoff_s
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, spec.backoff_s_max)
            self.restarts += 1
            try:
                await self._launch()
            except (EngineError, OSError) as error:
                self.last_failure = str(error)

    async def _until_death(self) -> None:
        process = self._process
        assert process is not None
        probing = asyncio.create_task(self._keep_probing())
        try:
            await process.wait()
        finally:
            probing.cancel()
            self._up.clear()
        self.last_failure = self._obituary(process)
        await self._on_down()

    async def _keep_probing(self) -> None:
        spec, probe = self._spec, self._probe
        while probe is not None:
            await asyncio.sleep(spec.probe_every_s)
            try:
                async with asyncio.timeout(spec.probe_timeout_s):
                    await probe()
            except TimeoutError:
                self.kill(f"it did not react for {spec.probe_timeout_s:g} s")
            except (EngineError, OSError):
                # Broken off, so it is dying or dead; only silence is for us to judge.
                continue

    async def _watch_memory(self, process: asyncio.subprocess.Process) -> None:
        while process.returncode is None:
            resident = self._hold_to_memory()
            if self._spec.loaded_bytes and not self._up.is_set():
                self._on_loading(min(1.0, resident / self._spec.loaded_bytes))
            await asyncio.sleep(_MEMORY_POLL_S)

    def _hold_to_memory(self) -> int:
        """Kill the child where it is over its limit; the bytes that it holds."""
        resident, limit = self.resident_bytes(), self._spec.memory_bytes_max
        if limit and resident > limit:
            self.kill(f"it took {resident // 2**20} MiB, over its limit of {limit // 2**20} MiB")
        return resident

    async def _keep_words(self, stream: asyncio.StreamReader) -> None:
        """Read standard error to its end, so that the child never blocks on it; keep the last."""
        rest = b""
        while read := await stream.read(_LINE_BYTES_MAX):
            *lines, rest = (rest + read).split(b"\n")
            rest = rest[-_WORD_BYTES_MAX:]
            for line in lines:
                word = line[:_WORD_BYTES_MAX].decode("utf-8", "replace").strip()
                self._words.append(word)
                self._on_word(word)

    async def _stop(self) -> None:
        process = self._process
        self._up.clear()
        if process is None:
            return
        if process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(_STOP_GRACE_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        self._process = None

    def _obituary(self, process: asyncio.subprocess.Process) -> str:
        if self._verdict is not None:
            return self._verdict
        code = process.returncode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"it was ended by {signal.Signals(-code).name}"
        words = next((words for words in reversed(self._words) if words), "")
        return f"it ended with status {code}" + (f" ({words})" if words else "")
