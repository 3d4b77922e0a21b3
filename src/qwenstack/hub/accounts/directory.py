"""Accounts and organisations: people, who they belong to, and in which role.

Functions take an open connection, so that the command line and the wire share them.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from sqlalchemy import Connection, delete, func, insert, select

from qwenstack.core.instants import from_us, now_us
from qwenstack.hub.accounts.identity import ROLES, Role
from qwenstack.hub.accounts.names import check_name
from qwenstack.hub.errors import BadRequest, Conflict, NotFound
from qwenstack.storage.audit_log import record
from qwenstack.storage.database import replace_in
from qwenstack.storage.hub_tables import accounts, memberships, retired_names
from qwenstack.storage.rows import read_row

SYSTEM = "system"
"""Who acts when nobody in particular does, for the audit log."""

AccountKind = Literal["user", "organisation"]
FULL_NAME_CHARACTERS_MAX = 200
LISTED_MAX = 1000


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A user or an organisation. `key` is the lower-case name, by which it is found."""

    key: str
    name: str
    kind: AccountKind
    full_name: str
    email: str | None
    operator: bool
    created_us: int


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """An account in an organisation."""

    account: Account
    role: Role


def create_account(
    connection: Connection,
    *,
    name: str,
    kind: AccountKind = "user",
    full_name: str = "",
    email: str | None = None,
    operator: bool = False,
    reuse: bool = False,
    actor: str = SYSTEM,
) -> Account:
    """Create a user or an organisation; raises BadRequest for a bad field, Conflict for a name.

    `reuse`: also with a name that was given up lately.
    """
    if reuse:
        connection.execute(delete(retired_names).where(retired_names.c.key == name.lower()))
    check_new_name(connection, name)
    full_name = _line("full_name", full_name) or name
    if email is not None and ("@" not in email or _line("email", email) != email):
        raise BadRequest(f"email {email[:60]!r} is no address")
    if operator and kind != "user":
        raise BadRequest("an organisation cannot be an operator; make a user one")
    account = Account(
        key=name.lower(),
        name=name,
        kind=kind,
        full_name=full_name,
        email=email,
        operator=operator,
        created_us=now_us(),
    )
    connection.execute(insert(accounts).values(**msgspec.structs.asdict(account)))
    detail = {"kind": kind, "operator": operator, **({"reuse": True} if reuse else {})}
    record(connection, actor, "hub.account.create", account.key, detail)
    return account


def check_new_name(connection: Connection, name: str, *, owner: str | None = None) -> None:
    """Raises BadRequest for a name that none may have, Conflict for one that is not free.

    `owner` (a key) may have its own name in another spelling, and those that it gave up.
    """
    check_name(name)
    there = _find(connection, name)
    if there is not None and there.key != owner:
        raise Conflict(f"The name {name} is taken on this hub.")
    table = retired_names
    row = connection.execute(select(table).where(table.c.key == name.lower())).one_or_none()
    if row is not None and row.free_us > now_us() and (owner is None or row.became != owner):
        raise Conflict(
            f"The name {name} was given up lately and is nobody's until "
            f"{from_us(row.free_us):%Y-%m-%d}, so that nobody is taken for who had it; an operator "
            "may give it earlier (`qwenstack hub users add NAME --reuse`)."
        )


def find_account(connection: Connection, name: str, kind: AccountKind | None = None) -> Account:
    """The account of this name, in any case; raises NotFound."""
    account = _find(connection, name)
    if account is None or (kind is not None and account.kind != kind):
        raise NotFound(f"There is no {kind or 'account'} {name[:96]!r} on this hub.")
    return account


def accounts_named(connection: Connection, keys: set[str]) -> dict[str, Account]:
    """The accounts among these keys, by key."""
    found: dict[str, Account] = {}
    wanted = sorted(keys)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        for row in connection.execute(select(accounts).where(accounts.c.key.in_(part))):
            found[row.key] = read_row(row, Account)
    return found


