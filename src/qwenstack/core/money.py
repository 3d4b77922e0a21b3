"""Money as integer micro-units of a currency: 1 USD is 1 000 000. Never a float."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import msgspec

MICRO_PER_UNIT = 1_000_000


class Money(msgspec.Struct, frozen=True, order=True):
    """An amount in micro-units of `currency` (ISO 4217 code)."""

    micro: int
    currency: str

    def __add__(self, other: Money) -> Money:
        self._same_currency(other)
        return Money(self.micro + other.micro, self.currency)

    def __sub__(self, other: Money) -> Money:
        self._same_currency(other)
        return Money(self.micro - other.micro, self.currency)

    def __neg__(self) -> Money:
        return Money(-self.micro, self.currency)

    @property
    def decimal(self) -> Decimal:
        """The amount in whole units, exact, with six decimal places."""
        return Decimal(self.micro).scaleb(-6)

    def __str__(self) -> str:
        return f"{self.decimal:f} {self.currency}"

    def _same_currency(self, other: Money) -> None:
        if self.currency != other.currency:
            raise ValueError(f"cannot combine {self.currency} with {other.currency}")


def to_micro(amount: Decimal) -> int:
    """Round an amount in whole units to micro-units, half to even (unbiased over many requests)."""
    return int(amount.scaleb(6).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def parse_money(text: str, currency: str) -> Money:
    """Read a decimal string such as `12.50`; raises ValueError for what is no finite amount."""
    try:
        amount = Decimal(text)
    except ArithmeticError as error:
        raise ValueError(f"{text!r} is not an amount; write it like 12.50") from error
    if not amount.is_finite():
        raise ValueError(f"{text!r} is not a finite amount")
    micro = amount.scaleb(6)
    if micro != micro.to_integral_value():
        raise ValueError(f"{text!r} has more than six decimal places")
    return Money(int(micro), currency)
