"""Refs: branches, tags and pull requests' heads. A ref is the one row that a push moves."""

from __future__ import annotations

import re

import msgspec
from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from qwenstack.hub.errors import BadRequest, Conflict, Forbidden, RevisionNotFound
from qwenstack.hub.registry.paths import shown
from qwenstack.hub.registry.revisions import HEADS, MAIN, PULLS, TAGS
from qwenstack.storage.hub_tables import refs
from qwenstack.storage.rows import read_row

REF_CHARS_MAX = 200
REFS_MAX = 10_000
# git check-ref-format, and nothing that reads as a commit's id.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|^[-./@]|[./]$")
_OID_LIKE = re.compile(r"[0-9a-f]{40}")


class Ref(msgspec.Struct, frozen=True):
    """A ref by its full name, such as `refs/heads/main`. `message` is an annotated tag's."""

    name: str
    commit_oid: str
    message: str | None
    updated_us: int


def check_ref_name(short: str) -> str:
    """The branch's or tag's name, if Git allows it. Raises BadRequest."""
    if (
        not 0 < len(short) <= REF_CHARS_MAX
        or not short.isprintable()
        or _FORBIDDEN.search(short)
        or _OID_LIKE.fullmatch(short)
        or short.startswith("refs/")
        or short == "HEAD"
    ):
        raise BadRequest(
            f"{shown(short)} is no name for a branch or tag; take letters, digits, '.', '-', '_' "
            "and '/' between them."
        )
    return short


def list_refs(connection: Connection, repo_id: str) -> list[Ref]:
    """All refs of the repo by name, bounded by REFS_MAX."""
    query = select(refs).where(refs.c.repo_id == repo_id).order_by(refs.c.name).limit(REFS_MAX)
    return [read_row(row, Ref) for row in connection.execute(query)]


def find_ref(
    connection: Connection, repo_id: str, name: str, *, locked: bool = False
) -> Ref | None:
    """The ref of this full name; `locked` holds off other writers until the transaction ends."""
    query = select(refs).where(refs.c.repo_id == repo_id, refs.c.name == name)
    if locked:
        query = query.with_for_update()
    row = connection.execute(query).one_or_none()
    return None if row is None else read_row(row, Ref)


def create_ref(
    connection: Connection,
    repo_id: str,
    name: str,
    commit_oid: str,
    *,
    at_us: int,
    message: str | None = None,
) -> None:
    """Make a ref. Raises Conflict when it exists."""
    taken = Conflict(f"Reference {name} already exists in this repo.")
    if find_ref(connection, repo_id, name) is not None:
        raise taken
    if len(list_refs(connection, repo_id)) >= REFS_MAX:
        raise Forbidden(f"The repo has {REFS_MAX} refs, the most that the hub keeps.")
    row = insert(refs).values(
        repo_id=repo_id, name=name, commit_oid=commit_oid, message=message, updated_us=at_us
    )
    try:
        connection.execute(row)
    except IntegrityError as error:  # somebody else was quicker
        raise taken from error


def move_ref(
    connection: Connection, repo_id: str, name: str, commit_oid: str, *, at_us: int
) -> None:
    """Let an existing ref point elsewhere."""
    connection.execute(
        update(refs)
        .where(refs.c.repo_id == repo_id, refs.c.name == name)
        .values(commit_oid=commit_oid, updated_us=at_us)
    )


def delete_ref(connection: Connection, repo_id: str, name: str) -> None:
    """Remove a branch or a tag. Raises RevisionNotFound, and Forbidden for the main branch."""
    if name == HEADS + MAIN:
        raise Forbidden(f"Cannot delete {name}: it stays as long as its repo.")
    where = (refs.c.repo_id == repo_id, refs.c.name == name)
    if connection.execute(delete(refs).where(*where)).rowcount == 0:
        raise RevisionNotFound(f"Invalid rev id: {shown(short_name(name))} is not in this repo.")


def short_name(name: str) -> str:
    """A ref as people write it: `main`, `v1.0`; a pull request's as it is."""
    for prefix in (HEADS, TAGS):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def pull_ref(number: int) -> str:
    """The full name of a pull request's ref."""
    return f"{PULLS}{number}"
