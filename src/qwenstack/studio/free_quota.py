"""Free quota: tokens of one model that an account may use without charge until a date.

The vendor's rules (Model Studio, "Free quota for new users", read 2026-11-24): a grant is for one
model and one account, shared by everything under it; it covers real-time inference only, neither
batch nor cache meters (`pricing.quote` sees to the meters); what is left at expiry is lost.
Everything here is a pure function; storing the result together with the charge is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec


class FreeGrant(msgspec.Struct, frozen=True, kw_only=True):
    """`tokens` of `model` for `account_id`, usable from `starts_at` until `expires_at` (excluded).

    `used` tokens of it are gone; 0 ≤ used ≤ tokens.
    """

    id: str
    account_id: str
    model: str
    tokens: int
    used: int = 0
    starts_at: datetime
    expires_at: datetime

    def __post_init__(self) -> None:
        if not 0 <= self.used <= self.tokens:
            raise ValueError(f"grant {self.id}: {self.used} used of {self.tokens} tokens")
        if self.expires_at <= self.starts_at:
            raise ValueError(f"grant {self.id}: expires_at is not after starts_at")

    @property
    def left(self) -> int:
        """Tokens not used yet, expired or not."""
        return self.tokens - self.used

    def usable(self, account_id: str, model: str, at: datetime) -> bool:
        """Whether a request by this account to this model at `at` may draw on the grant."""
        return (
            self.account_id == account_id
            and self.model == model
            and self.left > 0
            and self.starts_at <= at < self.expires_at
        )


class FreeDraw(msgspec.Struct, frozen=True):
    """`tokens` taken from the grant `grant_id`."""

    grant_id: str
    tokens: int


def free_tokens(
    grants: Iterable[FreeGrant], account_id: str, model: str, at: datetime, *, batch: bool = False
) -> int:
    """What is left for a request begun at `at`: the `free_tokens_left` of `pricing.quote`."""
    if batch:
        return 0
    return sum(grant.left for grant in grants if grant.usable(account_id, model, at))


def draw(
    grants: Iterable[FreeGrant], account_id: str, model: str, at: datetime, tokens: int
) -> tuple[tuple[FreeDraw, ...], tuple[FreeGrant, ...]]:
    """Take `tokens` from the grants, the first to expire first (then by id).

    Returns the draws and all grants afterwards, in the order given. Raises ValueError when fewer
    are left, so that a race shows up and no grant ever goes below zero.
    """
    if tokens < 0:
        raise ValueError(f"cannot draw {tokens} tokens")
    kept = list(grants)
    order = sorted(
        (place for place, grant in enumerate(kept) if grant.usable(account_id, model, at)),
        key=lambda place: (kept[place].expires_at, kept[place].id),
    )
    draws = []
    missing = tokens
    for place in order:
        if not missing:
            break
        grant = kept[place]
        taken = min(missing, grant.left)
        missing -= taken
        draws.append(FreeDraw(grant.id, taken))
        kept[place] = msgspec.structs.replace(grant, used=grant.used + taken)
    if missing:
        raise ValueError(
            f"account {account_id} has {tokens - missing} free tokens of {model} left, "
            f"not {tokens}; price the request again"
        )
    return tuple(draws), tuple(kept)
