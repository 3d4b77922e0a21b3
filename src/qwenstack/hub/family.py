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
from qwenstack.hub.registry.repos import Repo
from qwenstack.storage.hub_tables import repos
from qwenstack.storage.rows import read_row

MODELS_MAX = 20_000
_PARENTS_MAX = 20
_RELATIONS = ("quantized", "adapter", "merge", "finetune")


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
    """A model with its derivatives, the most downloaded first. `generation` counts from 0."""

    member: Member
    generation: int
    children: tuple[Branch, ...] = ()

    @property
    def derivatives(self) -> int:
        """How many models descend from it."""
        return sum(1 + child.derivatives for child in self.children)


class _Count(msgspec.Struct, frozen=True):
    total: int = 0


class _Lineage(msgspec.Struct, frozen=True):
    parent: str | None = None
    relation: str = ""
    confidence: float | None = None
    verdict: str = "derived"


class _Card(msgspec.Struct, frozen=True):
    base_model: str | list[str] | None = None
    base_model_relation: str | None = None
    license: str | list[str] | None = None
    license_name: str | None = None


class _Summary(msgspec.Struct, frozen=True, rename={"card": "cardData"}):
    tags: list[str] = []
    pipeline_tag: str | None = None
    safetensors: _Count | None = None
    gguf: _Count | None = None
    card: _Card | None = None
    lineage: _Lineage | None = None


def read_family(connection: Connection, identity: Identity) -> list[Member]:
    """The models that this caller may know of, the most downloaded first."""
    statement = (
        select(repos)
        .where(repos.c.kind == "model")
        .order_by(repos.c.downloads.desc(), repos.c.id)
        .limit(MODELS_MAX)
    )
    found = (read_row(row, Repo) for row in connection.execute(statement))
    return [member_of(repo) for repo in found if may(identity, repo, "see").allowed]


def member_of(repo: Repo) -> Member:
    """A repo as a member of the family."""
    summary = _summary(repo.summary)
    counted = summary.safetensors or summary.gguf
    card = summary.card or _Card()
    licence = card.license if isinstance(card.license, str) else None
    return Member(
        name=repo.name,
        parents=_parents(summary),
        parameters=counted.total if counted and counted.total else None,
        task=summary.pipeline_tag,
        licence=card.license_name if licence == "other" else licence,
        downloads=repo.downloads,
        likes=repo.likes,
    )


def declared_parents(summary: str) -> tuple[Parent, ...]:
    """The parents that a summary names, the weights' first."""
    return _parents(_summary(summary))


def forest(members: Iterable[Member]) -> list[Branch]:
    """The trees: each model under its first parent, those without one at the roots.

    A parent that is not on this hub gets a place by its name. A circle of claims is cut where it
    would close: its first model is then a root.
    """
    known = {each.name.lower(): each for each in members}
    for each in list(known.values()):
        for parent in each.parents[:1]:
            if parent.name.lower() not in known:
                known[parent.name.lower()] = Member(name=parent.name, here=False)
    above = {key: _above(key, known) for key in known}
    _cut_circles(above)
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
        built[key] = Branch(member=known[key], generation=generation[key], children=tuple(below))
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
    card = summary.card or _Card()
    named = [card.base_model] if isinstance(card.base_model, str) else card.base_model or []
    relation = card.base_model_relation or _tagged_relation(summary.tags)
    for name in named[:_PARENTS_MAX]:
        if name and name.lower() not in found:
            found[name.lower()] = Parent(name=name[:200], relation=relation, source="card")
    return tuple(found.values())


def _tagged_relation(tags: list[str]) -> str:
    for tag in tags:
        words = tag.split(":")
        if len(words) > 2 and words[0] == "base_model" and words[1] in _RELATIONS:
            return words[1]
    return "derived"


def _summary(document: str) -> _Summary:
    try:
        return msgspec.json.decode(document, type=_Summary)
    except msgspec.DecodeError:
        return _Summary()


class Family(msgspec.Struct, frozen=True):
    """The JSON of a family: its trees and how many models they hold."""

    models: int
    trees: tuple[Branch, ...]
