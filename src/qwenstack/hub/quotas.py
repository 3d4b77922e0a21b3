"""How much an account or organisation may keep here: limits, what counts, and the refusal.

Three things are counted. A namespace's repos, and the bytes of all contents that a branch or tag of
them ever had, each once (`bytes`). An account's uploads that no branch has (`waiting`), and of
those the ones for repos that it may only discuss (`guest`): so that nobody fills the disk with what
is never committed. Refusals are 403, as the hub that clients know answers a full account.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec
from sqlalchemy import Connection, func, select

from qwenstack.hub.accounts.directory import SYSTEM, find_account
from qwenstack.hub.errors import BadRequest, Forbidden
from qwenstack.hub.registry.repos import in_namespace
from qwenstack.hub.registry.waiting import waiting_of
from qwenstack.hub.store.rows import batches
from qwenstack.storage.audit_log import record
from qwenstack.storage.database import replace_in
from qwenstack.storage.hub_tables import accounts, contents, quotas, repo_contents, repos

EVERYBODY = "*"
"""In place of an account: what all get that have no limit of their own."""

UPSTREAM = "*upstream"
"""In place of an account: what a copy of another hub's repo brought and did not publish."""

UNLIMITED = -1
_LIMIT_MAX = 2**60


class QuotaExceeded(Forbidden):
    """The account may keep no more; the message says of what, and the way out."""

    code = "QuotaExceeded"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an account may at most. As it was set, None leaves a limit to the default and UNLIMITED
    lifts it; as it holds, None is no limit.
    """

    bytes_max: int | None = None
    repos_max: int | None = None
    waiting_bytes_max: int | None = None
    guest_bytes_max: int | None = None


DEFAULTS = Limits(
    bytes_max=UNLIMITED,
    repos_max=10_000,
    waiting_bytes_max=1024**4,
    guest_bytes_max=10 * 1024**3,
)


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What counts as an account's."""

    repos: int
    bytes: int
    waiting_bytes: int
    guest_bytes: int


def own_limits(connection: Connection, key: str) -> Limits:
    """What was set for this account (or for EVERYBODY)."""
    row = connection.execute(
        select(*(quotas.c[name] for name in Limits.__struct_fields__)).where(
            quotas.c.account == key
        )
    ).one_or_none()
    return Limits() if row is None else Limits(**row._mapping)


def limits_of(connection: Connection, key: str) -> Limits:
    """What holds for this account: its own limits, else everybody's, else the defaults."""
    found: dict[str, int | None] = {}
    for limits in (DEFAULTS, own_limits(connection, EVERYBODY), own_limits(connection, key)):
        given = msgspec.structs.asdict(limits)
        found |= {name: value for name, value in given.items() if value is not None}
    return Limits(**{name: None if it == UNLIMITED else it for name, it in found.items()})


def set_limits(
    connection: Connection, name: str, changes: dict[str, int | None], *, actor: str = SYSTEM
) -> Limits:
    """Change some limits of an account (or of EVERYBODY); None gives one back to the default.

    Raises NotFound for no such account, BadRequest for a value that no limit has.
    """
    key = EVERYBODY if name == EVERYBODY else find_account(connection, name).key
    for field, value in changes.items():
        if value is not None and not UNLIMITED <= value <= _LIMIT_MAX:
            raise BadRequest(f"{field} {value} must be {UNLIMITED} (no limit) to {_LIMIT_MAX}")
    limits = msgspec.structs.replace(own_limits(connection, key), **changes)
    replace_in(connection, quotas, [{"account": key, **msgspec.structs.asdict(limits)}])
    record(connection, actor, "hub.quota.set", key, limits)
    return limits


def usage_of(connection: Connection, key: str) -> Usage:
    """What counts as this account's now."""
    count = select(func.count()).select_from(repos).where(in_namespace(key))
    wait = waiting_of(connection, key)
    return Usage(
        repos=connection.scalar(count) or 0,
        bytes=published_bytes(connection, key),
        waiting_bytes=wait.bytes,
        guest_bytes=wait.guest_bytes,
    )


