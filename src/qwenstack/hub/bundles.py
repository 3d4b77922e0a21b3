"""What a bundle says of repos: their branches, tags and commits, as rows that another hub can take.

Only what is published goes along: pull requests, discussions, people and statistics stay. On the
other side a repo is made, or an earlier import of it moves on: a branch that went another way there
is never overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import msgspec
from sqlalchemy import Connection, select, update

from qwenstack.core.instants import now_us
from qwenstack.hub.errors import HubError
from qwenstack.hub.hub import Inspector
from qwenstack.hub.origins import LICENCE_CHARACTERS_MAX, Origin, write_origin
from qwenstack.hub.registry.copied import check_files
from qwenstack.hub.registry.manifests import Manifest, make_manifest, read_manifest, release_digest
from qwenstack.hub.registry.possession import grant
from qwenstack.hub.registry.refs import check_ref_name, create_ref, find_ref, move_ref, short_name
from qwenstack.hub.registry.repos import (
    Gating,
    Kind,
    Repo,
    change_settings,
    check_repo_name,
    create_repo,
    find_repo,
    touch,
    write_summary,
)
from qwenstack.hub.registry.revisions import (
    HEADS,
    MAIN,
    TAGS,
    Commit,
    parents_first,
    read_commit,
)
from qwenstack.hub.store.kinds import BundleError
from qwenstack.hub.store.rows import insert_new
from qwenstack.hub.upstream import check_endpoint
from qwenstack.storage.hub_tables import accounts, commits, manifests, origins, refs, repos
from qwenstack.storage.rows import read_row

_REFUSALS_SHOWN = 5
_OID = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL_MAX = 2000


class BundledRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A branch or tag by its full name."""

    name: str
    commit_oid: str
    message: str | None


class BundledOrigin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a commit was copied from, as it was then; as `Origin`, without the repo."""

    commit_oid: str
    endpoint: str
    upstream_name: str
    upstream_commit: str
    licence: str | None
    licence_sha256: str | None
    copied_us: int


class BundledRepo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A repo with its history; each commit comes before those that build on it."""

    kind: Kind
    name: str
    private: bool
    gated: Gating
    created_by: str
    created_us: int
    summary: str
    refs: tuple[BundledRef, ...]
    commits: tuple[Commit, ...]
    origins: tuple[BundledOrigin, ...] = ()


class BundledRegistry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The registry's document of a bundle."""

    repos: tuple[BundledRepo, ...]
    manifests: dict[str, Manifest]


class Restored(msgspec.Struct, frozen=True):
    """What an import did to a repo."""

    kind: Kind
    name: str
    created: bool
    commits: int
    refs: tuple[str, ...]


def bundle_repos(connection: Connection, chosen: Sequence[Repo]) -> tuple[bytes, set[str]]:
    """The document for these repos, and the contents that it needs. Equal states give equal bytes.

    Raises LookupError when a commit or manifest is missing.
    """
    described = [
        _describe(connection, repo) for repo in sorted(chosen, key=lambda r: (r.kind, r.name))
    ]
    wanted = {commit.manifest for repo in described for commit in repo.commits}
    files = {digest: read_manifest(connection, digest) for digest in sorted(wanted)}
    needed = {entry.sha256 for manifest in files.values() for entry in manifest}
    return msgspec.json.encode(BundledRegistry(tuple(described), files)), needed


def inspect_repos(
    document: bytes, open_content: Callable[[str], BinaryIO], inspectors: Sequence[Inspector]
) -> None:
    """Look into a bundle's files as into a push's. Raises BundleError naming what is refused."""
    registry = _decode(document)
    files = {entry for manifest in registry.manifests.values() for entry in manifest}
    ordered = sorted(files, key=lambda entry: (entry.path, entry.sha256))
    refusals = [
        each
        for inspector in inspectors
        for each in inspector.inspect(ordered, lambda entry: open_content(entry.sha256))
    ]
    if refusals:
        shown = "; ".join(refusals[:_REFUSALS_SHOWN])
        raise BundleError(f"the bundle's files are refused: {shown}")


def _decode(document: bytes) -> BundledRegistry:
    try:
        return msgspec.json.decode(document, type=BundledRegistry)
    except msgspec.DecodeError as error:
        raise BundleError(f"the bundle's registry.json is not understood: {error}") from error


