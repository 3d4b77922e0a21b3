"""Licences that model weights come under: what they ask for, and how their texts are recognised.

The facts are in `licences.toml`, each with its source. A text is recognised by its SHA-256, or by
the SHA-256 of its words (case, spaces, punctuation, line breaks and the copyright line apart).
A text that is only similar is never called by the licence's name: `closest` says which licence it
resembles and in which clauses it differs.
"""

from __future__ import annotations

import datetime
import enum
import functools
import hashlib
import re
from pathlib import Path

import msgspec

TEXT_CHARACTERS_MAX = 1_000_000
"""Longer texts are not looked at: the longest licence here has 40 000 characters."""

_COPYRIGHT_LINE = re.compile(
    r"^[ \t#*/]*copyright\b[ \t]*(?:©|\(c\)|\d{4}|\[|\{|<).*$", re.IGNORECASE | re.MULTILINE
)
_NOT_A_WORD = re.compile(r"[^0-9a-z\u0080-\U0010ffff$%]+")


class Category(enum.Enum):
    """How freely weights under a licence may be used."""

    PERMISSIVE = "permissive"
    """Commercial use without asking; at most a notice."""
    CONDITIONAL = "conditional"
    """Commercial use up to a threshold, for some businesses, or with some uses barred."""
    NON_COMMERCIAL = "non-commercial"
    """Research or evaluation only."""
    UNKNOWN = "unknown"


class ObligationKind(enum.Enum):
    """What a clause asks of who uses or passes on the weights."""

    NOTICE = "notice"
    """Pass on the licence and a notice; mark changed files."""
    NAMING = "naming"
    """Show a name, such as "Built with Qwen"; or do not use one."""
    USER_THRESHOLD = "user-threshold"
    """Ask for a licence above a number of users."""
    REVENUE_THRESHOLD = "revenue-threshold"
    """Something more is due above a revenue."""
    NO_COMPETE = "no-compete"
    """Outputs may not improve other models."""
    FIELD_OF_USE = "field-of-use"
    """Only for some purposes, or not for some."""
    SERVICE_LICENCE = "service-licence"
    """Who sells the model as a service needs a separate licence."""
    COPYLEFT = "copyleft"
    """Derivatives must be under the same terms."""
    PATENT = "patent"
    """Rights end for who sues over patents or other rights in it."""
    EXPORT = "export"
    """Comply with export controls."""
    JURISDICTION = "jurisdiction"
    """A law and a court are agreed."""


class Obligation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One duty. `clause` is where it stands in the text, empty where the text was not read.

    `monthly_users_over`, `revenue_usd_over` (in US dollars, over `revenue_months`) are where a
    threshold lies.
    """

    kind: ObligationKind
    clause: str = ""
    summary: str
    monthly_users_over: int | None = None
    revenue_usd_over: int | None = None
    revenue_months: int | None = None


class TextDigest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A known file of a licence: SHA-256, bytes, where seen."""

    sha256: str
    bytes: int | None = None
    seen: str


class Licence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A licence. `id` is SPDX's where it has one, else `LicenseRef-…` with ScanCode's key if any.

    `status` is `verified` where the text was read, `reported` where others' accounts of it were.
    `words` are the SHA-256 of the texts' words (see `words_digest`).
    """

    id: str
    name: str
    category: Category
    dated: datetime.date | None = None
    hub_names: tuple[str, ...] = ()
    spdx: bool = False
    licensor: str = ""
    obligations: tuple[Obligation, ...] = ()
    digests: tuple[TextDigest, ...] = ()
    words: tuple[str, ...] = ()
    source: str
    checked: datetime.date
    status: str
    note: str = ""


class Close(msgspec.Struct, frozen=True, kw_only=True):
    """A text that resembles a licence without being it.

    `shared` is the share of the licence's word sequences that the text has (0 to 1), `differs_in`
    the clauses that the text lacks or words differently, `added` how many of its own word
    sequences the licence does not have.
    """

    licence: Licence
    shared: float
    differs_in: tuple[str, ...]
    added: int

    def describe(self) -> str:
        """One line for a person."""
        where = ", ".join(self.differs_in[:8]) or "no clause, but has text of its own"
        if len(self.differs_in) > 8:
            where += f" and {len(self.differs_in) - 8} more"
        return f"close to {self.licence.id} ({self.shared:.0%}), differs in {where}"


def licences() -> tuple[Licence, ...]:
    """All that are known, in the order of the file."""
    return tuple(_by_id().values())


def by_id(licence_id: str) -> Licence | None:
    """The licence of this id, upper and lower case apart."""
    return _by_id().get(licence_id) or _by_folded_id().get(licence_id.casefold())


def recognise(text: str) -> Licence | None:
    """The licence whose text this is, byte for byte or word for word; None if it is not known.

    A file with one word more or less is not recognised: see `closest`.
    """
    if len(text) > TEXT_CHARACTERS_MAX:
        return None
    found = by_digest(hashlib.sha256(_utf8(text)).hexdigest())
    return found or _by_words().get(words_digest(text))


def by_digest(sha256: str) -> Licence | None:
    """The licence of which a file with this SHA-256 (64 hex digits) is a known copy."""
    folded = sha256.casefold()
    if len(folded) != 64:
        return None
    return next((licence for prefix, licence in _digests() if folded.startswith(prefix)), None)


def closest(text: str, *, shared_min: float = 0.5) -> Close | None:
    """The licence that an unrecognised text resembles most, if it shares at least `shared_min`."""
    if not text or len(text) > TEXT_CHARACTERS_MAX:
        return None
    theirs = _shingles(words(text))
    best: Close | None = None
    for licence_id, clauses in _fingerprints().items():
        ours = frozenset().union(*(shingles for _, shingles in clauses))
        shared = len(ours & theirs) / len(ours)
        if shared < shared_min or (best is not None and shared <= best.shared):
            continue
        differs = tuple(
            label
            for label, shingles in clauses
            if shingles and len(shingles & theirs) < len(shingles)
        )
        best = Close(
            licence=_by_id()[licence_id],
            shared=shared,
            differs_in=differs,
            added=len(theirs - ours),
        )
    return best


def declared(license: str | None, license_name: str | None = None) -> Licence | None:  # noqa: A002
    """The licence that a model card's metadata names: `license`, or `other` + `license_name`.

    None where nothing is named, where the name is not known, and where the two fields name
    different licences: a card that contradicts itself declares nothing.
    """
    named = [
        _by_hub_name().get(name.strip().casefold())
        for name in (license, license_name)
        if name and name.strip() and name.strip().casefold() not in ("other", "unknown")
    ]
    found = {licence.id: licence for licence in named if licence is not None}
    return next(iter(found.values())) if len(found) == 1 else None


def words(text: str) -> list[str]:
    """A text's words: NFKC, lower case, no punctuation, copyright lines left out."""
    import unicodedata

    folded = (
        unicodedata.normalize("NFKC", text.removeprefix("\ufeff")).replace("\r\n", "\n").lower()
    )
    return _NOT_A_WORD.sub(" ", _COPYRIGHT_LINE.sub("", folded)).split()


