"""Pull-through: a repo that is not here is copied from the upstream when somebody asks for it.

A middleware before the routes that read repos. It lets the first request for a repo wait for one
copy, however many ask; later ones find it here, and a branch is looked at again when its copy is
older than `max_age_s`. While the upstream is away, what was copied goes on being served.

Nothing is asked of the upstream for a caller who sees nothing here, in a namespace that somebody
holds here (a stranger could have taken its name there), or by a hub that this one itself asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Middleware
from sqlalchemy import Connection, select

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.errors import HubError, RepoNotFound, RevisionNotFound, TooMany
from qwenstack.hub.http.access import identify, repo_kind, repo_name
from qwenstack.hub.http.errors import Handler
from qwenstack.hub.hub import Hub
from qwenstack.hub.mirror import Limits, mirror, remove_abandoned, upstream_name
from qwenstack.hub.origins import find_origin, newest_origin
from qwenstack.hub.registry.paths import shown
from qwenstack.hub.registry.refs import check_ref_name
from qwenstack.hub.registry.repos import Kind, check_repo_name, find_repo
from qwenstack.hub.registry.revisions import MAIN, find_commit
from qwenstack.hub.upstream import Upstream
from qwenstack.hub.upstream_settings import UpstreamSettings
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import accounts, memberships, retired_names

_LOG = logging.getLogger(__name__)
_OID: Final = re.compile(r"[0-9a-f]{40}")
# What follows the repo's name in the routes that read it.
_READS: Final = re.compile(
    r"(/api/\{kind\}|/\{kind\}|/api/resolve-cache/\{kind\})?/\{namespace\}/\{name\}"
    r"(?P<rest>|/(revision|tree|paths-info|resolve|raw|commits|xet-read-token)/\{rev\}.*|/refs)"
)
_REMEMBERED_MAX: Final = 10_000
_RETRY_S: Final = 10
_SIGN_EVERY_S: Final = 2.0
_PROXIED: Final = ("Via", "Forwarded", "X-Forwarded-For", "X-Real-IP")
_ABSENT: Final = (RepoNotFound, RevisionNotFound)


class BeingCopied(HubError):
    """The first copy is not whole yet."""

    status = 503


class _Wanted(msgspec.Struct, frozen=True):
    kind: Kind
    name: str
    revision: str

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.name.lower()}@{self.revision}"


class _Here(msgspec.Struct, frozen=True):
    """What is here of a revision: the commit, or None."""

    tip: str | None


def pull_through(hub: Hub) -> list[Middleware]:
    """The middleware of a hub that has an upstream; nothing for one that has none."""
    settings = hub.settings.upstream
    return [] if settings is None else [_middleware(_PullThrough(hub, settings))]


def _middleware(pulls: _PullThrough) -> Middleware:
    @web.middleware
    async def pull(request: web.Request, handler: Handler) -> web.StreamResponse:
        wanted = _wanted(request)
        if wanted is not None and pulls.concerns(request):
            await pulls.ensure(request, wanted)
        return await handler(request)

    return pull


def _wanted(request: web.Request) -> _Wanted | None:
    """What a request reads, if it reads what could be copied."""
    resource = request.match_info.route.resource
    match = None if resource is None else _READS.fullmatch(resource.canonical)
    if match is None or request.method not in ("GET", "HEAD", "POST"):
        return None
    if match[1] is None and not match["rest"].startswith(("/resolve", "/raw")):
        return None  # a page
    revision = request.match_info.get("rev", MAIN).removeprefix("refs/heads/")
    revision = MAIN if revision == "HEAD" else revision
    try:
        name = check_repo_name(repo_name(request))
        if not _OID.fullmatch(revision):
            check_ref_name(revision)
    except HubError:
        return None  # the route says what is wrong with it
    return _Wanted(repo_kind(request), name, revision)


class _Settled(msgspec.Struct, frozen=True):
    """Until when (monotonic) nothing is asked, and whether the repo has no such revision."""

    until_s: float
    missing: bool


def _no_revision(wanted: _Wanted) -> RevisionNotFound:
    return RevisionNotFound(f"{wanted.name} has no revision {shown(wanted.revision)}.")


class _PullThrough:
    def __init__(self, hub: Hub, settings: UpstreamSettings) -> None:
        self._hub = hub
        self._settings = settings
        self._via = f"qwenstack-hub-{hashlib.sha256(hub.secret).hexdigest()[:16]}"
        self._upstream = Upstream(settings.endpoint, token=settings.token, via=self._via)
        self._namespaces = (
            None if settings.namespaces is None else {each.lower() for each in settings.namespaces}
        )
        self._flights: dict[str, _Flight] = {}
        self._slots = threading.Semaphore(settings.copies_max)
        # Until when (monotonic seconds) nothing is asked about a revision.
        self._settled: dict[str, _Settled] = {}

    def concerns(self, request: web.Request) -> bool:
        """Whether a request may lead to the upstream: not one that came from here."""
        return self._via not in request.headers.get("Via", "")

    async def ensure(self, request: web.Request, wanted: _Wanted) -> None:
        """Let the revision be here, if the upstream has it and the caller may have it."""
        settled = self._settled.get(wanted.key)
        holds = settled is not None and time.monotonic() < settled.until_s
        if settled is not None and holds and not settled.missing:
            return
        caller = await identify(self._hub, request)
        here = await asyncio.to_thread(self._here, wanted, caller)
        if here is None:
            return
        if holds:
            raise _no_revision(wanted)
        flight = self._flight(wanted, here)
        waited = time.monotonic() - flight.began
        wait_s = self._settings.stale_wait_s - waited if here.tip else self._settings.wait_s
        await _wait(request, flight.answer, wait_s)
        if not flight.answer.done():
            if here.tip:
                return  # the copy goes on behind the one that is here
            raise BeingCopied(
                f"{wanted.name} is being copied from {self._upstream.endpoint}: "
                f"{flight.done_bytes} of {flight.total_bytes} bytes are here. Ask again.",
                headers={"Retry-After": str(_RETRY_S)},
            )
        error = flight.answer.exception()
        # What is here is served; that a repo is nowhere, the route says in its own words.
        if isinstance(error, RevisionNotFound) and not here.tip:
            raise _no_revision(wanted)
        if error is not None and not here.tip and not isinstance(error, RepoNotFound):
            raise error

    def _here(self, wanted: _Wanted, caller: Identity) -> _Here | None:
        """What is here of a revision that the upstream should be asked about; None to let it be."""
        hub = self._hub
        with reading(hub.database) as connection:
            if not self._allows(connection, wanted.name.partition("/")[0].lower()):
                return None
            repo = find_repo(connection, wanted.kind, wanted.name)
            if repo is None:
                sees = caller.account is not None or caller.guest_sees_public
                return _Here(None) if sees else None
            newest = newest_origin(connection, repo.id)
            if newest is None or newest.endpoint != self._upstream.endpoint:
                return None
            try:
                tip = find_commit(connection, repo.id, wanted.revision).oid
            except RevisionNotFound:
                tip = None
            made_here = tip is not None and find_origin(connection, repo.id, tip) is None
        if made_here or tip == wanted.revision:
            return None
        return _Here(tip) if hub.authority.decide(caller, repo, "see").allowed else None

    def _allows(self, connection: Connection, namespace: str) -> bool:
        """Whether repos of this namespace may come from the upstream."""
        if self._namespaces is not None:
            return namespace in self._namespaces
        kind = connection.scalar(select(accounts.c.kind).where(accounts.c.key == namespace))
        if kind is None:
            # A name that somebody here gave up is not a stranger's yet.
            given_up = select(retired_names.c.key).where(
                retired_names.c.key == namespace, retired_names.c.free_us > now_us()
            )
            return connection.scalar(given_up) is None
        query = select(memberships.c.user).where(memberships.c.organisation == namespace)
        return kind == "organisation" and connection.scalar(query.limit(1)) is None

    def _flight(self, wanted: _Wanted, here: _Here) -> _Flight:
        """The copy that is under way for this revision, begun if there is none. Raises TooMany."""
        flight = self._flights.get(wanted.key)
        if flight is not None:
            return flight
        if len(self._flights) >= self._settings.waiting_max:
            raise TooMany(
                "The hub copies as many repos as it can; try again later.",
                headers={"Retry-After": str(_RETRY_S)},
            )
        flight = self._flights[wanted.key] = _Flight(asyncio.get_running_loop())
        flight.answer.add_done_callback(lambda answer: self._landed(wanted, here, answer))
        flight.start(lambda: self._copy(wanted, here, flight))
        return flight

    def _landed(self, wanted: _Wanted, here: _Here, answer: asyncio.Future[None]) -> None:
        del self._flights[wanted.key]
        error = None if answer.cancelled() else answer.exception()
        if error is None:
            self._settle(wanted, self._settings.max_age_s)
        elif isinstance(error, _ABSENT) or here.tip:
            missing = isinstance(error, RevisionNotFound) and not here.tip
            self._settle(wanted, self._settings.absent_s, missing=missing)
        if error is not None and not isinstance(error, _ABSENT):
            served = "; what was copied is served" if here.tip else ""
            trace = None if isinstance(error, HubError) else error
            _LOG.warning("no copy of %s: %s%s", wanted.name, error, served, exc_info=trace)

    def _copy(self, wanted: _Wanted, here: _Here, flight: _Flight) -> None:
        """In a thread of its own."""
        settings, upstream = self._settings, self._upstream
        if here.tip:
            # A look waits for no copy of something else.
            name = upstream_name(self._hub, upstream, wanted.kind, wanted.name)
            now = upstream.look(wanted.kind, name, wanted.revision, timeout_s=settings.look_s)
            if now.oid == here.tip:
                return
        limits = Limits(
            look_s=settings.look_s,
            copy_s=settings.copy_s,
            bytes_max=settings.repo_bytes_max,
            all_bytes_max=settings.all_bytes_max,
            private=False,
        )
        remove_abandoned(self._hub)
        with self._slots:
            mirror(
                self._hub,
                upstream,
                wanted.kind,
                wanted.name,
                wanted.revision,
                limits=limits,
                progress=flight.progress,
            )

    def _settle(self, wanted: _Wanted, seconds: float, *, missing: bool = False) -> None:
        if len(self._settled) >= _REMEMBERED_MAX:
            self._settled.clear()
        self._settled[wanted.key] = _Settled(time.monotonic() + seconds, missing)


async def _wait(request: web.Request, answer: asyncio.Future[None], wait_s: float) -> None:
    """Wait for the answer, and let the caller know meanwhile that somebody is here.

    Clients end a request whose answer does not begin in ten seconds. An interim response begins
    it; 100 is the one that every HTTP/1.1 client skips, however often it comes (RFC 9110, section
    15.2), where many take another for the final one. Proxies may not, so none gets it.
    """
    end_s = time.monotonic() + max(wait_s, 0.0)
    proxied = any(name in request.headers for name in _PROXIED)
    signs = request.version >= HttpVersion11 and not proxied
    while not answer.done() and (left_s := end_s - time.monotonic()) > 0:
        await asyncio.wait({answer}, timeout=min(left_s, _SIGN_EVERY_S))
        transport = request.transport
        if signs and not answer.done() and transport is not None and not transport.is_closing():
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


class _Flight:
    """A copy under way, for all who wait for it. It ends with the process, as by a kill."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.answer: asyncio.Future[None] = loop.create_future()
        self.began = time.monotonic()
        self.done_bytes = self.total_bytes = 0

    def start(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread; nobody waits for that one when the hub stops."""
        threading.Thread(target=self._run, args=(work,), name="pull-through", daemon=True).start()

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Called by the copy."""
        self.done_bytes, self.total_bytes = done_bytes, total_bytes

    def _run(self, work: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as raised:  # noqa: BLE001 - handed to those who wait
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self.answer.set_result(None)
        else:
            self.answer.set_exception(error)
