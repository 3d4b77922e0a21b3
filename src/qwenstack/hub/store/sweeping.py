"""Removing what nobody needs any more, without ever hitting what somebody is about to use.

A content goes when no release lists it, a pack when no content refers to it, and each only when it
was not used since a given instant: an upload notes its use of what is there before it relies on it,
and the removal looks at that note in the same statement. Rows go before bytes: after a kill in the
middle an object without a row is left, which the next sweep removes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Connection, Engine, delete, exists, select

from qwenstack.core.instants import now_us
from qwenstack.hub.store.kinds import Forecast, Repacked, Swept
from qwenstack.hub.store.objects import Listed, Objects
from qwenstack.hub.store.packs import PackTable
from qwenstack.hub.store.repacking import sparse_packs
from qwenstack.hub.store.rows import batches
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import contents, packs, segments

# Flushing an object and writing its row take moments, on a disk that is overloaded some seconds.
_ROW_FOLLOWS_US = 600 * 1_000_000


def sweep(
    database: Engine,
    objects: Objects,
    table: PackTable,
    live: Iterable[str],
    *,
    older_than_us: int,
) -> Swept:
    """Remove contents that are not `live`, packs without contents, and objects without packs.

    Whatever was used at or after `older_than_us` stays. Raises OSError.
    """
    removed_contents = _sweep_contents(database, frozenset(live), older_than_us)
    removed_packs, freed = _sweep_packs(database, table, older_than_us)
    orphans, orphan_bytes = _sweep_orphans(database, objects, older_than_us)
    objects.tidy(older_than_us)
    return Swept(removed_contents, removed_packs + orphans, freed + orphan_bytes)


def forecast(
    database: Engine, objects: Objects, live: Iterable[str], *, older_than_us: int
) -> Forecast:
    """What a sweep and a repack would do now. Raises OSError."""
    dead = frozenset(_dead_contents(database, frozenset(live), older_than_us))
    with reading(database) as connection:
        unneeded = packs.c.used_us < older_than_us, ~exists().where(segments.c.pack == packs.c.hash)
        sizes = list(connection.scalars(select(packs.c.bytes).where(*unneeded)))
        found = list(sparse_packs(connection, older_than_us, dead))
    sizes += [each.bytes for each in found if not each.needed]
    sparse = [each for each in found if each.needed]
    orphans = list(_orphans(database, objects, older_than_us))
    return Forecast(
        Swept(
            len(dead), len(sizes) + len(orphans), sum(sizes) + sum(each.bytes for each in orphans)
        ),
        Repacked(len(sparse), sum(p.needed for p in sparse), sum(p.bytes for p in sparse)),
    )


def _sweep_contents(database: Engine, live: frozenset[str], older_than_us: int) -> int:
    count = 0
    for batch in batches(_dead_contents(database, live, older_than_us)):
        with database.begin() as connection:
            count += len(_remove_contents(connection, batch, older_than_us))
    return count


def _dead_contents(database: Engine, live: frozenset[str], older_than_us: int) -> list[str]:
    with reading(database) as connection:
        query = select(contents.c.sha256).where(contents.c.used_us < older_than_us)
        return sorted(set(connection.scalars(query)) - live)


def _remove_contents(
    connection: Connection, dead: Sequence[str], older_than_us: int
) -> Sequence[str]:
    """Remove those that were not used meanwhile; which those were."""
    unused = (contents.c.sha256.in_(dead), contents.c.used_us < older_than_us)
    # The rows are locked first, so that their use cannot be noted in between.
    doomed = connection.scalars(select(contents.c.sha256).where(*unused).with_for_update()).all()
    connection.execute(delete(segments).where(segments.c.sha256.in_(doomed)))
    connection.execute(delete(contents).where(contents.c.sha256.in_(doomed)))
    return doomed


def _sweep_packs(database: Engine, table: PackTable, older_than_us: int) -> tuple[int, int]:
    unused = packs.c.used_us < older_than_us
    with reading(database) as connection:
        unneeded = ~exists().where(segments.c.pack == packs.c.hash)
        dead = list(connection.scalars(select(packs.c.hash).where(unused, unneeded)))
    removed = table.remove(dead, unused)
    return len(removed), sum(each.bytes for each in removed)


def _sweep_orphans(database: Engine, objects: Objects, older_than_us: int) -> tuple[int, int]:
    count = freed = 0
    for each in _orphans(database, objects, older_than_us):
        objects.delete(each.name)
        count += 1
        freed += each.bytes
    return count, freed


def _orphans(database: Engine, objects: Objects, older_than_us: int) -> Iterator[Listed]:
    """Objects that no pack has, and none will: an object's row follows it at once.

    However short the grace, what is that new is left; but for who speaks of the future, as only
    one does who knows that nobody uploads.
    """
    if older_than_us <= now_us():
        older_than_us = min(older_than_us, now_us() - _ROW_FOLLOWS_US)
    old = [each for each in objects.list() if each.modified_us < older_than_us]
    for batch in batches(old):
        names = [each.name for each in batch]
        with reading(database) as connection:
            query = select(packs.c.object).where(packs.c.object.in_(names))
            known = set(connection.scalars(query))
        yield from (each for each in batch if each.name not in known)
