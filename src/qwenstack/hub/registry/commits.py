"""Commits: a push is one transaction that writes the commit and moves the branch, or nothing.

Pushes to one branch wait for each other at its row. One that names the commit that it was made on
is refused when the branch moved on; one that names none is applied to what is there by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from sqlalchemy import Connection, select

from qwenstack.hub.errors import BadRequest, Conflict, PreconditionFailed, RevisionNotFound
from qwenstack.hub.registry.git_objects import commit_oid, tree_oids
from qwenstack.hub.registry.manifests import Manifest, read_manifest, write_manifest
from qwenstack.hub.registry.operations import Operation, apply
from qwenstack.hub.registry.paths import check_tree, shown
from qwenstack.hub.registry.possession import grant
from qwenstack.hub.registry.refs import create_ref, find_ref, move_ref, short_name
from qwenstack.hub.registry.repos import touch
from qwenstack.hub.registry.revisions import HEADS, PULLS, Commit, read_commit, read_files
from qwenstack.hub.store.rows import insert_new
from qwenstack.storage.hub_tables import commits

TITLE_CHARS_MAX = 500
MESSAGE_CHARS_MAX = 65_536
HISTORY_MAX = 100_000


class Message(msgspec.Struct, frozen=True):
    """What a commit says of itself. `author` is the account's name as written."""

    title: str
    text: str
    author: str


class Pushed(msgspec.Struct, frozen=True):
    """Where the branch is now. `changed` is False for a commit that changes no file."""

    commit: Commit
    changed: bool


def push(
    connection: Connection,
    repo_id: str,
    ref: str,
    operations: Sequence[Operation],
    message: Message,
    *,
    at_us: int,
    parent: str | None = None,
) -> Pushed:
    """Apply the operations to the branch `ref` (a full name) and move it.

    Raises RevisionNotFound for no such branch, PreconditionFailed when `parent` is not its tip,
    EntryNotFound and BadRequest as `apply` does.
    """
    tip = _tip(connection, repo_id, ref)
    if parent is not None and parent != tip.oid:
        raise PreconditionFailed(
            f"{shown(short_name(ref))} is at {tip.oid}, not at the parent commit {shown(parent)}; "
            "fetch what changed and commit on top of it."
        )
    before = read_manifest(connection, tip.manifest)
    after = apply(before, operations, lambda name: read_files(connection, repo_id, name)[1])
    return _advance(connection, repo_id, ref, tip, after, message, at_us=at_us)


def start(
    connection: Connection,
    repo_id: str,
    ref: str,
    files: Manifest,
    message: Message,
    *,
    at_us: int,
) -> Commit:
    """Make a ref with a first commit that has no parent. Raises Conflict when the ref exists."""
    commit = _write(connection, repo_id, (), files, message, at_us=at_us)
    create_ref(connection, repo_id, ref, commit.oid, at_us=at_us)
    return commit


def squash(
    connection: Connection, repo_id: str, ref: str, message: Message, *, at_us: int
) -> Commit:
    """Replace a branch's history by one commit of its files."""
    tip = _tip(connection, repo_id, ref)
    files = read_manifest(connection, tip.manifest)
    commit = _write(connection, repo_id, (), files, message, at_us=at_us)
    move_ref(connection, repo_id, ref, commit.oid, at_us=at_us)
    touch(connection, repo_id, at_us)
    return commit


def merge(
    connection: Connection,
    repo_id: str,
    source: str,
    target: str,
    message: Message,
    *,
    at_us: int,
) -> Pushed:
    """Bring into `target` what `source` (both full ref names) changed since they parted.

    A file that both changed differently is a Conflict that names it.
    """
    tip = _tip(connection, repo_id, target)
    other = _tip(connection, repo_id, source)
    base = common_ancestor(connection, repo_id, tip.oid, other.oid)
    origin = () if base is None else read_manifest(connection, base.manifest)
    after = three_way(
        origin,
        read_manifest(connection, tip.manifest),
        read_manifest(connection, other.manifest),
    )
    return _advance(
        connection, repo_id, target, tip, after, message, at_us=at_us, merged=(other.oid,)
    )


def three_way(base: Manifest, ours: Manifest, theirs: Manifest) -> Manifest:
    """The files of a merge. Raises Conflict naming the first file that both sides changed."""
    old = {entry.path: entry for entry in base}
    mine = {entry.path: entry for entry in ours}
    other = {entry.path: entry for entry in theirs}
    merged = dict(mine)
    for path in sorted(old.keys() | other.keys()):
        change, kept, now = other.get(path), old.get(path), mine.get(path)
        if change in (kept, now):
            continue
        if now != kept:
            raise Conflict(f"{shown(path)} was changed on both sides; settle it and push again.")
        if change is None:
            del merged[path]
        else:
            merged[path] = change
    check_tree(merged)
    return tuple(merged[path] for path in sorted(merged))


