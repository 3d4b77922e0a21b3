"""Reserving money before a request runs: the decision, as a pure function of a position."""

from __future__ import annotations

import msgspec

from qwenstack.core.money import Money
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.tenancy import Billing, Budget

# Holds last as long as the requests in flight; a caller that waits this long will often pass.
_RETRY_WHEN_HELD_S = 1.0


class HoldRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may cost at most. `budgets` pairs each with its period's start."""

    request_id: str
    workspace_id: str
    key_id: str
    model: str
    billing: Billing
    currency: str
    credit_limit_micro: int | None
    free_quota_only: bool
    ceiling_micro: int
    tokens_max: int
    uses_free_quota: bool
    budgets: tuple[tuple[Budget, int], ...] = ()
    at_us: int = 0


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Money and free tokens set aside for one request."""

    request: HoldRequest
    amount_micro: int
    free_tokens: int


class BudgetPosition(msgspec.Struct, frozen=True):
    """How much of a budget's period is spent, and held by requests in flight."""

    spent_micro: int
    held_micro: int


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where a workspace stands. `budgets` is parallel to the request's."""

    balance_micro: int
    held_micro: int
    free_tokens_left: int
    budgets: tuple[BudgetPosition, ...] = ()


def decide(request: HoldRequest, position: Position) -> Hold:
    """Grant the hold or raise Refusal.

    A refusal because money is spent is final for the caller; one because money is only held by
    other requests says to try again: nobody is told "budget exceeded" while it is not.
    """
    free = position.free_tokens_left if request.uses_free_quota else 0
    if free >= request.tokens_max:
        return Hold(request=request, amount_micro=0, free_tokens=request.tokens_max)
    if request.free_quota_only:
        raise Refusal(
            RefusalKind.FREE_QUOTA_ONLY,
            f"The free quota for {request.model} has {max(free, 0)} tokens left, this request may "
            f"need {request.tokens_max}, and the workspace is set to use free quota only.",
        )
    _check_credit(request, position)
    for (budget, _), standing in zip(request.budgets, position.budgets, strict=True):
        if budget.stops:
            _check_budget(request, budget, standing)
    return Hold(request=request, amount_micro=request.ceiling_micro, free_tokens=max(free, 0))


def _check_credit(request: HoldRequest, position: Position) -> None:
    if request.billing == "postpaid":
        if request.credit_limit_micro is None:
            return
        available = position.balance_micro + request.credit_limit_micro
    else:
        available = position.balance_micro
    if available - position.held_micro >= request.ceiling_micro and available > 0:
        return
    if request.ceiling_micro == 0 and available >= 0:
        return
    need = Money(request.ceiling_micro, request.currency)
    if available > 0 and available >= request.ceiling_micro:
        raise _held(f"Requests in flight hold the balance; this one may cost up to {need}.")
    raise Refusal(
        RefusalKind.OUT_OF_CREDIT,
        f"This request may cost up to {need} and {Money(max(available, 0), request.currency)} is "
        "left. Top up, or lower max_tokens.",
    )


def _check_budget(request: HoldRequest, budget: Budget, standing: BudgetPosition) -> None:
    left = budget.limit_micro - standing.spent_micro
    if left - standing.held_micro >= request.ceiling_micro:
        return
    need = Money(request.ceiling_micro, request.currency)
    if left >= request.ceiling_micro and left > 0:
        raise _held(f"Requests in flight hold the budget; this one may cost up to {need}.")
    whose = "key's" if budget.key_id else "workspace's"
    raise Refusal(
        RefusalKind.BUDGET_EXCEEDED,
        f"The {whose} budget per {budget.period} has {Money(max(left, 0), request.currency)} left "
        f"of {Money(budget.limit_micro, request.currency)}; this request may cost up to {need}.",
    )


def _held(message: str) -> Refusal:
    return Refusal(
        RefusalKind.RATE_CONCURRENCY,
        f"{message} Try again when one has ended, or lower max_tokens.",
        retry_after_s=_RETRY_WHEN_HELD_S,
    )
