"""Accounts that go or take another name, and what becomes of what they had.

A name that was given up is nobody's for a while: links, scripts and pinned names that still say it
must not reach a stranger. What a deleted account said stays, as said by `ghost`; whoever gets the
name later has no part in it.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.directory import (
    SYSTEM,
    Account,
    check_new_name,
    check_not_last_admin,
    count_operators,
    find_account,
    organisations_of,
)
from qwenstack.hub.accounts.identity import Scope
from qwenstack.hub.accounts.names import GHOST
from qwenstack.hub.discussions import rename_author
from qwenstack.hub.errors import BadRequest, Conflict
from qwenstack.hub.likes import unlike_all
from qwenstack.hub.quotas import check_repos, within_quota
from qwenstack.hub.registry.repos import Repo, delete_repo, in_namespace, move_repo
from qwenstack.hub.registry.waiting import give_up
from qwenstack.storage.audit_log import record
from qwenstack.storage.database import replace_in
from qwenstack.storage.hub_tables import (
    access_requests,
    accounts,
    likes,
    memberships,
    quotas,
    repos,
    retired_names,
    tokens,
    uploads,
    waiting,
)
from qwenstack.storage.rows import read_row

REST_US = 180 * 24 * 3600 * 1_000_000
"""For so long a name that was given up is nobody's."""


class Departed(msgspec.Struct, frozen=True):
    """What became of an account's repos (their names), and until when its name rests."""

    name: str
    repos: tuple[str, ...]
    free_us: int


def rename_account(
    connection: Connection, old: str, new: str, *, actor: str = SYSTEM
) -> tuple[Account, Departed]:
    """Give an account another name; all that it has, says and may goes with it.

    Repos answer to their old names, too. A commit's author stays as it was written: it is part of
    the commit's id. Raises NotFound, BadRequest, Conflict.
    """
    account = find_account(connection, old)
    key = new.lower()
    check_new_name(connection, new, owner=account.key)
    if key == account.key:  # another spelling
        connection.execute(update(accounts).where(accounts.c.key == key).values(name=new))
    else:
        # The new row comes first, so that what refers to the old one can follow.
        row = msgspec.structs.asdict(account) | {"key": key, "name": new}
        connection.execute(insert(accounts).values(**row))
        for column in (
            memberships.c.organisation,
            memberships.c.user,
            tokens.c.account,
            access_requests.c.account,
            access_requests.c.decided_by,
            likes.c.account,
            uploads.c.account,
            waiting.c.account,
            quotas.c.account,
        ):
            values = {column.name: key}
            connection.execute(update(column.table).where(column == account.key).values(values))
        _rename_words(connection, account, new)
        _rename_scopes(connection, account.key, key)
        connection.execute(delete(accounts).where(accounts.c.key == account.key))
        connection.execute(delete(retired_names).where(retired_names.c.key == key))
    moved = []
    for repo in _repos_of(connection, account.key):
        name = f"{new}/{repo.name.partition('/')[2]}"
        move_repo(connection, repo, name)
        moved.append(name)
    free_us = _retire(connection, account, became=key) if key != account.key else now_us()
    detail = {"to": new, "repos": len(moved)}
    record(connection, actor, "hub.account.rename", account.key, detail)
    renamed = msgspec.structs.replace(account, key=key, name=new)
    return renamed, Departed(account.name, tuple(moved), free_us)