def list_accounts(
    connection: Connection, kind: AccountKind | None = None, *, after: str = ""
) -> list[Account]:
    """Accounts by name from `after` (a key) on; at most LISTED_MAX."""
    statement = select(accounts).where(accounts.c.key > after).order_by(accounts.c.key)
    if kind is not None:
        statement = statement.where(accounts.c.kind == kind)
    return [read_row(row, Account) for row in connection.execute(statement.limit(LISTED_MAX))]


def count_operators(connection: Connection) -> int:
    """How many accounts rule the hub."""
    where = accounts.c.operator.is_(True)
    return connection.scalar(select(func.count()).select_from(accounts).where(where)) or 0


def set_role(
    connection: Connection, organisation: str, user: str, role: str, *, actor: str = SYSTEM
) -> Member:
    """Put a user into an organisation in this role, or change the role; raises HubError."""
    if role not in ROLES:
        raise BadRequest(f"role {role[:40]!r} must be one of {', '.join(ROLES)}")
    group = find_account(connection, organisation, "organisation")
    account = find_account(connection, user, "user")
    known = msgspec.convert(role, Role)
    if known != "admin":
        check_not_last_admin(connection, group, account)
    row = {"organisation": group.key, "user": account.key, "role": known}
    replace_in(connection, memberships, [row])
    detail = {"user": account.key, "role": known}
    record(connection, actor, "hub.member.set", group.key, detail)
    return Member(account=account, role=known)


def remove_member(
    connection: Connection, organisation: str, user: str, *, actor: str = SYSTEM
) -> None:
    """Take a user out of an organisation; raises NotFound, or Conflict for its last admin."""
    group = find_account(connection, organisation, "organisation")
    account = find_account(connection, user, "user")
    check_not_last_admin(connection, group, account)
    gone = connection.execute(
        delete(memberships).where(
            memberships.c.organisation == group.key, memberships.c.user == account.key
        )
    )
    if not gone.rowcount:
        raise NotFound(f"{account.name} is no member of {group.name}.")
    record(connection, actor, "hub.member.remove", group.key, {"user": account.key})


def members(connection: Connection, organisation: str) -> list[Member]:
    """An organisation's members by name; raises NotFound."""
    group = find_account(connection, organisation, "organisation")
    statement = (
        select(accounts, memberships.c.role)
        .join(memberships, memberships.c.user == accounts.c.key)
        .where(memberships.c.organisation == group.key)
        .order_by(accounts.c.key)
    )
    return [
        Member(account=read_row(row, Account), role=msgspec.convert(row.role, Role))
        for row in connection.execute(statement)
    ]


def organisations_of(connection: Connection, user: str) -> list[Member]:
    """The organisations of a user (a key), each with the user's role in it."""
    statement = (
        select(accounts, memberships.c.role)
        .join(memberships, memberships.c.organisation == accounts.c.key)
        .where(memberships.c.user == user)
        .order_by(accounts.c.key)
    )
    return [
        Member(account=read_row(row, Account), role=msgspec.convert(row.role, Role))
        for row in connection.execute(statement)
    ]


def check_not_last_admin(connection: Connection, group: Account, leaving: Account) -> None:
    """Raises Conflict where `leaving` is the only admin of `group`."""
    rows = connection.execute(
        select(memberships.c.user).where(
            memberships.c.organisation == group.key, memberships.c.role == "admin"
        )
    ).all()
    if [row.user for row in rows] == [leaving.key]:
        raise Conflict(f"{leaving.name} is the only admin of {group.name}; make another one first.")


def _find(connection: Connection, name: str) -> Account | None:
    row = connection.execute(
        select(accounts).where(accounts.c.key == name.lower()[:200])
    ).one_or_none()
    return None if row is None else read_row(row, Account)


def _line(field: str, text: str) -> str:
    text = text.strip()
    if len(text) > FULL_NAME_CHARACTERS_MAX or (text and not text.isprintable()):
        raise BadRequest(
            f"{field} {text[:40]!r} must have at most {FULL_NAME_CHARACTERS_MAX} printable "
            "characters"
        )
    return text
