"""The family of a hub's models: who descends from whom, as the weights or the cards say it.

What the weights say (the lineage that was computed, where it was) goes before what a card claims,
and every edge names its source. A model has one place in the drawn tree, under its first parent;
the others, of a merge, stay named on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec
from sqlalchemy import Connection, select

from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import may
from qwenstack.hub.registry.repos import Repo, repo_key
from qwenstack.storage.hub_tables import repos
from qwenstack.storage.rows import read_row

MODELS_MAX = 20_000
GENERATIONS_MAX = 100
_PARENTS_MAX = 20


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """A parent by name. `confidence` is the lineage's; a card's claim has none."""

    name: str
    relation: str
    source: Literal["weights", "card"]
    confidence: float | None = None


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A model. `here` False: it is named as a parent and not published on this hub."""

    name: str
    parents: tuple[Parent, ...] = ()
    parameters: int | None = None
    task: str | None = None
    licence: str | None = None
    downloads: int = 0
    likes: int = 0
    here: bool = True


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """A model with its derivatives, the most downloaded first.

    `generation` counts from 0, `derivatives` is how many models descend from it.
    """

    member: Member
    generation: int
    derivatives: int
    children: tuple[Branch, ...] = ()


class _Count(msgspec.Struct, frozen=True):
    total: int = 0


class _Lineage(msgspec.Struct, frozen=True):
    parent: str | None = None
    relation: str = ""
    confidence: float | None = None
    verdict: str = "derived"


class _Licensed(msgspec.Struct, frozen=True):
    license: str | None = None
    license_name: str | None = None


class _Model(msgspec.Struct, frozen=True):
    id: str


class _BaseModels(msgspec.Struct, frozen=True):
    relation: str | None = None
    models: list[_Model] = []


class _Summary(msgspec.Struct, frozen=True, rename={"card": "cardData", "bases": "baseModels"}):
    pipeline_tag: str | None = None
    safetensors: _Count | None = None
    gguf: _Count | None = None
    bases: _BaseModels | None = None
    lineage: _Lineage | None = None
    # Whatever a stranger wrote: what of it does not fit must not hide the rest.
    card: msgspec.Raw = msgspec.Raw(b"{}")


_decode_summary = msgspec.json.Decoder(_Summary).decode
_decode_licensed = msgspec.json.Decoder(_Licensed).decode


def read_family(connection: Connection, identity: Identity) -> list[Member]:
    """The models that this caller may know of, the most downloaded first."""
    statement = (
        select(repos)
        .where(repos.c.kind == "model")
        .order_by(repos.c.downloads.desc(), repos.c.id)
        .limit(MODELS_MAX)
    )
    found = []
    for row in connection.execute(statement):
        # Who sees one public repo sees them all: only the others are asked for one by one.
        open_ = not row.private and (identity.account is not None or identity.guest_sees_public)
        if open_ or may(identity, read_row(row, Repo), "see").allowed:
            found.append(_member(row.name, row.summary, row.downloads, row.likes))
    return _without_hidden(found, {each.name.lower() for each in found})


def shown_to(connection: Connection, identity: Identity, members: list[Member]) -> list[Member]:
    """The members without parents that only the weights name and this caller may not know of.

    The lineage is computed over private repos as well; a card names only what its author wrote.
    """
    named = {
        repo_key("model", parent.name)
        for member in members
        for parent in member.parents
        if parent.source == "weights"
    }
    rows = connection.execute(select(repos).where(repos.c.key.in_(sorted(named)))) if named else ()
    seen = [read_row(row, Repo) for row in rows]
    visible = {repo.name.lower() for repo in seen if may(identity, repo, "see").allowed}
    return _without_hidden(members, visible)


def _without_hidden(members: list[Member], visible: set[str]) -> list[Member]:
    return [
        msgspec.structs.replace(
            member,
            parents=tuple(
                parent
                for parent in member.parents
                if parent.source == "card" or parent.name.lower() in visible
            ),
        )
        for member in members
    ]


def member_of(repo: Repo) -> Member:
    """A repo as a member of the family."""
    return _member(repo.name, repo.summary, repo.downloads, repo.likes)


def _member(name: str, document: str, downloads: int, likes: int) -> Member:
    summary = _summary(document)
    counted = summary.safetensors or summary.gguf
    return Member(
        name=name,
        parents=_parents(summary),
        parameters=counted.total if counted and counted.total else None,
        task=summary.pipeline_tag,
        licence=_licence(summary),
        downloads=downloads,
        likes=likes,
    )