def restore_repos(
    connection: Connection, document: bytes, present: frozenset[str]
) -> list[Restored]:
    """Write a bundle's repos; the contents `present` came with it. Raises BundleError."""
    registry = _decode(document)
    for digest, manifest in registry.manifests.items():
        if manifest != make_manifest(manifest) or release_digest(manifest) != digest:
            raise BundleError(f"manifest {digest[:64]!a} of the bundle is not what its digest says")
        try:
            check_files([entry.path for entry in manifest])
        except HubError as error:
            raise BundleError(f"manifest {digest} of the bundle: {error.message}") from error
        missing = {entry.sha256 for entry in manifest} - present
        if missing:
            raise BundleError(f"the bundle lacks content {min(missing)}")
    rows = [
        {"digest": digest, "document": msgspec.msgpack.encode(manifest)}
        for digest, manifest in registry.manifests.items()
    ]
    insert_new(connection, manifests, rows)
    return [_restore(connection, repo, registry.manifests) for repo in registry.repos]


def _describe(connection: Connection, repo: Repo) -> BundledRepo:
    query = select(refs.c.name, refs.c.commit_oid, refs.c.message).where(refs.c.repo_id == repo.id)
    named = [
        BundledRef(*row)
        for row in connection.execute(query.order_by(refs.c.name))
        if row[0].startswith((HEADS, TAGS))
    ]
    history = tuple(_history(connection, repo.id, [ref.commit_oid for ref in named]))
    return BundledRepo(
        kind=repo.kind,
        name=repo.name,
        private=repo.private,
        gated=repo.gated,
        created_by=repo.created_by,
        created_us=repo.created_us,
        summary=repo.summary,
        refs=tuple(named),
        commits=history,
        origins=tuple(_origins(connection, repo.id, {commit.oid for commit in history})),
    )


def _origins(connection: Connection, repo_id: str, oids: set[str]) -> Iterator[BundledOrigin]:
    query = select(origins).where(origins.c.repo_id == repo_id).order_by(origins.c.commit_oid)
    for row in connection.execute(query):
        if row.commit_oid in oids:
            yield read_row(row, BundledOrigin)


def _history(connection: Connection, repo_id: str, tips: Iterable[str]) -> Iterator[Commit]:
    """The commits that the tips build on and the tips, oldest first; the repo's id left out."""
    found: dict[str, Commit] = {}
    waiting = list(tips)
    while waiting:
        oid = waiting.pop()
        if oid in found:
            continue
        commit = read_commit(connection, repo_id, oid)
        if commit is None:
            raise LookupError(f"commit {oid} is missing")
        found[oid] = commit
        waiting += commit.parents
    for commit in parents_first(found):
        yield msgspec.structs.replace(commit, repo_id="")


def _restore(connection: Connection, bundled: BundledRepo, files: dict[str, Manifest]) -> Restored:
    check_repo_name(bundled.name)
    known = {commit.oid: commit for commit in bundled.commits}
    if any(commit.manifest not in files for commit in bundled.commits):
        raise BundleError(f"the bundle lacks the files of a commit of {bundled.name}")
    if any(ref.commit_oid not in known for ref in bundled.refs):
        raise BundleError(f"the bundle lacks a commit of {bundled.name}")
    if any(not _OID.fullmatch(oid) for oid in known):
        raise BundleError(f"a commit of {bundled.name} has an id that is none")
    repo = find_repo(connection, bundled.kind, bundled.name)
    if repo is not None and repo.name.lower() != bundled.name.lower():
        raise BundleError(
            f"{bundled.name} was moved here to {repo.name}, which the bundle does not name; move "
            "it back, then import again"
        )
    created = repo is None
    repo_id = _create(connection, bundled) if repo is None else repo.id
    for commit in bundled.commits:
        there = read_commit(connection, repo_id, commit.oid)
        if there is not None and there.manifest != commit.manifest:
            raise BundleError(f"commit {commit.oid} of {bundled.name} is here with other files")
    if repo is not None:
        # Closed here too, when it was closed there since. Nothing is opened: that is for people.
        change_settings(
            connection,
            repo,
            private=True if bundled.private else None,
            gated=bundled.gated if bundled.gated and repo.gated in ("", "auto") else None,
        )
    new = [each for each in bundled.commits if read_commit(connection, repo_id, each.oid) is None]
    rows = [
        {
            **msgspec.structs.asdict(commit),
            "repo_id": repo_id,
            "parents": msgspec.json.encode(commit.parents).decode(),
        }
        for commit in new
    ]
    insert_new(connection, commits, rows)
    needed = {entry.sha256 for commit in bundled.commits for entry in files[commit.manifest]}
    grant(connection, repo_id, sorted(needed), published=True)
    brought = {commit.oid for commit in new}
    for each in bundled.origins:
        if each.commit_oid not in known:
            raise BundleError(f"the bundle tells the origin of no commit of {bundled.name}")
        if each.commit_oid in brought:  # of what was here before, this hub knows where it is from
            write_origin(connection, _origin(repo_id, bundled, each))
    moved = [ref.name for ref in bundled.refs if _take_ref(connection, repo_id, bundled, ref)]
    if repo is not None and HEADS + MAIN in moved:
        write_summary(connection, repo_id, _summary(bundled))
        touch(connection, repo_id, now_us())
    return Restored(bundled.kind, bundled.name, created, len(rows), tuple(moved))


