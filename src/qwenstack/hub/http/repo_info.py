"""What is known of a repo at a revision, in the shape of `GET /api/models/{id}`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qwenstack.hub import downloads, listing
from qwenstack.hub.http.instants import wire_instant
from qwenstack.hub.hub import Hub
from qwenstack.hub.recorded import Scan, read_scans
from qwenstack.hub.registry.git_objects import pointer_size
from qwenstack.hub.registry.manifests import Entry, Manifest
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import Commit
from qwenstack.storage.database import reading

# What a summary holds beside what the repo itself says; see `Hub.describe`.
_ISSUES_MAX = 1000
_ALWAYS = ("id", "_id", "modelId", "sha", "private", "gated")


def repo_info(
    hub: Hub,
    repo: Repo,
    commit: Commit,
    files: Manifest,
    *,
    blobs: bool,
    security: bool,
    expand: Sequence[str],
) -> dict[str, object]:
    """All fields, or with `expand` only the named ones and those that identify the repo."""
    info = listed_info(repo) | described(hub, repo, commit, files)
    info["sha"] = commit.oid
    info["lastModified"] = wire_instant(commit.at_us)
    info["siblings"] = [_sibling(entry, blobs=blobs) for entry in files]
    info["usedStorage"] = sum({entry.sha256: entry.size for entry in files}.values())
    with reading(hub.database) as connection:
        info["downloadsAllTime"] = downloads.all_time(connection, [repo.id])[repo.id]
        info["trendingScore"] = listing.trending(connection, [repo.id]).get(repo.id, 0)
        if "childrenModelCount" in expand:
            info["childrenModelCount"] = listing.count_children(connection, repo.name)
        if security:
            info["securityRepoStatus"] = _security(read_scans(connection, files), files)
    if expand:
        wanted = {*_ALWAYS, *expand}
        info = {key: value for key, value in info.items() if key in wanted}
    return info


def listed_info(repo: Repo) -> dict[str, object]:
    """What lists show: the repo's own settings and counts."""
    info: dict[str, object] = {
        "_id": repo.id,
        "id": repo.name,
        "author": repo.namespace,
        "private": repo.private,
        "gated": repo.gated or False,
        "disabled": False,
        "downloads": repo.downloads,
        "downloadsAllTime": repo.downloads,
        "likes": repo.likes,
        "createdAt": wire_instant(repo.created_us),
        "lastModified": wire_instant(repo.updated_us),
        "tags": [],
    }
    if repo.kind == "model":
        info["modelId"] = repo.name
        info["spaces"] = []
    return info


def _security(scans: dict[str, Scan], files: Manifest) -> dict[str, object]:
    """Whether every file was scanned, and those that are not clean."""
    bad = [
        {"path": entry.path, "level": security_level(scan)}
        for entry in files
        if (scan := scans.get(entry.path)) is not None and scan.verdict != "clean"
    ]
    return {
        "scansDone": all(entry.path in scans for entry in files),
        "filesWithIssues": bad[:_ISSUES_MAX],
    }


def security_level(scan: Scan | None) -> str:
    """What a scan means, in the wire's word; None is a file that no scanner saw yet."""
    if scan is None:
        return "queued"
    return {"clean": "safe", "refused": "unsafe"}.get(scan.verdict, "suspicious")


def described(hub: Hub, repo: Repo, commit: Commit, files: Manifest) -> dict[str, object]:
    """What the card and the files' headers say at this revision, if somebody reads them."""
    if hub.describe is None:
        return {}
    return msgspec.json.decode(hub.describe(repo, commit, files), type=dict[str, object])


def _sibling(entry: Entry, *, blobs: bool) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": entry.path}
    if blobs:
        sibling |= {"size": entry.size, "blobId": entry.git_oid}
        if entry.lfs:
            sibling["lfs"] = {
                "sha256": entry.sha256,
                "size": entry.size,
                "pointerSize": pointer_size(entry.size),
            }
    return sibling
