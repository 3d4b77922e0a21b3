"""What a repo holds: the contents that it may publish, and is not asked to upload again.

A content's SHA-256 stands in every list of files, also of a gated repo. So it takes more than the
hash to put a content into a repo: an upload of the bytes, or a copy from where one may read them.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.exc import IntegrityError

from qwenstack.hub.errors import RepoNotFound
from qwenstack.hub.registry.waiting import settle
from qwenstack.hub.store.rows import batches, insert_new
from qwenstack.storage.hub_tables import contents, repo_contents


def grant(
    connection: Connection, repo_id: str, sha256s: Iterable[str], *, published: bool = False
) -> None:
    """Note that the repo holds these contents, `published` when a branch or tag has them.

    Raises RepoNotFound when the repo is gone.
    """
    wanted = list(dict.fromkeys(sha256s))
    rows = [{"repo_id": repo_id, "sha256": each, "published": False} for each in wanted]
    try:
        insert_new(connection, repo_contents, rows)
    except IntegrityError as error:
        raise RepoNotFound("The repo was deleted in the meantime.") from error
    if published:
        publish(connection, repo_id, wanted)


def publish(connection: Connection, repo_id: str, sha256s: Iterable[str]) -> None:
    """A branch or tag has these contents, which the repo holds: they count as its namespace's."""
    for batch in batches(list(sha256s)):
        newly = connection.scalars(
            update(repo_contents)
            .where(
                repo_contents.c.repo_id == repo_id,
                repo_contents.c.sha256.in_(batch),
                repo_contents.c.published.is_(False),
            )
            .values(published=True)
            .returning(repo_contents.c.sha256)
        ).all()
        settle(connection, newly)


def held(
    connection: Connection, repo_id: str, sha256s: Iterable[str]
) -> dict[str, Row[tuple[str, int, str, str]]]:
    """Of these contents, those that the repo holds and the store has, by SHA-256.

    Each row is (sha256, size, xet_hash, git_oid).
    """
    columns = (contents.c.sha256, contents.c.size, contents.c.xet_hash, contents.c.git_oid)
    found: dict[str, Row[tuple[str, int, str, str]]] = {}
    for batch in batches(list(dict.fromkeys(sha256s))):
        query = (
            select(*columns)
            .join(repo_contents, repo_contents.c.sha256 == contents.c.sha256)
            .where(repo_contents.c.repo_id == repo_id, contents.c.sha256.in_(batch))
        )
        found.update({row.sha256: row for row in connection.execute(query)})
    return found
