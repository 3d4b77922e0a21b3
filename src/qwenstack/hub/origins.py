"""Where copied releases came from, as it was then: hub, name, commit, licence, instant."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select

from qwenstack.hub.registry.repos import Kind
from qwenstack.hub.store.rows import insert_new
from qwenstack.storage.hub_tables import contents, origins, repo_contents, repos
from qwenstack.storage.rows import read_row

ORIGINS_MAX = 10_000
LICENCE_CHARACTERS_MAX = 96


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A copied commit. `licence` is what the card declared, `licence_sha256` of the licence file's
    bytes; either is None where there was none.
    """

    repo_id: str
    commit_oid: str
    endpoint: str
    upstream_name: str
    upstream_commit: str
    licence: str | None
    licence_sha256: str | None
    copied_us: int


class NamedOrigin(msgspec.Struct, frozen=True):
    """A copied commit, and the repo that has it."""

    kind: Kind
    repo: str
    origin: Origin


def write_origin(connection: Connection, origin: Origin) -> None:
    """Keep where a commit came from; the first word on a commit stays."""
    insert_new(connection, origins, [msgspec.structs.asdict(origin)])


def find_origin(connection: Connection, repo_id: str, commit_oid: str) -> Origin | None:
    """Where this commit was copied from; None for one that was made here."""
    query = select(origins).where(origins.c.repo_id == repo_id, origins.c.commit_oid == commit_oid)
    row = connection.execute(query).one_or_none()
    return None if row is None else read_row(row, Origin)


def newest_origin(connection: Connection, repo_id: str) -> Origin | None:
    """The repo's last copy; None for a repo that is no mirror."""
    query = select(origins).where(origins.c.repo_id == repo_id)
    row = connection.execute(query.order_by(origins.c.copied_us.desc()).limit(1)).one_or_none()
    return None if row is None else read_row(row, Origin)


def list_origins(connection: Connection, repo_id: str | None = None) -> list[NamedOrigin]:
    """All copies, of one repo or of the hub, the newest first; at most ORIGINS_MAX."""
    query = (
        select(origins, repos.c.kind, repos.c.name)
        .join(repos, repos.c.id == origins.c.repo_id)
        .order_by(origins.c.copied_us.desc(), origins.c.commit_oid)
        .limit(ORIGINS_MAX)
    )
    if repo_id is not None:
        query = query.where(origins.c.repo_id == repo_id)
    return [
        NamedOrigin(msgspec.convert(row.kind, Kind), row.name, read_row(row, Origin))
        for row in connection.execute(query)
    ]


def copied_bytes(connection: Connection, endpoint: str) -> int:
    """The bytes of all repos that were copied from this hub, each content once."""
    copies = select(origins.c.repo_id).where(origins.c.endpoint == endpoint)
    held = select(repo_contents.c.sha256).where(
        repo_contents.c.repo_id.in_(copies), repo_contents.c.published
    )
    total = select(func.sum(contents.c.size)).where(contents.c.sha256.in_(held))
    return int(connection.scalar(total) or 0)
