"""Who asks, and whether they may: the first line of each handler.

    repo, caller = await open_repo(hub, request, "read")

The path's `{kind}` (models, datasets), `{namespace}` and `{name}` name the repo; `API_REPO` and
`FILE_REPO` are the prefixes that carry them.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import HIDDEN, Action
from qwenstack.hub.errors import RepoNotFound, Unauthorized
from qwenstack.hub.hub import Hub
from qwenstack.hub.registry.repos import Kind, Repo, find_repo
from qwenstack.hub.registry.revisions import PULLS
from qwenstack.storage.database import reading

# `{kind}s` in the API; a model's files have no prefix, a dataset's have `/datasets`.
API_REPO = "/api/{kind:models|datasets}/{namespace:[^/]+}/{name:[^/]+}"
MODEL_FILES = "/{namespace:[^/]+}/{name:[^/]+}"
DATASET_FILES = "/{kind:datasets}/{namespace:[^/]+}/{name:[^/]+}"

_TOKEN_CHARS_MAX = 512
SESSION_COOKIE = "hub_session"


async def identify(hub: Hub, request: web.Request) -> Identity:
    """The caller's identity, anonymous without a token. Raises Unauthorized for an unknown one."""
    return await asyncio.to_thread(hub.authority.identify, bearer(request), session(request))


async def open_repo(hub: Hub, request: web.Request, action: Action) -> tuple[Repo, Identity]:
    """The repo that the path names, and the caller, who may do `action` with it.

    A name that a repo had before it moved finds it still. Raises HubError.
    """
    return await asyncio.to_thread(
        _open,
        hub,
        bearer(request),
        session(request),
        repo_kind(request),
        repo_name(request),
        action,
    )


def _open(
    hub: Hub, token: str | None, cookie: str | None, kind: Kind, name: str, action: Action
) -> tuple[Repo, Identity]:
    identity = hub.authority.identify(token, cookie)
    with reading(hub.database) as connection:
        repo = find_repo(connection, kind, name)
    if repo is None:
        raise RepoNotFound(HIDDEN)
    hub.authority.check(identity, repo, action)
    return repo, identity


def upload_action(request: web.Request) -> Action:
    """What a caller must be allowed to upload for the path's `{rev}`.

    A pull request takes contents from whoever may discuss; its commit route asks whose it is.
    """
    to_pull = request.match_info.get("rev", "").startswith(PULLS)
    return "discuss" if to_pull or request.query.get("create_pr") in ("1", "true") else "write"


def repo_kind(request: web.Request) -> Kind:
    """The kind of repo that the path names."""
    return "dataset" if request.match_info.get("kind") == "datasets" else "model"


def repo_name(request: web.Request) -> str:
    """The repo's `namespace/name` as the path has it."""
    name = request.match_info["name"]
    return f"{request.match_info['namespace']}/{name.removesuffix('.git')}"


def bearer(request: web.Request) -> str | None:
    """The bearer token of the Authorization header. Raises Unauthorized for another scheme."""
    header = request.headers.get("Authorization")
    if not header:
        return None
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "bearer" or not 0 < len(value) <= _TOKEN_CHARS_MAX:
        raise Unauthorized("Invalid credentials in Authorization header")
    return value.strip()


def session(request: web.Request) -> str | None:
    """The browser's session, for reading alone: what changes something needs a token here."""
    if request.method not in ("GET", "HEAD"):
        return None
    return request.cookies.get(SESSION_COOKIE)


def base_url(hub: Hub, request: web.Request) -> str:
    """Where the caller reaches the hub, without a slash at the end."""
    if hub.settings.public_url is not None:
        return hub.settings.public_url.rstrip("/")
    return f"{request.scheme}://{request.host}"
