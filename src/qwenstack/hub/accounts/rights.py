"""Who may do what. Pure: an identity and a repo in, a decision with its reason out.

Two ceilings apply, and the lower one counts: what the account may (owner, organisation role,
operator, stranger), and what its token was made for. Roles follow the hub that clients know:
an organisation's `read` members see its private repos, a `contributor` rules the repos that they
made, `write` rules every repo of the organisation, `admin` its members too.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qwenstack.hub.accounts.identity import RIGHTS, Identity, Right, Scope
from qwenstack.hub.registry.repos import Kind, Repo

Action = Literal["see", "read", "discuss", "write", "admin"]
"""To know of a repo, to read its files, to talk about it, to push to it, to rule it."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an act is allowed; if not, why, in words for the caller.

    `as_not_found`: the caller may not even learn that the repo exists. `gated`: the repo's terms
    would have to be accepted. `needs_account`: a token would change the answer.
    """

    allowed: bool
    why: str = ""
    as_not_found: bool = False
    gated: bool = False
    needs_account: bool = False


_ALLOWED = Decision(allowed=True)

HIDDEN = "Repository not found"
"""Said of a repo that is not there and of one that is hidden alike: the words must not differ.

huggingface_hub says it at length itself, and adds what of the server's words it does not say yet.
"""


def may(identity: Identity, repo: Repo, action: Action, *, accepted: bool = False) -> Decision:
    """Whether `identity` may do `action` to `repo`.

    `accepted` says that this account's request for a gated repo was accepted.
    """
    standing = _standing(identity, repo)
    if standing is None and (repo.private or not _sees_public(identity)):
        return _hidden(identity)
    # A private repo's existence is content too: a token without a scope on it sees none.
    ceiling = _token_ceiling(identity, repo)
    if repo.private and ceiling is None:
        return _hidden(identity)
    if action == "see":
        return _ALLOWED
    if action != "read" and identity.account is None:
        return Decision(
            allowed=False,
            why=f"{_doing(action)} {repo.name} needs a token; make one and set HF_TOKEN.",
            needs_account=True,
        )
    if repo.gated and standing is None and not accepted:
        return Decision(
            allowed=False,
            why=f"Access to {repo.kind} {repo.name} is restricted and you are not in the "
            "authorized list. It is gated: ask for access on its page and accept its terms first.",
            gated=True,
            needs_account=identity.account is None,
        )
    if action == "read":
        # A public file is anybody's; a gated or private one asks for a token that reaches it.
        if ceiling is not None or not (repo.private or repo.gated):
            return _ALLOWED
        return _token_refused(repo, action)
    if _rank(ceiling) < _rank(action):
        return _token_refused(repo, action)
    if action != "discuss" and _rank(standing) < _rank(action):
        return Decision(
            allowed=False, why=f"{identity.name} has no right to {_verb(action)} {repo.name}."
        )
    return _ALLOWED


def may_create(identity: Identity, namespace: str, kind: Kind | None = None) -> Decision:
    """Whether `identity` may make repos under `namespace`; `kind` None: of some kind."""
    key = namespace.lower()
    if identity.account is None or identity.token is None:
        return Decision(
            allowed=False, why="Making a repo needs a token with write access.", needs_account=True
        )
    token = identity.token
    scoped = any(
        each.name == key
        and _rank(each.right) >= _rank("write")
        and kind in (None, each.kind or kind)
        for each in token.scopes
    )
    if token.role == "read" or (token.role == "fineGrained" and not scoped):
        return Decision(
            allowed=False,
            why=f"The token {token.name!r} has no write access to the namespace {namespace}.",
        )
    if identity.account == key or identity.operator:
        return _ALLOWED
    if identity.organisations.get(key) in ("contributor", "write", "admin"):
        return _ALLOWED
    return Decision(
        allowed=False, why=f"{identity.name} may not make repos in the namespace {namespace}."
    )


def may_manage(identity: Identity, organisation: str) -> Decision:
    """Whether `identity` may change an organisation's members."""
    token = identity.token
    rules = identity.operator or identity.organisations.get(organisation.lower()) == "admin"
    if rules and token is not None and token.role == "write":
        return _ALLOWED
    return Decision(
        allowed=False,
        why=f"Changing {organisation} needs its admin role and a write token.",
        needs_account=identity.account is None,
    )


def _standing(identity: Identity, repo: Repo) -> Right | None:
    """What the account itself may at most; None for a stranger, who may what everybody may."""
    if identity.account is None:
        return None
    namespace = repo.namespace.lower()
    if identity.account == namespace or identity.operator:
        return "admin"
    match identity.organisations.get(namespace):
        case "write" | "admin":
            return "admin"
        case "contributor":
            return "admin" if repo.created_by.lower() == identity.account else "discuss"
        case "read":
            return "discuss"
    return None


def _token_ceiling(identity: Identity, repo: Repo) -> Right | None:
    token = identity.token
    if token is None:
        return None
    if token.role == "write":
        return "admin"
    if token.role == "read":
        return "read"
    return widest(token.scopes, repo.kind, repo.name)


def widest(scopes: tuple[Scope, ...], kind: Kind, name: str) -> Right | None:
    """The widest right that any of the scopes gives on a repo."""
    rights = [each.right for each in scopes if each.covers(kind, name)]
    return max(rights, key=_rank, default=None)


def _sees_public(identity: Identity) -> bool:
    return identity.account is not None or identity.guest_sees_public


def _hidden(identity: Identity) -> Decision:
    return Decision(
        allowed=False,
        why=HIDDEN,
        as_not_found=True,
        needs_account=identity.account is None,
    )


def _token_refused(repo: Repo, action: Action) -> Decision:
    return Decision(
        allowed=False,
        why=f"This token has no right to {_verb(action)} {repo.name}; use one that has.",
    )


def _rank(right: str | None) -> int:
    return -1 if right is None else RIGHTS.index(right)


def _verb(action: Action) -> str:
    return {
        "see": "see",
        "read": "read the files of",
        "discuss": "write in the discussions of",
        "write": "push to",
        "admin": "change the settings of",
    }[action]


def _doing(action: Action) -> str:
    return {
        "see": "Seeing",
        "read": "Reading",
        "discuss": "Writing in the discussions of",
        "write": "Pushing to",
        "admin": "Changing",
    }[action]
