"""Large files of a repo, over its whole history: what there are, and removing some for good.

Removing rewrites the history: every commit that had one of them gets another id, and so do those
after it. Refs follow; what a pull request's record says of commits follows, too.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec
from sqlalchemy import Connection, delete, func, select, update

from qwenstack.hub.errors import Conflict
from qwenstack.hub.registry.commits import HISTORY_MAX
from qwenstack.hub.registry.git_objects import commit_oid, tree_oids
from qwenstack.hub.registry.manifests import make_manifest, read_manifest, write_manifest
from qwenstack.hub.registry.refs import Ref, list_refs, move_ref
from qwenstack.hub.registry.repos import touch
from qwenstack.hub.registry.revisions import HEADS, MAIN, Commit, parents_first
from qwenstack.hub.registry.waiting import give_up
from qwenstack.hub.store.rows import batches, insert_new
from qwenstack.storage.hub_tables import commits, discussion_events, manifests, refs, repo_contents
from qwenstack.storage.rows import read_row

# All are read, and perhaps written anew, while nobody else writes: some ten seconds' work.
_LISTS_BYTES_MAX = 256 * 1024 * 1024
_OID = re.compile(r"\b[0-9a-f]{40}\b")


class LargeFile(msgspec.Struct, frozen=True):
    """A large file's content, and how it came: the first commit that had it, and its path there.

    `ref` is a ref (its full name) whose history has that commit, main before others; None for none.
    """

    sha256: str
    size: int
    path: str
    pushed_us: int
    ref: str | None


def large_files(connection: Connection, repo_id: str) -> list[LargeFile]:
    """All that any commit of the repo has as a large file, the newest first."""
    found: dict[str, LargeFile] = {}
    seen: set[str] = set()
    history = _commits(connection, repo_id)
    named = _refs_of(list_refs(connection, repo_id), {each.oid: each for each in history})
    for commit in history:
        if commit.manifest in seen:
            continue
        seen.add(commit.manifest)
        for each in read_manifest(connection, commit.manifest):
            if each.lfs and each.sha256 not in found:
                ref = named.get(commit.oid)
                found[each.sha256] = LargeFile(each.sha256, each.size, each.path, commit.at_us, ref)
    return sorted(found.values(), key=lambda each: (-each.pushed_us, each.sha256))


def _refs_of(named: list[Ref], history: dict[str, Commit]) -> dict[str, str]:
    """Of each commit the name of a ref that builds on it."""
    found: dict[str, str] = {}
    for ref in sorted(named, key=lambda each: (each.name != HEADS + MAIN, each.name)):
        waiting = [ref.commit_oid]
        while waiting:
            oid = waiting.pop()
            if oid in history and oid not in found:
                found[oid] = ref.name
                waiting += history[oid].parents
    return found


def remove_contents(
    connection: Connection, repo_id: str, sha256s: Collection[str], *, account: str, at_us: int
) -> list[Ref]:
    """Remove large files with these contents from every commit; the refs that moved.

    The repo holds them no more, but for those that a commit has as a small file too: they come
    back by an upload alone, and count as the account's until they are collected. Raises Conflict.
    """
    # Nobody pushes meanwhile.
    connection.execute(select(refs.c.name).where(refs.c.repo_id == repo_id).with_for_update())
    renamed: dict[str, str] = {}
    kept: set[str] = set()
    small: set[str] = set()
    before = {commit.oid: commit for commit in _commits(connection, repo_id)}
    for commit in parents_first(before):
        oid = _rewrite(connection, commit, renamed, frozenset(sha256s), small)
        kept.add(oid)
        if oid != commit.oid:
            renamed[commit.oid] = oid
    moved = []
    for ref in list_refs(connection, repo_id):
        oid = renamed.get(ref.commit_oid, ref.commit_oid)
        if oid != ref.commit_oid:
            move_ref(connection, repo_id, ref.name, oid, at_us=at_us)
            moved.append(msgspec.structs.replace(ref, commit_oid=oid))
    for batch in batches(sorted(renamed.keys() - kept)):
        gone = (commits.c.repo_id == repo_id, commits.c.oid.in_(batch))
        connection.execute(delete(commits).where(*gone))
    _rename_in_events(connection, repo_id, renamed)
    gone_for_good = sorted(set(sha256s) - small)
    give_up(connection, repo_id, account, gone_for_good)
    for batch in batches(gone_for_good):
        held = (repo_contents.c.repo_id == repo_id, repo_contents.c.sha256.in_(batch))
        connection.execute(delete(repo_contents).where(*held))
    if moved:
        touch(connection, repo_id, at_us)
    return moved


def _commits(connection: Connection, repo_id: str) -> list[Commit]:
    """All of the repo's, the oldest first. Raises Conflict for too many."""
    lists = select(func.sum(func.length(manifests.c.document))).join(
        commits, commits.c.manifest == manifests.c.digest
    )
    if (connection.scalar(lists.where(commits.c.repo_id == repo_id)) or 0) > _LISTS_BYTES_MAX:
        raise Conflict(
            f"The lists of files of this repo's commits have more than {_LISTS_BYTES_MAX} bytes: "
            "duplicate the repo, which keeps its last commit, and delete this one."
        )
    query = select(commits).where(commits.c.repo_id == repo_id)
    rows = connection.execute(query.order_by(commits.c.at_us).limit(HISTORY_MAX + 1)).all()
    if len(rows) > HISTORY_MAX:
        raise Conflict(
            f"The repo has more than {HISTORY_MAX} commits: duplicate it, which keeps the last "
            "one, and delete this one."
        )
    return [read_row(row, Commit, parents=msgspec.json.decode(row.parents)) for row in rows]


def _rewrite(
    connection: Connection,
    commit: Commit,
    renamed: dict[str, str],
    sha256s: frozenset[str],
    small: set[str],
) -> str:
    """The commit without these large files, on top of its parents' new ids; its id. Those of them
    that it has as small files are added to `small`.
    """
    files = read_manifest(connection, commit.manifest)
    left = [each for each in files if not (each.lfs and each.sha256 in sha256s)]
    small |= {each.sha256 for each in left} & sha256s
    parents = tuple(renamed.get(each, each) for each in commit.parents)
    if len(left) == len(files) and parents == commit.parents:
        return commit.oid
    manifest = write_manifest(connection, make_manifest(left))
    oid = commit_oid(
        tree=tree_oids(read_manifest(connection, manifest))[""],
        parents=parents,
        author=commit.author,
        at_us=commit.at_us,
        title=commit.title,
        message=commit.message,
    )
    row = msgspec.structs.asdict(commit) | {
        "oid": oid,
        "manifest": manifest,
        "parents": msgspec.json.encode(parents).decode(),
    }
    insert_new(connection, commits, [row])
    return oid


def _rename_in_events(connection: Connection, repo_id: str, renamed: dict[str, str]) -> None:
    """Pull requests' records name commits by their whole ids, which stand nowhere by chance."""
    table = discussion_events
    where = (table.c.repo_id == repo_id, table.c.kind.in_(("commit", "status-change")))
    for row in connection.execute(select(table).where(*where)).all():
        document = _OID.sub(lambda found: renamed.get(found[0], found[0]), row.document)
        if document != row.document:
            one = (table.c.repo_id == repo_id, table.c.number == row.number, table.c.id == row.id)
            connection.execute(update(table).where(*one).values(document=document))
