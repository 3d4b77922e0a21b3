"""Accounts in the shapes that clients know, shared by the routes that name people."""

from __future__ import annotations

import msgspec

from qwenstack.hub.accounts.directory import Account, Member
from qwenstack.hub.accounts.identity import Identity, Right, Scope
from qwenstack.hub.accounts.tokens import Token
from qwenstack.hub.http.instants import wire_instant

# What a fine-grained right is called on the wire; each includes those before it.
_PERMISSIONS: dict[Right, list[str]] = {
    "read": ["repo.content.read"],
    "discuss": ["repo.content.read", "discussion.write"],
    "write": ["repo.content.read", "discussion.write", "repo.write"],
    "admin": ["repo.content.read", "discussion.write", "repo.write", "repo.access.read"],
}


class Person(msgspec.Struct, rename="camel"):
    """A user as lists of users show one."""

    user: str
    fullname: str
    avatar_url: str
    type: str = "user"
    is_pro: bool = False


class Author(msgspec.Struct, rename="camel"):
    """Whoever did something, in a discussion."""

    name: str
    fullname: str
    avatar_url: str
    type: str = "user"
    is_hf: bool = False
    is_pro: bool = False


def avatar(key: str) -> str:
    """The path of an account's picture: its first letter, drawn by the pages."""
    return f"/avatars/{key}.svg"


def person(account: Account) -> Person:
    """A user for a list."""
    return Person(account.name, account.full_name, avatar(account.key))


def author(key: str, accounts: dict[str, Account]) -> Author:
    """Who did it; an account that is gone is shown by its key."""
    account = accounts.get(key)
    if account is None:
        return Author(key, key, avatar(key))
    return Author(account.name, account.full_name, avatar(account.key))


def organisation(member: Member) -> dict[str, object]:
    """An organisation with the asking user's role in it."""
    account = member.account
    return {
        "type": "org",
        "id": account.key,
        "name": account.name,
        "fullname": account.full_name,
        "email": account.email,
        "avatarUrl": avatar(account.key),
        "roleInOrg": member.role,
        "isEnterprise": False,
        "canPay": False,
        "periodEnd": None,
    }


def whoami(account: Account, organisations: list[Member], identity: Identity) -> dict[str, object]:
    """What `whoami-v2` says of the caller and the token."""
    token = identity.token
    shown: dict[str, object] = {}
    if token is not None:
        shown = {
            "displayName": token.name,
            "role": token.role,
            "createdAt": wire_instant(token.created_us),
        }
        if token.role == "fineGrained":
            shown["fineGrained"] = {
                "canReadGatedRepos": True,
                "global": [],
                "scoped": [_scope(each) for each in token.scopes],
            }
    return {
        "type": "user",
        "id": account.key,
        "name": account.name,
        "fullname": account.full_name,
        "email": account.email,
        "emailVerified": account.email is not None,
        "canPay": False,
        "periodEnd": None,
        "isPro": False,
        "isOperator": account.operator,
        "avatarUrl": avatar(account.key),
        "orgs": [organisation(each) for each in organisations],
        "auth": {"type": "access_token", "accessToken": shown},
    }


def _scope(scope: Scope) -> dict[str, object]:
    whole = "/" not in scope.name
    entity: dict[str, object] = {
        "_id": scope.name,
        "type": "namespace" if whole else scope.kind or "repo",
        "name": scope.name,
    }
    if whole and scope.kind is not None:
        entity["kind"] = scope.kind
    return {"entity": entity, "permissions": _PERMISSIONS[scope.right]}


class ShownToken(msgspec.Struct, rename="camel"):
    """A token for those who administer tokens; never its secret or its digest."""

    id: str
    account: str
    name: str
    prefix: str
    role: str
    scopes: tuple[Scope, ...]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


def shown_token(token: Token) -> ShownToken:
    """A token without what must not be shown."""
    return ShownToken(
        id=token.id,
        account=token.account,
        name=token.name,
        prefix=token.prefix,
        role=token.role,
        scopes=token.scopes,
        created_at=wire_instant(token.created_us),
        expires_at=_maybe(token.expires_us),
        revoked_at=_maybe(token.revoked_us),
        last_used_at=_maybe(token.last_used_us),
    )


def _maybe(at_us: int | None) -> str | None:
    return None if at_us is None else wire_instant(at_us)
