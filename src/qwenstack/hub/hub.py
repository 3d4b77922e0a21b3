"""The hub, assembled: the database, the store, and the ports that other parts plug into."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import msgspec
from sqlalchemy import Engine

from qwenstack.hub.registry.manifests import Entry
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.store.contents import ContentStore
from qwenstack.storage.database import open_database

OpenFile = Callable[[Entry], BinaryIO]


class HubSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set."""

    # Where clients reach the hub, for links in answers; None takes each request's own Host.
    public_url: str | None = None
    signups: bool = False
    upload_url_s: int = 24 * 3600
    # Files from this size on go through LFS or Xet instead of the commit's own body.
    lfs_bytes_min: int = 1024 * 1024
    file_bytes_max: int = 500 * 1024**3
    commit_bytes_max: int = 256 * 1024**2
    commit_files_max: int = 25_000
    drain_s: float = 20.0


Action = Literal["see", "read", "discuss", "write", "admin"]
"""What a caller wants of a repo: to know of it, its files, to talk, to push, to rule."""


class Authority(Protocol):
    """Who a caller is, and what they may; the accounts' part of the hub. All of it may block.

    An identity has `account`: the lower-case name, None for an anonymous caller.
    """

    def identify(self, token: str | None) -> Any:
        """The identity of a bearer token, or the anonymous one. Raises Unauthorized."""
        ...

    def check(self, identity: Any, repo: Repo, action: Action) -> None:
        """Raises RepoNotFound for whoever may not know of the repo, GatedRepo, Forbidden."""
        ...

    def check_namespace(self, identity: Any, namespace: str | None) -> str:
        """The namespace to make a repo in, as it is written; None is the caller's own.

        Raises Forbidden, or NotFound when no account or organisation has that name.
        """
        ...


class Inspector(Protocol):
    """Looks into the files of a commit before the branch moves."""

    def inspect(self, entries: Sequence[Entry], open_file: OpenFile) -> Sequence[str]:
        """Why these files must not be published: a sentence each, empty when they may."""
        ...


class DownloadCounter(Protocol):
    """Counts a download by the written rule; called for every GET of a file's first byte."""

    def __call__(self, repo: Repo, path: str, account: str | None, client: str) -> None:
        """`account` is None for an anonymous caller; `client` is the User-Agent. Must not block."""
        ...


CommitListener = Callable[[Repo, str, str], None]
"""Called with the repo, the ref and the new commit after a push, in a worker thread."""


@dataclass(frozen=True)
class Hub:
    """All that a request needs. `secret` signs the URLs that the hub hands out."""

    database: Engine
    store: ContentStore
    folder: Path
    settings: HubSettings
    secret: bytes
    authority: Authority
    inspectors: list[Inspector] = field(default_factory=list)
    download_counters: list[DownloadCounter] = field(default_factory=list)
    commit_listeners: list[CommitListener] = field(default_factory=list)

    @property
    def uploads(self) -> Path:
        """Where the parts of unfinished uploads lie."""
        return self.folder / "uploads"


def open_hub(
    folder: Path,
    *,
    authority: Callable[[Engine], Authority],
    database_url: str | None = None,
    settings: HubSettings | None = None,
) -> Hub:
    """Open the hub under `folder` (made if missing); the default database is `hub.db` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    database = open_database(database_url or f"sqlite:///{folder / 'hub.db'}")
    hub = Hub(
        database=database,
        store=ContentStore(database, folder),
        folder=folder,
        settings=settings or HubSettings(),
        secret=_secret(folder / "secret"),
        authority=authority(database),
    )
    hub.uploads.mkdir(exist_ok=True)
    return hub


def _secret(path: Path) -> bytes:
    """The signing secret: made once, readable by the owner alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        secret = path.read_bytes()
        if len(secret) != 32:
            raise ValueError(
                f"{path} holds no 32-byte secret; remove it to have one made"
            ) from None
        return secret
    secret = os.urandom(32)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    return secret