def history(connection: Connection, repo_id: str, oid: str) -> Iterator[str]:
    """The ids from `oid` back to the first commit, along first parents, bounded."""
    query = select(commits.c.oid, commits.c.parents).where(commits.c.repo_id == repo_id)
    parents = {row.oid: row.parents for row in connection.execute(query.limit(HISTORY_MAX))}
    seen: set[str] = set()
    while oid in parents and oid not in seen:
        seen.add(oid)
        yield oid
        before = msgspec.json.decode(parents[oid], type=tuple[str, ...])
        if not before:
            return
        oid = before[0]


def check_message(title: str, text: str) -> None:
    """Raises BadRequest for a message that is too long."""
    if len(title) > TITLE_CHARS_MAX or len(text) > MESSAGE_CHARS_MAX:
        raise BadRequest(
            f"A commit's summary has at most {TITLE_CHARS_MAX} characters, its description at most "
            f"{MESSAGE_CHARS_MAX}."
        )


def _tip(connection: Connection, repo_id: str, ref: str) -> Commit:
    # A tag names one commit: nothing is pushed to it.
    found = (
        find_ref(connection, repo_id, ref, locked=True) if ref.startswith((HEADS, PULLS)) else None
    )
    tip = None if found is None else read_commit(connection, repo_id, found.commit_oid)
    if tip is None:
        raise RevisionNotFound(f"There is no branch {shown(short_name(ref))} to commit to.")
    return tip


def _advance(
    connection: Connection,
    repo_id: str,
    ref: str,
    tip: Commit,
    files: Manifest,
    message: Message,
    *,
    at_us: int,
    merged: tuple[str, ...] = (),
) -> Pushed:
    before = read_manifest(connection, tip.manifest)
    if files == before:
        return Pushed(tip, changed=False)
    parents = (tip.oid, *merged)
    commit = _write(
        connection,
        repo_id,
        parents,
        files,
        message,
        at_us=at_us,
        before=before,
        published=not ref.startswith(PULLS),
    )
    move_ref(connection, repo_id, ref, commit.oid, at_us=at_us)
    touch(connection, repo_id, at_us)
    return Pushed(commit, changed=True)


def _write(
    connection: Connection,
    repo_id: str,
    parents: tuple[str, ...],
    files: Manifest,
    message: Message,
    *,
    at_us: int,
    before: Manifest = (),
    published: bool = True,
) -> Commit:
    """Write the commit; what it has over `before`, the repo holds from now on.

    `published`: a branch will have it, not only a pull request.
    """
    digest = write_manifest(connection, files)
    held = {entry.sha256 for entry in before}
    new = (entry.sha256 for entry in files if entry.sha256 not in held)
    grant(connection, repo_id, new, published=published)
    # Read back: an equal tree that was there first says what came as a large file.
    tree = tree_oids(read_manifest(connection, digest))[""]
    oid = commit_oid(
        tree=tree,
        parents=parents,
        author=message.author,
        at_us=at_us,
        title=message.title,
        message=message.text,
    )
    commit = Commit(
        repo_id=repo_id,
        oid=oid,
        parents=parents,
        manifest=digest,
        title=message.title,
        message=message.text,
        author=message.author,
        at_us=at_us,
    )
    row = msgspec.structs.asdict(commit) | {"parents": msgspec.json.encode(parents).decode()}
    insert_new(connection, commits, [row])
    return commit


def common_ancestor(connection: Connection, repo_id: str, one: str, other: str) -> Commit | None:
    """The nearest commit in both histories. The other's merges count with all their parents."""
    query = select(commits.c.oid, commits.c.parents).where(commits.c.repo_id == repo_id)
    parents = {
        row.oid: msgspec.json.decode(row.parents, type=tuple[str, ...])
        for row in connection.execute(query.limit(HISTORY_MAX))
    }
    ancestors = set(_walk(parents, one))
    nearest = next((oid for oid in _walk(parents, other) if oid in ancestors), None)
    return None if nearest is None else read_commit(connection, repo_id, nearest)


def _walk(parents: dict[str, tuple[str, ...]], oid: str) -> Iterator[str]:
    """Breadth first, so that what is near comes first."""
    seen, level = {oid}, [oid]
    while level:
        yield from level
        following = []
        for each in level:
            for parent in parents.get(each, ()):
                if parent not in seen:
                    seen.add(parent)
                    following.append(parent)
        level = following
