"""Repos: their names, visibility, and where they went when they moved."""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec
from sqlalchemy import ColumnElement, Connection, Table, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from qwenstack.core.identifiers import new_id
from qwenstack.hub.errors import BadRequest, Conflict
from qwenstack.storage.hub_tables import repo_redirects, repos
from qwenstack.storage.rows import read_row
from qwenstack.storage.tables import metadata

Kind = Literal["model", "dataset"]
Gating = Literal["", "auto", "manual"]
KINDS: tuple[Kind, ...] = get_args(Kind)

NAME_CHARS_MAX = 96
# huggingface_hub's own rule: it refuses to send another name.
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
# First segments of the hub's own paths.
RESERVED_NAMESPACES = frozenset(
    {
        "api",
        "datasets",
        "models",
        "spaces",
        "kernels",
        "buckets",
        "collections",
        "papers",
        "users",
        "organizations",
        "settings",
        "login",
        "logout",
        "join",
        "new",
        "search",
        "oauth",
        "docs",
        "static",
        "assets",
        "avatars",
        "metrics",
        "healthz",
        "readyz",
        "tree",
        "blob",
        "resolve",
        "raw",
        "lfs",
        "xet",
        "v1",
        "v2",
    }
)


class Repo(msgspec.Struct, frozen=True, kw_only=True):
    """A repo. `name` is `namespace/name` as it was written; `summary` is a JSON document."""

    id: str
    kind: Kind
    name: str
    private: bool
    gated: Gating
    created_by: str
    created_us: int
    updated_us: int
    downloads: int
    likes: int
    summary: str

    @property
    def namespace(self) -> str:
        """The account or organisation that owns it, as written."""
        return self.name.partition("/")[0]


def repo_key(kind: Kind, name: str) -> str:
    """What a repo is found by: names differ by more than case."""
    return f"{kind}:{name.lower()}"


def in_namespace(namespace: str, kind: Kind | None = None) -> ColumnElement[bool]:
    """The repos of an account or organisation, of one kind or of all."""
    kinds = KINDS if kind is None else (kind,)
    starts = [f"{repo_key(each, namespace)}/" for each in kinds]
    return or_(*(repos.c.key.startswith(each, autoescape=True) for each in starts))


def check_repo_name(name: str) -> str:
    """`namespace/name`, if clients take it. Raises BadRequest that says the rule."""
    namespace, slash, short = name.partition("/")
    if (
        not slash
        or len(name) > NAME_CHARS_MAX
        or not _PART.fullmatch(namespace)
        or not _PART.fullmatch(short)
        or "--" in name
        or ".." in name
        or short.lower().endswith((".git", ".ipynb"))
    ):
        raise BadRequest(
            f"{name[:120]!a} is no repo name: take namespace/name of letters, digits, '-', "
            f"'_' and '.', none of '--', '..' or '.git' in it, at most {NAME_CHARS_MAX} characters."
        )
    if namespace.lower() in RESERVED_NAMESPACES:
        raise BadRequest(f"The namespace {namespace!r} is the hub's own; take another.")
    return name


def find_repo(connection: Connection, kind: Kind, name: str) -> Repo | None:
    """The repo of this name, or the one that had it before it moved."""
    key = repo_key(kind, name)
    row = connection.execute(select(repos).where(repos.c.key == key)).one_or_none()
    if row is None:
        moved = select(repo_redirects.c.repo_id).where(repo_redirects.c.key == key)
        row = connection.execute(select(repos).where(repos.c.id.in_(moved))).one_or_none()
    return None if row is None else read_row(row, Repo)


def read_repo(connection: Connection, repo_id: str) -> Repo:
    """The repo with this id; raises LookupError for none."""
    row = connection.execute(select(repos).where(repos.c.id == repo_id)).one_or_none()
    if row is None:
        raise LookupError(f"no repo {repo_id}")
    return read_row(row, Repo)


def create_repo(
    connection: Connection, kind: Kind, name: str, *, private: bool, created_by: str, at_us: int
) -> Repo:
    """Make an empty repo, without a commit. Raises BadRequest for its name, Conflict if it exists.

    The name of a repo that moved away is free again; its redirect ends.
    """
    check_repo_name(name)
    key = repo_key(kind, name)
    _check_free(connection, key, name)
    connection.execute(delete(repo_redirects).where(repo_redirects.c.key == key))
    repo = Repo(
        id=new_id("repo"),
        kind=kind,
        name=name,
        private=private,
        gated="",
        created_by=created_by,
        created_us=at_us,
        updated_us=at_us,
        downloads=0,
        likes=0,
        summary="{}",
    )
    try:
        connection.execute(insert(repos).values(key=key, **msgspec.structs.asdict(repo)))
    except IntegrityError as error:  # somebody else was quicker
        raise _taken(key, name) from error
    return repo


def move_repo(connection: Connection, repo: Repo, name: str) -> None:
    """Rename the repo; its old name leads to it from now on. Raises BadRequest, Conflict."""
    check_repo_name(name)
    now = select(repos.c.name).where(repos.c.id == repo.id).with_for_update()
    if connection.scalar(now) != repo.name:
        raise Conflict(f"{repo.name} was moved or deleted meanwhile; look where it is.")
    old, new = repo_key(repo.kind, repo.name), repo_key(repo.kind, name)
    if old != new:
        _check_free(connection, new, name)
        connection.execute(delete(repo_redirects).where(repo_redirects.c.key.in_((old, new))))
        connection.execute(insert(repo_redirects).values(key=old, repo_id=repo.id))
    try:
        connection.execute(update(repos).where(repos.c.id == repo.id).values(name=name, key=new))
    except IntegrityError as error:
        raise _taken(new, name) from error


def change_settings(
    connection: Connection, repo: Repo, *, private: bool | None, gated: Gating | None
) -> None:
    """Set visibility and gating; None leaves one as it is."""
    values: dict[str, object] = {}
    if private is not None:
        values["private"] = private
    if gated is not None:
        values["gated"] = gated
    if values:
        connection.execute(update(repos).where(repos.c.id == repo.id).values(**values))


def write_summary(connection: Connection, repo_id: str, summary: str) -> None:
    """Keep what lists and filters show of the main branch, a JSON document."""
    connection.execute(update(repos).where(repos.c.id == repo_id).values(summary=summary))


def touch(connection: Connection, repo_id: str, at_us: int) -> None:
    """Note that the repo changed."""
    connection.execute(update(repos).where(repos.c.id == repo_id).values(updated_us=at_us))


def delete_repo(connection: Connection, repo: Repo) -> None:
    """Remove the repo and all that is said of it. The bytes go with the next garbage collection."""
    for table in _children():
        connection.execute(delete(table).where(table.c.repo_id == repo.id))
    connection.execute(delete(repos).where(repos.c.id == repo.id))


def _check_free(connection: Connection, key: str, name: str) -> None:
    if connection.scalar(select(repos.c.id).where(repos.c.key == key)) is not None:
        raise _taken(key, name)


def _taken(key: str, name: str) -> Conflict:
    kind = key.partition(":")[0]
    return Conflict(f"A {kind} repository called {name} already exists; take another name.")


def _children() -> list[Table]:
    """The hub's tables with rows of a repo."""
    return [
        table
        for name, table in metadata.tables.items()
        if name.startswith("hub_") and "repo_id" in table.c
    ]
