"""Evidence from people: a small, versioned file of what they decided. Shown as declared.

date = 2026-11-24

[[sign_offs]]
role = "legal"
name = "A. Counsel"
decision = "approved"
date = 2026-11-24

[[risks]]
id = "not-signed"
owner = "Platform team"
due = 2026-12-31

[processing]
retention = "none: prompts are not stored"
sub_processors = []
dpa = "intra-group, 2026-03"
exit_plan = "the same weights on our own engines"
credits = "none agreed"
screening = "no hit, 2026-11-20"
hardware = "2 × NVIDIA H100, bought 2024"
"""

from __future__ import annotations

import datetime
import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from qwenstack.core.evidence import Evidence, Value

_BYTES_MAX: Final = 1024 * 1024


class DecisionsError(Exception):
    """A decisions file that cannot be taken; the message names the field and the way out."""


class _Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class SignOff(_Wire, frozen=True):
    """One person's decision in a role."""

    role: str
    name: str
    decision: str
    date: datetime.date


class RiskOwner(_Wire, frozen=True):
    """Who looks after a risk, and until when."""

    id: str
    owner: str
    due: datetime.date | None = None


class Processing(_Wire, frozen=True):
    """What is agreed about processing and continuity. An empty text says nothing."""

    retention: str = ""
    sub_processors: tuple[str, ...] | None = None
    dpa: str = ""
    exit_plan: str = ""
    credits: str = ""
    screening: str = ""
    hardware: str = ""
    eu_representative: str = ""
    interest: str = ""


class Decisions(_Wire, frozen=True):
    """The whole file. `date` is when it was last decided on; without it the file's own time counts,
    which a copy changes."""

    date: datetime.date | None = None
    sign_offs: tuple[SignOff, ...] = ()
    risks: tuple[RiskOwner, ...] = ()
    processing: Processing = Processing()


_CLAIMS: Final = {
    "retention": "processing.retention",
    "dpa": "processing.dpa",
    "exit_plan": "sla.exit-plan",
    "credits": "sla.credits",
    "screening": "screening.result",
    "hardware": "deployment.hardware",
    "eu_representative": "corporate.eu-representative",
    "interest": "corporate.interest",
}


def from_decisions(path: Path, subject: str) -> list[Evidence]:
    """What the file at `path` says; raises DecisionsError."""
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise DecisionsError(f"{path} is larger than {_BYTES_MAX} bytes")
        data = path.read_bytes()
        decisions = msgspec.convert(tomllib.loads(data.decode()), Decisions)
    except OSError as error:
        raise DecisionsError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecisionsError(f"{path} is no TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise DecisionsError(f"{path}: {error}") from error
    touched = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).date()
    written = decisions.date or touched
    digest = hashlib.sha256(data).hexdigest()
    return [
        Evidence(
            subject=subject,
            claim=claim,
            value=value,
            source=path.name,
            method="declared",
            observed_at=(day or written).isoformat(),
            digest=digest,
        )
        for claim, value, day in _said(decisions)
    ]


def _said(decisions: Decisions) -> Iterator[tuple[str, Value, datetime.date | None]]:
    for each in decisions.sign_offs:
        yield f"sign-off.{each.role}", f"{each.decision} by {each.name}", each.date
    for risk in decisions.risks:
        yield f"risk.owner.{risk.id}", risk.owner, None
        if risk.due is not None:
            yield f"risk.due.{risk.id}", risk.due.isoformat(), None
    for field, claim in _CLAIMS.items():
        if text := getattr(decisions.processing, field):
            yield claim, text, None
    if decisions.processing.sub_processors is not None:
        yield "processing.sub-processors", decisions.processing.sub_processors, None
