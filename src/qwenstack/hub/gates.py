"""Gated repos: who asked for access, and what was decided.

`auto` accepts whoever asks and keeps their name; `manual` waits for the repo's own people.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec
from sqlalchemy import Connection, Row, select, update

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.directory import Account, find_account
from qwenstack.hub.errors import BadRequest, NotFound
from qwenstack.hub.registry.repos import Repo
from qwenstack.storage.audit_log import record
from qwenstack.storage.database import replace_in
from qwenstack.storage.hub_tables import access_requests, accounts
from qwenstack.storage.rows import read_row

Outcome = Literal["pending", "accepted", "rejected"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
REASON_CHARACTERS_MAX = 200
FIELDS_MAX = 20
FIELD_CHARACTERS_MAX = 1000


class AccessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a gated repo; `fields` is what the asker filled in.

    `asked` is false for who was let in without asking: their address is not shown to anybody.
    """

    repo_id: str
    account: str
    status: Outcome
    fields: dict[str, str]
    reason: str | None
    requested_us: int
    decided_us: int | None
    decided_by: str | None
    asked: bool = True


def ask(
    connection: Connection, repo: Repo, account: str, fields: dict[str, str] | None = None
) -> AccessRequest:
    """Ask for access; a request that is there already stays as it is. Raises BadRequest."""
    _check_gated(repo)
    found = find_request(connection, repo, account)
    if found is not None and found.asked:
        return found
    fields = fields or {}
    sizes = [len(text) for pair in fields.items() for text in pair]
    if len(fields) > FIELDS_MAX or max(sizes, default=0) > FIELD_CHARACTERS_MAX:
        raise BadRequest(
            f"a request has at most {FIELDS_MAX} fields of {FIELD_CHARACTERS_MAX} characters"
        )
    if found is not None:
        found = msgspec.structs.replace(found, fields=fields, asked=True)
        _put(connection, found)
        return found
    now = now_us()
    automatic = repo.gated == "auto"
    request = AccessRequest(
        repo_id=repo.id,
        account=account,
        status="accepted" if automatic else "pending",
        fields=fields,
        reason=None,
        requested_us=now,
        decided_us=now if automatic else None,
        decided_by=None,
    )
    _put(connection, request)
    return request


def decide(
    connection: Connection,
    repo: Repo,
    user: str,
    outcome: Outcome,
    *,
    by: str,
    reason: str | None = None,
) -> AccessRequest:
    """Accept, reject, or set back to pending.

    Raises BadRequest for a repo that is not gated, NotFound for an unknown user, for no request,
    and for one that has this outcome already: the client's documented answers.
    """
    _check_gated(repo)
    account = find_account(connection, user, "user")
    request = find_request(connection, repo, account.key)
    if request is None:
        raise NotFound(f"{account.name} has not asked for access to {repo.name}.")
    if request.status == outcome:
        raise NotFound(f"The request of {account.name} for {repo.name} is {outcome} already.")
    if reason is not None and len(reason) > REASON_CHARACTERS_MAX:
        raise BadRequest(f"rejectionReason has at most {REASON_CHARACTERS_MAX} characters")
    decided = None if outcome == "pending" else now_us()
    changed = msgspec.structs.replace(
        request, status=outcome, reason=reason, decided_us=decided, decided_by=by
    )
    connection.execute(
        update(access_requests)
        .where(access_requests.c.repo_id == repo.id, access_requests.c.account == account.key)
        .values(status=outcome, reason=reason, decided_us=decided, decided_by=by)
    )
    detail = {"account": account.key, "outcome": outcome}
    record(connection, by, "hub.access.decide", repo.name, detail)
    return changed


def grant(connection: Connection, repo: Repo, user: str, *, by: str) -> AccessRequest:
    """Give access without a request; raises BadRequest where the user has it already."""
    _check_gated(repo)
    account = find_account(connection, user, "user")
    found = find_request(connection, repo, account.key)
    if found is not None and found.status == "accepted":
        raise BadRequest(f"{account.name} has access to {repo.name} already.")
    now = now_us()
    request = AccessRequest(
        repo_id=repo.id,
        account=account.key,
        status="accepted",
        fields=found.fields if found else {},
        reason=None,
        requested_us=found.requested_us if found else now,
        decided_us=now,
        decided_by=by,
        asked=found.asked if found else False,
    )
    _put(connection, request)
    record(connection, by, "hub.access.grant", repo.name, {"account": account.key})
    return request


def list_requests(
    connection: Connection, repo: Repo, outcome: Outcome, *, after: str, limit: int
) -> list[tuple[AccessRequest, Account]]:
    """Requests of this outcome with who made them, by account key from `after` on."""
    _check_gated(repo)
    table = access_requests
    statement = (
        select(table)
        .where(table.c.repo_id == repo.id, table.c.status == outcome, table.c.account > after)
        .order_by(table.c.account)
        .limit(limit)
    )
    found = [_request(row) for row in connection.execute(statement)]
    keys = [each.account for each in found]
    people = {
        row.key: read_row(row, Account)
        for row in connection.execute(select(accounts).where(accounts.c.key.in_(keys)))
    }
    return [(each, people[each.account]) for each in found]


def find_request(connection: Connection, repo: Repo, account: str) -> AccessRequest | None:
    """The request of this account (a key), if it made one."""
    row = connection.execute(
        select(access_requests).where(
            access_requests.c.repo_id == repo.id, access_requests.c.account == account
        )
    ).one_or_none()
    return None if row is None else _request(row)


def _check_gated(repo: Repo) -> None:
    if not repo.gated:
        raise BadRequest(f"{repo.name} is not gated; there is no access to ask for.")


def _put(connection: Connection, request: AccessRequest) -> None:
    row = msgspec.structs.asdict(request)
    row["fields"] = msgspec.json.encode(request.fields).decode()
    replace_in(connection, access_requests, [row])


def _request(row: Row[tuple[object, ...]]) -> AccessRequest:
    return read_row(row, AccessRequest, fields=msgspec.json.decode(row.fields))
