"""Bytes that were taken for somebody and that no branch has: who they count as.

What is uploaded counts as its uploader's until a branch or tag has it; what a deleted repo leaves
counts as who deleted it. Either ends when the garbage collection has removed the bytes. An upload
over Xet counts by its packs, each by what no published file uses of it. The lists of files of a
pull request's commits count as long as they are there.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, and_, delete, exists, func, insert, literal, or_, select, update

from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import now_us
from qwenstack.hub.store.rows import batches, insert_new
from qwenstack.storage.hub_tables import (
    contents,
    manifests,
    packs,
    repo_contents,
    segments,
    uploads,
    waiting,
)

# A transfer that a kill ended leaves its row; no honest one takes longer.
_TRANSFER_US = 24 * 3600 * 1_000_000
_TRANSFER = "put"

ROW_BYTES = 1024
"""What a content counts at the least: its rows take about so much, however small it is."""


class Waiting(msgspec.Struct, frozen=True):
    """The bytes that wait of an account: all, and of those the ones for repos of others."""

    bytes: int
    guest_bytes: int


def waiting_of(connection: Connection, account: str) -> Waiting:
    """What waits of an account, with the whole of its uploads in parts."""
    of_guests = func.sum(waiting.c.bytes).filter(waiting.c.guest)
    row = connection.execute(
        select(func.coalesce(func.sum(waiting.c.bytes), 0), func.coalesce(of_guests, 0)).where(
            waiting.c.account == account
        )
    ).one()
    own, guest = (
        connection.scalar(
            select(func.coalesce(func.sum(uploads.c.size), 0)).where(
                uploads.c.account == account, uploads.c.guest.is_(is_guest)
            )
        )
        or 0
        for is_guest in (False, True)
    )
    return Waiting(int(row[0]) + int(own) + int(guest), int(row[1]) + int(guest))


def begin_transfer(connection: Connection, account: str, size: int, *, guest: bool) -> str:
    """Count a body that is about to come; the name to end it by."""
    key = new_id(_TRANSFER)
    row = {"account": account, "key": key, "bytes": size, "guest": guest, "at_us": now_us()}
    connection.execute(insert(waiting).values(row))
    return key


def end_transfer(connection: Connection, key: str) -> None:
    """Count the body no more, whatever its account is called now: what became of it counts."""
    connection.execute(delete(waiting).where(waiting.c.key == key))


def keep_waiting(
    connection: Connection, account: str, sizes: dict[str, int], *, guest: bool
) -> None:
    """Count contents (by SHA-256) or packs that no branch has; others are left out."""
    published: set[str] = set()
    for batch in batches(sorted(sizes)):
        query = select(repo_contents.c.sha256).where(
            repo_contents.c.sha256.in_(batch), repo_contents.c.published
        )
        published.update(connection.scalars(query))
    at_us = now_us()
    rows = [
        {
            "account": account,
            "key": key,
            "bytes": max(size, ROW_BYTES),
            "guest": guest,
            "at_us": at_us,
        }
        for key, size in sizes.items()
        if key not in published
    ]
    insert_new(connection, waiting, rows)


def settle(connection: Connection, sha256s: Iterable[str]) -> None:
    """These contents were published just now: they, and their share of packs, wait no more."""
    if connection.scalar(select(waiting.c.key).limit(1)) is None:
        return
    for batch in batches(sorted(set(sha256s))):
        connection.execute(delete(waiting).where(waiting.c.key.in_(batch)))
        used = select(segments.c.pack).where(
            segments.c.sha256.in_(batch), segments.c.pack.in_(select(waiting.c.key))
        )
        for pack in connection.scalars(used.distinct()).all():
            left = _unpublished(connection, pack)
            rows = (waiting.c.key == pack, waiting.c.bytes > left)
            if left:
                connection.execute(update(waiting).where(*rows).values(bytes=left))
            else:
                connection.execute(delete(waiting).where(*rows))


def _unpublished(connection: Connection, pack: str) -> int:
    """The bytes of a pack that no published content uses."""
    published = exists().where(
        repo_contents.c.sha256 == segments.c.sha256, repo_contents.c.published
    )
    query = (
        select(segments.c.pack_offset, segments.c.bytes)
        .where(segments.c.pack == pack, published)
        .order_by(segments.c.pack_offset)
        .distinct()
    )
    used = end = 0
    for start, size in connection.execute(query):
        used += max(start + size - max(start, end), 0)
        end = max(end, start + size)
    whole = connection.scalar(select(packs.c.bytes).where(packs.c.hash == pack)) or 0
    return int(whole) - used


def give_up(
    connection: Connection, repo_id: str, account: str, sha256s: Iterable[str] | None = None
) -> None:
    """Count what a repo held alone as the account's, before it gives it up; None for all of it."""
    other = repo_contents.alias()
    elsewhere = exists().where(
        other.c.sha256 == repo_contents.c.sha256, other.c.repo_id != repo_id, other.c.published
    )
    query = (
        select(contents.c.sha256, contents.c.size)
        .join(repo_contents, repo_contents.c.sha256 == contents.c.sha256)
        .where(repo_contents.c.repo_id == repo_id, repo_contents.c.published, ~elsewhere)
    )
    asked = [None] if sha256s is None else list(batches(sorted(set(sha256s))))
    at_us = now_us()
    for batch in asked:
        found = query if batch is None else query.where(contents.c.sha256.in_(batch))
        rows = [
            {"account": account, "key": key, "bytes": size, "guest": False, "at_us": at_us}
            for key, size in connection.execute(found)
        ]
        insert_new(connection, waiting, rows)


def forget_removed(connection: Connection) -> int:
    """Count no more what the garbage collection removed, nor transfers that a kill ended."""
    stored = or_(
        exists().where(contents.c.sha256 == waiting.c.key),
        exists().where(packs.c.hash == waiting.c.key),
        exists().where(manifests.c.digest == waiting.c.key),
    )
    transfer = waiting.c.key.startswith(literal(_TRANSFER + "_"), autoescape=False)
    before_us = now_us() - _TRANSFER_US
    gone = or_(and_(~transfer, ~stored), and_(transfer, waiting.c.at_us < before_us))
    return connection.execute(delete(waiting).where(gone)).rowcount
