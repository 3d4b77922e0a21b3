"""Copies a revision of a repo from another hub, whole or not at all.

The way of a copy: look at what the upstream has (`look`), fetch what this repo has not yet into the
store, each file checked against the digest that the upstream states, let the inspectors look into
what is new, then write the commit, its origin and the branch in one transaction. Until then nothing
shows. What was fetched is noted in a folder of the copy's own, so that the next try goes on there.

The commit keeps the upstream's id. A branch with commits made here is never moved.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import Connection

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.directory import create_account, find_account
from qwenstack.hub.errors import Conflict, NotFound, Refused, RepoNotFound, RevisionNotFound
from qwenstack.hub.facts import LicenceFacts, read_licence
from qwenstack.hub.fetching import CopyProgress, Fetching
from qwenstack.hub.hub import Hub
from qwenstack.hub.origins import (
    LICENCE_CHARACTERS_MAX,
    Origin,
    copied_bytes,
    find_origin,
    newest_origin,
    write_origin,
)
from qwenstack.hub.quotas import UPSTREAM, QuotaExceeded, check_repos, within_quota
from qwenstack.hub.registry.commits import Message
from qwenstack.hub.registry.copied import check_files, put_ref, take_commit
from qwenstack.hub.registry.manifests import Manifest, read_manifest
from qwenstack.hub.registry.paths import shown
from qwenstack.hub.registry.refs import check_ref_name, find_ref, short_name
from qwenstack.hub.registry.repos import (
    Kind,
    Repo,
    change_settings,
    check_repo_name,
    create_repo,
    find_repo,
    read_repo,
)
from qwenstack.hub.registry.revisions import HEADS, MAIN, TAGS, read_commit
from qwenstack.hub.registry.waiting import waiting_of
from qwenstack.hub.upstream import Upstream, UpstreamRevision
from qwenstack.storage.database import reading

_LOCK_EVERY_S: Final = 0.1
_ABANDONED_S: Final = 14 * 86400


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy may take. Seconds and bytes."""

    # Whether a private repo that is not here yet may be copied.
    private: bool = True
    look_s: float = 10.0
    copy_s: float = 7 * 86400.0
    bytes_max: int = 1 << 62
    # Of all copies together, with what they brought and did not publish; None is no limit.
    all_bytes_max: int | None = None


