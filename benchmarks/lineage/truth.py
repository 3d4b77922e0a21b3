"""Who is kin, who is a stranger, and which candidates a question is asked against."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.lineage.families import FAMILIES
from benchmarks.lineage.manifest import Entry

_SHARED_INIT = {family.name: family.shares_init_with for family in FAMILIES}


class Tree:
    """The zoo's entries as a graph of weight parents."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.by_id = {entry.id: entry for entry in entries}
        self._children: dict[str, list[str]] = {}
        for entry in entries:
            for parent in entry.weight_parents:
                self._children.setdefault(parent, []).append(entry.id)

    def candidates(self) -> list[str]:
        """All bases and all models that others were made from, adapters aside."""
        return [
            entry.id
            for entry in self.entries
            if entry.format != "peft" and (entry.relation == "base" or entry.id in self._children)
        ]

    def descendants(self, of: str) -> set[str]:
        """Everything made from `of`, at any distance."""
        found: set[str] = set()
        stack = [of]
        while stack:
            for child in self._children.get(stack.pop(), []):
                if child not in found:
                    found.add(child)
                    stack.append(child)
        return found

    def earlier(self, entry: Entry) -> list[str]:
        """The candidates that could be the parent: all but the model and its descendants."""
        later = self.descendants(entry.id) | {entry.id}
        return [name for name in self.candidates() if name not in later]

    def kin(self, entry: Entry) -> Iterator[str]:
        """The model's ancestors."""
        stack = list(entry.weight_parents)
        seen: set[str] = set()
        while stack:
            name = stack.pop()
            if name not in seen:
                seen.add(name)
                yield name
                stack += self.by_id[name].weight_parents

    def strangers(self, entry: Entry, split: str) -> Iterator[Entry]:
        """Models of the same architecture and of `split` that share no weights, not even at first.

        A distilled student is a stranger by weights to its own family, too, but is left out of
        these pairs: it is reported under its relation.
        """
        for other in self.entries:
            if (
                other.architecture == entry.architecture
                and other.family != entry.family
                and other.split == split
                and "peft" not in (other.format, entry.format)
                and not cousins(entry, other)
            ):
                yield other

    def cousins(self, entry: Entry) -> Iterator[Entry]:
        """Models of a family that began from the same initial weights and saw other data."""
        for other in self.entries:
            fresh = [one for one in (entry, other) if one.relation == "distilled"]
            if not fresh and "peft" not in (other.format, entry.format) and cousins(entry, other):
                yield other


def cousins(one: Entry, other: Entry) -> bool:
    """Whether two families began from the same initial weights."""
    return (
        _SHARED_INIT.get(one.family) == other.family or _SHARED_INIT.get(other.family) == one.family
    )
