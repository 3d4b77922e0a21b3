"""The cheapest family tree: a minimum spanning arborescence (Chu and Liu 1965, Edmonds 1967).

Reading a family of models as such a tree, with distances between weights and the direction of each
edge as its costs, is how MoTHer recovers heritage (Horwitz et al., arXiv 2405.18432).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Costs = npt.NDArray[np.float64]


def parents_of(costs: Costs, root_costs: Costs) -> list[int]:
    """For each node its parent, -1 for a root: the choice of least total cost.

    `costs[p, c]` is what it costs that p is c's parent, infinity for never. Having no parent costs
    what `root_costs` says for the node.
    """
    count = len(costs)
    table = np.full((count + 1, count + 1), np.inf)
    table[:count, :count] = costs
    table[count, :count] = root_costs
    np.fill_diagonal(table, np.inf)
    chosen = _edmonds(table, count)
    return [-1 if chosen[node] == count else chosen[node] for node in range(count)]


def _edmonds(costs: Costs, root: int) -> list[int]:
    """The parent of every node but `root`; contracts a cycle and solves what is left."""
    count = len(costs)
    best = [int(costs[:, node].argmin()) if node != root else root for node in range(count)]
    cycle = _cycle(best, root)
    if not cycle:
        return best
    inside = np.zeros(count, bool)
    inside[cycle] = True
    outside = np.flatnonzero(~inside)
    # Entering the cycle at a node saves the edge that the node has now.
    saved = np.array([costs[best[node], node] for node in cycle])
    ring = np.asarray(cycle)
    entering = costs[np.ix_(outside, ring)] - saved
    entry = entering.argmin(axis=1)
    leaving = costs[np.ix_(ring, outside)]
    source = leaving.argmin(axis=0)
    small = np.full((len(outside) + 1, len(outside) + 1), np.inf)
    small[:-1, :-1] = costs[np.ix_(outside, outside)]
    small[:-1, -1] = entering.min(axis=1)
    small[-1, :-1] = leaving.min(axis=0)
    np.fill_diagonal(small, np.inf)
    solved = _edmonds(small, int(np.flatnonzero(outside == root)[0]))
    parents = list(best)
    for place, node in enumerate(outside.tolist()):
        if node == root:
            continue
        up = solved[place]
        parents[node] = cycle[int(source[place])] if up == len(outside) else int(outside[up])
    into = solved[len(outside)]
    parents[cycle[int(entry[into])]] = int(outside[into])
    return parents


def _cycle(parents: list[int], root: int) -> list[int]:
    """A cycle among the chosen edges, empty when there is none."""
    state = [0] * len(parents)  # 1: on the way, 2: done
    state[root] = 2
    for start in range(len(parents)):
        path: list[int] = []
        node = start
        while state[node] == 0:
            state[node] = 1
            path.append(node)
            node = parents[node]
        if state[node] == 1:
            return path[path.index(node) :]
        for seen in path:
            state[seen] = 2
    return []


def is_below(tree: list[int], place: int, ancestor: int) -> bool:
    """Whether `ancestor` is one of the ancestors of `place`, each node's parent given."""
    for _ in range(len(tree)):
        place = tree[place]
        if place == ancestor:
            return True
        if place < 0:
            return False
    return False


def root_of(tree: list[int], place: int) -> int:
    """The first of the line that `place` ends."""
    for _ in range(len(tree)):
        if tree[place] < 0:
            break
        place = tree[place]
    return place


def depth_of(tree: list[int], place: int) -> int:
    """How many ancestors `place` has."""
    count = 0
    while tree[place] >= 0 and count < len(tree):
        place, count = tree[place], count + 1
    return count
