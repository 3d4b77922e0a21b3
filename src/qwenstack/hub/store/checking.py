"""Reading everything and telling what is not as the database says: the store's fsck."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine, select

from qwenstack.hub.store.kinds import ContentCorrupt, ContentMissing, Fault
from qwenstack.hub.store.objects import Listed, Objects
from qwenstack.hub.store.packs import PackIndex, PackTable
from qwenstack.hub.store.reading import pack_chunks, read_layout, verify_layout
from qwenstack.hub.store.writing import Run
from qwenstack.storage.hub_tables import contents, packs, segments

_NAMED_MAX = 20


def check(database: Engine, objects: Objects, table: PackTable) -> Iterator[Fault]:
    """Each fault once, by its cause: a content in a bad pack is named with that pack."""
    listed = {each.name: each for each in objects.list()}
    with database.connect().execution_options(read_only=True) as connection:
        known = {row.object: row.hash for row in connection.execute(select(packs))}
    for name in sorted(listed.keys() - known.keys()):
        yield Fault(
            "orphan-pack",
            f"file {name} ({listed[name].bytes} bytes) belongs to no pack: an upload is under way, "
            "or one died; `qwenstack hub gc` removes it in time",
        )
    bad: set[str] = set()
    for name, digest in sorted(known.items(), key=lambda item: item[1]):
        fault = _check_pack(database, table, digest, listed.get(name))
        if fault is not None:
            bad.add(digest)
            yield fault
    yield from _check_contents(database, table, bad)


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


def _check_contents(database: Engine, table: PackTable, bad: set[str]) -> Iterator[Fault]:
    with database.connect().execution_options(read_only=True) as connection:
        everything = list(connection.scalars(select(contents.c.sha256)))
        there = select(packs.c.hash)
        dangling = connection.execute(
            select(segments.c.sha256, segments.c.pack).where(segments.c.pack.not_in(there))
        ).all()
    for row in dangling:
        detail = f"content {row.sha256} refers to pack {row.pack}, which the database has not"
        yield Fault("dangling-segment", detail, row.pack, (row.sha256,))
    lost = {row.sha256 for row in dangling}
    for sha256 in everything:
        if sha256 in lost:
            continue
        try:
            layout = read_layout(database, sha256)
            if not bad.isdisjoint(row.pack for row in layout.rows):
                continue  # named with its pack
            verify_layout(table, layout)
        except ContentMissing:
            continue  # swept while we looked
        except ContentCorrupt as error:
            yield Fault("wrong-content", str(error), None, (sha256,))


def _users(database: Engine, pack: str, damaged: list[int] | None = None) -> tuple[str, ...]:
    """Contents that lie in a pack, or in damaged chunks of it; at most some."""
    query = select(segments.c.sha256, segments.c.first_chunk, segments.c.end_chunk)
    found: set[str] = set()
    with database.connect().execution_options(read_only=True) as connection:
        for row in connection.execute(query.where(segments.c.pack == pack)):
            if damaged is None or any(row.first_chunk <= d < row.end_chunk for d in damaged):
                found.add(row.sha256)
            if len(found) == _NAMED_MAX:
                break
    return tuple(sorted(found))
