"""Price books: versioned TOML files of price rows, and the choice of the row in force.

A book is found again as `id@version`, a row in it as `id@version#row`. Versions are never edited
once they have priced a charge: a new price is a new version (or a new row with a later
`effective_from`), so that every old charge recomputes to the amount that was billed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from qwenstack.studio.charge import Charge
from qwenstack.studio.pricing import PriceRow, PriceTerms, Quote, Tier, price_row, requote

ANY = "*"
_T = TypeVar("_T")

_ROWS_MAX = 5_000
_BOOK_BYTES_MAX = 4 * 1024 * 1024
_RATE_MAX = Decimal(1_000_000)
_RATE_PLACES_MAX = 9
_MULTIPLIER_PLACES_MAX = 6
_NAME_FORBIDDEN = frozenset("@#\n\r\t ")


class PriceBookError(ValueError):
    """A price book that can't be used; the message names the file, the row and the field."""


class PriceNotFound(LookupError):
    """No book, version or row by that reference is loaded."""


class _BookFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    version: str
    currency: str
    effective_from: datetime
    title: str
    source: str
    checked: date
    note: str = ""
    rows: tuple[dict[str, Any], ...]


class PriceBook(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one book. `effective_from` is when this version replaces an earlier one."""

    id: str
    version: str
    currency: str
    effective_from: datetime
    title: str
    source: str
    checked: date
    note: str
    rows: tuple[PriceRow, ...]
    index: dict[tuple[str, str], tuple[PriceRow, ...]]

    @property
    def reference(self) -> str:
        """`id@version`."""
        return f"{self.id}@{self.version}"

    def row(self, model: str, scope: str, at: datetime) -> PriceRow | None:
        """The row that prices a request to `model` begun at `at` (aware), or None.

        An exact model name goes before the any-model row, and there an exact scope before any.
        """
        for name in (model, ANY):
            for place in (scope, ANY):
                for row in self.index.get((name, place), ()):
                    terms = row.terms
                    if terms.effective_from <= at and (
                        terms.effective_to is None or at < terms.effective_to
                    ):
                        return row
        return None


class PriceShelf:
    """Every version of every book that this installation knows."""

    def __init__(self, books: Iterable[PriceBook]) -> None:
        self._versions: dict[str, list[PriceBook]] = {}
        self._rows: dict[str, PriceRow] = {}
        for book in books:
            versions = self._versions.setdefault(book.id, [])
            _refuse_clash(versions, book)
            versions.append(book)
            versions.sort(key=lambda each: each.effective_from, reverse=True)
            self._rows.update((row.reference, row) for row in book.rows)

    def __iter__(self) -> Iterator[PriceBook]:
        return (book for versions in self._versions.values() for book in versions)

    def book(self, book_id: str, at: datetime) -> PriceBook | None:
        """The version of `book_id` in force at `at` (aware), or None."""
        for book in self._versions.get(book_id, ()):
            if book.effective_from <= at:
                return book
        return None

    def row(self, book_ids: Iterable[str], model: str, scope: str, at: datetime) -> PriceRow | None:
        """The row in force in the first of these books that prices `model` in `scope`."""
        for book_id in book_ids:
            book = self.book(book_id, at)
            if book is not None and (row := book.row(model, scope, at)) is not None:
                return row
        return None

    def find(self, reference: str) -> PriceRow:
        """The row named `book@version#row`, in force or not; raises PriceNotFound."""
        try:
            return self._rows[reference]
        except KeyError:
            raise PriceNotFound(
                f"no price row {reference!r} is loaded; put that version of the book back into "
                f"the prices folder (loaded: {', '.join(self.references()) or 'none'})"
            ) from None

    def references(self) -> list[str]:
        """The loaded books as `id@version`, sorted."""
        return sorted(book.reference for book in self)

    def requote(self, charge: Charge) -> Quote:
        """Price a past charge again with the row that priced it; raises PriceNotFound."""
        return requote(self.find(charge.price), charge)


def load_book(path: Path) -> PriceBook:
    """Read one book; raises PriceBookError, which names what is wrong and where."""
    if (size := path.stat().st_size) > _BOOK_BYTES_MAX:
        raise PriceBookError(f"{path}: {size} bytes, more than {_BOOK_BYTES_MAX}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PriceBookError(f"{path}: not UTF-8 text: {error}") from error
    return parse_book(text, name=str(path))


def load_shelf(*folders: Path) -> PriceShelf:
    """All books (`*.toml`) of these folders, with the books that come with the package."""
    paths = [path for folder in folders for path in sorted(folder.glob("*.toml"))]
    return PriceShelf([*_packaged_books(), *(load_book(path) for path in paths)])


def packaged_shelf() -> PriceShelf:
    """The books that come with the package, and nothing else."""
    return PriceShelf(_packaged_books())


@cache
def _packaged_books() -> tuple[PriceBook, ...]:
    folder = resources.files("qwenstack.studio") / "prices"
    return tuple(
        parse_book(entry.read_text(encoding="utf-8"), name=entry.name)
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    )


def parse_book(text: str, *, name: str) -> PriceBook:
    """Read a book from TOML text; `name` stands for the file in errors (PriceBookError)."""
    try:
        document = tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, ArithmeticError) as error:
        raise PriceBookError(f"{name}: not valid TOML: {error}") from error
    file = _convert(document, _BookFile, name)
    _check_name(name, "id", file.id)
    _check_name(name, "version", file.version)
    _check_currency(name, file.currency)
    if not file.rows:
        raise PriceBookError(f"{name}: no [[rows]]; a book needs at least one")
    if len(file.rows) > _ROWS_MAX:
        raise PriceBookError(f"{name}: {len(file.rows)} rows, more than {_ROWS_MAX}")
    rows = tuple(_read_row(name, file, number, raw) for number, raw in enumerate(file.rows, 1))
    _refuse_duplicates(name, rows)
    return PriceBook(
        id=file.id,
        version=file.version,
        currency=file.currency,
        effective_from=_utc(name, "effective_from", file.effective_from),
        title=file.title,
        source=file.source,
        checked=file.checked,
        note=file.note,
        rows=rows,
        index=_index(name, rows),
    )


def _read_row(name: str, file: _BookFile, number: int, raw: dict[str, Any]) -> PriceRow:
    where = f"{name}: row {number}"
    if isinstance(raw.get("id"), str):
        where += f" ({raw['id']})"
    terms = _convert(raw, PriceTerms, where)
    _check_name(where, "id", terms.id)
    if not terms.model or not terms.scope:
        raise PriceBookError(f"{where}: model and scope must not be empty; use '*' for any")
    if not terms.source.strip():
        raise PriceBookError(f"{where}: source is empty; say where the price was read")
    terms = msgspec.structs.replace(
        terms,
        effective_from=_utc(where, "effective_from", terms.effective_from),
        effective_to=terms.effective_to and _utc(where, "effective_to", terms.effective_to),
    )
    if terms.effective_to is not None and terms.effective_to <= terms.effective_from:
        raise PriceBookError(
            f"{where}: effective_to {terms.effective_to.isoformat()} is not after "
            f"effective_from {terms.effective_from.isoformat()}"
        )
    _check_numbers(where, terms)
    return price_row(
        terms, currency=file.currency, reference=f"{file.id}@{file.version}#{terms.id}"
    )


def _convert(raw: object, kind: type[_T], where: str) -> _T:
    try:
        return msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        raise PriceBookError(f"{where}: {error}") from error


def _check_name(where: str, field: str, value: str) -> None:
    if not value or _NAME_FORBIDDEN & set(value) or not value.isprintable():
        raise PriceBookError(
            f"{where}: {field} {value!r} must be printable, without spaces, '@' and '#'"
        )


def _check_currency(where: str, code: str) -> None:
    if len(code) != 3 or not code.isascii() or not code.isalpha() or not code.isupper():
        raise PriceBookError(f"{where}: currency {code!r} is no ISO 4217 code such as USD")


def _check_numbers(where: str, terms: PriceTerms) -> None:
    if not terms.tiers:
        raise PriceBookError(f"{where}: tiers is empty; a row needs at least one [[rows.tiers]]")
    for number, tier in enumerate(terms.tiers, 1):
        _check_tier(f"{where}: tier {number}", tier, last=number == len(terms.tiers))
    for number, (lower, upper) in enumerate(pairwise(terms.tiers), 2):
        if upper.up_to is not None and lower.up_to is not None and upper.up_to <= lower.up_to:
            raise PriceBookError(
                f"{where}: tier {number}: up_to {upper.up_to} is not above the tier before "
                f"({lower.up_to})"
            )
    for field in (
        "cache_hit_multiplier",
        "cache_hit_explicit_multiplier",
        "cache_creation_multiplier",
        "batch",
    ):
        _check_multiplier(where, field, getattr(terms, field))
    for number, window in enumerate(terms.off_peak, 1):
        here = f"{where}: off_peak {number}"
        _check_multiplier(here, "multiplier", window.multiplier)
        if window.start.tzinfo is not None or window.end.tzinfo is not None:
            raise PriceBookError(f"{here}: start and end are UTC; write 16:30:00")
        if not window.days:
            raise PriceBookError(f"{here}: days is empty; leave it out for every day")


def _check_tier(where: str, tier: Tier, *, last: bool) -> None:
    if tier.up_to is None and not last:
        raise PriceBookError(f"{where}: up_to is missing; only the last tier may leave it out")
    if tier.up_to is not None and tier.up_to < 1:
        raise PriceBookError(f"{where}: up_to {tier.up_to} must be at least 1")
    for field in (
        "input",
        "output",
        "output_thinking",
        "cache_hit",
        "cache_hit_explicit",
        "cache_creation",
    ):
        rate: Decimal | None = getattr(tier, field)
        if rate is not None:
            _check_decimal(where, field, rate, _RATE_MAX, _RATE_PLACES_MAX)


def _check_multiplier(where: str, field: str, value: Decimal | None) -> None:
    if value is not None:
        _check_decimal(where, field, value, Decimal(100), _MULTIPLIER_PLACES_MAX)


def _check_decimal(where: str, field: str, value: Decimal, most: Decimal, places: int) -> None:
    if not value.is_finite() or value < 0 or value > most:
        raise PriceBookError(f"{where}: {field} {value} must lie between 0 and {most}")
    if -int(value.normalize().as_tuple().exponent) > places:
        raise PriceBookError(f"{where}: {field} {value} has more than {places} decimal places")


def _utc(where: str, field: str, value: datetime) -> datetime:
    if value.tzinfo is None:
        raise PriceBookError(
            f"{where}: {field} {value.isoformat()} has no time zone; "
            f"write {value.isoformat()}Z for UTC"
        )
    return value.astimezone(UTC)


def _refuse_duplicates(name: str, rows: tuple[PriceRow, ...]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.terms.id in seen:
            raise PriceBookError(f"{name}: two rows have the id {row.terms.id!r}")
        seen.add(row.terms.id)


def _index(name: str, rows: tuple[PriceRow, ...]) -> dict[tuple[str, str], tuple[PriceRow, ...]]:
    """Rows by model name or alias and scope, latest first; refuses overlapping dates."""
    grouped: dict[tuple[str, str], list[PriceRow]] = {}
    for row in rows:
        for model in dict.fromkeys((row.terms.model, *row.terms.aliases)):
            grouped.setdefault((model, row.terms.scope), []).append(row)
    for (model, scope), same in grouped.items():
        same.sort(key=lambda row: row.terms.effective_from)
        for earlier, later in pairwise(same):
            until = earlier.terms.effective_to
            if until is None or until > later.terms.effective_from:
                raise PriceBookError(
                    f"{name}: rows {earlier.terms.id!r} and {later.terms.id!r} both price "
                    f"{model!r} in {scope!r} from {later.terms.effective_from.isoformat()}; "
                    f"give {earlier.terms.id!r} an effective_to no later than that"
                )
    return {key: tuple(reversed(same)) for key, same in grouped.items()}


def _refuse_clash(versions: list[PriceBook], book: PriceBook) -> None:
    for other in versions:
        if other.version == book.version:
            raise PriceBookError(f"two books are {book.reference}; versions must differ")
        if other.effective_from == book.effective_from:
            raise PriceBookError(
                f"{other.reference} and {book.reference} take effect at the same instant, "
                f"{book.effective_from.isoformat()}"
            )
        if other.currency != book.currency:
            raise PriceBookError(
                f"{book.reference} is in {book.currency}, {other.reference} in {other.currency}; "
                f"a book keeps its currency, use another id"
            )
