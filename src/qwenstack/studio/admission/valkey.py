"""The limiter that several workers share, over Valkey or Redis: one atomic script an operation.

- **Time** is the server's, read inside the script, so workers' clocks don't matter; it is made
  steady per workspace (`SteadyClock`), so a server clock that steps back widens windows only.
- **Keys** of a workspace carry its id as hash tag, so each script stays in one slot of a cluster,
  and every key expires. The server must not evict: `maxmemory-policy noeviction`.
- **Fails closed**: no answer within the time-outs, or any error, is LimiterUnavailableError.
  Nothing is retried: a reservation whose answer was lost stands until its window has passed.
- **A worker that dies** holds concurrency until its leases end (`lease_s`). A worker that lives
  renews them every third of that; paused for longer, it may lose them, and its requests then run
  uncounted (requests and tokens are counted at admission and are not affected).
- **A server that lost its data** starts a new *epoch* per workspace. A worker that was admitted
  under the old one says so with its next reservation, and nothing is admitted in that workspace
  until what it remembers has left the window (LimitKind.HISTORY_LOST). A restart with persistence
  keeps the epoch: `appendfsync everysec` can then lose one second of admissions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import cast

import msgspec
from valkey.asyncio import BlockingConnectionPool, Valkey
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.commands.core import AsyncScript
from valkey.exceptions import ValkeyError

from qwenstack.studio.admission.limits import (
    MINUTE_US,
    SECOND_US,
    Admission,
    Limit,
    LimiterUnavailableError,
    LimitKind,
    Refused,
    Scopes,
    Snapshot,
    check_request,
    never_fits,
)
from qwenstack.studio.admission.window import MINUTE_GRAIN_US, SECOND_GRAIN_US

_log = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_KEEP_MIN_MS = 3 * MINUTE_US // 1000
_RENEWALS_A_SCRIPT = 256
_SPANS = (str(MINUTE_US), str(MINUTE_GRAIN_US), str(SECOND_US), str(SECOND_GRAIN_US))
_KINDS = {
    1: LimitKind.REQUESTS,
    2: LimitKind.TOKENS,
    3: LimitKind.CONCURRENCY,
    4: LimitKind.HISTORY_LOST,
}
# status, epoch, then the six of a snapshot
_REPLY_HEAD = 8


class ValkeyAdmission(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation in the shared store. `runs` are the run indices of both windows, by scope."""

    id: str
    workspace: str
    epoch: str
    keys: tuple[str, ...]
    leases: tuple[str, ...]
    runs: tuple[str, ...]
    reserved_tokens: int
    snapshot: Snapshot


class _Memory(msgspec.Struct):
    """What this worker knows of a workspace: the epoch of its last admission there, and when."""

    epoch: str
    admitted_us: int


