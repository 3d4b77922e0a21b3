"""Downloads, by a written rule (docs/hub.md), as sums of days; nobody is tracked.

One download is one client that fetches, on one UTC day, of one repo a file that names what it
gets: of a model `config.json`, `adapter_config.json` or a file of weights, of a dataset any file
but its card. Large files that are read over Xet show as a token to read the repo's chunks, which
counts like one of them. A HEAD counts nothing, nor does a range that starts past the first byte. A
client is the account; without one, the address and User-Agent. What is kept of it is 8 bytes of a
hash under a random salt, in memory, until the day or the process ends: then the same client is a
stranger.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from qwenstack.hub.registry.repos import Repo
from qwenstack.storage.database import add_to
from qwenstack.storage.hub_tables import downloads, repos

_LOG = logging.getLogger(__name__)

RECENT_DAYS = 30
"""What "downloads" without more means: those of the last 30 days, as the client documents it."""

OVER_XET = "*"
"""In place of a path: large files, of which the Xet protocol names none."""

_NAMES = frozenset({"config.json", "adapter_config.json", "model_index.json"})
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".msgpack", ".h5", ".npz")
_CARDS = frozenset({"readme.md", ".gitattributes", "license", "license.txt", "license.md"})
_QUEUE_MAX = 10_000
# Past this many on one day, clients are no longer told apart: a sum that is too low, not memory.
_SEEN_MAX = 2_000_000
_FLUSH_S = 2.0
# While the database is away, sums wait in memory: this many repos' days.
_SUMS_MAX = 10_000


def names_release(kind: str, path: str) -> bool:
    """Whether fetching this file counts."""
    if path == OVER_XET:
        return True
    file = path.rpartition("/")[2].lower()
    if kind == "dataset":
        return file not in _CARDS
    return path in _NAMES or file.endswith(_WEIGHTS)


class Downloads:
    """Counts downloads from any thread. It never blocks and never fails its caller.

    Sums are written every two seconds and at `close`; a process that is killed loses at most those
    of the last seconds. When the queue is full, or the database away for long, downloads go
    uncounted, and the log says how many.
    """

    def __init__(self, database: Engine, *, flush_s: float = _FLUSH_S) -> None:
        self._database = database
        self._queue: queue.Queue[tuple[str, str]] = queue.Queue(_QUEUE_MAX)
        self._lock = threading.Lock()
        self._day = ""
        self._salt = b""
        self._seen: set[bytes] = set()
        self._lost = 0
        self._flush_s = flush_s
        self._ending = threading.Event()
        self._writer = threading.Thread(target=self._write, name="downloads", daemon=True)
        self._writer.start()

    def __call__(self, repo: Repo, path: str, account: str | None, client: str) -> None:
        """Count, if the rule says so. `client` tells anonymous callers apart."""
        if not names_release(repo.kind, path):
            return
        who = f"@{account}" if account is not None else client
        with self._lock:
            day = self._today()
            mark = hashlib.blake2b(
                f"{repo.id}\0{who}".encode("utf-8", "replace"), digest_size=8, key=self._salt
            ).digest()
            if mark in self._seen or len(self._seen) >= _SEEN_MAX:
                return
            self._seen.add(mark)
        try:
            self._queue.put_nowait((repo.id, day))
        except queue.Full:
            self._lost += 1

    count = __call__

    def close(self) -> None:
        """Write what was counted, and end."""
        self._ending.set()
        self._writer.join(timeout=30)

    def _today(self) -> str:
        day = datetime.now(UTC).date().isoformat()
        if day != self._day:
            self._day, self._salt, self._seen = day, os.urandom(32), set()
        return day

    def _write(self) -> None:
        sums: dict[tuple[str, str], int] = {}
        refreshed, ending = "", False
        while not ending:
            ending = self._ending.wait(self._flush_s)
            self._take(sums)
            today = datetime.now(UTC).date().isoformat()
            # The sums of 30 days change with the date, too.
            due = None if today != refreshed else _repos_of(sums)
            if due is not None and not due:
                continue
            try:
                with self._database.begin() as connection:
                    add_days(connection, sums)
                    refresh_recent(connection, due)
                refreshed, sums = today, {}
            except SQLAlchemyError as error:
                _LOG.warning("downloads are not written yet: %s", error)

    def _take(self, sums: dict[tuple[str, str], int]) -> None:
        """Move what is queued into the sums, and say what was lost."""
        for _ in range(self._queue.qsize()):
            item = self._queue.get_nowait()
            if item in sums or len(sums) < _SUMS_MAX:
                sums[item] = sums.get(item, 0) + 1
            else:
                self._lost += 1
        if self._lost:
            _LOG.warning("%d downloads went uncounted: too many at once", self._lost)
            self._lost = 0


def _repos_of(sums: dict[tuple[str, str], int]) -> set[str]:
    return {repo_id for repo_id, _ in sums}


def add_days(connection: Connection, sums: dict[tuple[str, str], int]) -> None:
    """Add to the day sums: (repo id, day) to how many. A repo that is gone is left out."""
    known = set(
        connection.scalars(select(repos.c.id).where(repos.c.id.in_(sorted(_repos_of(sums)))))
    )
    rows = [
        {"repo_id": repo_id, "day": day, "count": count}
        for (repo_id, day), count in sums.items()
        if repo_id in known
    ]
    add_to(connection, downloads, rows, "count")


def refresh_recent(connection: Connection, repo_ids: set[str] | None) -> None:
    """Recompute `hub_repos.downloads` of these repos, or of all."""
    if repo_ids is not None and not repo_ids:
        return
    since = (datetime.now(UTC).date() - timedelta(days=RECENT_DAYS - 1)).isoformat()
    recent = (
        select(func.coalesce(func.sum(downloads.c.count), 0))
        .where(downloads.c.repo_id == repos.c.id, downloads.c.day >= since)
        .scalar_subquery()
    )
    statement = update(repos).values(downloads=recent)
    if repo_ids is not None:
        statement = statement.where(repos.c.id.in_(sorted(repo_ids)))
    connection.execute(statement)


def days(connection: Connection, repo_id: str, last: int) -> list[tuple[str, int]]:
    """The sums of the last `last` UTC days with today, the oldest first, none left out."""
    today = datetime.now(UTC).date()
    wanted = [(today - timedelta(days=back)).isoformat() for back in reversed(range(last))]
    rows = connection.execute(
        select(downloads.c.day, downloads.c.count).where(
            downloads.c.repo_id == repo_id, downloads.c.day >= wanted[0]
        )
    )
    counted: dict[str, int] = {row.day: row[1] for row in rows}
    return [(day, counted.get(day, 0)) for day in wanted]


def all_time(connection: Connection, repo_ids: list[str]) -> dict[str, int]:
    """How often each of these repos was ever downloaded."""
    rows = connection.execute(
        select(downloads.c.repo_id, func.sum(downloads.c.count).label("total"))
        .where(downloads.c.repo_id.in_(repo_ids))
        .group_by(downloads.c.repo_id)
    )
    found = {row.repo_id: int(row.total) for row in rows}
    return {repo_id: found.get(repo_id, 0) for repo_id in repo_ids}