class Mirrored(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy did. `ref` is None for a commit that was asked for by its id.

    `changed` is False when all stood here already. `licence` is what the card declares.
    """

    repo: str
    kind: Kind
    ref: str | None
    commit: str
    endpoint: str
    upstream_name: str
    created: bool
    changed: bool
    files: int
    fetched_files: int
    fetched_bytes: int
    removed_files: int
    private: bool
    gated: str
    licence: str | None
    licence_sha256: str | None
    copied_us: int


class Local(msgspec.Struct, frozen=True):
    """What is here before a copy."""

    repo: Repo | None
    tip: str | None
    files: Manifest


def mirror(
    hub: Hub,
    upstream: Upstream,
    kind: Kind,
    name: str,
    revision: str = MAIN,
    *,
    limits: Limits | None = None,
    progress: CopyProgress = lambda _done, _total: None,
) -> Mirrored:
    """Copy a branch, a tag or (by its 40 digits) a commit. Blocking.

    Raises HubError: RepoNotFound, RevisionNotFound, GatedRepo and UpstreamAway of the upstream,
    Conflict for a branch with commits made here, Refused for files that the hub doesn't publish.
    """
    limits = limits or Limits()
    end_s = time.monotonic() + limits.copy_s
    check_repo_name(name)
    asked = upstream_name(hub, upstream, kind, name)
    found = upstream.look(kind, asked, revision, timeout_s=limits.look_s)
    if found.name.lower() == name.lower():
        name = found.name  # as its owner writes it
    ref = _ref(upstream, kind, found.name, revision, found.oid)
    with _own_folder(_above(hub), f"{kind}:{name.lower()}", end_s) as folder:
        local = _local(hub, upstream, kind, name, ref)
        if found.private and local.repo is None and not limits.private:
            raise RepoNotFound(f"{name} is private at {upstream.endpoint}: `hub mirror` copies it.")
        same = _unchanged(hub, local, found, ref)
        if same is not None:
            if local.repo is not None and local.repo.summary == "{}":  # killed before the last step
                _tell(hub, local.repo, ref, same.commit)
            return same
        listed = upstream.files(
            kind, found.name, found.oid, files_max=hub.settings.commit_files_max
        )
        check_files([each.path for each in listed])
        if limits.all_bytes_max is not None:
            known = {each.sha256 for each in local.files}
            new = sum(each.size for each in listed if each.sha256 not in known)
            _check_all(hub, upstream, name, new, limits.all_bytes_max)
        copy = Fetching(
            hub,
            upstream,
            kind,
            found,
            folder,
            bytes_max=limits.bytes_max,
            end_s=end_s,
            progress=progress,
        )
        entries = copy.fetch(listed, local.files)
        _inspect(hub, entries, local.files)
        done, repo = _publish(hub, upstream, kind, name, ref, found, entries, local, copy)
        shutil.rmtree(folder, ignore_errors=True)
    _tell(hub, repo, ref, done.commit)
    return done


def _check_all(hub: Hub, upstream: Upstream, name: str, new: int, most: int) -> None:
    """Raises QuotaExceeded when copies may not have `new` more bytes."""
    with reading(hub.database) as connection:
        there = copied_bytes(connection, upstream.endpoint)
        there += waiting_of(connection, UPSTREAM).bytes
    if there + new > most:
        raise QuotaExceeded(
            f"{name} is not copied: it has {new} bytes, this hub keeps {there} of copies, and its "
            f"operator allows {most}. `qwenstack hub mirror {name}` copies it all the same."
        )


def _above(hub: Hub) -> Path:
    """Where unfinished copies lie."""
    return hub.folder / "mirrors"


def upstream_name(hub: Hub, upstream: Upstream, kind: Kind, name: str) -> str:
    """What the repo is called at the upstream: a copy may have been moved here, or there."""
    with reading(hub.database) as connection:
        repo = find_repo(connection, kind, name)
        newest = None if repo is None else newest_origin(connection, repo.id)
    return newest.upstream_name if newest and newest.endpoint == upstream.endpoint else name


def remove_abandoned(hub: Hub) -> None:
    """Remove what copies left that nobody went on with for two weeks."""
    above = _above(hub)
    for folder in above.iterdir() if above.exists() else ():
        if folder.is_dir() and folder.stat().st_mtime < time.time() - _ABANDONED_S:
            with folder.with_suffix(".lock").open("a") as lock, suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _ref(upstream: Upstream, kind: Kind, name: str, revision: str, oid: str) -> str | None:
    """The full name of the ref to copy to; None when the revision is the commit's id."""
    if revision == oid:
        return None
    check_ref_name(revision)
    if revision == MAIN:
        return HEADS + MAIN
    named = upstream.ref_kind(kind, name, revision)
    if named is None:
        raise RevisionNotFound(
            f"{shown(revision)} is no branch or tag of {name}; copy those, or a commit by its id."
        )
    return (HEADS if named == "heads" else TAGS) + revision


def _local(hub: Hub, upstream: Upstream, kind: Kind, name: str, ref: str | None) -> Local:
    """What is here of the repo. Raises Conflict where a copy would overwrite what was made here."""
    with reading(hub.database) as connection:
        repo = find_repo(connection, kind, name)
        if repo is None:
            return Local(None, None, ())
        newest = newest_origin(connection, repo.id)
        if newest is None:
            raise Conflict(
                f"The {kind} {repo.name} was made on this hub and is no mirror; a copy would "
                "overwrite it. Move or delete it first."
            )
        if newest.endpoint != upstream.endpoint:
            raise Conflict(
                f"{repo.name} is a mirror of {newest.upstream_name} at {newest.endpoint}, not of "
                f"one at {upstream.endpoint}. Move or delete it first."
            )
        tip = None if ref is None else _own_tip(connection, repo, ref)
        base = read_commit(connection, repo.id, tip or newest.commit_oid)
        files = () if base is None else read_manifest(connection, base.manifest)
        return Local(repo, tip, files)


def _own_tip(connection: Connection, repo: Repo, ref: str, *, locked: bool = False) -> str | None:
    """The commit that the ref is at, if it came from the upstream. Raises Conflict."""
    there = find_ref(connection, repo.id, ref, locked=locked)
    if there is None:
        return None
    if find_origin(connection, repo.id, there.commit_oid) is None:
        raise Conflict(
            f"{short_name(ref)!r} of {repo.name} has commits that were made on this hub "
            f"({there.commit_oid[:12]} is the last); a copy would overwrite them. Put them on "
            "another branch and reset this one, or move the repo."
        )
    return there.commit_oid


def _unchanged(hub: Hub, local: Local, found: UpstreamRevision, ref: str | None) -> Mirrored | None:
    """The answer for a revision that stands here already."""
    if local.repo is None or (ref is not None and local.tip != found.oid):
        return None
    with reading(hub.database) as connection:
        origin = find_origin(connection, local.repo.id, found.oid)
        commit = read_commit(connection, local.repo.id, found.oid)
        if origin is None or commit is None:
            return None
        files = len(read_manifest(connection, commit.manifest))
    return _mirrored(local.repo, ref, origin, files=files)


def _inspect(hub: Hub, entries: Manifest, before: Manifest) -> None:
    """Let the inspectors look into what is new, as at a push. Raises Refused."""
    there = set(before)
    added = [entry for entry in entries if entry not in there]
    problems = [
        problem
        for inspector in hub.inspectors
        for problem in inspector.inspect(added, hub.open_file)
    ]
    if problems:
        raise Refused(
            "The hub does not publish these files. " + " ".join(problems)[:4000],
            fields={"problems": problems[:100]},
        )


def _publish(
    hub: Hub,
    upstream: Upstream,
    kind: Kind,
    name: str,
    ref: str | None,
    found: UpstreamRevision,
    entries: Manifest,
    local: Local,
    copy: Fetching,
) -> tuple[Mirrored, Repo]:
    licence = read_licence(entries, hub.open_file)
    contents = {entry.sha256 for entry in entries}
    if hub.store.hold(contents) != contents:
        raise Conflict(f"Files of {name} were swept while it was copied; copy again.")
    at_us = now_us()
    with hub.database.begin() as connection:
        repo = find_repo(connection, kind, name)
        if (repo and repo.id) != (local.repo and local.repo.id):
            raise Conflict(f"{name} was made or removed meanwhile; copy again.")
        created = repo is None
        if repo is None:
            check_repos(connection, name.partition("/")[0])
            repo = _create(connection, kind, name, private=found.private, at_us=at_us)
        repo = _close(connection, repo, found)
        tip = None if ref is None else _own_tip(connection, repo, ref, locked=True)
        if tip != local.tip:
            raise Conflict(f"{short_name(ref or '')!r} of {name} moved meanwhile; copy again.")
        message = Message(
            f"Copy of {found.name} at {found.oid[:12]}",
            f"From {upstream.endpoint}, {_words(licence)}.",
            repo.namespace,
        )
        parents = () if tip is None else (tip,)
        with within_quota(connection, repo.namespace):
            commit = take_commit(
                connection, repo.id, found.oid, parents, entries, message, at_us=at_us
            )
        if ref is not None:
            put_ref(connection, repo.id, ref, commit.oid, at_us=at_us)
        write_origin(connection, _origin(repo, upstream, found, licence, at_us))
        origin = find_origin(connection, repo.id, commit.oid)
    assert origin is not None
    before = {each.path for each in local.files} if tip is not None else set()
    done = _mirrored(
        repo,
        ref,
        origin,
        files=len(entries),
        created=created,
        changed=True,
        fetched=(copy.fetched_files, copy.fetched_bytes),
        removed=len(before - {each.path for each in entries}),
    )
    return done, repo


def _create(connection: Connection, kind: Kind, name: str, *, private: bool, at_us: int) -> Repo:
    """The repo, and an organisation without members for its namespace, so nobody else can be it."""
    namespace = name.partition("/")[0]
    try:
        find_account(connection, namespace)
    except NotFound:
        create_account(connection, name=namespace, kind="organisation")
    return create_repo(connection, kind, name, private=private, created_by=namespace, at_us=at_us)


def _close(connection: Connection, repo: Repo, found: UpstreamRevision) -> Repo:
    """Gate and hide here what is gated and hidden there. Nothing is opened: that is for people."""
    gated = found.gated if found.gated and repo.gated in ("", "auto") else None
    private = True if found.private else None
    change_settings(connection, repo, private=private, gated=gated)
    return read_repo(connection, repo.id)


def _origin(
    repo: Repo, upstream: Upstream, found: UpstreamRevision, licence: LicenceFacts, at_us: int
) -> Origin:
    declared = licence.declared_name if licence.declared == "other" else licence.declared
    declared = declared or licence.declared
    return Origin(
        repo_id=repo.id,
        commit_oid=found.oid,
        endpoint=upstream.endpoint,
        upstream_name=found.name[:200],
        upstream_commit=found.oid,
        licence=declared[:LICENCE_CHARACTERS_MAX] if declared else None,
        licence_sha256=licence.sha256,
        copied_us=at_us,
    )


def _words(licence: LicenceFacts) -> str:
    declared = licence.declared_name or licence.declared
    words = f"declared licence {declared}" if declared else "no declared licence"
    if licence.sha256 is not None:
        words += f", {licence.file} with SHA-256 {licence.sha256}"
    return words


def _mirrored(
    repo: Repo,
    ref: str | None,
    origin: Origin,
    *,
    files: int,
    created: bool = False,
    changed: bool = False,
    fetched: tuple[int, int] = (0, 0),
    removed: int = 0,
) -> Mirrored:
    return Mirrored(
        repo=repo.name,
        kind=repo.kind,
        ref=ref,
        commit=origin.commit_oid,
        endpoint=origin.endpoint,
        upstream_name=origin.upstream_name,
        created=created,
        changed=changed,
        files=files,
        fetched_files=fetched[0],
        fetched_bytes=fetched[1],
        removed_files=removed,
        private=repo.private,
        gated=repo.gated,
        licence=origin.licence,
        licence_sha256=origin.licence_sha256,
        copied_us=origin.copied_us,
    )


def _tell(hub: Hub, repo: Repo, ref: str | None, oid: str) -> None:
    for listener in hub.commit_listeners:
        listener(repo, ref or oid, oid)


@contextmanager
def _own_folder(above: Path, key: str, end_s: float) -> Iterator[Path]:
    """The folder of this repo's copies, held against other processes' copies of the same."""
    above.mkdir(parents=True, exist_ok=True)
    folder = above / hashlib.sha256(key.encode()).hexdigest()[:40]
    with folder.with_suffix(".lock").open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end_s:
                    raise Conflict(f"Another copy of {key} is under way.") from error
                time.sleep(_LOCK_EVERY_S)
        folder.mkdir(exist_ok=True)
        yield folder