class ValkeyLimiter:
    """A `Limiter` shared by every worker that names the same server. Use as a context manager.

    `url` is `valkey://`, `valkeys://`, `redis://`, `rediss://` or `unix://`. Each operation is one
    round trip and waits at most `timeout_s` for a connection, to connect, and for the answer.
    `clock_us` overrides the server's clock, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "qs:adm",
        lease_s: float = 30.0,
        timeout_s: float = 1.0,
        max_connections: int = 32,
        clock_us: Callable[[], int] | None = None,
    ) -> None:
        if "{" in prefix or "}" in prefix:
            raise ValueError(f"prefix is {prefix!r}; it must not hold braces (they are hash tags)")
        if lease_s < 0.3:
            raise ValueError(f"lease_s is {lease_s}; it must be at least 0.3")
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._client = Valkey.from_pool(pool)
        self._reserve = self._script("reserve")
        self._settle = self._script("settle")
        self._renew = self._script("renew")
        self._prefix = prefix
        self._lease_us = str(round(lease_s * SECOND_US))
        self._renew_every_s = lease_s / 3
        self._keep_ms = str(max(_KEEP_MIN_MS, round(lease_s * 2000)))
        self._clock_us = clock_us
        self._worker = secrets.token_hex(8)
        self._count = 0
        self._running: dict[str, ValkeyAdmission] = {}
        self._history: OrderedDict[str, _Memory] = OrderedDict()
        self._renewing: asyncio.Task[None] | None = None

    def _script(self, name: str) -> AsyncScript:
        window = (_FOLDER / "window.lua").read_text(encoding="utf-8")
        script = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
        return self._client.register_script(window + script)

    async def start(self) -> None:
        """Check that the server answers, and begin to renew leases. LimiterUnavailableError."""
        try:
            await self._client.ping()
        except (ValkeyError, OSError, TimeoutError) as error:
            raise _unavailable(error) from error
        self._renewing = asyncio.get_running_loop().create_task(self._renew_regularly())

    async def close(self) -> None:
        """See `Limiter.close`; the leases of what still runs then end by themselves."""
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
            self._renewing = None
        await self._client.aclose(close_connection_pool=True)

    async def __aenter__(self) -> ValkeyLimiter:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def running(self) -> int:
        """How many admissions of this worker are not settled."""
        return len(self._running)

    async def reserve(self, workspace: str, scopes: Scopes, tokens: int) -> Admission | Refused:
        """See `Limiter.reserve`. Cancelled while it waits, it may leave a reservation behind."""
        check_request(scopes, tokens)
        never = never_fits(scopes, tokens, Snapshot())
        if never is not None:
            return never
        self._count += 1
        admission_id = f"{self._worker}:{self._count}"
        if not scopes:
            return ValkeyAdmission(
                id=admission_id,
                workspace=workspace,
                epoch="",
                keys=(),
                leases=(),
                runs=(),
                reserved_tokens=tokens,
                snapshot=Snapshot(),
            )
        keys = self._keys(workspace, scopes)
        memory = self._history.get(workspace)
        reply = await self._run(
            self._reserve,
            keys,
            (
                self._now(),
                self._keep_ms,
                "-" if memory is None else memory.epoch,
                "0" if memory is None else str(max(0, self._local_us() - memory.admitted_us)),
                admission_id,
                self._lease_us,
                str(tokens),
                *_SPANS,
                *(figure for _, limit in scopes for figure in _figures(limit)),
            ),
        )
        snapshot = _snapshot(reply)
        rest = reply[_REPLY_HEAD:]
        if reply[0] != "1":
            kind, scope, most, window_us, wait_us = map(int, rest)
            return Refused(
                kind=_KINDS[kind],
                scope=scopes[scope - 1][0],
                limit=most,
                window_us=window_us,
                asked=tokens,
                retry_after_us=wait_us,
                snapshot=snapshot,
            )
        epoch = reply[1]
        admission = ValkeyAdmission(
            id=admission_id,
            workspace=workspace,
            epoch=epoch,
            keys=keys,
            leases=tuple(
                keys[2 * number + 2]
                for number, (_, limit) in enumerate(scopes)
                if limit.concurrency is not None
            ),
            runs=tuple(rest),
            reserved_tokens=tokens,
            snapshot=snapshot,
        )
        self._running[admission_id] = admission
        self._remember(workspace, epoch)
        return admission

    async def settle(self, admission: Admission, actual_tokens: int) -> None:
        """See `Limiter.settle`."""
        if not isinstance(admission, ValkeyAdmission):
            raise TypeError("this admission was granted by another limiter")
        if actual_tokens < 0:
            raise ValueError(f"a request can't have used {actual_tokens} tokens")
        # Taken out first, so that its leases end by themselves if the server can't be told.
        if self._running.pop(admission.id, None) is None:
            return
        await self._run(
            self._settle,
            admission.keys,
            (
                self._now(),
                self._keep_ms,
                admission.epoch,
                admission.id,
                str(admission.reserved_tokens - actual_tokens),
                *_SPANS,
                *admission.runs,
            ),
        )

    async def renew_leases(self) -> None:
        """Extend the leases of everything that runs here, now. `start` does so regularly."""
        by_workspace: dict[str, list[ValkeyAdmission]] = {}
        for admission in self._running.values():
            if admission.leases:
                by_workspace.setdefault(admission.workspace, []).append(admission)
        for workspace, admissions in by_workspace.items():
            for start in range(0, len(admissions), _RENEWALS_A_SCRIPT):
                await self._renew_some(workspace, admissions[start : start + _RENEWALS_A_SCRIPT])

    async def _renew_some(self, workspace: str, admissions: Sequence[ValkeyAdmission]) -> None:
        numbers: dict[str, int] = {}
        pairs: list[str] = []
        for admission in admissions:
            for key in admission.leases:
                pairs += [str(numbers.setdefault(key, len(numbers) + 1)), admission.id]
        keys = (f"{self._prefix}:{{{workspace}}}:clock", *numbers)
        await self._run(self._renew, keys, (self._now(), self._keep_ms, self._lease_us, *pairs))

    async def _renew_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._renew_every_s)
            try:
                await self.renew_leases()
            except LimiterUnavailableError as error:
                # The next turn tries again; until then reservations fail for the same reason.
                _log.warning("leases of running requests could not be renewed: %s", error)

    def _keys(self, workspace: str, scopes: Scopes) -> tuple[str, ...]:
        if not workspace or "{" in workspace or "}" in workspace:
            raise ValueError(f"workspace is {workspace!r}; it must not be empty or hold braces")
        tag = f"{self._prefix}:{{{workspace}}}"
        keys = [f"{tag}:clock"]
        for scope, _ in scopes:
            keys += [f"{tag}:w:{scope}", f"{tag}:c:{scope}"]
        return tuple(keys)

    def _now(self) -> str:
        return "-" if self._clock_us is None else str(self._clock_us())

    def _local_us(self) -> int:
        return time.monotonic_ns() // 1000 if self._clock_us is None else self._clock_us()

    def _remember(self, workspace: str, epoch: str) -> None:
        now_us = self._local_us()
        memory = self._history.get(workspace)
        if memory is not None:
            memory.epoch = epoch
            memory.admitted_us = now_us
            return
        # Each new workspace looks at two old ones, so what is forgotten keeps pace.
        for _ in range(min(2, len(self._history))):
            oldest, memory = next(iter(self._history.items()))
            if now_us - memory.admitted_us > MINUTE_US:
                del self._history[oldest]
            else:
                self._history.move_to_end(oldest)
        self._history[workspace] = _Memory(epoch, now_us)

    async def _run(
        self, script: AsyncScript, keys: Sequence[str], arguments: Sequence[str]
    ) -> list[str]:
        """Run a script in one round trip; words in, words out."""
        try:
            reply = await script(keys=keys, args=(" ".join(arguments),))
        except (ValkeyError, OSError, TimeoutError) as error:
            raise _unavailable(error) from error
        return cast(bytes, reply).decode().split()


def _unavailable(error: Exception) -> LimiterUnavailableError:
    return LimiterUnavailableError(f"the admission store does not answer: {error}")


def _figures(limit: Limit) -> tuple[str, ...]:
    """A limit's figures in the order that reserve.lua reads them."""
    return tuple(
        "-1" if figure is None else str(figure)
        for figure in (
            limit.requests_per_minute,
            limit.tokens_per_minute,
            limit.requests_per_second,
            limit.tokens_per_second,
            limit.concurrency,
        )
    )


def _snapshot(reply: list[str]) -> Snapshot:
    limit_requests, requests, reset_requests_us, limit_tokens, tokens, reset_tokens_us = map(
        int, reply[2:_REPLY_HEAD]
    )
    return Snapshot(
        None if limit_requests < 0 else limit_requests,
        requests,
        reset_requests_us,
        None if limit_tokens < 0 else limit_tokens,
        tokens,
        reset_tokens_us,
    )