def delete_account(
    connection: Connection,
    name: str,
    *,
    give_to: str | None = None,
    delete_repos: bool = False,
    actor: str = SYSTEM,
) -> Departed:
    """Remove a user or an organisation; its tokens end at once.

    Its repos go to the account `give_to`, or with it. Raises NotFound, and Conflict where repos
    would be left, for the last operator, and for an organisation's only admin.
    """
    account = find_account(connection, name)
    if account.operator and count_operators(connection) == 1:
        raise Conflict(f"{account.name} is the hub's only operator; make another one first.")
    for member in organisations_of(connection, account.key):
        check_not_last_admin(connection, member.account, account)
    owned = _repos_of(connection, account.key)
    if owned and give_to is None and not delete_repos:
        raise Conflict(
            f"{account.name} has {len(owned)} repos, {owned[0].name} among them: say who gets them "
            "(--give-to), or that they go, too (--delete-repos)."
        )
    if give_to is not None and give_to.lower() == account.key:
        raise BadRequest(f"{account.name} cannot be given its own repos; name another account")
    left = _hand_over(connection, owned, give_to, actor)
    for table, column in (
        (memberships, memberships.c.user),
        (memberships, memberships.c.organisation),
        (tokens, tokens.c.account),
        (access_requests, access_requests.c.account),
        (uploads, uploads.c.account),
        (waiting, waiting.c.account),
        (quotas, quotas.c.account),
    ):
        connection.execute(delete(table).where(column == account.key))
    decided = access_requests.c.decided_by == account.key
    connection.execute(update(access_requests).where(decided).values(decided_by=GHOST))
    unlike_all(connection, account.key)
    _rename_words(connection, account, GHOST)
    connection.execute(delete(accounts).where(accounts.c.key == account.key))
    free_us = _retire(connection, account, became=None)
    detail = {"kind": account.kind, "repos": left, "given_to": give_to}
    record(connection, actor, "hub.account.delete", account.key, detail)
    return Departed(account.name, tuple(left), free_us)


def _hand_over(
    connection: Connection, owned: list[Repo], give_to: str | None, actor: str
) -> list[str]:
    """Where the repos are now; of those that were deleted, what they were called."""
    left = []
    if give_to is not None:
        heir = find_account(connection, give_to)
        with within_quota(connection, heir.name):
            for repo in owned:
                check_repos(connection, heir.name)
                name = f"{heir.name}/{repo.name.partition('/')[2]}"
                move_repo(connection, repo, name)
                detail = {"kind": repo.kind, "to": name}
                record(connection, actor, "hub.repo.move", repo.name, detail)
                left.append(name)
        return left
    for repo in owned:
        give_up(connection, repo.id, actor.lower()[:96])
        delete_repo(connection, repo)
        record(connection, actor, "hub.repo.delete", repo.name, {"kind": repo.kind})
        left.append(repo.name)
    return left


def _repos_of(connection: Connection, key: str) -> list[Repo]:
    query = select(repos).where(in_namespace(key)).order_by(repos.c.key)
    return [read_row(row, Repo) for row in connection.execute(query)]


def _rename_words(connection: Connection, account: Account, name: str) -> None:
    """Let another account have said and made what this one did."""
    rename_author(connection, account.key, name.lower())
    made = func.lower(repos.c.created_by) == account.key
    connection.execute(update(repos).where(made).values(created_by=name))


def _rename_scopes(connection: Connection, old: str, new: str) -> None:
    """Let fine-grained tokens, whosoever they are, follow the name."""
    query = select(tokens.c.id, tokens.c.scopes).where(
        tokens.c.scopes.contains(f'"{old}', autoescape=True)
    )
    for row in connection.execute(query).all():
        scopes = [
            msgspec.structs.replace(each, name=new + each.name.removeprefix(old))
            if each.name == old or each.name.startswith(f"{old}/")
            else each
            for each in msgspec.json.decode(row.scopes, type=list[Scope])
        ]
        values = {"scopes": msgspec.json.encode(scopes).decode()}
        connection.execute(update(tokens).where(tokens.c.id == row.id).values(values))


def _retire(connection: Connection, account: Account, *, became: str | None) -> int:
    at_us = now_us()
    earlier = retired_names.c.became == account.key
    connection.execute(update(retired_names).where(earlier).values(became=became))
    row = {
        "key": account.key,
        "became": became,
        "retired_us": at_us,
        "free_us": at_us + REST_US,
    }
    replace_in(connection, retired_names, [row])
    return at_us + REST_US