def published_bytes(connection: Connection, namespace: str) -> int:
    """The bytes that the namespace's branches and tags ever had, each content once."""
    held = (
        select(repo_contents.c.sha256)
        .join(repos, repos.c.id == repo_contents.c.repo_id)
        .where(in_namespace(namespace), repo_contents.c.published)
    )
    total = select(func.sum(contents.c.size)).where(contents.c.sha256.in_(held))
    return int(connection.scalar(total) or 0)


def hold_off(connection: Connection, name: str) -> None:
    """Let others of this account or namespace wait for the end of the transaction, so that two are
    not each just small enough.
    """
    connection.execute(
        select(accounts.c.key).where(accounts.c.key == name.lower()).with_for_update()
    )


def check_repos(connection: Connection, namespace: str) -> None:
    """Raises QuotaExceeded when the namespace may have no further repo."""
    most = limits_of(connection, namespace.lower()).repos_max
    if most is None:
        return
    hold_off(connection, namespace)
    count = select(func.count()).select_from(repos).where(in_namespace(namespace))
    if (connection.scalar(count) or 0) >= most:
        raise QuotaExceeded(
            f"{namespace} has {most} repos, its limit: delete some, or ask an operator for more."
        )


@contextmanager
def within_quota(connection: Connection, namespace: str) -> Iterator[None]:
    """Let the block publish contents in the namespace; raises QuotaExceeded where it is too much.

    The transaction must end with the exception. What frees nothing and adds nothing always passes.
    """
    most = limits_of(connection, namespace.lower()).bytes_max
    if most is None:
        yield
        return
    hold_off(connection, namespace)
    before = published_bytes(connection, namespace)
    yield
    after = published_bytes(connection, namespace)
    if after > max(most, before):
        raise _full(namespace, most, after)


def check_upload(
    connection: Connection,
    *,
    account: str,
    namespace: str,
    guest: bool,
    size: int,
    sha256s: Iterable[str] = (),
) -> None:
    """Raises QuotaExceeded when `size` more bytes may not come from this account.

    `sha256s`: those of them that the namespace has already count nothing.
    """
    check_waiting(connection, account, size, guest=guest)
    most = limits_of(connection, namespace.lower()).bytes_max
    if guest or most is None:
        return  # a guest's bytes count as the namespace's when they are merged
    new = size - _known_bytes(connection, namespace, list(sha256s))
    there = published_bytes(connection, namespace) if new > 0 else 0
    if new > 0 and there + new > most:
        raise _full(namespace, most, there + new)


def check_waiting(connection: Connection, account: str, size: int, *, guest: bool) -> None:
    """Raises QuotaExceeded when so many more bytes of this account may not wait."""
    limits, wait = limits_of(connection, account), waiting_of(connection, account)
    for most, there, what in (
        (limits.waiting_bytes_max, wait.bytes, "uploads that no branch has"),
        (limits.guest_bytes_max, wait.guest_bytes if guest else None, "uploads to repos of others"),
    ):
        if most is not None and there is not None and there + size > most:
            raise QuotaExceeded(
                f"{account} has {there} bytes of {what} and may have {most}; these are {size} "
                "more. Commit or merge them, or ask an operator for `hub gc` or a higher limit."
            )


def upload_bytes_max(connection: Connection, account: str, *, guest: bool) -> int:
    """What one upload of this account may have at most."""
    limits = limits_of(connection, account)
    bounds = (limits.waiting_bytes_max, limits.guest_bytes_max if guest else None)
    return min((most for most in bounds if most is not None), default=_LIMIT_MAX)


def _known_bytes(connection: Connection, namespace: str, sha256s: list[str]) -> int:
    total = 0
    for batch in batches(sha256s):
        held = (
            select(repo_contents.c.sha256)
            .join(repos, repos.c.id == repo_contents.c.repo_id)
            .where(in_namespace(namespace), repo_contents.c.published)
            .where(repo_contents.c.sha256.in_(batch))
        )
        query = select(func.sum(contents.c.size)).where(contents.c.sha256.in_(held))
        total += int(connection.scalar(query) or 0)
    return total


def _full(namespace: str, most: int, wanted: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"Storage limit reached: {namespace} may keep {most} bytes and would have {wanted}. Delete "
        "repos or large files (permanently_delete_lfs_files), or ask an operator for more."
    )
