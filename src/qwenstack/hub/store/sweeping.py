"""Removing what nobody needs any more, without ever hitting what somebody is about to use.

A content goes when no release lists it, a pack when no content refers to it, and each only when it
was not used since a given instant: an upload notes its use of what is there before it relies on it,
and the removal looks at that note in the same statement. Rows go before bytes: after a kill in the
middle an object without a row is left, which the next sweep removes.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Engine, delete, exists, select

from qwenstack.hub.store.kinds import Swept
from qwenstack.hub.store.objects import Objects
from qwenstack.hub.store.packs import PackTable
from qwenstack.hub.store.rows import batches
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import contents, packs, segments


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


def _sweep_contents(database: Engine, live: frozenset[str], older_than_us: int) -> int:
    with reading(database) as connection:
        query = select(contents.c.sha256).where(contents.c.used_us < older_than_us)
        dead = sorted(set(connection.scalars(query)) - live)
    count = 0
    for batch in batches(dead):
        unused = (contents.c.sha256.in_(batch), contents.c.used_us < older_than_us)
        with database.begin() as connection:
            # The rows are locked first, so that their use cannot be noted in between.
            still = connection.scalars(select(contents.c.sha256).where(*unused).with_for_update())
            doomed = list(still)
            connection.execute(delete(segments).where(segments.c.sha256.in_(doomed)))
            connection.execute(delete(contents).where(contents.c.sha256.in_(doomed)))
            count += len(doomed)
    return count


def _sweep_packs(database: Engine, table: PackTable, older_than_us: int) -> tuple[int, int]:
    unused = packs.c.used_us < older_than_us
    with reading(database) as connection:
        unneeded = ~exists().where(segments.c.pack == packs.c.hash)
        dead = list(connection.scalars(select(packs.c.hash).where(unused, unneeded)))
    removed = table.remove(dead, unused)
    return len(removed), sum(each.bytes for each in removed)


def _sweep_orphans(database: Engine, objects: Objects, older_than_us: int) -> tuple[int, int]:
    # An object's row follows it at once, so an old object without one will never get it.
    old = [each for each in objects.list() if each.modified_us < older_than_us]
    count = freed = 0
    for batch in batches(old):
        names = [each.name for each in batch]
        with reading(database) as connection:
            query = select(packs.c.object).where(packs.c.object.in_(names))
            known = set(connection.scalars(query))
        for each in batch:
            if each.name not in known:
                objects.delete(each.name)
                count += 1
                freed += each.bytes
    return count, freed
