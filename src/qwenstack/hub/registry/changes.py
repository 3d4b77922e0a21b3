"""Which commit last changed a path."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from qwenstack.hub.registry.commits import history
from qwenstack.hub.registry.manifests import Manifest, entries_below, find_entry, read_manifest
from qwenstack.hub.registry.revisions import Commit, read_commit

# Beyond so many commits a path counts as changed by the oldest that was looked at.
COMMITS_MAX = 500


def last_changes(connection: Connection, tip: Commit, paths: Sequence[str]) -> dict[str, Commit]:
    """For each path (a file's or a folder's) the newest commit up to `tip` that changed it."""
    found: dict[str, Commit] = {}
    open_paths = set(paths)
    commit, files = tip, read_manifest(connection, tip.manifest)
    for looked, oid in enumerate(history(connection, tip.repo_id, tip.oid)):
        if not open_paths or looked > COMMITS_MAX:
            break
        if oid == tip.oid:
            continue
        older = read_commit(connection, tip.repo_id, oid)
        if older is None:
            break
        before = read_manifest(connection, older.manifest)
        if before != files:
            changed = {each for each in open_paths if _differs(before, files, each)}
            found.update(dict.fromkeys(changed, commit))
            open_paths -= changed
        commit, files = older, before
    return found | dict.fromkeys(open_paths, commit)


def _differs(before: Manifest, after: Manifest, path: str) -> bool:
    new = find_entry(after, path)
    if new is not None:
        return find_entry(before, path) != new
    return entries_below(before, path) != entries_below(after, path)
