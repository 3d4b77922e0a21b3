"""Repos: their names, visibility, and where they went when they moved."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec
from sqlalchemy import Connection, select

from qwenstack.storage.hub_tables import repo_redirects, repos
from qwenstack.storage.rows import read_row

Kind = Literal["model", "dataset"]
Gating = Literal["", "auto", "manual"]
KINDS: tuple[Kind, ...] = get_args(Kind)


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


def find_repo(connection: Connection, kind: Kind, name: str) -> Repo | None:
    """The repo of this name, or the one that had it before it moved."""
    key = repo_key(kind, name)
    row = connection.execute(select(repos).where(repos.c.key == key)).one_or_none()
    if row is None:
        moved = select(repo_redirects.c.repo_id).where(repo_redirects.c.key == key)
        row = connection.execute(select(repos).where(repos.c.id.in_(moved))).one_or_none()
    return None if row is None else read_row(row, Repo)
