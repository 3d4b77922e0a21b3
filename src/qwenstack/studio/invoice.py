"""Invoices: charges of one workspace in one period, added up so that every micro-unit is traced.

A charge is rounded once, as a whole. Its lines get whole micro-units too (largest remainder, the
earlier line first), so that lines, groups, subtotal and the ledger agree to the last one. Rounding
to cents is for the eye and happens in the renderers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Literal, get_args

import msgspec

from qwenstack.studio.charge import Charge, Meter
from qwenstack.studio.pricing import amount_of

_METER_ORDER: dict[str, int] = {meter: place for place, meter in enumerate(get_args(Meter))}

Outcome = Literal["complete", "interrupted"]
EntryKind = Literal["top_up", "credit", "adjustment"]


class InvoiceError(ValueError):
    """Charges or entries that don't belong on this invoice or contradict themselves."""


class InvoiceLine(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one meter at one rate (currency units per million) from one price row."""

    meter: Meter
    price: str
    rate: str
    tokens: int
    free: int
    amount_micro: int


class InvoiceGroup(msgspec.Struct, frozen=True, kw_only=True):
    """What one key consumed of one deployment on one day (UTC, by the end of the request).

    An `interrupted` group holds requests whose stream ended early, charged for what was delivered.
    """

    day: date
    model: str
    key_id: str
    key_name: str
    region: str
    deployment: str
    outcome: Outcome
    batch: bool
    requests: int
    lines: tuple[InvoiceLine, ...]
    amount_micro: int


class ModelTotal(msgspec.Struct, frozen=True, kw_only=True):
    """A model's part of the invoice; `interrupted` of the `requests` ended early."""

    model: str
    requests: int
    interrupted: int
    input_tokens: int
    output_tokens: int
    free_tokens: int
    amount_micro: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A movement of money besides charges.

    `top_up` is paid in, `credit` is granted (an SLA credit, goodwill), `adjustment` corrects and
    may be negative. Positive amounts are in the workspace's favour.
    """

    at: datetime
    kind: EntryKind
    description: str
    amount_micro: int


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """The balance over the period: opening + entries - charges = closing."""

    opening_micro: int
    closing_micro: int


class InvoiceHead(msgspec.Struct, frozen=True, kw_only=True):
    """Who bills whom for when. The period is `[period_start, period_end)`, times aware."""

    invoice_id: str
    issuer: str
    workspace_id: str
    workspace_name: str
    currency: str
    period_start: datetime
    period_end: datetime
    issued_at: datetime


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """A finished invoice. `total_micro` is the subtotal less credits and adjustments.

    No tax is computed. Making one whose parts don't add up raises InvoiceError.
    """

    head: InvoiceHead
    groups: tuple[InvoiceGroup, ...]
    models: tuple[ModelTotal, ...]
    entries: tuple[Entry, ...]
    statement: Statement | None
    requests: int
    interrupted: int
    subtotal_micro: int
    total_micro: int

    def __post_init__(self) -> None:
        for group in self.groups:
            if sum(line.amount_micro for line in group.lines) != group.amount_micro:
                raise InvoiceError(f"the lines of {group.model} on {group.day} don't add up")
        sums = {
            "groups": sum(group.amount_micro for group in self.groups),
            "models": sum(model.amount_micro for model in self.models),
            "total and credits": self.total_micro + _granted(self.entries),
        }
        for name, amount in sums.items():
            if amount != self.subtotal_micro:
                raise InvoiceError(f"{name} come to {amount}, not to {self.subtotal_micro}")
        if self.statement is not None:
            moved = sum(entry.amount_micro for entry in self.entries) - self.subtotal_micro
            if self.statement.opening_micro + moved != self.statement.closing_micro:
                raise InvoiceError(
                    f"opening balance {self.statement.opening_micro} and movements {moved} do "
                    f"not lead to the closing balance {self.statement.closing_micro}"
                )


def build_invoice(
    charges: Iterable[Charge],
    head: InvoiceHead,
    *,
    entries: Iterable[Entry] = (),
    statement: Statement | None = None,
    key_names: Mapping[str, str] | None = None,
) -> Invoice:
    """Add up `charges`, which must all be of this workspace, currency and period.

    A charge belongs to the period in which its request finished. Raises InvoiceError for one that
    doesn't belong here, or whose amount is not what its lines come to; the message names it.
    """
    _check_head(head)
    kept_entries = tuple(sorted(entries, key=lambda entry: entry.at))
    for entry in kept_entries:
        _check_entry(entry, head)
    tally = _Tally(key_names or {})
    for charge in charges:
        _check_charge(charge, head)
        tally.add(charge)
    groups = tally.groups()
    subtotal = sum(group.amount_micro for group in groups)
    return Invoice(
        head=head,
        groups=groups,
        models=_model_totals(groups),
        entries=kept_entries,
        statement=statement,
        requests=sum(group.requests for group in groups),
        interrupted=sum(g.requests for g in groups if g.outcome == "interrupted"),
        subtotal_micro=subtotal,
        total_micro=subtotal - _granted(kept_entries),
    )


def line_shares(charge: Charge) -> tuple[int, ...]:
    """The charge's amount in micro-units, dealt out over its lines; the shares add up to it."""
    exact = [(line.tokens - line.free) * Decimal(line.rate) for line in charge.lines]
    shares = [int(amount) for amount in exact]
    rest = charge.amount_micro - sum(shares)
    by_remainder = sorted(range(len(exact)), key=lambda place: shares[place] - exact[place])
    if not 0 <= rest <= len(shares):
        raise InvoiceError(_disagreement(charge))
    for place in by_remainder[:rest]:
        shares[place] += 1
    return tuple(shares)


_GroupKey = tuple[date, str, str, str, str, Outcome, bool]
_LineKey = tuple[Meter, str, str]


class _Tally:
    """Running sums by group and line; memory grows with groups, not with charges."""

    def __init__(self, key_names: Mapping[str, str]) -> None:
        self._names = key_names
        self._requests: dict[_GroupKey, int] = {}
        self._lines: dict[_GroupKey, dict[_LineKey, list[int]]] = {}

    def add(self, charge: Charge) -> None:
        key: _GroupKey = (
            charge.finished_at.astimezone(UTC).date(),
            charge.model,
            charge.key_id,
            charge.region,
            charge.deployment,
            charge.outcome,
            charge.batch_id is not None,
        )
        self._requests[key] = self._requests.get(key, 0) + 1
        lines = self._lines.setdefault(key, {})
        for line, share in zip(charge.lines, line_shares(charge), strict=True):
            sums = lines.setdefault((line.meter, charge.price, line.rate), [0, 0, 0])
            sums[0] += line.tokens
            sums[1] += line.free
            sums[2] += share

    def groups(self) -> tuple[InvoiceGroup, ...]:
        return tuple(self._group(key) for key in sorted(self._requests))

    def _group(self, key: _GroupKey) -> InvoiceGroup:
        day, model, key_id, region, deployment, outcome, batch = key
        lines = tuple(
            InvoiceLine(
                meter=meter,
                price=price,
                rate=rate,
                tokens=sums[0],
                free=sums[1],
                amount_micro=sums[2],
            )
            for (meter, price, rate), sums in sorted(
                self._lines[key].items(),
                key=lambda item: (_METER_ORDER[item[0][0]], item[0][1], Decimal(item[0][2])),
            )
        )
        return InvoiceGroup(
            day=day,
            model=model,
            key_id=key_id,
            key_name=self._names.get(key_id, key_id),
            region=region,
            deployment=deployment,
            outcome=outcome,
            batch=batch,
            requests=self._requests[key],
            lines=lines,
            amount_micro=sum(line.amount_micro for line in lines),
        )


def _model_totals(groups: Iterable[InvoiceGroup]) -> tuple[ModelTotal, ...]:
    by_model: dict[str, list[InvoiceGroup]] = {}
    for group in groups:
        by_model.setdefault(group.model, []).append(group)
    return tuple(_model_total(model, same) for model, same in sorted(by_model.items()))


def _model_total(model: str, groups: list[InvoiceGroup]) -> ModelTotal:
    lines = [line for group in groups for line in group.lines]
    output = sum(line.tokens for line in lines if line.meter in ("output", "reasoning"))
    return ModelTotal(
        model=model,
        requests=sum(group.requests for group in groups),
        interrupted=sum(group.requests for group in groups if group.outcome == "interrupted"),
        input_tokens=sum(line.tokens for line in lines) - output,
        output_tokens=output,
        free_tokens=sum(line.free for line in lines),
        amount_micro=sum(group.amount_micro for group in groups),
    )


def _granted(entries: Iterable[Entry]) -> int:
    """What lowers the amount due: a top-up does not, it pays."""
    return sum(entry.amount_micro for entry in entries if entry.kind != "top_up")


def _check_head(head: InvoiceHead) -> None:
    for field in ("period_start", "period_end", "issued_at"):
        value: datetime = getattr(head, field)
        if value.tzinfo is None:
            raise InvoiceError(f"{field} {value.isoformat()} has no time zone; use UTC")
    if head.period_end <= head.period_start:
        raise InvoiceError(
            f"period_end {head.period_end.isoformat()} is not after period_start "
            f"{head.period_start.isoformat()}"
        )


def _check_entry(entry: Entry, head: InvoiceHead) -> None:
    if not head.period_start <= entry.at < head.period_end:
        raise InvoiceError(
            f"{entry.kind} of {entry.at.isoformat()} lies outside the period of {head.invoice_id}"
        )
    if entry.kind != "adjustment" and entry.amount_micro <= 0:
        raise InvoiceError(f"{entry.kind} of {entry.amount_micro} must be above zero")


def _check_charge(charge: Charge, head: InvoiceHead) -> None:
    wrong = {
        "workspace": (charge.workspace_id, head.workspace_id),
        "currency": (charge.currency, head.currency),
    }
    for field, (has, wants) in wrong.items():
        if has != wants:
            raise InvoiceError(f"charge {charge.request_id} is of {field} {has!r}, not {wants!r}")
    if not head.period_start <= charge.finished_at < head.period_end:
        raise InvoiceError(
            f"charge {charge.request_id} finished {charge.finished_at.isoformat()}, outside "
            f"{head.period_start.isoformat()} to {head.period_end.isoformat()}"
        )
    if amount_of(charge.lines) != charge.amount_micro:
        raise InvoiceError(_disagreement(charge))


def _disagreement(charge: Charge) -> str:
    return (
        f"charge {charge.request_id} is {charge.amount_micro} micro-units, but its lines come to "
        f"{amount_of(charge.lines)}"
    )
