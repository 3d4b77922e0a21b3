"""What other parts of the hub found out about a release, read from their tables.

Nothing is computed here: what is not in a table yet is shown as not computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import may
from qwenstack.hub.facts import Facts, Flag, Number, Words, read_facts
from qwenstack.hub.family import Member, Parent, member_of, shown_to
from qwenstack.hub.licence_history import LicenceChange, LicenceRevision, licence_history
from qwenstack.hub.registry.commits import history
from qwenstack.hub.registry.manifests import Manifest
from qwenstack.hub.registry.repos import Repo, find_repo
from qwenstack.hub.registry.revisions import Commit, read_commit
from qwenstack.hub.safety.findings import Finding
from qwenstack.hub.safety.records import scanner_of
from qwenstack.storage.hub_tables import fingerprints, origins, repos, scans
from qwenstack.storage.rows import read_row

_COMMITS_MAX = 200
_CHANGES_MAX = 50
_VALUE_CHARACTERS_MAX = 300
_CHILDREN_MAX = 50
_ANCESTORS_MAX = 12
_FINDINGS_MAX = 20


class FactRow(msgspec.Struct, frozen=True):
    """A fact with where it was read."""

    name: str
    value: str
    source: str


class FactSheet(msgspec.Struct, frozen=True):
    """What was read from the files' headers, as lines, and how the claims stand against it."""

    rows: tuple[FactRow, ...]
    facts: Facts


class Scan(msgspec.Struct, frozen=True):
    """What the scanner said of a file."""

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


def read_fact_sheet(connection: Connection, manifest: str) -> FactSheet | None:
    """The facts of a manifest, None where nobody computed them."""
    facts = read_facts(connection, manifest)
    return None if facts is None else FactSheet(tuple(fact_rows(facts)), facts)


def fact_rows(facts: Facts) -> Iterator[FactRow]:
    """The facts that are one value each; what is not known has no row."""
    named: tuple[tuple[str, Number | Words | Flag | None], ...] = (
        ("Architecture", facts.architecture),
        ("Parameters", facts.parameters),
        ("Active", facts.active_parameters),
        ("Experts", facts.experts),
        ("Layers", facts.layers),
        ("Quantisation", facts.quantisation),
        ("Context", facts.context_tokens),
        ("Vocabulary", facts.vocabulary),
        ("Tied embeddings", facts.tied_embeddings),
        ("Chat template", facts.chat_template),
        ("Adapter", facts.adapter),
    )
    for name, fact in named:
        match fact:
            case Number(value, source):
                yield FactRow(name, f"{value:,}", source)
            case Words(text, source):
                yield FactRow(name, text[:_VALUE_CHARACTERS_MAX], source)
            case Flag(flag, source):
                yield FactRow(name, "yes" if flag else "no", source)
    if facts.elements:
        stored = ", ".join(f"{count:,} {dtype}" for dtype, count in facts.elements.items())
        yield FactRow("Stored numbers", stored[:_VALUE_CHARACTERS_MAX], "the weights' headers")


def read_licence_history(connection: Connection, tip: Commit) -> list[LicenceChange]:
    """How the licence changed up to `tip`, the newest first, of the commits with facts."""
    revisions: list[LicenceRevision] = []
    for number, oid in enumerate(history(connection, tip.repo_id, tip.oid)):
        commit = read_commit(connection, tip.repo_id, oid)
        if commit is None or number == _COMMITS_MAX:
            break
        facts = read_facts(connection, commit.manifest)
        if facts is not None:
            revisions.append(
                LicenceRevision(commit.oid, commit.at_us, commit.author, facts.licence)
            )
    return licence_history(reversed(revisions))[::-1][:_CHANGES_MAX]


def read_scans(connection: Connection, files: Manifest) -> dict[str, Scan]:
    """What today's scanner found in each file that it has scanned, by path."""
    wanted = sorted({entry.sha256 for entry in files})
    rows: dict[tuple[str, str], Row[Any]] = {}
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        for row in connection.execute(select(scans).where(scans.c.sha256.in_(part))):
            rows[row.sha256, row.scanner] = row
    found: dict[str, Scan] = {}
    for entry in files:
        # A scan is of a content under a kind of name: the same bytes can be one thing or another.
        scanned = rows.get((entry.sha256, scanner_of(entry.path)))
        if scanned is not None:
            findings = _findings(scanned.findings)
            found[entry.path] = Scan(scanned.verdict, findings, scanned.scanned_us)
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
        parents = shown_to(connection, viewer, [member_of(at)])[0].parents
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


def _findings(document: str) -> tuple[str, ...]:
    try:
        found = msgspec.json.decode(document, type=list[Finding])
    except msgspec.DecodeError:
        return ()
    return tuple(
        f"{each.message} ({each.place})" if each.place else each.message
        for each in found[:_FINDINGS_MAX]
    )
