"""What other parts of the hub found out about a release, read from their tables for its page.

Nothing is computed here: what is not in a table yet is shown as not computed.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select

from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import may
from qwenstack.hub.family import Member, Parent, member_of
from qwenstack.hub.registry.manifests import Manifest
from qwenstack.hub.registry.repos import Repo, find_repo
from qwenstack.storage.hub_tables import facts, fingerprints, origins, repos, scans
from qwenstack.storage.rows import read_row

_ROWS_MAX = 60
_VALUE_CHARACTERS_MAX = 300
_CHILDREN_MAX = 50
_ANCESTORS_MAX = 12
_FINDINGS_MAX = 20


class FactSheet(msgspec.Struct, frozen=True):
    """What was read from the files' headers, as lines."""

    rows: tuple[tuple[str, str], ...]
    computed_us: int


class Scan(msgspec.Struct, frozen=True):
    """What a scanner said of one content."""

    scanner: str
    verdict: str
    findings: tuple[str, ...]
    scanned_us: int


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a mirrored release was copied from, as it was then."""

    endpoint: str
    upstream_name: str
    upstream_commit: str
    licence: str | None
    licence_sha256: str | None
    copied_us: int


class Kin(msgspec.Struct, frozen=True):
    """A release's line back to its oldest known ancestor, nearest first, and its derivatives."""

    ancestors: tuple[Parent, ...]
    here: frozenset[str]
    children: tuple[Member, ...]


def read_facts(connection: Connection, manifest: str) -> FactSheet | None:
    """The facts of a manifest, None where nobody computed them."""
    row = connection.execute(select(facts).where(facts.c.manifest == manifest)).one_or_none()
    if row is None:
        return None
    try:
        document = msgspec.json.decode(row.document, type=dict[str, object])
    except msgspec.DecodeError:
        return None
    return FactSheet(tuple(_rows(document))[:_ROWS_MAX], row.computed_us)


def read_scans(connection: Connection, files: Manifest) -> dict[str, Scan]:
    """The newest scan of each file's content that has one, by SHA-256."""
    wanted = sorted({entry.sha256 for entry in files})
    found: dict[str, Scan] = {}
    for start in range(0, len(wanted), 500):
        rows = connection.execute(
            select(scans)
            .where(scans.c.sha256.in_(wanted[start : start + 500]))
            .order_by(scans.c.scanned_us)
        )
        for row in rows:
            found[row.sha256] = Scan(
                row.scanner, row.verdict, _findings(row.findings), row.scanned_us
            )
    return found


def fingerprinted_at(connection: Connection, manifest: str) -> int | None:
    """When the weights were fingerprinted."""
    at_us: int | None = connection.scalar(
        select(fingerprints.c.computed_us)
        .where(fingerprints.c.manifest == manifest)
        .order_by(fingerprints.c.version.desc())
        .limit(1)
    )
    return at_us


def read_origin(connection: Connection, repo_id: str, commit: str) -> Origin | None:
    """Where a commit was mirrored from."""
    row = connection.execute(
        select(origins).where(origins.c.repo_id == repo_id, origins.c.commit_oid == commit)
    ).one_or_none()
    return None if row is None else read_row(row, Origin)


def read_kin(connection: Connection, viewer: Identity, repo: Repo) -> Kin:
    """Ancestors and derivatives, of those that the viewer may know of."""
    ancestors: list[Parent] = []
    here: set[str] = set()
    at: Repo | None = repo
    seen = {repo.name.lower()}
    while at is not None and len(ancestors) < _ANCESTORS_MAX:
        parents = member_of(at).parents
        if not parents or parents[0].name.lower() in seen:
            break
        ancestors.append(parents[0])
        seen.add(parents[0].name.lower())
        at = find_repo(connection, "model", parents[0].name)
        if at is not None and not may(viewer, at, "see").allowed:
            at = None
        if at is not None:
            here.add(parents[0].name)
    return Kin(tuple(ancestors), frozenset(here), _children(connection, viewer, repo))


def _children(connection: Connection, viewer: Identity, repo: Repo) -> tuple[Member, ...]:
    # The name stands in the summary of whoever names it; which field it stands in is read below.
    named = repo.name.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    statement = (
        select(repos)
        .where(repos.c.kind == "model", repos.c.summary.ilike(f"%{named}%", escape="\\"))
        .order_by(repos.c.downloads.desc(), repos.c.id)
        .limit(_CHILDREN_MAX * 4)
    )
    found = []
    for row in connection.execute(statement):
        child = read_row(row, Repo)
        member = member_of(child)
        names_it = any(each.name.lower() == repo.name.lower() for each in member.parents)
        if names_it and child.id != repo.id and may(viewer, child, "see").allowed:
            found.append(member)
    return tuple(found[:_CHILDREN_MAX])


def _rows(document: dict[str, object]) -> list[tuple[str, str]]:
    found = []
    for name, value in document.items():
        text = _text(value)
        if text:
            found.append((name.replace("_", " "), text[:_VALUE_CHARACTERS_MAX]))
    return found


def _text(value: object) -> str:
    match value:
        case None | "" | [] | {}:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case dict():
            return ", ".join(f"{name}: {_text(each)}" for name, each in list(value.items())[:20])
        case list():
            return "; ".join(_text(each) for each in value[:20])
    return str(value)


def _findings(document: str) -> tuple[str, ...]:
    try:
        found = msgspec.json.decode(document, type=list[object])
    except msgspec.DecodeError:
        return ()
    return tuple(_text(each)[:_VALUE_CHARACTERS_MAX] for each in found[:_FINDINGS_MAX])
