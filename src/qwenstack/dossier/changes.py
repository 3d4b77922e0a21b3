"""What changed between two dossiers, and which sections and sign-offs that touches."""

from __future__ import annotations

from typing import Literal

import msgspec

from qwenstack.core.evidence import Evidence, Value
from qwenstack.dossier.document import Document


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A statement that came, went or says something else; and the sections that rest on it."""

    kind: Literal["added", "removed", "changed"]
    subject: str
    claim: str
    before: Value | None = None
    after: Value | None = None
    sections: tuple[str, ...] = ()


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """All changes, and what must be looked at again because of them."""

    changes: tuple[Change, ...]
    review: tuple[str, ...]
    void_sign_offs: tuple[str, ...]


def compare(old: Document, new: Document) -> Changes:
    """From `old` to `new`. A later look at the same value is no change.

    A sign-off given before the newest change is void: it was given for something else.
    """
    before, after = _by_statement(old), _by_statement(new)
    changes = []
    for key in sorted({*before, *after}):
        was, now = before.get(key), after.get(key)
        if was and now and was.value == now.value:
            continue
        touched = {
            *(_sections_of(old, was) if was else ()),
            *(_sections_of(new, now) if now else ()),
        }
        changes.append(
            Change(
                kind="changed" if was and now else "added" if now else "removed",
                subject=key[0],
                claim=key[1],
                before=was.value if was else None,
                after=now.value if now else None,
                sections=tuple(sorted(touched)),
            )
        )
    real = [each for each in changes if not each.claim.startswith("sign-off.")]
    newest = max(
        (now.observed_at for key, now in after.items() if _differs(before.get(key), now)),
        default="",
    )
    given = [each for each in new.evidence if each.claim.startswith("sign-off.")]
    return Changes(
        changes=tuple(changes),
        review=tuple(sorted({section for each in real for section in each.sections})),
        void_sign_offs=tuple(
            each.claim.removeprefix("sign-off.")
            for each in given
            if real and each.observed_at[:10] < newest[:10]
        ),
    )


def _differs(was: Evidence | None, now: Evidence) -> bool:
    return not now.claim.startswith("sign-off.") and (was is None or was.value != now.value)


def _by_statement(document: Document) -> dict[tuple[str, str], Evidence]:
    return {(each.subject, each.claim): each for each in document.evidence}


def _sections_of(document: Document, each: Evidence) -> list[str]:
    return [
        section.id
        for section in document.sections
        if any(each.id in row.evidence for row in section.rows)
    ]
