"""From what a caller writes for a revision to a commit: a branch, a tag, a ref or an id."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, select

from qwenstack.hub.errors import RevisionNotFound
from qwenstack.hub.registry.manifests import Manifest, read_manifest
from qwenstack.hub.registry.paths import shown
from qwenstack.storage.hub_tables import commits, refs

MAIN = "main"
HEADS, TAGS, PULLS = "refs/heads/", "refs/tags/", "refs/pr/"
_OID = re.compile(r"[0-9a-f]{40}")
_SHORT_OID = re.compile(r"[0-9a-f]{7,39}")


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """A commit. `parents` are oids, `manifest` the digest of its files' manifest."""

    repo_id: str
    oid: str
    parents: tuple[str, ...]
    manifest: str
    title: str
    message: str
    author: str
    at_us: int


def find_commit(connection: Connection, repo_id: str, revision: str) -> Commit:
    """The commit that `revision` means now. Raises RevisionNotFound.

    A full commit id wins, then branches, then tags, then a ref's full name, then an id's beginning.
    """
    oid = _find_oid(connection, repo_id, revision)
    found = None if oid is None else read_commit(connection, repo_id, oid)
    if found is None:
        raise RevisionNotFound(
            f"Invalid rev id: {shown(revision)} is no branch, tag or commit of this repo."
        )
    return found


def read_commit(connection: Connection, repo_id: str, oid: str) -> Commit | None:
    """The commit with this full id."""
    query = select(commits).where(commits.c.repo_id == repo_id, commits.c.oid == oid)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    parents = msgspec.json.decode(row.parents, type=tuple[str, ...])
    return Commit(
        repo_id=row.repo_id,
        oid=row.oid,
        parents=parents,
        manifest=row.manifest,
        title=row.title,
        message=row.message,
        author=row.author,
        at_us=row.at_us,
    )


def parents_first(found: dict[str, Commit]) -> list[Commit]:
    """The commits (by id), each after those that it builds on; equal sets in equal order."""
    ordered: dict[str, Commit] = {}
    for start in sorted(found):
        waiting = [start]
        while waiting:
            oid = waiting[-1]
            later = [each for each in found[oid].parents if each in found and each not in ordered]
            if later and oid not in ordered:
                waiting += later
            else:
                ordered.setdefault(oid, found[oid])
                waiting.pop()
    return list(ordered.values())


def read_files(connection: Connection, repo_id: str, revision: str) -> tuple[Commit, Manifest]:
    """The commit that `revision` means, and its files. Raises RevisionNotFound."""
    commit = find_commit(connection, repo_id, revision)
    return commit, read_manifest(connection, commit.manifest)


def _find_oid(connection: Connection, repo_id: str, revision: str) -> str | None:
    if _OID.fullmatch(revision):
        return revision
    if revision == "HEAD":
        revision = MAIN
    names = [HEADS + revision, TAGS + revision]
    if revision.startswith("refs/"):
        names.append(revision)
    query = select(refs.c.name, refs.c.commit_oid).where(
        refs.c.repo_id == repo_id, refs.c.name.in_(names)
    )
    by_name: dict[str, str] = {row.name: row.commit_oid for row in connection.execute(query)}
    for name in names:
        if name in by_name:
            return by_name[name]
    if not _SHORT_OID.fullmatch(revision):
        return None
    # Hex digits only, so nothing in it is a pattern.
    begins = select(commits.c.oid).where(
        commits.c.repo_id == repo_id, commits.c.oid.like(f"{revision}%")
    )
    oids: Sequence[str] = connection.scalars(begins.limit(2)).all()
    return oids[0] if len(oids) == 1 else None
