"""Lists of repos: what is asked for, which rows answer it, and where the next page begins.

A page is cut by the value that it is sorted by and the repo's id, not by a count of rows: what is
published in between neither repeats a repo nor drops one. What SQL can decide it decides; what
stands in the summary (the card's and files' facts as clients know them) is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    func,
    literal,
    or_,
    select,
    tuple_,
)

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import may
from qwenstack.hub.errors import BadRequest
from qwenstack.hub.registry.repos import Kind, Repo, in_namespace
from qwenstack.storage.hub_tables import likes, repos
from qwenstack.storage.rows import read_row

Sort = Literal["lastModified", "createdAt", "downloads", "likes", "trendingScore"]

PAGE_MAX = 1000
FILTERS_MAX = 50
TERM_CHARACTERS_MAX = 200
# A page of a narrow filter ends after so many rows with the place to go on from.
_ROWS_MAX = 20_000
_ROWS_AT_ONCE, _ROWS_AT_ONCE_MAX = 200, 5_000
_TRENDING_US = 7 * 24 * 3600 * 1_000_000

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_AMOUNT = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([KMBT]?)", re.IGNORECASE)


class Weights(msgspec.Struct, frozen=True):
    """How many parameters the headers of the files count."""

    total: int = 0


class Card(msgspec.Struct, frozen=True):
    """What filters ask of a card."""

    language: str | list[str | None] | None = None


class Summary(msgspec.Struct, frozen=True, rename={"card": "cardData"}):
    """What filters ask of a summary; the rest of it is passed on as it is."""

    tags: list[str] = []
    pipeline_tag: str | None = None
    library_name: str | None = None
    safetensors: Weights | None = None
    gguf: Weights | None = None
    # Whatever a stranger wrote: what of it does not fit must not hide the rest.
    card: msgspec.Raw = msgspec.Raw(b"{}")

    @property
    def parameters(self) -> int | None:
        """The parameters that were counted, None where nothing was."""
        counted = self.safetensors or self.gguf
        return counted.total if counted is not None and counted.total else None


_decode_summary = msgspec.json.Decoder(Summary).decode
_decode_card = msgspec.json.Decoder(Card).decode


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a list is asked for. Text compares without case; all filters must hold."""

    kind: Kind
    search: tuple[str, ...] = ()
    author: str | None = None
    filters: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    library: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()
    gated: bool | None = None
    parameters_min: int | None = None
    parameters_max: int | None = None
    served: bool = False
    sort: Sort = "lastModified"
    ascending: bool = False


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ended: the last repo's sorted value and id. It comes back from strangers."""

    value: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    id: Annotated[str, msgspec.Meta(max_length=48, pattern=r"^[^\x00]*$")]


class Listed(msgspec.Struct, frozen=True):
    """A page, and where the next one begins, None at the end."""

    repos: tuple[Repo, ...]
    next: Place | None


def list_repos(
    connection: Connection,
    identity: Identity,
    question: Question,
    *,
    limit: int,
    after: Place | None = None,
) -> Listed:
    """The repos that answer the question and that this caller may know of."""
    found: list[Repo] = []
    # Who hosts models for inference is not this hub's to know, so none is.
    if question.served:
        return Listed((), None)
    for seen, row in enumerate(_rows(connection, identity, question, after), start=1):
        if matches(question, read_summary(row.summary)):
            repo = read_row(row, Repo)
            if may(identity, repo, "see").allowed:
                found.append(repo)
        if len(found) == limit or seen == _ROWS_MAX:
            return Listed(tuple(found), _place(row))
    return Listed(tuple(found), None)


def read_summary(document: str) -> Summary:
    """The part of a summary that filters ask of; an odd one answers nothing."""
    try:
        return _decode_summary(document)
    except msgspec.DecodeError:
        return Summary()


def matches(question: Question, summary: Summary) -> bool:
    """Whether a summary answers what SQL could not decide."""
    names = _names(summary)
    if not names.issuperset(each.lower() for each in question.filters):
        return False
    task = question.pipeline_tag
    if task is not None and (summary.pipeline_tag or "").lower() != task.lower():
        return False
    if not names.issuperset(each.lower() for each in question.library):
        return False
    spoken = {each.lower().removeprefix("language:") for each in question.language}
    if spoken and not spoken <= names | _languages(summary):
        return False
    if any(names.isdisjoint(_APPS.get(each.lower(), ())) for each in question.apps):
        return False
    low, high = question.parameters_min, question.parameters_max
    if low is None and high is None:
        return True
    count = summary.parameters
    return count is not None and (low or 0) <= count and (high is None or count <= high)


# Which tags say that an application runs a model.
_APPS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("llama.cpp", "ollama", "lmstudio", "jan", "node-llama-cpp"), frozenset({"gguf"})
    ),
    **dict.fromkeys(("vllm", "sglang", "tgi"), frozenset({"transformers", "safetensors"})),
    "transformers": frozenset({"transformers"}),
    "mlx-lm": frozenset({"mlx"}),
}


