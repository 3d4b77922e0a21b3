"""Reading everything and telling what is not as the database says: the store's fsck."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine, select

from qwenstack.hub.store.kinds import ContentCorrupt, ContentMissing, Fault, Progress
from qwenstack.hub.store.objects import Listed, Objects
from qwenstack.hub.store.packs import PackIndex, PackTable
from qwenstack.hub.store.reading import pack_chunks, read_layout, verify_layout
from qwenstack.hub.store.writing import Run
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import contents, packs, segments

_NAMED_MAX = 20


def check(
    database: Engine, objects: Objects, table: PackTable, progress: Progress
) -> Iterator[Fault]:
    """Each fault once, by its cause: a content in a bad pack is named with that pack.

    `progress` is told the bytes read and those to read: each pack once, then each content.
    """
    listed = {each.name: each for each in objects.list()}
    with reading(database) as connection:
        columns = (packs.c.object, packs.c.hash, packs.c.bytes)
        known = {row.object: row for row in connection.execute(select(*columns))}
        sizes = dict(connection.execute(select(contents.c.sha256, contents.c.size)).all())
    done, total = 0, sum(row.bytes for row in known.values()) + sum(sizes.values())
    for name in sorted(listed.keys() - known.keys()):
        yield Fault(
            "orphan-pack",
            f"file {name} ({listed[name].bytes} bytes) belongs to no pack: an upload is under way, "
            "or one died; `qwenstack hub gc` removes it in time",
        )
    bad: set[str] = set()
    for name, row in sorted(known.items(), key=lambda item: item[1].hash):
        fault = _check_pack(database, table, row.hash, listed.get(name))
        if fault is not None:
            bad.add(row.hash)
            yield fault
        done += row.bytes
        progress(done, total)
    for sha256, fault in _check_contents(database, table, bad, sorted(sizes)):
        if fault is not None:
            yield fault
        done += sizes[sha256]
        progress(done, total)


def _check_pack(
    database: Engine, table: PackTable, digest: str, listed: Listed | None
) -> Fault | None:
    index = table.read([digest]).get(digest)
    if index is None:  # swept while we looked
        return None
    if listed is None:
        try:
            table.path(index)
        except FileNotFoundError:
            detail = f"file {index.object} of pack {digest} is missing"
            return Fault("missing-pack", detail, digest, _users(database, digest))
    elif listed.bytes != index.bytes:
        detail = f"file {index.object} has {listed.bytes} bytes, pack {digest} {index.bytes}"
        return Fault("short-pack", detail, digest, _users(database, digest))
    return _check_chunks(database, table, index)


def _check_chunks(database: Engine, table: PackTable, index: PackIndex) -> Fault | None:
    first = 0
    damaged: list[int] = []
    problem = ""
    while first < len(index):  # past a bad chunk it goes on, to name them all
        try:
            for position, _ in pack_chunks(table, Run(index, first, len(index))):
                first = position + 1
        except FileNotFoundError:
            return None  # swept while we looked
        except ContentCorrupt as error:
            problem = problem or str(error)
            damaged.append(first)
            first += 1
    if not damaged:
        return None
    if len(damaged) > 1:
        problem += f" (and {len(damaged) - 1} more chunks)"
    return Fault("corrupt-pack", problem, index.hash, _users(database, index.hash, damaged))


def _check_contents(
    database: Engine, table: PackTable, bad: set[str], sha256s: list[str]
) -> Iterator[tuple[str, Fault | None]]:
    with reading(database) as connection:
        there = select(packs.c.hash)
        dangling = connection.execute(
            select(segments.c.sha256, segments.c.pack).where(segments.c.pack.not_in(there))
        ).all()
    lost = {row.sha256: row.pack for row in dangling}
    for sha256 in sha256s:
        yield sha256, _check_content(database, table, bad, lost.get(sha256), sha256)


def _check_content(
    database: Engine, table: PackTable, bad: set[str], lost: str | None, sha256: str
) -> Fault | None:
    if lost is not None:
        detail = f"content {sha256} refers to pack {lost}, which the database has not"
        return Fault("dangling-segment", detail, lost, (sha256,))
    try:
        layout = read_layout(database, sha256)
        if bad.isdisjoint(row.pack for row in layout.rows):  # else named with its pack
            verify_layout(table, layout)
    except ContentMissing:
        return None  # swept while we looked
    except ContentCorrupt as error:
        return Fault("wrong-content", str(error), None, (sha256,))
    return None


def _users(database: Engine, pack: str, damaged: list[int] | None = None) -> tuple[str, ...]:
    """Contents that lie in a pack, or in damaged chunks of it; at most some."""
    query = select(segments.c.sha256, segments.c.first_chunk, segments.c.end_chunk)
    found: set[str] = set()
    with reading(database) as connection:
        for row in connection.execute(query.where(segments.c.pack == pack)):
            if damaged is None or any(row.first_chunk <= d < row.end_chunk for d in damaged):
                found.add(row.sha256)
            if len(found) == _NAMED_MAX:
                break
    return tuple(sorted(found))
