"""Bills that wait for the database, on the disk beside it: a kill in between loses none.

What waits while the database is away is kept by `Spool`; what runs ahead of it, by `ahead`.

Each process has a file of its own and holds its lock. What a dead process left is written to the
ledger by the next one that starts; a bill that had reached the database after all changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import msgspec
from sqlalchemy import Engine, select

from qwenstack.core.durable import sync_folder
from qwenstack.storage import tables
from qwenstack.storage.database import reading
from qwenstack.studio.ledger import ahead
from qwenstack.studio.ledger.entries import Entry
from qwenstack.studio.ledger.writes import Forget, Post, Reverse, Settle, Write

_log = logging.getLogger(__name__)

REFUSED_NAME: Final = "refused.jsonl"
_SUFFIX: Final = ".bills"
_HOLDING: Final = (ahead.SUFFIX, _SUFFIX)
_LOCK_TRIES: Final = 20
_LOCK_EVERY_S: Final = 0.05
CATCH_UP_S: Final = 2.0
_LOOK_EVERY_S: Final = 0.02
# A checkpoint is overtaken by the next, and an act cannot be written down: neither is a bill.
_KEPT: Final = (Settle, Reverse, Post, Forget)


class _Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """One write as a line: one of the fields is set."""

    settle: Settle | None = None
    reverse: Reverse | None = None
    post: Entry | None = None
    forget: Forget | None = None


class Spool:
    """One process's file. Opening it takes its lock, which goes with the process."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)  # the first bills are in it before anything else is flushed
        self.folder = folder
        self._path = folder / f"{worker_id}{_SUFFIX}"
        self._lock = _own_lock(_lock_path(self._path))
        self._holds = False

    def ahead(self) -> ahead.AheadFile | None:
        """The file under the same lock for bills that run ahead; None where it has no room."""
        try:
            return ahead.AheadFile(self._path.with_suffix(ahead.SUFFIX))
        except OSError as error:
            _log.warning("bills cannot run ahead of the database, which is slower: %s", error)
            return None

    @property
    def holds(self) -> bool:
        """Whether anything is kept."""
        return self._holds

    def keep(self, writes: Sequence[Write]) -> None:
        """Replace what is kept by `writes`, durably. Raises OSError where the disk is full, too."""
        lines = [_line(write) for write in writes if isinstance(write, _KEPT)]
        if not lines:
            self.clear()
            return
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            _write_lines(file, lines)
        fresh.replace(self._path)
        sync_folder(self._path.parent)
        self._holds = True

    def clear(self) -> None:
        """Keep nothing."""
        if self._holds:
            self._path.unlink(missing_ok=True)
            self._holds = False

    def close(self) -> None:
        """Let go of the lock; a file that still holds bills is left for the next process."""
        if not _holding(self._path):
            _lock_path(self._path).unlink(missing_ok=True)
        self._lock.close()


@contextlib.contextmanager
def left_behind(folder: Path) -> Iterator[list[Write]]:
    """What dead processes kept, oldest first; their files go when the block ends without an error.

    Files whose process lives are left alone. A line that cannot be read is logged and stays on the
    disk, under another name.
    """
    writes: list[Write] = []
    with contextlib.ExitStack() as locks:
        for lock in folder.glob("*.lock"):  # of processes that died and kept nothing
            if not _holding(lock) and _take(lock, locks) and not _holding(lock):
                lock.unlink(missing_ok=True)
        taken: list[Path] = []
        for stem in sorted({path.stem for path in folder.glob("*") if path.suffix in _HOLDING}):
            # A bill that was reversed is in the first of the two, its reversal in the second.
            files = [folder / f"{stem}{suffix}" for suffix in _HOLDING]
            if not _take(files[0], locks):
                continue
            if found := [path for path in files if path.exists()]:
                taken += found
            else:  # another process was quicker, and this lock is a new one
                _lock_path(files[0]).unlink(missing_ok=True)
        damaged: list[Path] = []
        for path in taken:
            writes += _read(path, damaged)
        yield writes
        for path in taken:
            if path in damaged:
                path.replace(path.with_suffix(f"{path.suffix}.damaged"))
            else:
                path.unlink(missing_ok=True)
            _lock_path(path).unlink(missing_ok=True)


def put_aside(folder: Path, bills: Sequence[Write]) -> None:
    """Keep bills that the database refuses, to be looked at; raises OSError.

    Such a bill is a defect. It must not be lost, nor keep a server from its start.
    """
    if bills:
        path = folder / REFUSED_NAME
        with path.open("ab") as file:
            _write_lines(file, [_line(bill) for bill in bills])
        _log.critical("%s bills were refused by the database and are in %s", len(bills), path)


def catch_up(folder: Path, database: Engine) -> int:
    """Wait until the database has every bill that a file holds; how many are missing after all.

    For a process that reads beside the one that serves, which is a moment ahead of its database.
    After `CATCH_UP_S` it is no moment: the database is away, or the process that served is dead and
    the next one will write them.
    """
    waiting: set[str] = set()
    for path in folder.glob(f"*{ahead.SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            for record in ahead.read_records(path):
                with contextlib.suppress(msgspec.MsgspecError):
                    waiting.add(ahead.decode_bill(record).charge.request_id)
    known, deadline_s = tables.transactions.c.id, time.monotonic() + CATCH_UP_S
    while waiting:
        with reading(database) as connection:
            waiting -= set(connection.scalars(select(known).where(known.in_(waiting))))
        if not waiting or time.monotonic() > deadline_s:
            break
        time.sleep(_LOOK_EVERY_S)
    return len(waiting)


def _own_lock(path: Path) -> IO[bytes]:
    """This process's lock. One that a process which tidies up took and removed is made again."""
    for _ in range(_LOCK_TRIES):
        lock = path.open("ab")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
        lock.close()
        time.sleep(_LOCK_EVERY_S)
    raise BlockingIOError(errno.EWOULDBLOCK, "another process has this lock", str(path))


def _holding(lock: Path) -> bool:
    return any(lock.with_suffix(suffix).exists() for suffix in _HOLDING)


def _take(path: Path, locks: contextlib.ExitStack) -> bool:
    lock = locks.enter_context(_lock_path(path).open("ab"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path, damaged: list[Path]) -> list[Write]:
    """What a file holds; it is added to `damaged` where that is not all bills."""
    ran_ahead = path.suffix == ahead.SUFFIX
    lines = ahead.read_records(path) if ran_ahead else path.read_bytes().splitlines()
    found: list[Write] = []
    for number, line in enumerate(lines, 1):
        try:
            write = ahead.decode_bill(line) if ran_ahead else _of_line(line)
        except msgspec.MsgspecError:
            _log.critical("%s: line %s is no bill; the file is kept beside", path, number)
            damaged.append(path)
            continue
        if write is not None:
            found.append(write)
    return found


def _of_line(line: bytes) -> Write | None:
    kept = msgspec.json.decode(line, type=_Kept)
    post = Post(kept.post) if kept.post is not None else None
    return kept.settle or kept.reverse or kept.forget or post


def _line(write: Write) -> bytes:
    return msgspec.json.encode(_kept(write))


def _write_lines(file: IO[bytes], lines: Sequence[bytes]) -> None:
    file.write(b"\n".join(lines) + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _kept(write: Write) -> _Kept:
    match write:
        case Settle():
            return _Kept(settle=write)
        case Reverse():
            return _Kept(reverse=write)
        case Post(entry):
            return _Kept(post=entry)
        case Forget():
            return _Kept(forget=write)
    raise TypeError(f"{type(write).__name__} is not kept")


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")
