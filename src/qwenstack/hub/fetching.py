"""Fetches the files of another hub's commit into the store, each checked against its digest.

What came is noted in a journal, so that the next try asks for the rest alone. A file of which only
the beginning came is gone on with.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from qwenstack.hub.errors import NoSpace, TooLarge
from qwenstack.hub.hub import Hub
from qwenstack.hub.quotas import UPSTREAM
from qwenstack.hub.registry.git_objects import blob_oid, lfs_pointer
from qwenstack.hub.registry.manifests import Entry, Manifest, make_manifest
from qwenstack.hub.registry.paths import shown
from qwenstack.hub.registry.repos import Kind
from qwenstack.hub.registry.waiting import keep_waiting
from qwenstack.hub.store.kinds import Content, ContentMismatch, Expected
from qwenstack.hub.store.objects import FolderObjects
from qwenstack.hub.upstream import Upstream, UpstreamAway, UpstreamFile, UpstreamRevision

_PIECE_BYTES: Final = 4 * 1024 * 1024
# Small files go into the store together, so that each is no pack of its own.
_SMALL_BYTES: Final = 1024 * 1024
_BATCH_BYTES: Final = 32 * 1024 * 1024
_DISK_RESERVE_BYTES: Final = 256 * 1024 * 1024
_T = TypeVar("_T")
# A file that came wrong on top of an earlier try's beginning is fetched anew, once.
_TRIES: Final = 2

CopyProgress = Callable[[int, int], None]
"""Called with the bytes that came and those that will; may raise to end the copy."""


class _Noted(msgspec.Struct, frozen=True):
    """A line of a copy's journal: these bytes came, were as stated, and are in the store."""

    stated: str
    content: Content


