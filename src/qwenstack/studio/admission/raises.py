"""A temporary raise: more requests or tokens a minute than the plan allows, until an instant.

Model Studio has the same ("temporary quota increase", at most 30 days). A raise never lowers a
figure and never limits what has no limit. It ends by itself: what is asked is the clock.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qwenstack.studio.admission.limits import LIMIT_MAX, Limit

RAISE_S_MAX = 30 * 86_400


class Raise(msgspec.Struct, frozen=True, kw_only=True):
    """What one raise lifts, for a workspace or (`key_id`) for one of its keys.

    A workspace's lifts what its requests share: the limit of `model` alone, or, with None, those of
    every model and of all together. A key's lifts the plan's limit for each key; what the workspace
    shares holds for it as before. A figure that is None stays as the plan has it.
    """

    id: str
    workspace_id: str
    key_id: str | None = None
    model: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    reason: str = ""
    created_us: int
    until_us: int

    def __post_init__(self) -> None:
        figures = (self.requests_per_minute, self.tokens_per_minute)
        if figures == (None, None):
            raise ValueError("a raise needs requests or tokens a minute")
        for figure in figures:
            if figure is not None and not 1 <= figure <= LIMIT_MAX:
                raise ValueError(f"{figure} must lie between 1 and {LIMIT_MAX}")
        if self.key_id is not None and self.model is not None:
            raise ValueError("a key's limit counts all models together: name no model with a key")


def lifted_model(limit: Limit, model: str, raises: Iterable[Raise], now_us: int) -> Limit:
    """The limit of `model` at an instant."""
    return _lifted(
        limit,
        (each for each in raises if each.key_id is None and each.model in (None, model)),
        now_us,
    )


def lifted_whole(limit: Limit, raises: Iterable[Raise], now_us: int) -> Limit:
    """The limit of all of a workspace's requests together at an instant."""
    return _lifted(
        limit, (each for each in raises if each.key_id is None and each.model is None), now_us
    )


def lifted_key(limit: Limit, key_id: str, raises: Iterable[Raise], now_us: int) -> Limit:
    """The limit of one key at an instant."""
    return _lifted(limit, (each for each in raises if each.key_id == key_id), now_us)


def _lifted(limit: Limit, raises: Iterable[Raise], now_us: int) -> Limit:
    for each in raises:
        if now_us >= each.until_us:
            continue
        requests, tokens = each.requests_per_minute, each.tokens_per_minute
        # Without it, the plan's bound on bursts would take the raise back.
        bursts = Limit(requests_per_minute=requests, tokens_per_minute=tokens).with_bursts()
        limit = msgspec.structs.replace(
            limit,
            requests_per_minute=_more(limit.requests_per_minute, requests),
            tokens_per_minute=_more(limit.tokens_per_minute, tokens),
            requests_per_second=_more(limit.requests_per_second, bursts.requests_per_second),
            tokens_per_second=_more(limit.tokens_per_second, bursts.tokens_per_second),
        )
    return limit


def _more(figure: int | None, raised: int | None) -> int | None:
    return figure if figure is None or raised is None else max(figure, raised)