def _origin(repo_id: str, bundled: BundledRepo, said: BundledOrigin) -> Origin:
    """What the bundle says of where a commit is from. Raises BundleError for what no copy wrote."""
    try:
        sane = check_endpoint(said.endpoint) == said.endpoint and len(said.endpoint) <= _URL_MAX
        check_repo_name(said.upstream_name)
    except (HubError, ValueError):
        sane = False
    sane = sane and _OID.fullmatch(said.upstream_commit) is not None and said.copied_us >= 0
    sane = sane and len(said.licence or "") <= LICENCE_CHARACTERS_MAX
    if not sane or (said.licence_sha256 and not _SHA256.fullmatch(said.licence_sha256)):
        raise BundleError(f"the bundle's word on where {bundled.name} is from is not understood")
    # The newest copy counts: none is from tomorrow.
    copied_us = min(said.copied_us, now_us())
    fields = msgspec.structs.asdict(said) | {"copied_us": copied_us}
    return Origin(repo_id=repo_id, **fields)


def _summary(bundled: BundledRepo) -> str:
    """What lists show of it. Raises BundleError for what would break them."""
    try:
        msgspec.json.decode(bundled.summary, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"the summary of {bundled.name} is no JSON object") from error
    return bundled.summary


def _create(connection: Connection, bundled: BundledRepo) -> str:
    namespace = bundled.name.partition("/")[0]
    there = select(accounts.c.key).where(accounts.c.key == namespace.lower())
    if connection.scalar(there) is None:
        raise BundleError(
            f"there is no account {namespace!r} to own {bundled.name}; make it with "
            f"`qwenstack hub users add {namespace}`, then import again"
        )
    repo = create_repo(
        connection,
        bundled.kind,
        bundled.name,
        private=bundled.private,
        # Whoever made it there is nobody here: a contributor of the same name has no right to it.
        created_by=namespace,
        at_us=bundled.created_us,
    )
    more = {"gated": bundled.gated, "summary": _summary(bundled), "updated_us": now_us()}
    connection.execute(update(repos).where(repos.c.id == repo.id).values(**more))
    return repo.id


def _take_ref(connection: Connection, repo_id: str, bundled: BundledRepo, ref: BundledRef) -> bool:
    """Make or move a branch or tag; whether it was needed. Raises BundleError where it cannot."""
    if not ref.name.startswith((HEADS, TAGS)):
        raise BundleError(f"{ref.name[:80]!a} is no branch or tag")
    check_ref_name(short_name(ref.name))
    there = find_ref(connection, repo_id, ref.name, locked=True)
    if there is None:
        create_ref(
            connection, repo_id, ref.name, ref.commit_oid, at_us=now_us(), message=ref.message
        )
        return True
    if there.commit_oid == ref.commit_oid:
        return False
    if there.commit_oid not in _ancestors(bundled.commits, ref.commit_oid):
        raise BundleError(
            f"{ref.name} of {bundled.name} stands here at {there.commit_oid[:12]}, which the "
            "bundle's history does not have; move it away or delete it, then import again"
        )
    move_ref(connection, repo_id, ref.name, ref.commit_oid, at_us=now_us())
    return True


def _ancestors(found: Sequence[Commit], oid: str) -> set[str]:
    parents = {commit.oid: commit.parents for commit in found}
    seen: set[str] = set()
    waiting = [oid]
    while waiting:
        each = waiting.pop()
        if each not in seen:
            seen.add(each)
            waiting += parents.get(each, ())
    return seen
