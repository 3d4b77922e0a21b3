"""Rate limits as data: what a tier allows, what an admission was granted, why one was refused.

Nothing here performs I/O or keeps state; `memory` and `valkey` do, behind the `Limiter` protocol.

The rule, for each scope and each of its windows (60 s, and 1 s where the tier has per-second
figures): over any half-open span `(s, s + window]` the requests admitted, and the tokens that
those requests kept, do not exceed the limit. Tokens belong to the instant of admission: reserved
then, and what was not used returns to that same instant at settlement. Tokens count input and
output together, as the vendor does (Model Studio, "Rate limits").
"""

from __future__ import annotations

import enum
import math
from typing import Protocol

import msgspec

from qwenstack.core.refusals import Refusal, RefusalKind

MINUTE_US = 60_000_000
SECOND_US = 1_000_000
# Nothing tells when a running request will end: this is a polite guess, not a promise.
CONCURRENCY_RETRY_US = SECOND_US
LIMIT_MAX = 10**12


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """What one scope may use. None is no limit; 0 admits nothing.

    `requests_per_second` and `tokens_per_second` bound bursts inside the minute; the vendor uses a
    sixtieth of the per-minute figures (`with_bursts`). `concurrency` counts running requests.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    requests_per_second: int | None = None
    tokens_per_second: int | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= LIMIT_MAX:
                raise ValueError(f"{name} is {value}; it must lie between 0 and {LIMIT_MAX}")

    @property
    def per_second(self) -> bool:
        """Whether the 1 s window applies."""
        return self.requests_per_second is not None or self.tokens_per_second is not None

    def with_bursts(self) -> Limit:
        """The same limit with the vendor's per-second figures: a sixtieth, rounded up."""
        return msgspec.structs.replace(
            self,
            requests_per_second=_sixtieth(self.requests_per_minute),
            tokens_per_second=_sixtieth(self.tokens_per_minute),
        )


