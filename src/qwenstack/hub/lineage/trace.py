"""The question itself: whose child is this model, how was it made, and how sure is that."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
import numpy as np

from qwenstack.hub.lineage import adapters, calibrate
from qwenstack.hub.lineage.arborescence import depth_of, is_below, root_of
from qwenstack.hub.lineage.compare import (
    Comparison,
    LayerPair,
    Sampled,
    check_sizes,
    layers_in_place,
)
from qwenstack.hub.lineage.family import Family
from qwenstack.hub.lineage.fingerprint import fingerprint
from qwenstack.hub.lineage.inheritance import descends, remapped
from qwenstack.hub.lineage.library import Library, affinity
from qwenstack.hub.lineage.merging import merge_of
from qwenstack.hub.lineage.model import Model
from qwenstack.hub.lineage.relation import Relation, relation_of
from qwenstack.hub.lineage.renamed import named_like
from qwenstack.hub.lineage.rounding import nearest_levels
from qwenstack.hub.lineage.tensors import UnreadableModel

Verdict = Literal["derived", "independent", "insufficient"]

_SCREENED: Final = 48
AFFINITY_MIN: Final = 0.25
_FARTHER_MAX: Final = 1.05
_IN_PLACE_TRIED: Final = 32
_UNREAD_SHOWN: Final = 8
_CLOSE_MAX: Final = 16
_EQUAL: Final = 1.001
_LEVELS_MIN: Final = 0.97  # of numbers that lie nearest to their own level, rounded otherwise
_LEVELS_ALIKE: Final = 0.003
_IN_PLACE_MAX: Final = 0.4  # farther apart in place, a disguise is the better explanation


class LayerEvidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """A layer, the parent's layer that it comes from, and the cosine of each matrix with it."""

    layer: int
    parent_layer: int
    cosine: dict[str, float]
    similarity: float


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """One observation: what it is about, in words, as a number, or layer by layer."""

    about: str
    detail: str = ""
    value: float | None = None
    layers: list[LayerEvidence] = []


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. `confidence` is a calibrated probability that the answer is right.

    `parents` has every parent of a merge; `parent` is the nearest, None without one.
    `descendants` are candidates that come from the model in question.
    """

    parent: str | None
    relation: Relation
    confidence: float
    verdict: Verdict
    evidence: list[Evidence]
    parents: list[str] = []
    descendants: list[str] = []


def trace(model: Model, library: Library) -> Answer:
    """Find the parent of `model` among a library's candidates.

    Raises nothing for a model that cannot be decided on: the verdict is then `insufficient`, and
    the evidence says why.
    """
    try:
        return _adapter(model, library) if model.adapter is not None else _trace(model, library)
    except UnreadableModel as error:  # also of a part that only the comparison reads
        return insufficient(str(error))
    except np.linalg.LinAlgError as error:
        return insufficient(f"its numbers cannot be computed with: {error}")


def _trace(model: Model, library: Library) -> Answer:
    subject = Sampled(model, fingerprint(model))
    if model.parameters < calibrate.PARAMETERS_MIN:
        return insufficient(f"{model.parameters} weights are too few to tell by")
    table = subject.table(0)
    if table is None or not float((table - table.mean(axis=0)).any()):
        return insufficient("its token embeddings are all alike: there is nothing to tell by")
    check_sizes(subject)
    near = library.nearest(subject.print, without=model.name, count=_SCREENED)
    near = [(name, value) for name, value in near if value > -1]
    if not near:
        return insufficient(_nobody(library), _unread(library))
    members, affinities = _members(subject, near, library)
    family = _family(members, library)
    related = [place for place in range(1, len(members)) if family.between(0, place).related]
    if not related:
        return _independent(near, family, affinities)
    related = _in_one_basis(family, related)
    kin = [members[0], *[members[place] for place in related]]
    family = _family(kin, library)
    return _placed(family, [affinities[place - 1] for place in related])


def _nobody(library: Library) -> str:
    if not library.names:
        return "there are no candidates"
    return "no candidate could be read that has tokens or layers in common"


def _unread(library: Library) -> list[Evidence]:
    """The candidates that could not be read, with the reason."""
    found = [(name, why) for name, why in library.unreadable.items() if name in library.names]
    return [Evidence("not read", f"{name}: {why}") for name, why in found[:_UNREAD_SHOWN]]


def _family(members: list[Sampled], library: Library) -> Family:
    outside = members[0].model.name not in library.names
    return Family(members, library.compared, library.told, library.published, outside)


def _in_one_basis(family: Family, related: list[int]) -> list[int]:
    """Those of the related that lie as the subject does; for a disguised one, as its nearest does.

    Copies in another basis are descendants or copies of those that are left, and comparing each
    with all would cost more than it tells.
    """
    in_place = [place for place in related if not family.between(0, place).units_moved]
    nearest = min(related, key=lambda place: family.between(0, place).distance)
    near = family.between(0, nearest).distance
    if any(family.between(0, at).distance < max(2 * near, _IN_PLACE_MAX) for at in in_place):
        return in_place
    same = [
        place
        for place in related
        if place == nearest or not family.between(place, nearest).units_moved
    ]
    if len(same) > 1 or len(related) < 3:
        return same
    others = [place for place in related if place != nearest]
    return [*_in_one_basis(family, others), nearest]


def _adapter(model: Model, library: Library) -> Answer:
    """The base of an adapter, by what its training left in it of the base (see `adapters`)."""
    fits = adapters.fit_all(model, library)
    declared = model.adapter.base_model_name_or_path if model.adapter else None
    said = Evidence("declared base", declared or "none")
    if not fits:
        return insufficient("no candidate has the layers that this adapter was made for", [said])
    best = fits[0]
    sure = calibrate.calibration().adapter(best.score)
    shapes = Evidence("shapes", f"{len(fits)} candidates have the layers that it was made for")
    if sure < 0.5:
        # A short training leaves little behind: that is no sign that the base is another one.
        why = "the adapter's weights show none of the candidates as its base"
        return insufficient(f"{why}; {best.name} is nearest", [said, shapes])
    close = [fit for fit in fits if fit.score > adapters.CLOSE_SHARE * best.score]
    named = [fit for fit in close if declared and adapters.names(declared, fit.name)]
    chosen = named[0] if named else _first_of(close, library)
    how = "alone"
    if len(close) > 1:
        how = "by its card, which names it" if named else "as the one that the others come from"
    evidence = [
        Evidence("adapter", f"its updates are like what {chosen.name} sends there: centred "
                 "alignment, 0 by chance", _round(chosen.score)),
        Evidence("chosen", f"{how}: the weights leave {len(close) - 1} others as near"),
        Evidence("candidates as close", ", ".join(fit.name for fit in close if fit is not chosen)),
        said,
        shapes,
    ]  # fmt: skip
    stranger = next((fit for fit in fits if fit not in close), None)
    if stranger is not None:
        evidence.append(Evidence("next candidate", stranger.name, _round(stranger.score)))
    return Answer(
        parent=chosen.name, parents=[chosen.name], relation="adapter", verdict="derived",
        confidence=sure * calibrate.chosen(len(close), named=bool(named)), evidence=evidence,
    )  # fmt: skip


def _first_of(close: list[adapters.Fit], library: Library) -> adapters.Fit:
    """Of candidates that fit nearly alike the one that most others come from, else the best."""
    found = [
        (fit, sampled) for fit in close[:_CLOSE_MAX] if (sampled := library.comparable(fit.name))
    ]
    if len(found) < 2:
        return close[0]
    family = Family([sampled for _, sampled in found], library.compared, library.told)
    tree = family.parents()
    places = range(len(tree))
    below = {place: sum(is_below(tree, at, place) for at in places) for place in places}
    most = max(places, key=lambda place: (below[place], -place))
    return found[most][0] if below[most] else close[0]


def insufficient(why: str, evidence: list[Evidence] | None = None) -> Answer:
    """The answer where nothing can be said."""
    return Answer(
        parent=None, relation="unrelated", confidence=0.5, verdict="insufficient",
        evidence=[Evidence("not decided", why), *(evidence or [])],
    )  # fmt: skip


def _members(
    subject: Sampled, near: list[tuple[str, float]], library: Library
) -> tuple[list[Sampled], list[float]]:
    """The subject and the candidates worth a comparison, opaque names made plain."""
    found: list[tuple[Sampled, float]] = []
    tried = 0
    for name, value in near:
        if value < AFFINITY_MIN:
            tried += 1
        sampled = library.comparable(name) if tried <= _IN_PLACE_TRIED else None
        if sampled is not None and (value >= AFFINITY_MIN or layers_in_place(subject, sampled)):
            found.append((sampled, value))
    everyone = [subject, *[sampled for sampled, _ in found]]
    anchor = next((one for one in everyone if one.model.roles.layers), None)
    if anchor is not None:
        everyone = [_plain(one, anchor, everyone) for one in everyone]
    return everyone, [value for _, value in found]


def _plain(one: Sampled, anchor: Sampled, everyone: list[Sampled]) -> Sampled:
    if one.model.roles.layers:
        return one
    anchors = [other for other in everyone if other.model.roles.layers]
    anchors.sort(key=lambda other: -affinity(one.print, other.print))
    for other in anchors[:3] or [anchor]:
        renamed = named_like(one.model, other.model)
        if renamed is not None:
            return Sampled(renamed, fingerprint(renamed))
    return one


def _independent(near: list[tuple[str, float]], family: Family, affinities: list[float]) -> Answer:
    best_name, best = near[0]
    kept = max((family.between(0, p).kept for p in range(1, len(family.members))), default=0.0)
    evidence = [
        Evidence("nearest candidate", f"{best_name}: its fingerprint's correlation", best),
        Evidence("kept", "share of matrices that the best candidate has in common", kept),
    ]
    sure = 1 - calibrate.derived(best, kept)
    if sure < 0.5:
        why = f"the token tables look like {best_name}'s, but the layers do not bear it out"
        return insufficient(why, evidence)
    return Answer(
        parent=None, relation="unrelated", verdict="independent", confidence=sure,
        evidence=evidence,
    )  # fmt: skip


def _placed(family: Family, affinities: list[float]) -> Answer:
    """The subject's place in the tree of those that it is related to."""
    tree = family.parents()
    names = [member.model.name for member in family.members]
    descendants = [names[place] for place in range(1, len(names)) if _below(tree, place)]
    parent = tree[0] = _parent(family, tree)
    if parent < 0:
        nearest = min(range(1, len(names)), key=lambda place: family.distance(0, place))
        pair = family.between(0, nearest)
        return Answer(
            parent=None, relation="unrelated", verdict="independent",
            confidence=calibrate.origin(),
            evidence=[
                Evidence("descendants", f"{len(descendants)} candidates come from this model"),
                *_evidence(pair, names[nearest]),
            ],
            descendants=descendants,
        )  # fmt: skip
    pair = family.between(0, parent)
    subject, found = family.members[0], family.members[parent]
    same = family.same(0, parent)
    relation = relation_of(subject, found, pair, same=same)
    parents, evidence = [names[parent]], _evidence(pair, names[parent])
    mixed = merge_of(family, tree) if relation in ("fine-tune", "continued pre-training") else None
    if mixed is not None:
        one, other, how = mixed
        parents, relation = [names[one], names[other]], "merge"
        descendants = [name for name in descendants if name not in parents]
        detail = f"{1 - how.share:.2f} of {names[one]} and {how.share:.2f} of {names[other]}"
        evidence.insert(0, Evidence(f"{how.form} merge", detail, how.left))
    confidence = calibrate.derived(affinities[parent - 1], pair.kept)
    margin = _margin(family, tree)
    confidence *= calibrate.placed(margin, descendants=bool(descendants))
    evidence.append(Evidence("margin", "how much nearer than the next candidate", _round(margin)))
    return Answer(
        parent=parents[0], parents=parents, relation=relation, verdict="derived",
        confidence=confidence, evidence=evidence, descendants=descendants,
    )  # fmt: skip