def parse_parameters(text: str) -> tuple[int | None, int | None]:
    """`min:6B,max:128B`, either part alone, or one number; raises BadRequest."""
    low = high = None
    for part in text.split(","):
        name, _, amount = part.strip().rpartition(":")
        read = _AMOUNT.fullmatch(amount)
        if read is None or name not in ("", "min", "max"):
            raise BadRequest(
                f"num_parameters {text[:60]!r} must be like min:6B,max:128B, with K, M, B or T"
            )
        # In two factors, so that no float rounds a whole number.
        whole, _, fraction = read[1].partition(".")
        unit = _SUFFIXES[read[2].upper()]
        count = int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
        if name in ("", "min"):
            low = count
        if name in ("", "max"):
            high = count
    return low, high


def trending(connection: Connection, repo_ids: Sequence[str]) -> dict[str, int]:
    """The likes of the last seven days, which is what "trending" means here."""
    rows = connection.execute(
        select(likes.c.repo_id, func.count())
        .where(likes.c.repo_id.in_(repo_ids), likes.c.at_us > now_us() - _TRENDING_US)
        .group_by(likes.c.repo_id)
    )
    return {row.repo_id: row[1] for row in rows}


def count_children(connection: Connection, name: str) -> int:
    """How many public models say on their cards that they descend from `name`."""
    tag = _escaped(msgspec.json.encode(f"base_model:{name}").decode())
    statement = (
        select(func.count())
        .select_from(repos)
        .where(
            repos.c.kind == "model",
            repos.c.private.is_(False),
            repos.c.summary.ilike(f"%{tag}%", escape="\\"),
        )
    )
    return connection.scalar(statement) or 0


def _rows(
    connection: Connection, identity: Identity, question: Question, after: Place | None
) -> Iterator[Row[Any]]:
    value = _value(question.sort)
    statement = _where(select(repos, value.label("place")), identity, question)
    order = (value, repos.c.id) if question.ascending else (value.desc(), repos.c.id.desc())
    count = _ROWS_AT_ONCE
    while True:
        page = statement
        if after is not None:
            page = page.where(_beyond(value, question.ascending, after))
        rows = connection.execute(page.order_by(*order).limit(count)).all()
        yield from rows
        if len(rows) < count:
            return
        after = _place(rows[-1])
        # A narrow filter reads on; larger pages sort the table less often.
        count = min(count * 4, _ROWS_AT_ONCE_MAX)


def _place(row: Row[Any]) -> Place:
    return Place(int(row.place), row.id)


def _where(statement: Select[Any], identity: Identity, question: Question) -> Select[Any]:
    statement = statement.where(repos.c.kind == question.kind)
    for term in question.search:
        statement = statement.where(
            func.lower(repos.c.name).like(f"%{_escaped(term.lower())}%", escape="\\")
        )
    if question.author is not None:
        statement = statement.where(in_namespace(question.author, question.kind))
    for words in _named(question):
        # What Python decides in the end; the text of the summary tells most others apart before.
        statement = statement.where(repos.c.summary.ilike(f"%{_escaped(words)}%", escape="\\"))
    if question.gated is not None:
        statement = statement.where((repos.c.gated != "") == question.gated)
    if not identity.operator:
        own = [each for each in (identity.account, *identity.organisations) if each]
        visible = [in_namespace(each, question.kind) for each in own]
        statement = statement.where(or_(repos.c.private.is_(False), *visible))
    return statement


def _value(sort: Sort) -> ColumnElement[int]:
    columns: dict[str, ColumnElement[int]] = {
        "lastModified": repos.c.updated_us,
        "createdAt": repos.c.created_us,
        "downloads": repos.c.downloads,
        "likes": repos.c.likes,
    }
    if sort in columns:
        return columns[sort]
    return (
        select(func.count(type_=BigInteger))
        .select_from(likes)
        .where(likes.c.repo_id == repos.c.id, likes.c.at_us > now_us() - _TRENDING_US)
        .correlate(repos)
        .scalar_subquery()
    )


def _beyond(value: ColumnElement[int], ascending: bool, place: Place) -> ColumnElement[bool]:
    # As a row, which databases look up in an index; an "or" they do not.
    here, there = tuple_(value, repos.c.id), tuple_(literal(place.value, BigInteger), place.id)
    return here > there if ascending else here < there


def _named(question: Question) -> Iterator[str]:
    """Pieces of JSON that stand in every summary that answers the question.

    Letters outside ASCII are left to Python: databases do not agree on their case.
    """
    for each in (*question.filters, *question.library, question.pipeline_tag):
        if each and each.isascii():
            yield msgspec.json.encode(each).decode()
    for each in question.language:
        if each.isascii():
            yield msgspec.json.encode(each.lower().removeprefix("language:")).decode()[1:]
    if question.parameters_min is not None or question.parameters_max is not None:
        yield '"total":'


def _names(summary: Summary) -> set[str]:
    """Every tag by which a filter may ask, lower case."""
    names = {each.lower() for each in summary.tags}
    for each in (summary.pipeline_tag, summary.library_name):
        if each:
            names.add(each.lower())
    return names


def _languages(summary: Summary) -> set[str]:
    try:
        given = _decode_card(summary.card).language
    except msgspec.DecodeError:
        given = None
    listed = [given] if isinstance(given, str) else given or []
    tagged = {
        each.lower().removeprefix("language:")
        for each in summary.tags
        if each.lower().startswith("language:")
    }
    return tagged | {each.lower() for each in listed if each}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
