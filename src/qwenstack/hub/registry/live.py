"""What the garbage collection must keep: every file of every commit of every repo."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, delete, select

from qwenstack.hub.registry.manifests import read_manifest
from qwenstack.storage.hub_tables import commits, facts, manifests


def live_contents(connection: Connection) -> Iterator[str]:
    """The SHA-256 of each content that some commit has; one may come several times."""
    used = select(commits.c.manifest).distinct()
    for digest in connection.scalars(used).all():
        for entry in read_manifest(connection, digest):
            yield entry.sha256


def drop_unused_manifests(connection: Connection) -> int:
    """Remove manifests that no commit has any more, with their facts; how many."""
    used = select(commits.c.manifest)
    connection.execute(delete(facts).where(facts.c.manifest.not_in(used)))
    return connection.execute(delete(manifests).where(manifests.c.digest.not_in(used))).rowcount
