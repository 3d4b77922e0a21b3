"""Giving back the room of packs of which little is needed any more.

What contents still need of such packs is copied into a new pack; then, in one transaction, their
segments and the chunks' places move there. The old pack stays as it is, for readers that were told
to read from it, and is removed by a later sweep like any that nobody refers to. At every instant
each content lies whole in packs that are there: after a kill there is at most a copy too many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import Connection, Engine, delete, select, update

from qwenstack.hub.store.kinds import ContentCorrupt, Progress, Repacked
from qwenstack.hub.store.objects import Objects
from qwenstack.hub.store.packs import (
    PACK_BYTES_MAX,
    PACK_CHUNKS_MAX,
    PackIndex,
    PackTable,
    PackWriter,
    add_chunks,
)
from qwenstack.hub.store.reading import pack_chunks
from qwenstack.hub.store.writing import Run
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import chunks, packs, segments

# With at most so much needed, a copy frees at least as much as it writes.
_NEEDED_MAX = 0.5
# Readers begin with a pack's place and come to it later: the longest is told no more than a day
# before (a download; the addresses of Xet's parts hold an hour).
READERS_US = 25 * 3600 * 1_000_000


class Sparse(NamedTuple):
    """A pack of which only `runs` are needed, chunks `first` to `end` each; `needed` bytes."""

    pack: str
    bytes: int
    needed: int
    runs: tuple[tuple[int, int], ...]

    @property
    def chunks(self) -> int:
        """How many are needed."""
        return sum(end - first for first, end in self.runs)


class _Move(NamedTuple):
    """Chunks `first` to `end` of a pack, which stand from `place` on in the new one."""

    old: PackIndex
    first: int
    end: int
    place: int


def sparse_packs(
    connection: Connection, older_than_us: int, without: frozenset[str] = frozenset()
) -> Iterator[Sparse]:
    """The packs not used since `older_than_us` of which at most half is needed, but something; and
    those of which nothing is, once the contents `without` are gone.
    """
    columns = [segments.c.first_chunk, segments.c.end_chunk, segments.c.pack_offset]
    columns += [segments.c.sha256] if without else []
    query = (
        select(packs.c.hash, packs.c.bytes.label("all"), *columns, segments.c.bytes)
        .join(segments, segments.c.pack == packs.c.hash)
        .where(packs.c.used_us < older_than_us)
        .order_by(packs.c.hash, segments.c.first_chunk)
        .distinct()
    )
    found = connection.execution_options(yield_per=1000).execute(query)
    for (pack, size), rows in groupby(found, lambda row: (row.hash, row.all)):
        runs: list[tuple[int, int]] = []
        needed = end_offset = 0
        for row in rows:
            if without and row.sha256 in without:
                continue
            start, end = row.pack_offset, row.pack_offset + row.bytes
            if runs and row.first_chunk <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(runs[-1][1], row.end_chunk))
            else:
                runs.append((row.first_chunk, row.end_chunk))
                end_offset = start
            needed += max(end - max(start, end_offset), 0)
            end_offset = max(end, end_offset)
        if needed <= size * _NEEDED_MAX:
            yield Sparse(pack, size, needed, tuple(runs))


def repack(
    database: Engine,
    objects: Objects,
    table: PackTable,
    *,
    older_than_us: int,
    progress: Progress,
) -> Repacked:
    """Copy what is needed of sparse packs together, and let their contents lie there.

    The old ones go at a sweep of the same grace from `READERS_US` on. A damaged pack is left as it
    is. Raises OSError.
    """
    with reading(database) as connection:
        found = list(sparse_packs(connection, older_than_us))
    total, done, moved = sum(each.needed for each in found), 0, list[Sparse]()
    for group in _groups(found):
        moved += _repack_group(database, objects, table, group, older_than_us)
        done += sum(each.needed for each in group)
        progress(done, total)
    return Repacked(len(moved), sum(each.needed for each in moved), sum(p.bytes for p in moved))


def _groups(found: Sequence[Sparse]) -> Iterator[list[Sparse]]:
    """Packs whose needed chunks fit one new pack."""
    group: list[Sparse] = []
    for each in found:
        together = [*group, each]
        if (
            sum(one.needed for one in together) > PACK_BYTES_MAX
            or sum(one.chunks for one in together) > PACK_CHUNKS_MAX
        ):
            yield group
            together = [each]
        group = together
    if group:
        yield group


def _repack_group(
    database: Engine,
    objects: Objects,
    table: PackTable,
    group: Sequence[Sparse],
    older_than_us: int,
) -> list[Sparse]:
    """Repack those of a group that are sound; which those were."""
    sound = list(group)
    while sound:
        writer = PackWriter(objects)
        moves: dict[str, list[_Move]] = {}
        try:
            for each in sound:
                try:
                    moves[each.pack] = list(_copy(table, each, writer))
                except (ContentCorrupt, FileNotFoundError):
                    sound.remove(each)
                    break
            else:
                new = table.register(writer.close())
                moved = _switch(database, moves, new, older_than_us)
                if not moved:
                    table.withdraw([new.hash])
                return [each for each in sound if each.pack in moved]
        finally:
            writer.discard()
    return []


def _copy(table: PackTable, sparse: Sparse, writer: PackWriter) -> Iterator[_Move]:
    """Add what is needed of a pack to another; raises ContentCorrupt, FileNotFoundError."""
    index = table.read([sparse.pack]).get(sparse.pack)
    if index is None:
        raise FileNotFoundError(f"pack {sparse.pack} was removed")
    for first, end in sparse.runs:
        yield _Move(index, first, end, len(writer.leaves))
        for position, data in pack_chunks(table, Run(index, first, end)):
            writer.append(index.hashes[position], data)
        writer.flush()


def _switch(
    database: Engine, moves: dict[str, list[_Move]], new: PackIndex, older_than_us: int
) -> set[str]:
    """Let all that lies in the old packs lie in the new one, but for packs used meanwhile."""
    moved: set[str] = set()
    with database.begin() as connection:
        for pack, runs in moves.items():
            # Asked and noted in one statement: whoever uses the pack from now on is noted again.
            claim = update(packs).where(packs.c.hash == pack, packs.c.used_us < older_than_us)
            if not connection.execute(claim.values(used_us=older_than_us + READERS_US)).rowcount:
                continue
            for run in runs:
                shift = run.place - run.first
                shift_bytes = new.starts[run.place] - run.old.starts[run.first]
                connection.execute(
                    update(segments)
                    .where(
                        segments.c.pack == pack,
                        segments.c.first_chunk >= run.first,
                        segments.c.end_chunk <= run.end,
                    )
                    .values(
                        pack=new.hash,
                        first_chunk=segments.c.first_chunk + shift,
                        end_chunk=segments.c.end_chunk + shift,
                        pack_offset=segments.c.pack_offset + shift_bytes,
                    )
                )
            connection.execute(delete(chunks).where(chunks.c.pack == pack))
            moved.add(pack)
        if moved:
            add_chunks(connection, new)
    return moved