def forest(members: Iterable[Member]) -> list[Branch]:
    """The trees: each model under its first parent, those without one at the roots.

    A parent that is not on this hub gets a place by its name. A circle of claims is cut where it
    would close, a chain of more than GENERATIONS_MAX where it is too long: what follows is a root.
    """
    known = {each.name.lower(): each for each in members}
    for each in list(known.values()):
        for parent in each.parents[:1]:
            if parent.name.lower() not in known:
                known[parent.name.lower()] = Member(name=parent.name, here=False)
    above = {key: _above(key, known) for key in known}
    _cut_circles(above)
    _cut_depth(above)
    children: dict[str | None, list[str]] = {}
    for key, parent_key in above.items():
        children.setdefault(parent_key, []).append(key)
    trees = [_branch(key, known, children) for key in children.get(None, [])]
    return sorted(trees, key=lambda tree: (-tree.derivatives, -tree.member.downloads))


def tree_with(trees: Iterable[Branch], name: str) -> Branch | None:
    """The whole tree that a model stands in."""
    key = name.lower()
    for tree in trees:
        if any(each.member.name.lower() == key for each in walk(tree)):
            return tree
    return None


def walk(tree: Branch) -> Iterator[Branch]:
    """Every branch, a parent before its children."""
    stack = [tree]
    while stack:
        branch = stack.pop()
        yield branch
        stack.extend(reversed(branch.children))


def _branch(root: str, known: dict[str, Member], children: dict[str | None, list[str]]) -> Branch:
    """Built from the leaves up, without recursion: a chain can be as long as the hub has models."""
    order, generation = [root], {root: 0}
    for key in order:
        for child in children.get(key, []):
            generation[child] = generation[key] + 1
            order.append(child)
    built: dict[str, Branch] = {}
    for key in reversed(order):
        below = [built[child] for child in children.get(key, [])]
        below.sort(key=lambda each: (-each.member.downloads, each.member.name))
        built[key] = Branch(
            member=known[key],
            generation=generation[key],
            derivatives=sum(1 + each.derivatives for each in below),
            children=tuple(below),
        )
    return built[root]


def _above(key: str, known: dict[str, Member]) -> str | None:
    for parent in known[key].parents[:1]:
        name = parent.name.lower()
        return name if name != key else None
    return None


def _cut_circles(above: dict[str, str | None]) -> None:
    """Make a root of one model of each circle."""
    settled: set[str] = set()
    for key in above:
        path: set[str] = set()
        at: str | None = key
        while at is not None and at not in settled and at not in path:
            path.add(at)
            at = above[at]
        if at is not None and at in path:
            above[at] = None
        settled |= path


def _cut_depth(above: dict[str, str | None]) -> None:
    """Begin a new tree where one would have more than GENERATIONS_MAX: claims cost nothing."""
    children: dict[str | None, list[str]] = {}
    for key, parent in above.items():
        children.setdefault(parent, []).append(key)
    order, depth = list(children.get(None, [])), dict.fromkeys(children.get(None, []), 1)
    for key in order:
        for child in children.get(key, []):
            depth[child] = depth[key] + 1
            if depth[child] > GENERATIONS_MAX:
                above[child], depth[child] = None, 1
            order.append(child)


def _parents(summary: _Summary) -> tuple[Parent, ...]:
    found: dict[str, Parent] = {}
    lineage = summary.lineage
    if lineage is not None and lineage.parent and lineage.verdict == "derived":
        found[lineage.parent.lower()] = Parent(
            name=lineage.parent,
            relation=lineage.relation,
            source="weights",
            confidence=lineage.confidence,
        )
    bases = summary.bases or _BaseModels()
    for each in bases.models[:_PARENTS_MAX]:
        if each.id and each.id.lower() not in found:
            found[each.id.lower()] = Parent(
                name=each.id[:200], relation=bases.relation or "derived", source="card"
            )
    return tuple(found.values())


def _licence(summary: _Summary) -> str | None:
    try:
        said = _decode_licensed(summary.card)
    except msgspec.DecodeError:
        return None
    return said.license_name if said.license == "other" else said.license


def _summary(document: str) -> _Summary:
    try:
        return _decode_summary(document)
    except msgspec.DecodeError:
        return _Summary()


class Family(msgspec.Struct, frozen=True):
    """The JSON of a family: its trees and how many models they hold."""

    models: int
    trees: tuple[Branch, ...]
