"""The hub's authority over its database: tokens to identities, identities to permissions."""

from __future__ import annotations

import hashlib
import hmac
import logging

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import OperationalError

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.directory import find_account, organisations_of
from qwenstack.hub.accounts.identity import Identity, UsedToken, anonymous
from qwenstack.hub.accounts.rights import HIDDEN, Action, Decision, may, may_create
from qwenstack.hub.accounts.tokens import Token, find_token, token_of_secret, touch_token
from qwenstack.hub.errors import Forbidden, GatedRepo, NotFound, RepoNotFound, Unauthorized
from qwenstack.hub.registry.repos import Kind, Repo, find_repo
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import access_requests

_LOG = logging.getLogger(__name__)

# The client library tells a bad token from a missing repo by this very sentence.
BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105
_TOUCH_AFTER_US = 60 * 1_000_000


class Accounts:
    """Who a caller is, and what they may. Every method may block on the database."""

    def __init__(
        self, database: Engine, session_secret: bytes, *, anonymous_read: bool = False
    ) -> None:
        self._database = database
        self._session_secret = session_secret
        self.anonymous_read = anonymous_read

    def identify(self, token: str | None, session: str | None = None) -> Identity:
        """The identity of a bearer token, else of a browser's session, else the anonymous one.

        Raises Unauthorized for an unknown token; a stale session is nobody's.
        """
        if token is None:
            return self._of_session(session)
        with reading(self._database) as connection:
            found = token_of_secret(connection, token)
            identity = None if found is None else identity_of(connection, found)
        if found is None or identity is None:
            raise Unauthorized(BAD_TOKEN)
        self._touch(found)
        return identity

    def _of_session(self, cookie: str | None) -> Identity:
        nobody = anonymous(sees_public=self.anonymous_read)
        token_id = session_token(cookie or "", self._session_secret)
        if token_id is None:
            return nobody
        with reading(self._database) as connection:
            try:
                return identity_of(connection, find_token(connection, token_id)) or nobody
            except NotFound:
                return nobody

    def decide(self, identity: Identity, repo: Repo, action: Action) -> Decision:
        """`may`, with what the database knows of this account's access to a gated repo."""
        decision = may(identity, repo, action)
        if not decision.gated or identity.account is None:
            return decision
        with reading(self._database) as connection:
            accepted = is_accepted(connection, repo.id, identity.account)
        return may(identity, repo, action, accepted=accepted)

    def find(
        self, connection: Connection, identity: Identity, kind: Kind, name: str, action: Action
    ) -> Repo:
        """The repo of this name, which the identity may do `action` with. Raises HubError."""
        repo = find_repo(connection, kind, name)
        if repo is None:
            raise RepoNotFound(HIDDEN)
        decision = may(identity, repo, action)
        if decision.gated and identity.account is not None:
            accepted = is_accepted(connection, repo.id, identity.account)
            decision = may(identity, repo, action, accepted=accepted)
        refuse(decision)
        return repo

    def check(self, identity: Identity, repo: Repo, action: Action) -> None:
        """Raises RepoNotFound for whoever may not know of the repo, GatedRepo, Forbidden."""
        refuse(self.decide(identity, repo, action))

    def check_namespace(
        self, identity: Identity, namespace: str | None, kind: Kind | None = None
    ) -> str:
        """The namespace to make a repo in, as it is written; None is the caller's own.

        Raises Forbidden, or NotFound when no account or organisation has that name.
        """
        wanted = namespace or identity.name
        refuse(may_create(identity, wanted, kind))
        with reading(self._database) as connection:
            return find_account(connection, wanted).name

    def _touch(self, token: Token) -> None:
        now = now_us()
        if token.last_used_us is not None and now - token.last_used_us < _TOUCH_AFTER_US:
            return
        try:
            with self._database.begin() as connection:
                touch_token(connection, token.id, now)
        except OperationalError as error:
            # A full disk or a busy database must not refuse a reader.
            _LOG.warning("cannot note the use of token %s: %s", token.prefix, error.orig)


def identity_of(connection: Connection, token: Token) -> Identity | None:
    """Who a token speaks for; None when it is over."""
    if not token.holds(now_us()):
        return None
    account = find_account(connection, token.account, "user")
    return Identity(
        account=account.key,
        name=account.name,
        operator=account.operator,
        organisations={
            each.account.key: each.role for each in organisations_of(connection, account.key)
        },
        token=UsedToken(
            id=token.id,
            name=token.name,
            role=token.role,
            scopes=token.scopes,
            created_us=token.created_us,
        ),
    )


def is_accepted(connection: Connection, repo_id: str, account: str) -> bool:
    """Whether this account's request for a gated repo was accepted."""
    status = connection.scalar(
        select(access_requests.c.status).where(
            access_requests.c.repo_id == repo_id, access_requests.c.account == account
        )
    )
    return status == "accepted"


def refuse(decision: Decision) -> None:
    """Raise the error that words a refusal on the wire; nothing for an allowed act."""
    if decision.allowed:
        return
    if decision.as_not_found:
        raise RepoNotFound(decision.why)
    if decision.gated:
        raise GatedRepo(decision.why)
    if decision.needs_account:
        raise Unauthorized(decision.why)
    raise Forbidden(decision.why)


def session_cookie(token_id: str, expires_us: int, secret: bytes) -> str:
    """A browser's session: the token's id and an end, signed; the token itself is not in it."""
    body = f"{token_id}.{expires_us}"
    return f"{body}.{_signature(body, secret)}"


def session_token(cookie: str, secret: bytes) -> str | None:
    """The token's id of a session that is signed by `secret` and not over."""
    body, _, signature = cookie.rpartition(".")
    token_id, _, end = body.partition(".")
    if (
        len(cookie) > 200
        or not cookie.isascii()
        or not hmac.compare_digest(signature, _signature(body, secret))
    ):
        return None
    return token_id if end.isdigit() and int(end) > now_us() else None


def _signature(body: str, secret: bytes) -> str:
    return hmac.new(secret, b"session:" + body.encode(), hashlib.sha256).hexdigest()
