"""Likes: who likes which repo. `hub_repos.likes` counts them, in the same transaction."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, delete, func, select, update

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.directory import Account
from qwenstack.hub.registry.repos import Kind
from qwenstack.storage.database import replace_in
from qwenstack.storage.hub_tables import accounts, likes, repos
from qwenstack.storage.rows import read_row


class Liked(msgspec.Struct, frozen=True):
    """A repo that an account likes."""

    name: str
    kind: Kind
    at_us: int
    repo_id: str


def like(connection: Connection, repo_id: str, account: str) -> None:
    """Like a repo; a second time changes nothing."""
    known = select(likes.c.at_us).where(likes.c.repo_id == repo_id, likes.c.account == account)
    if connection.scalar(known) is None:
        replace_in(connection, likes, [{"repo_id": repo_id, "account": account, "at_us": now_us()}])
        _recount(connection, repo_id)


def unlike(connection: Connection, repo_id: str, account: str) -> None:
    """Take a like back; none is no error."""
    connection.execute(delete(likes).where(likes.c.repo_id == repo_id, likes.c.account == account))
    _recount(connection, repo_id)


def unlike_all(connection: Connection, account: str) -> None:
    """Take back all that an account likes."""
    liked = connection.scalars(select(likes.c.repo_id).where(likes.c.account == account)).all()
    for repo_id in liked:
        unlike(connection, repo_id, account)


def likers(connection: Connection, repo_id: str, *, after: str, limit: int) -> list[Account]:
    """Accounts that like a repo, by key from `after` on."""
    statement = (
        select(accounts)
        .join(likes, likes.c.account == accounts.c.key)
        .where(likes.c.repo_id == repo_id, accounts.c.key > after)
        .order_by(accounts.c.key)
        .limit(limit)
    )
    return [read_row(row, Account) for row in connection.execute(statement)]


def liked_by(connection: Connection, account: str, *, after: str, limit: int) -> list[Liked]:
    """Repos that an account likes, by repo id from `after` on; private ones among them."""
    statement = (
        select(repos.c.name, repos.c.kind, likes.c.at_us, repos.c.id.label("repo_id"))
        .join(repos, repos.c.id == likes.c.repo_id)
        .where(likes.c.account == account, repos.c.id > after)
        .order_by(repos.c.id)
        .limit(limit)
    )
    return [
        Liked(name, msgspec.convert(kind, Kind), at_us, repo_id)
        for name, kind, at_us, repo_id in connection.execute(statement)
    ]


def likes_it(connection: Connection, repo_id: str, account: str) -> bool:
    """Whether the account likes the repo."""
    where = (likes.c.repo_id == repo_id, likes.c.account == account)
    return connection.scalar(select(likes.c.at_us).where(*where)) is not None


def _recount(connection: Connection, repo_id: str) -> None:
    counted = select(func.count()).select_from(likes).where(likes.c.repo_id == repo_id)
    connection.execute(
        update(repos).where(repos.c.id == repo_id).values(likes=counted.scalar_subquery())
    )