class Fetching:
    """One copy's transfer: from the list of files to the entries of a commit.

    `folder` keeps what came, `bytes_max` bounds the release, `end_s` is a monotonic instant.
    """

    def __init__(
        self,
        hub: Hub,
        upstream: Upstream,
        kind: Kind,
        found: UpstreamRevision,
        folder: Path,
        *,
        bytes_max: int,
        end_s: float,
        progress: CopyProgress,
    ) -> None:
        self._hub = hub
        self._upstream = upstream
        self._kind = kind
        self._found = found
        self._folder = folder
        self._journal = folder / "journal.jsonl"
        self._bytes_max = bytes_max
        self._end_s = end_s
        self._progress = progress
        self._done_bytes = 0
        self._total_bytes = 0
        self.fetched_files = 0
        self.fetched_bytes = 0

    def fetch(self, listed: Sequence[UpstreamFile], before: Manifest) -> Manifest:
        """The files' entries, once all their bytes are in the store."""
        known = self._known(listed, before)
        missing = {each.stated: each for each in listed if each.stated not in known}
        self._check_room(listed, list(missing.values()))
        self._total_bytes = sum(each.size for each in missing.values())
        self._progress(0, self._total_bytes)
        batch: list[tuple[UpstreamFile, bytes]] = []
        batch_bytes = 0
        for file in missing.values():
            if file.size > _SMALL_BYTES:
                known[file.stated] = self._taken(file, self._large)
                continue
            batch.append((file, self._taken(file, self._small)))
            batch_bytes += file.size
            if batch_bytes >= _BATCH_BYTES:
                known.update(self._store(batch))
                batch, batch_bytes = [], 0
        known.update(self._store(batch))
        return make_manifest(_entry(each, known[each.stated]) for each in listed)

    def _known(self, listed: Sequence[UpstreamFile], before: Manifest) -> dict[str, Content]:
        """What need not come again: the repo has it, or an interrupted copy of it fetched it.

        That another repo has a content says nothing: who knows its hash has no right to it yet.
        """
        noted: dict[str, Content] = {}
        if self._journal.exists():
            for line in self._journal.read_bytes().splitlines():
                try:
                    each = msgspec.json.decode(line, type=_Noted)
                except msgspec.DecodeError:  # the end of an interrupted write
                    continue
                noted[each.stated] = each.content
        for entry in before:
            stated = f"sha256:{entry.sha256}" if entry.lfs else f"git:{entry.git_oid}"
            content = Content(entry.sha256, entry.size, entry.xet_hash, entry.git_oid)
            noted.setdefault(stated, content)
        wanted = {each.stated: noted[each.stated] for each in listed if each.stated in noted}
        held = self._hub.store.hold(each.sha256 for each in wanted.values())
        return {stated: each for stated, each in wanted.items() if each.sha256 in held}

    def _check_room(self, listed: Sequence[UpstreamFile], missing: Sequence[UpstreamFile]) -> None:
        hub = self._hub
        for file in listed:
            if file.size > hub.settings.file_bytes_max:
                raise TooLarge(
                    f"{shown(file.path)} has {file.size} bytes; this hub takes files of at most "
                    f"{hub.settings.file_bytes_max}."
                )
        total = sum(file.size for file in listed)
        if total > self._bytes_max:
            raise TooLarge(
                f"{self._found.name} has {total} bytes; at most {self._bytes_max} are copied."
            )
        needed = max((file.size for file in missing), default=0)
        if isinstance(hub.store.objects, FolderObjects):
            needed += sum(file.size for file in missing)
        free = shutil.disk_usage(self._folder).free
        if needed and needed + _DISK_RESERVE_BYTES > free:
            raise NoSpace(
                f"A copy of {self._found.name} needs about {needed} bytes; the disk has {free}."
            )

    def _came(self, count: int) -> None:
        self._done_bytes += count
        if time.monotonic() > self._end_s:
            raise UpstreamAway("The copy took longer than it may; the next one goes on from here.")
        self._progress(self._done_bytes, self._total_bytes)

    def _taken(self, file: UpstreamFile, take: Callable[[UpstreamFile, Path], _T]) -> _T:
        """What `take` makes of the file's bytes, once they are those that the upstream states.

        `take` raises ContentMismatch for others; then UpstreamAway is raised here.
        """
        part = self._part(file)
        for _ in range(_TRIES):
            kept_bytes = part.stat().st_size if part.exists() else 0
            counted = self._done_bytes
            self._upstream.fetch(
                self._kind, self._found.name, self._found.oid, file, part, self._came
            )
            try:
                taken = take(file, part)
            except ContentMismatch:
                part.unlink()
                self._done_bytes = counted
                if kept_bytes:
                    continue
                break
            came_bytes = max(file.size - kept_bytes, 0)
            self.fetched_bytes += came_bytes
            self.fetched_files += bool(came_bytes) or not file.size
            return taken
        raise UpstreamAway(
            f"{self._upstream.endpoint} sent other bytes of {shown(file.path)} than it states "
            f"({file.stated}); nothing of this copy is published."
        )

    def _large(self, file: UpstreamFile, part: Path) -> Content:
        expect = None if file.sha256 is None else Expected(file.sha256, file.size)
        if expect is None:
            _check(file, part)
        content = self._hub.store.put(_pieces(part), expect=expect)
        self._note([(file, content)])
        part.unlink()
        return content

    def _small(self, file: UpstreamFile, part: Path) -> bytes:
        _check(file, part)
        return part.read_bytes()

    def _part(self, file: UpstreamFile) -> Path:
        return self._folder / hashlib.sha256(file.stated.encode()).hexdigest()

    def _store(self, batch: list[tuple[UpstreamFile, bytes]]) -> dict[str, Content]:
        if not batch:
            return {}
        contents = self._hub.store.put_all([data for _, data in batch])
        stored = [(file, content) for (file, _), content in zip(batch, contents, strict=True)]
        self._note(stored)
        for file, _ in batch:
            self._part(file).unlink()
        return {file.stated: content for file, content in stored}

    def _note(self, stored: Sequence[tuple[UpstreamFile, Content]]) -> None:
        lines = [msgspec.json.encode(_Noted(file.stated, content)) for file, content in stored]
        with self._journal.open("ab") as journal:
            journal.write(b"\n" + b"\n".join(lines) + b"\n")
        with self._hub.database.begin() as connection:
            sizes = {content.sha256: content.size for _, content in stored}
            keep_waiting(connection, UPSTREAM, sizes, guest=False)


def _entry(file: UpstreamFile, content: Content) -> Entry:
    large = file.sha256 is not None
    pointer = blob_oid(lfs_pointer(content.sha256, content.size))
    return Entry(
        file.path,
        content.size,
        content.sha256,
        pointer if large else content.git_oid,
        large,
        content.xet_hash,
    )


def _check(file: UpstreamFile, part: Path) -> None:
    """Raises ContentMismatch unless the part has the digest that the upstream states."""
    if file.sha256 is None:
        # Git's blob id is a SHA-1: it is all that a hub states of small files.
        digest = hashlib.sha1(b"blob %d\0" % part.stat().st_size, usedforsecurity=False)
        stated = file.blob_id
    else:
        digest, stated = hashlib.sha256(), file.sha256
    for piece in _pieces(part):
        digest.update(piece)
    if digest.hexdigest() != stated:
        raise ContentMismatch(f"{file.path} is not as stated")


def _pieces(part: Path) -> Iterator[bytes]:
    with part.open("rb") as opened:
        while piece := opened.read(_PIECE_BYTES):
            yield piece