def _below(tree: list[int], place: int) -> bool:
    """Whether the subject, at place 0, is an ancestor of `place`."""
    return is_below(tree, place, 0)


def _margin(family: Family, tree: list[int]) -> float:
    """How much nearer the parent is than the next best that is not below the subject."""
    others = sorted(
        family.distance(0, place)
        for place in range(1, len(tree))
        if place != tree[0] and not _below(tree, place) and not family.same(0, place)
    )
    if tree[0] < 0 or not others:
        return 1.0
    mine = family.distance(0, tree[0])
    return 1.0 - mine / max(others[0], mine, 1e-12)


def _parent(family: Family, tree: list[int]) -> int:
    """The subject's parent, found from the root downwards.

    From each model the subject goes on to the nearest of its descendants of which it holds the
    whole step. Where the root cannot be compared in place the tree's own answer stays.
    """
    if tree[0] < 0:
        return -1
    rounded = _rounded_from(family, tree)
    if rounded is not None:
        return rounded
    subject, place = family.members[0], root_of(tree, 0)
    if place == 0 or family.between(0, place).units_moved:
        return tree[0]
    for _ in range(len(tree)):
        origin = family.members[place]
        pair = family.between(0, place)
        view = remapped(subject, pair.layer_map, origin.depth)
        steps = [
            (family.distance(0, child), child)
            for child in range(1, len(tree))
            if is_below(tree, child, place)
            and not _below(tree, child)
            and _passable(family, child, place)
            and family.distance(0, child) < _FARTHER_MAX * pair.distance
            and descends(view, family.members[child], origin)
        ]
        if not steps:
            return place
        # Of equals, such as a model and its copy with more tokens, the one nearer to the root.
        near = min(steps)[0] * _EQUAL + 1e-6
        place = min((depth_of(tree, at), far, at) for far, at in steps if far <= near)[2]
    return place