def _sixtieth(per_minute: int | None) -> int | None:
    return None if per_minute is None else -(-per_minute // 60)


Scopes = tuple[tuple[str, Limit], ...]
"""Every scope that a request counts in, each once, as (scope id, limit)."""

SCOPES_MAX = 16


class LimitKind(enum.Enum):
    """Which figure of a limit refused a request."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"
    OVERSIZED = "oversized"
    """More tokens than a whole window allows, or a limit of 0: waiting never helps."""
    HISTORY_LOST = "history_lost"
    """The shared store lost what was admitted lately, so the limit can't be vouched for yet."""


class Snapshot(msgspec.Struct, frozen=True):
    """The minute window of the tightest scope, after the decision; one side may be another scope.

    `reset_*_us` is the time until the window is empty again if nothing more is admitted. `limit_*`
    is None where no scope limits that figure.
    """

    limit_requests: int | None = None
    remaining_requests: int = 0
    reset_requests_us: int = 0
    limit_tokens: int | None = None
    remaining_tokens: int = 0
    reset_tokens_us: int = 0


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation that was not granted. Nothing was counted in any scope.

    `limit` is the figure of `scope` that refused, over `window_us` (0 for concurrency), `asked` the
    tokens of the request. `retry_after_us` None: the same request will never be admitted.
    """

    kind: LimitKind
    scope: str
    limit: int
    window_us: int
    asked: int
    retry_after_us: int | None
    snapshot: Snapshot

    @property
    def retry_after_s(self) -> float | None:
        """`retry_after_us` in seconds."""
        return None if self.retry_after_us is None else self.retry_after_us / SECOND_US


class Admission(Protocol):
    """A granted reservation. Settle it exactly once, in a `finally`."""

    @property
    def reserved_tokens(self) -> int:
        """What was counted, and what `settle` gives the unused part of back from."""
        ...

    @property
    def snapshot(self) -> Snapshot:
        """The tightest scope right after this reservation."""
        ...


class LimiterUnavailableError(Exception):
    """The shared store did not answer, so nobody knows what is left: refuse, never admit."""


class Limiter(Protocol):
    """Counts requests against their scopes, all or nothing."""

    async def reserve(self, workspace: str, scopes: Scopes, tokens: int) -> Admission | Refused:
        """Count one request and `tokens` in every scope of `workspace`, or in none.

        `tokens` is the most that the request may use: prompt plus maximum output. Raises
        LimiterUnavailableError.
        """
        ...

    async def settle(self, admission: Admission, actual_tokens: int) -> None:
        """End a request that used `actual_tokens`: the rest returns, its concurrency is freed.

        A void is `settle(admission, 0)`: the request still counts as one. Tokens beyond the
        reservation can't be un-admitted; they are charged at once and delay the requests after.
        A second settlement does nothing. Raises LimiterUnavailableError: the reservation stands
        until its window has passed, and the concurrency until its lease has.
        """
        ...

    async def close(self) -> None:
        """Release connections. Running requests keep what they hold."""
        ...


def check_request(scopes: Scopes, tokens: int) -> None:
    """Raise ValueError for a reservation that no caller should make."""
    if tokens < 0:
        raise ValueError(f"cannot reserve {tokens} tokens; the number must be 0 or more")
    if len(scopes) > SCOPES_MAX:
        raise ValueError(f"{len(scopes)} scopes for one request; at most {SCOPES_MAX} are allowed")
    if len({scope for scope, _ in scopes}) != len(scopes):
        raise ValueError(f"a scope is named twice: {', '.join(scope for scope, _ in scopes)}")


def never_fits(scopes: Scopes, tokens: int, snapshot: Snapshot) -> Refused | None:
    """The refusal of a request that no amount of waiting makes admissible, or None."""
    for scope, limit in scopes:
        for most, asked, window_us in (
            (limit.tokens_per_minute, tokens, MINUTE_US),
            (limit.tokens_per_second, tokens, SECOND_US),
            (limit.requests_per_minute, 1, MINUTE_US),
            (limit.requests_per_second, 1, SECOND_US),
            (limit.concurrency, 1, 0),
        ):
            if most is not None and asked > most:
                return Refused(
                    kind=LimitKind.OVERSIZED,
                    scope=scope,
                    limit=most,
                    window_us=window_us,
                    asked=tokens,
                    retry_after_us=None,
                    snapshot=snapshot,
                )
    return None


def rate_limit_headers(snapshot: Snapshot) -> tuple[tuple[bytes, bytes], ...]:
    """The `x-ratelimit-*` response headers, with resets as OpenAI writes them (`6m0s`, `120ms`)."""
    headers: list[tuple[bytes, bytes]] = []
    for name, limit, remaining, reset_us in (
        (
            "requests",
            snapshot.limit_requests,
            snapshot.remaining_requests,
            snapshot.reset_requests_us,
        ),
        ("tokens", snapshot.limit_tokens, snapshot.remaining_tokens, snapshot.reset_tokens_us),
    ):
        if limit is None:
            continue
        headers += [
            (f"x-ratelimit-limit-{name}".encode(), b"%d" % limit),
            (f"x-ratelimit-remaining-{name}".encode(), b"%d" % remaining),
            (f"x-ratelimit-reset-{name}".encode(), format_duration(reset_us).encode()),
        ]
    return tuple(headers)


def retry_after_header(retry_after_s: float) -> tuple[bytes, bytes]:
    """`Retry-After` in whole seconds, rounded up and at least 1 (RFC 9110 section 10.2.3)."""
    return b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))


def format_duration(duration_us: int) -> str:
    """Write a duration as `1m3s`, `12s`, or `250ms` below a second; rounded up, never early."""
    milliseconds = -(-max(0, duration_us) // 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    seconds = -(-milliseconds // 1000)
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def refusal_for(refused: Refused) -> Refusal:
    """What the caller is told. Scope ids are ours and don't appear in it."""
    retry_after_s = refused.retry_after_s
    per = {MINUTE_US: "per minute", SECOND_US: "per second"}.get(refused.window_us, "at once")
    match refused.kind:
        case LimitKind.REQUESTS:
            return Refusal(
                RefusalKind.RATE_REQUESTS,
                f"The limit of {refused.limit} requests {per} is reached; "
                f"try again in {retry_after_s:.3f} s.",
                retry_after_s=retry_after_s,
            )
        case LimitKind.TOKENS:
            return Refusal(
                RefusalKind.RATE_TOKENS,
                f"The limit of {refused.limit} tokens {per} leaves no room now for the "
                f"{refused.asked} tokens that this request may use (prompt plus maximum output); "
                f"try again in {retry_after_s:.3f} s or lower the maximum output.",
                retry_after_s=retry_after_s,
            )
        case LimitKind.CONCURRENCY:
            return Refusal(
                RefusalKind.RATE_CONCURRENCY,
                f"{refused.limit} requests are running, which is the limit; "
                "try again when one has ended.",
                retry_after_s=retry_after_s,
            )
        case LimitKind.HISTORY_LOST:
            return Refusal(
                RefusalKind.STORAGE_UNAVAILABLE,
                "Recent usage is being established again after an interruption; "
                f"try again in {retry_after_s:.3f} s.",
                retry_after_s=retry_after_s,
            )
        case LimitKind.OVERSIZED:
            return _oversized(refused, per)


def _oversized(refused: Refused, per: str) -> Refusal:
    if refused.limit == 0:
        message = "The limit that applies to this key and model is 0, so no request is admitted."
        return Refusal(RefusalKind.ACCESS_DENIED, message)
    # Not a 429: clients would send it again for ever.
    return Refusal(
        RefusalKind.INVALID_REQUEST,
        f"This request may use {refused.asked} tokens (prompt plus maximum output), and the limit "
        f"is {refused.limit} tokens {per}: it can never be admitted. Lower the maximum output or "
        "shorten the prompt.",
        param="max_tokens",
    )
