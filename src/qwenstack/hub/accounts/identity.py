"""Who makes a request: an account by one of its tokens, or nobody in particular."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from qwenstack.hub.registry.repos import Kind

Role = Literal["read", "contributor", "write", "admin"]
"""A member's role in an organisation, in the field's own words."""

TokenRole = Literal["read", "write", "fineGrained"]
Right = Literal["read", "discuss", "write", "admin"]
"""What a fine-grained token may at most; each includes those before it."""

ROLES: tuple[Role, ...] = get_args(Role)
TOKEN_ROLES: tuple[TokenRole, ...] = get_args(TokenRole)
RIGHTS: tuple[Right, ...] = get_args(Right)


class Scope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a fine-grained token holds: a namespace, or with a `/` one repo; lower case.

    `kind` None takes models and datasets alike.
    """

    name: str
    right: Right
    kind: Kind | None = None

    def covers(self, kind: Kind, name: str) -> bool:
        """Whether the repo `name` (namespace/name) lies in this scope."""
        if self.kind is not None and self.kind != kind:
            return False
        name = name.lower()
        return name == self.name or name.partition("/")[0] == self.name


class UsedToken(msgspec.Struct, frozen=True, kw_only=True):
    """The token that a request came with, without its secret."""

    id: str
    name: str
    role: TokenRole
    scopes: tuple[Scope, ...] = ()
    created_us: int = 0


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A caller. `account` is the lower-case name, None for an anonymous one.

    `organisations` maps lower-case names to this account's role there. `guest_sees_public` says
    whether the hub shows its public repos to callers without a token.
    """

    account: str | None = None
    name: str = ""
    operator: bool = False
    organisations: Mapping[str, Role] = {}
    token: UsedToken | None = None
    guest_sees_public: bool = False

    @property
    def rules(self) -> bool:
        """Whether this request may administer the hub: an operator's, with a write token."""
        return self.operator and self.token is not None and self.token.role == "write"


def anonymous(*, sees_public: bool) -> Identity:
    """A caller without a token."""
    return Identity(guest_sees_public=sees_public)
