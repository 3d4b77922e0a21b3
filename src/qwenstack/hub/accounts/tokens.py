"""Access tokens: `hf_` and 34 letters and digits, of which only the SHA-256 is kept.

The form is not free: clients check it. llama.cpp drops a token that is not `hf_` followed by
letters and digits, 37 characters in all.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string

import msgspec
from sqlalchemy import Connection, Row, insert, select, update

from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.directory import FULL_NAME_CHARACTERS_MAX, SYSTEM, find_account
from qwenstack.hub.accounts.identity import RIGHTS, TOKEN_ROLES, Scope, TokenRole
from qwenstack.hub.errors import BadRequest, NotFound
from qwenstack.hub.registry.repos import Kind
from qwenstack.storage.audit_log import record
from qwenstack.storage.hub_tables import tokens
from qwenstack.storage.rows import read_row

TOKEN_FORM = re.compile(r"hf_[A-Za-z0-9]{34}")
SCOPES_MAX = 100
TOKENS_PER_ACCOUNT_MAX = 500
_ALPHABET = string.ascii_letters + string.digits
_SHOWN_CHARACTERS = 9


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it is kept. `prefix` is what is shown of the secret."""

    id: str
    account: str
    name: str
    prefix: str
    digest: str
    role: TokenRole
    scopes: tuple[Scope, ...]
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None
    last_used_us: int | None = None

    def holds(self, at_us: int) -> bool:
        """Whether the token is good at this instant."""
        ends = (self.expires_us, self.revoked_us)
        return all(end is None or end > at_us for end in ends)


class NewToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token with its secret, which exists only here until it was shown."""

    token: Token
    secret: str


def draw_secret() -> str:
    """34 random letters and digits (202 bits): a plain SHA-256 at rest cannot be reversed."""
    return "hf_" + "".join(secrets.choice(_ALPHABET) for _ in range(34))


def token_digest(secret: str) -> str:
    """What is stored and looked up in place of a secret (SHA-256, hex)."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_token(
    connection: Connection,
    *,
    account: str,
    name: str,
    role: TokenRole = "read",
    scopes: tuple[Scope, ...] = (),
    expires_us: int | None = None,
    actor: str = SYSTEM,
) -> NewToken:
    """Make a token of a user and give its secret, once; raises HubError for a bad field."""
    owner = find_account(connection, account, "user")
    name = name.strip()
    if not name or len(name) > FULL_NAME_CHARACTERS_MAX or not name.isprintable():
        raise BadRequest(f"a token's name must be printable and short, not {name[:40]!r}")
    if role not in TOKEN_ROLES:
        raise BadRequest(f"role {str(role)[:40]!r} must be one of {', '.join(TOKEN_ROLES)}")
    if (role == "fineGrained") != bool(scopes):
        raise BadRequest("a fineGrained token needs scopes, and no other token takes any")
    if len(scopes) > SCOPES_MAX:
        raise BadRequest(f"a token takes at most {SCOPES_MAX} scopes")
    now = now_us()
    if expires_us is not None and expires_us <= now:
        raise BadRequest("the expiry lies in the past")
    if (
        sum(each.holds(now) for each in list_tokens(connection, owner.key))
        >= TOKENS_PER_ACCOUNT_MAX
    ):
        raise BadRequest(f"{owner.name} has {TOKENS_PER_ACCOUNT_MAX} tokens; revoke some first")
    secret = draw_secret()
    token = Token(
        id=new_id("tok"),
        account=owner.key,
        name=name,
        prefix=secret[:_SHOWN_CHARACTERS],
        digest=token_digest(secret),
        role=role,
        scopes=scopes,
        created_us=now,
        expires_us=expires_us,
    )
    row = msgspec.structs.asdict(token)
    row["scopes"] = msgspec.json.encode(scopes).decode()
    connection.execute(insert(tokens).values(**row))
    detail = {"account": owner.key, "prefix": token.prefix, "role": role, "scopes": scopes}
    record(connection, actor, "hub.token.create", token.id, detail)
    return NewToken(token=token, secret=secret)


def list_tokens(connection: Connection, account: str | None = None) -> list[Token]:
    """The tokens of an account (a key), or all, the newest first."""
    statement = select(tokens).order_by(tokens.c.id.desc())
    if account is not None:
        statement = statement.where(tokens.c.account == account)
    return [_token(row) for row in connection.execute(statement.limit(10_000))]


def find_token(connection: Connection, reference: str) -> Token:
    """The token with this id or shown prefix; raises NotFound for none or several."""
    rows = connection.execute(
        select(tokens).where((tokens.c.id == reference) | (tokens.c.prefix == reference)).limit(2)
    ).all()
    if len(rows) != 1:
        raise NotFound(
            f"{'Several' if rows else 'No'} tokens match {reference[:80]!r}; `qwenstack hub tokens "
            "list` shows their ids."
        )
    return _token(rows[0])


def token_of_secret(connection: Connection, secret: str) -> Token | None:
    """The token that this is the secret of, in force or not."""
    if not TOKEN_FORM.fullmatch(secret):
        return None
    digest = token_digest(secret)
    row = connection.execute(select(tokens).where(tokens.c.digest == digest)).one_or_none()
    return None if row is None else _token(row)


def revoke_token(connection: Connection, reference: str, *, actor: str = SYSTEM) -> Token:
    """End a token now; a token that is over stays as it is. Raises NotFound."""
    token = find_token(connection, reference)
    if token.revoked_us is not None:
        return token
    at_us = now_us()
    connection.execute(update(tokens).where(tokens.c.id == token.id).values(revoked_us=at_us))
    detail = {"account": token.account, "prefix": token.prefix}
    record(connection, actor, "hub.token.revoke", token.id, detail)
    return msgspec.structs.replace(token, revoked_us=at_us)


def touch_token(connection: Connection, token_id: str, at_us: int) -> None:
    """Note when a token was last used."""
    connection.execute(update(tokens).where(tokens.c.id == token_id).values(last_used_us=at_us))


def parse_scope(text: str) -> Scope:
    """`acme=read`, `acme/model=write` or `datasets/acme/set=write`; raises BadRequest."""
    where, _, right = text.rpartition("=")
    kind: Kind | None = None
    for prefix, each in (("datasets/", "dataset"), ("models/", "model")):
        if where.startswith(prefix):
            where, kind = where.removeprefix(prefix), msgspec.convert(each, Kind)
    if right not in RIGHTS or not where or where.count("/") > 1:
        raise BadRequest(
            f"scope {text[:80]!r} must be NAMESPACE=RIGHT, NAMESPACE/NAME=RIGHT or "
            f"datasets/NAMESPACE/NAME=RIGHT, with a right of {', '.join(RIGHTS)}"
        )
    return msgspec.convert({"name": where.lower(), "right": right, "kind": kind}, Scope)


def _token(row: Row[tuple[object, ...]]) -> Token:
    return read_row(row, Token, scopes=msgspec.json.decode(row.scopes))
