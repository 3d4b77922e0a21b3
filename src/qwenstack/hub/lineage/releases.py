"""The hub's releases as candidates: which there are, and their weights read from the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Final

import msgspec
from sqlalchemy import Connection, select

from qwenstack.hub.lineage.bytes_at import ByteSource, SeekableSource
from qwenstack.hub.lineage.model import ADAPTER_FILE, Model, open_files
from qwenstack.hub.lineage.tensors import UnreadableModel
from qwenstack.hub.registry.manifests import Entry, Manifest, read_manifest
from qwenstack.hub.registry.revisions import HEADS, MAIN
from qwenstack.storage.hub_tables import commits, refs, repos

OpenFile = Callable[[Entry], BinaryIO]

_CONFIG_BYTES_MAX: Final = 1 << 20
_WEIGHTS: Final = (".safetensors", ".gguf")


class Release(msgspec.Struct, frozen=True):
    """What a model repo's main branch holds; `manifest` is the release's digest.

    `created_us` is when the repo was made, in microseconds.
    """

    repo_id: str
    name: str
    manifest: str
    summary: str
    created_us: int


def main_releases(connection: Connection) -> list[Release]:
    """Every model's newest release, in order of name."""
    query = (
        select(repos.c.id, repos.c.name, commits.c.manifest, repos.c.summary, repos.c.created_us)
        .join(refs, refs.c.repo_id == repos.c.id)
        .join(
            commits,
            (commits.c.repo_id == repos.c.id) & (commits.c.oid == refs.c.commit_oid),
        )
        .where(repos.c.kind == "model", refs.c.name == HEADS + MAIN)
        .order_by(repos.c.key)
    )
    return [Release(*row) for row in connection.execute(query)]


def newest_manifest(connection: Connection, repo_id: str) -> str | None:
    """The digest of a repo's newest release, which stays so until the transaction ends."""
    ref = refs.c.repo_id == repo_id, refs.c.name == HEADS + MAIN
    oid = connection.scalar(select(refs.c.commit_oid).where(*ref).with_for_update())
    commit = commits.c.repo_id == repo_id, commits.c.oid == oid
    digest: str | None = connection.scalar(select(commits.c.manifest).where(*commit))
    return digest


def open_release(name: str, files: Manifest, open_file: OpenFile) -> Model:
    """The model that a release's files hold; raises UnreadableModel where they hold none."""
    weights = [entry for entry in files if entry.path.endswith(_WEIGHTS)]
    if not weights:
        raise UnreadableModel(f"{name} holds no .safetensors or .gguf file")
    top = [entry for entry in weights if "/" not in entry.path] or weights
    config: bytes | None = None
    if any(entry.path == ADAPTER_FILE for entry in top):
        config = _read(files, "adapter_config.json", open_file)
    sources: list[tuple[str, ByteSource]] = [
        (entry.path, SeekableSource(open_file(entry), entry.size)) for entry in top
    ]
    return open_files(sources, name=name, adapter_config=config)


def _read(files: Manifest, path: str, open_file: OpenFile) -> bytes | None:
    entry = next((entry for entry in files if entry.path == path), None)
    if entry is None:
        return None
    with open_file(entry) as file:
        return file.read(_CONFIG_BYTES_MAX)


def opener(
    releases: list[Release], connect: Callable[[], Connection], open_file: OpenFile
) -> Callable[[str], Model]:
    """A function from a release's name to its model, for a Library."""
    by_name = {release.name: release for release in releases}

    def open_named(name: str) -> Model:
        with connect() as connection:
            files = read_manifest(connection, by_name[name].manifest)
        return open_release(name, files, open_file)

    return open_named