def words_digest(text: str) -> str:
    """SHA-256 over a text's words, joined by single spaces."""
    return hashlib.sha256(_utf8(" ".join(words(text)))).hexdigest()


def _utf8(text: str) -> bytes:
    """UTF-8, of lone surrogates too: a hostile file may hold them."""
    return text.encode("utf-8", "surrogatepass")


# --- clause fingerprints: how a similar text is compared without keeping the licence's own ---

_SHINGLE_WORDS = 5
_HASH_BYTES = 4
_CLAUSE = re.compile(r"^\s*(?:(\d{1,2})\.(?!\d)|\(?([a-z])[.)])\s", re.MULTILINE)


def fingerprint(text: str) -> list[tuple[str, str]]:
    """A licence text as `(clause, hashes)`: the hashes of its five-word sequences, in hex.

    The clauses are as the text numbers them (`4`, `5.b`); what comes before is `preamble`. This is
    how `licence-fingerprints.json` was made from each text. Headings shorter than five words are
    left out.
    """
    cuts = [(0, "preamble")]
    section = ""
    for match in _CLAUSE.finditer(text):
        if match[1]:
            section = match[1]
            cuts.append((match.start(), section))
        elif section:
            cuts.append((match.start(), f"{section}.{match[2]}"))
    ends = [start for start, _ in cuts[1:]] + [len(text)]
    return [
        (label, "".join(sorted(piece.hex() for piece in _shingles(words(text[start:end])))))
        for (start, label), end in zip(cuts, ends, strict=True)
        if len(words(text[start:end])) >= _SHINGLE_WORDS
    ]


def _shingles(of: list[str]) -> frozenset[bytes]:
    return frozenset(
        hashlib.blake2b(
            _utf8(" ".join(of[at : at + _SHINGLE_WORDS])), digest_size=_HASH_BYTES
        ).digest()
        for at in range(len(of) - _SHINGLE_WORDS + 1)
    )


@functools.cache
def _fingerprints() -> dict[str, list[tuple[str, frozenset[bytes]]]]:
    raw = Path(__file__).with_name("licence-fingerprints.json").read_bytes()
    stored = msgspec.json.decode(raw, type=dict[str, list[tuple[str, str]]])
    step = 2 * _HASH_BYTES
    return {
        licence_id: [
            (
                label,
                frozenset(
                    bytes.fromhex(hexes[at : at + step]) for at in range(0, len(hexes), step)
                ),
            )
            for label, hexes in clauses
        ]
        for licence_id, clauses in stored.items()
    }


# --- the file, and the ways into it ---


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    licence: tuple[Licence, ...]


@functools.cache
def _by_id() -> dict[str, Licence]:
    import tomllib  # with `unicodedata` below: a command that needs neither starts sooner

    text = Path(__file__).with_name("licences.toml").read_text(encoding="utf-8")
    found = msgspec.convert(tomllib.loads(text), _File).licence
    index = {licence.id: licence for licence in found}
    assert len(index) == len(found), "a licence id stands twice in licences.toml"
    return index


@functools.cache
def _by_folded_id() -> dict[str, Licence]:
    return {licence.id.casefold(): licence for licence in licences()}


@functools.cache
def _by_hub_name() -> dict[str, Licence]:
    names = {name.casefold(): licence for licence in licences() for name in licence.hub_names}
    return {**names, **_by_folded_id()}


@functools.cache
def _digests() -> tuple[tuple[str, Licence], ...]:
    return tuple((each.sha256, licence) for licence in licences() for each in licence.digests)


@functools.cache
def _by_words() -> dict[str, Licence]:
    return {digest: licence for licence in licences() for digest in licence.words}
