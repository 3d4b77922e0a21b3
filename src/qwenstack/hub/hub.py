"""The hub, assembled: the database, the store, and the ports that other parts plug into."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec
from sqlalchemy import Engine

from qwenstack.hub.accounts.authority import Accounts
from qwenstack.hub.front_matter import check_front_matter
from qwenstack.hub.registry.manifests import Entry, Manifest
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import Commit
from qwenstack.hub.store.contents import ContentStore
from qwenstack.hub.store.objects import open_objects
from qwenstack.hub.upstream_settings import UpstreamSettings
from qwenstack.storage.database import open_database

OpenFile = Callable[[Entry], BinaryIO]


class HubSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set."""

    # Where clients reach the hub, for links in answers; None takes each request's own Host.
    public_url: str | None = None
    signups: bool = False
    upload_url_s: int = 24 * 3600
    # Files from this size on go through LFS or Xet instead of the commit's own body.
    lfs_bytes_min: int = 10 * 1024 * 1024
    # Files of at most this size are uploaded in one request, larger ones in parts of it.
    part_bytes: int = 64 * 1024**2
    file_bytes_max: int = 500 * 1024**3
    commit_bytes_max: int = 512 * 1024**2
    commit_files_max: int = 25_000
    # A body that sends nothing for so long is given up.
    idle_s: float = 60.0
    uploads_max: int = 256
    drain_s: float = 20.0
    # Another hub that is asked for what is not here.
    upstream: UpstreamSettings | None = None


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


Describe = Callable[[Repo, Commit, Manifest], bytes]
"""What the card and the files' headers say at a revision: a JSON object of the wire's own fields
(`tags`, `cardData`, `pipeline_tag`, `library_name`, `safetensors`, `gguf`, `baseModels`, …).
"""

CheckCard = Callable[[str], tuple[list[str], list[str]]]
"""The errors and the warnings of a card's text."""


@dataclass
class Hub:
    """All that a request needs. `secret` signs the URLs that the hub hands out."""

    database: Engine
    store: ContentStore
    folder: Path
    settings: HubSettings
    secret: bytes
    authority: Accounts
    inspectors: list[Inspector] = field(default_factory=list)
    download_counters: list[DownloadCounter] = field(default_factory=list)
    commit_listeners: list[CommitListener] = field(default_factory=list)
    describe: Describe | None = None
    # Whether files are offered to Xet clients by chunks; else they download them whole.
    xet_reads: bool = True
    check_card: CheckCard = check_front_matter

    @property
    def uploads(self) -> Path:
        """Where the parts of unfinished uploads lie."""
        return self.folder / "uploads"

    def open_file(self, entry: Entry) -> BinaryIO:
        """A file of a release, seekable."""
        return self.store.open(entry.sha256)

    def close(self) -> None:
        """Let the database go."""
        self.database.dispose()


def open_hub(
    folder: Path,
    *,
    anonymous_read: bool = True,
    database_url: str | None = None,
    objects_url: str | None = None,
    settings: HubSettings | None = None,
) -> Hub:
    """Open the hub under `folder` (made if missing); the default database is `hub.db` in it, and
    the default place for bytes its folder `packs`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    database = open_database(database_url or f"sqlite:///{folder / 'hub.db'}")
    secret = _secret(folder / "secret")
    hub = Hub(
        database=database,
        store=ContentStore(database, folder, open_objects(objects_url, folder)),
        folder=folder,
        settings=settings or HubSettings(),
        secret=secret,
        authority=Accounts(database, secret, anonymous_read=anonymous_read),
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
