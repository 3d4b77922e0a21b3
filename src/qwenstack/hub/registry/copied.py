"""Commits that keep the id that they have at another hub.

So a revision that somebody pinned there is the same one here, and clients' caches of both agree.
Unlike a pushed commit's, such an id is not computed from what the commit holds: it is the other
hub's word, and therefore never given to different files a second time.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from qwenstack.hub.errors import BadRequest, Conflict
from qwenstack.hub.registry.commits import Message
from qwenstack.hub.registry.manifests import Manifest, release_digest, write_manifest
from qwenstack.hub.registry.paths import check_path, check_tree
from qwenstack.hub.registry.possession import grant
from qwenstack.hub.registry.refs import create_ref, find_ref, move_ref
from qwenstack.hub.registry.repos import touch
from qwenstack.hub.registry.revisions import Commit, read_commit
from qwenstack.hub.store.rows import insert_new
from qwenstack.storage.hub_tables import commits


def check_files(paths: list[str]) -> None:
    """Raises BadRequest for files that no commit of this hub may have."""
    for path in paths:
        check_path(path)
    if len(set(paths)) < len(paths):
        raise BadRequest("The list of files names a path twice.")
    check_tree(paths)


def take_commit(
    connection: Connection,
    repo_id: str,
    oid: str,
    parents: tuple[str, ...],
    files: Manifest,
    message: Message,
    *,
    at_us: int,
) -> Commit:
    """Write the commit `oid` with these files, if it is new; the one that is kept.

    Raises Conflict when it is here with other files.
    """
    there = read_commit(connection, repo_id, oid)
    if there is not None:
        if there.manifest != release_digest(files):
            raise Conflict(
                f"Commit {oid} is here with other files than the other hub shows for it now: "
                "either that hub or the copy is not what it was."
            )
        return there
    commit = Commit(
        repo_id=repo_id,
        oid=oid,
        parents=parents,
        manifest=write_manifest(connection, files),
        title=message.title,
        message=message.text,
        author=message.author,
        at_us=at_us,
    )
    grant(connection, repo_id, (entry.sha256 for entry in files), published=True)
    row = msgspec.structs.asdict(commit) | {"parents": msgspec.json.encode(parents).decode()}
    insert_new(connection, commits, [row])
    return commit


def put_ref(connection: Connection, repo_id: str, name: str, oid: str, *, at_us: int) -> bool:
    """Let the ref (a full name) point to `oid`, made if it is missing; whether that was needed."""
    ref = find_ref(connection, repo_id, name, locked=True)
    if ref is None:
        create_ref(connection, repo_id, name, oid, at_us=at_us)
    elif ref.commit_oid == oid:
        return False
    else:
        move_ref(connection, repo_id, name, oid, at_us=at_us)
    touch(connection, repo_id, at_us)
    return True
