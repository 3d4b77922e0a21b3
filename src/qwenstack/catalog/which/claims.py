"""From what a file says of itself to a reading: statements are weighed, and none is a proof."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from qwenstack.catalog.model import Status
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.catalog.which.shape import Shape, releases_of
from qwenstack.catalog.which.spelling import fold
from qwenstack.core import licences
from qwenstack.core.layers import Layer

_HUB_ID: Final = re.compile(r"(?:https?://(?:huggingface\.co|hf\.co)/)?([\w.-]+/[\w.-]+)/?")
_CLAIM_CHARACTERS_MAX: Final = 300


class Claims(msgspec.Struct, kw_only=True):
    """What was found in a file or folder. `made_from` are hub ids or paths that it names as base.

    `licence_text` is the licence whose text lies beside it; `licence_named` a card's or header's.
    """

    shape: Shape = Shape()
    made_from: list[str] = msgspec.field(default_factory=list)
    loaded_from: str = ""
    """`_name_or_path`: what was loaded before this was saved; the base of a fine-tune, often."""
    name: str = ""
    publisher: str = ""
    repo: str = ""
    licence_named: str = ""
    licence_text: str = ""
    adapter: bool = False
    said: list[tuple[str, str]] = msgspec.field(default_factory=list)
    problems: list[str] = msgspec.field(default_factory=list)
    conflicts: list[str] = msgspec.field(default_factory=list)

    def say(self, label: str, value: object) -> None:
        """Keep a statement to show, shortened."""
        text = str(value).replace("\n", " ")
        if text:
            self.said.append((label, text[:_CLAIM_CHARACTERS_MAX]))


def hub_id(text: str) -> str:
    """The hub id that `text` is or leads to, else empty."""
    match = _HUB_ID.fullmatch(text.strip())
    return match[1] if match else ""


def judge(claims: Claims, *, kind: Kind, subject: str, index: Index) -> Reading:
    """The reading of a file or folder that says `claims` of itself."""
    called = fold(claims.name.replace(" ", "-"))
    # Those that the file calls itself by come first; the order proves nothing.
    candidates = tuple(
        sorted(releases_of(claims.shape, index), key=lambda each: fold(each) not in called)
    )
    if claims.shape.layers:
        claims.say("shape", claims.shape.describe())
    base = next((b for b in (hub_id(each) for each in claims.made_from) if b), "") or next(
        iter(claims.made_from), ""
    )
    layer, why = _layer(claims, base, index)
    stated = licences.declared(claims.licence_named)
    licence = claims.licence_text or (stated.id if stated else "")
    if claims.licence_named and stated is None:
        claims.problems.append(
            f"it names the licence {claims.licence_named!r}, which is not a licence that we know"
        )
    _against_base(claims, base or claims.loaded_from, licence, index)
    _against_shape(claims, base, licence, candidates, index)
    if claims.shape.layers and not candidates:
        why += (
            "; its shape is that of no release in the catalogue"
            if claims.shape.is_qwen
            else f"; its architecture ({claims.shape.model_type or 'unnamed'}) is not Qwen's"
        )
    return Reading(
        kind=kind,
        sure=Sureness.EXACT,
        why=why,
        subject=subject,
        layer=layer,
        base=base or hub_id(claims.loaded_from) or claims.loaded_from,
        claims=tuple(claims.said),
        stated_licence=licence,
        status=Status.REPORTED if layer is not None else Status.UNKNOWN,
        candidates=candidates,
        conflicts=tuple(claims.conflicts),
        problems=tuple(claims.problems),
    )


def _layer(claims: Claims, base: str, index: Index) -> tuple[Layer | None, str]:
    publisher = claims.publisher.casefold()
    if base and not publisher and not claims.repo:
        other = next(
            (each for each in map(hub_id, claims.made_from) if _is_others(each, index)), ""
        )
        if other and not claims.adapter:
            return Layer.COMMUNITY, f"says that it was made from {other}, another organisation's"
        if hub_id(base).partition("/")[0].casefold() in index.makers and not claims.adapter:
            # The makers' own instruct models name their base model, too.
            return None, f"says that it was made from {base}, and not by whom"
        return Layer.COMMUNITY, f"says that it was made from {base}"
    owner = hub_id(claims.repo).partition("/")[0].casefold()
    if owner and owner not in index.makers:
        return Layer.COMMUNITY, f"names the repo {claims.repo} as its own"
    if publisher and publisher not in index.makers:
        return Layer.COMMUNITY, f"names {claims.publisher} as its maker"
    if (owner or publisher) and releases_of(claims.shape, index):
        return None, (
            "names the Qwen team as its maker, and its shape is one of theirs; any header can "
            "say that, and only its SHA-256 could prove it"
        )
    if claims.loaded_from and hub_id(claims.loaded_from).partition("/")[0].casefold() not in (
        "",
        *index.makers,
    ):
        return Layer.COMMUNITY, f"was saved from {claims.loaded_from}, another organisation's"
    if claims.loaded_from:
        return None, "was saved from another model: a copy or a fine-tune of it; which is not said"
    return None, "does not say who made it: a shape or a name is no proof"


def _is_others(repo: str, index: Index) -> bool:
    return bool(repo) and repo.partition("/")[0].casefold() not in index.makers


def _against_base(claims: Claims, base: str, licence: str, index: Index) -> None:
    """Note where the stated licence is freer than that of the Qwen release it was made from."""
    found = index.catalogue.find_repo(hub_id(base)) if base else None
    if found is None:
        return
    release, repo = found
    upstream = (repo.licence or release.licence).value
    if upstream and licence and upstream != licence:
        claims.conflicts.append(
            f"it states {licence}, but {repo.id}, which it says it was made from, is under "
            f"{upstream}"
        )


def _permissive(licence_id: str | None) -> bool:
    """Whether it is known to be permissive."""
    found = licences.by_id(licence_id) if licence_id else None
    return found is not None and found.category is licences.Category.PERMISSIVE


def _against_shape(
    claims: Claims, base: str, licence: str, candidates: tuple[str, ...], index: Index
) -> None:
    """Note where the shape contradicts the base or the licence that is stated."""
    shape = claims.shape
    found = index.catalogue.find_repo(hub_id(base)) if base else None
    if found is not None and shape.hidden and shape.layers:
        name, architecture = found[0].name, found[0].architecture
        known = [each for each in index.catalogue.architectures if each.id == architecture]
        if any((each.hidden, each.layers) != (shape.hidden, shape.layers) for each in known):
            claims.conflicts.append(
                f"it says that it was made from {base}, but its shape ({shape.describe()}) is not "
                f"that of {name}"
            )
    releases = [index.release_names[fold(each)] for each in candidates]
    licences_of = {each.licence.value for each in releases} | {
        repo.licence.value for each in releases for repo in each.repos if repo.licence
    }
    # Permissive terms over other permissive ones contradict nothing.
    if candidates and _permissive(licence) and not any(map(_permissive, licences_of)):
        claims.conflicts.append(
            f"it states {licence}, but what has its shape ({', '.join(candidates[:4])}) is under "
            f"{' or '.join(sorted(filter(None, licences_of)))}"
        )
