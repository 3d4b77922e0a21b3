"""A repo's history as pages, at the addresses that clients print after a push.

/{repo}/commits/{revision}    what was pushed, the newest first
/{repo}/commit/{revision}     one commit: who, when, and what it changed
/{repo}/blob/{revision}/{path}    leads to the file
"""

from __future__ import annotations

import asyncio
import itertools
from urllib.parse import quote

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.http.access import repo_kind, repo_name
from qwenstack.hub.http.pages.shell import (
    DATASET_PAGE,
    MODEL_PAGE,
    Shell,
    diff_lines,
    go_to,
    repo_path,
)
from qwenstack.hub.pull_requests import compare, diff_text
from qwenstack.hub.registry.commits import history
from qwenstack.hub.registry.manifests import read_manifest
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import Commit, find_commit, read_commit
from qwenstack.hub.summaries import reader
from qwenstack.storage.database import reading

_SHOWN = 50


class _Change(msgspec.Struct, frozen=True):
    """A commit with its difference from the one before; `diff` None: not for this viewer."""

    repo: Repo
    commit: Commit
    files: int
    diff: str | None


def routes(shell: Shell) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Commits(shell)
    found = []
    for page in (DATASET_PAGE, MODEL_PAGE):
        found += [
            web.get(page + "/commits/{rev:.+}", shell.page(handlers.list)),
            web.get(page + "/commit/{rev:.+}", shell.page(handlers.show)),
            web.get(page + "/blob/{rev}/{path:.+}", shell.page(handlers.file)),
        ]
    return found


class _Commits:
    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def list(self, request: web.Request) -> web.Response:
        viewer = await self._shell.viewer(request)
        revision = request.match_info["rev"]

        def read() -> tuple[Repo, list[Commit]]:
            with reading(self._shell.hub.database) as connection:
                repo = self._find(connection, viewer, request)
                tip = find_commit(connection, repo.id, revision)
                oids = itertools.islice(history(connection, repo.id, tip.oid), _SHOWN + 1)
                found = [read_commit(connection, repo.id, oid) for oid in oids]
            return repo, [commit for commit in found if commit is not None]

        repo, found = await asyncio.to_thread(read)
        return self._shell.show(
            request,
            viewer,
            "commits.html",
            title=f"Commits of {repo.name}",
            repo=repo,
            path=repo_path(repo),
            revision=revision,
            commits=found[:_SHOWN],
            older=found[_SHOWN].oid if len(found) > _SHOWN else None,
        )

    async def show(self, request: web.Request) -> web.Response:
        viewer = await self._shell.viewer(request)
        change = await asyncio.to_thread(self._change, viewer, request)
        return self._shell.show(
            request,
            viewer,
            "commit.html",
            title=f"{change.commit.title} · {change.repo.name}",
            repo=change.repo,
            path=repo_path(change.repo),
            commit=change.commit,
            files=change.files,
            diff=None if change.diff is None else diff_lines(change.diff),
        )

    async def file(self, request: web.Request) -> web.Response:
        """The file itself; whether it may be read is asked there."""
        part = request.match_info
        kind = "/datasets" if repo_kind(request) == "dataset" else ""
        at = f"{quote(part['rev'], safe='')}/{quote(part['path'])}"
        return go_to(f"{kind}/{repo_name(request)}/resolve/{at}")

    def _change(self, viewer: Identity, request: web.Request) -> _Change:
        hub = self._shell.hub
        with reading(hub.database) as connection:
            repo = self._find(connection, viewer, request)
            commit = find_commit(connection, repo.id, request.match_info["rev"])
            after = read_manifest(connection, commit.manifest)
            parent = read_commit(connection, repo.id, commit.parents[0]) if commit.parents else None
            before = () if parent is None else read_manifest(connection, parent.manifest)
        changes = compare(before, before, after)
        # A gated repo shows its list of files, and not what is in them.
        readable = hub.authority.decide(viewer, repo, "read").allowed
        diff = diff_text(changes, reader(hub)) if readable else None
        return _Change(repo, commit, len(changes.files), diff)

    def _find(self, connection: Connection, viewer: Identity, request: web.Request) -> Repo:
        return self._shell.hub.authority.find(
            connection, viewer, repo_kind(request), repo_name(request), "see"
        )