def _rounded_from(family: Family, tree: list[int]) -> int | None:
    """Of a quantised subject the member that its numbers were rounded from, if one is."""
    subject = family.members[0]
    if not subject.model.quantised:
        return None
    found: list[tuple[float, int, float, int]] = []
    for place in range(1, len(tree)):
        member = family.members[place]
        if member.model.quantised or _below(tree, place) or family.between(0, place).units_moved:
            continue
        share = nearest_levels(subject, member) if member.depth == subject.depth else None
        if share is not None and share > _LEVELS_MIN:
            other = int(member.print.vocabulary != subject.print.vocabulary)
            found.append((share, other, family.distance(0, place), place))
    if not found:
        return None
    best = max(found)[0]
    alike = [one for one in found if one[0] > best - _LEVELS_ALIKE]
    place = min(alike, key=lambda one: (one[1], round(one[2], 4), depth_of(tree, one[3])))[3]
    while tree[place] >= 0 and family.same(place, tree[place]):
        place = tree[place]
    return place


def _passable(family: Family, child: int, origin: int) -> bool:
    """Whether a model could have come through `child` in a way that shows."""
    member = family.members[child]
    if member.model.quantised and not family.members[0].model.quantised:
        return False
    if member.print.vocabulary > family.members[0].print.vocabulary:
        return False
    same_depth = member.depth == family.members[origin].depth
    return (
        same_depth
        and not family.same(child, origin)
        and not family.between(child, origin).units_moved
    )


def _evidence(pair: Comparison, name: str) -> list[Evidence]:
    basis = {
        "same": "the residual stream is in the same order",
        "permuted": "the residual stream's channels were reordered",
        "rotated": "the residual stream was turned",
        "unrelated": "no common basis of the residual stream was found",
    }[pair.basis.kind]
    out = [
        Evidence(
            "token embeddings",
            f"against {name}: {basis}; mean cosine",
            _round(pair.basis.agreement),
        ),
        Evidence(
            "distance", "root of the mean share of energy that changed", _round(pair.distance)
        ),
        Evidence("kept", "share of the matrices compared that were kept", _round(pair.kept)),
    ]
    if pair.units_moved:
        out.append(Evidence("units", "units were matched one by one: they were moved or rescaled"))
    out.append(Evidence("layers", layers=[_layer(layer) for layer in pair.layers]))
    return out


def _layer(pair: LayerPair) -> LayerEvidence:
    cosine = {role: _round(change.cosine) for role, change in pair.changes.items()}
    return LayerEvidence(pair.layer, pair.parent_layer, cosine, _round(pair.similarity))


def _round(value: float) -> float:
    return round(float(value), 5) if np.isfinite(value) else 0.0
