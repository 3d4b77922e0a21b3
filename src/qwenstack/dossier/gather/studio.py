"""Evidence from a running studio, over its admin API: what serves, where, and whether it holds."""

from __future__ import annotations

import datetime
import urllib.error
import urllib.request
from typing import Final, TypeVar

import msgspec

from qwenstack.core.evidence import Evidence, Value, instant
from qwenstack.core.redirects import opener

T = TypeVar("T")
_TIMEOUT_S: Final = 30.0
_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024


class StudioError(Exception):
    """The studio could not be asked; the message says why and what to do."""


class _Deployment(msgspec.Struct, frozen=True):
    name: str
    engine: str
    version: str
    region: str
    digest: str | None = None
    provenance: str | None = None
    licence: str | None = None


class _Holds(msgspec.Struct, frozen=True):
    holds: bool


def from_studio(base_url: str, admin_key: str, name: str, subject: str) -> list[Evidence]:
    """What the studio says of the deployment `name`; raises StudioError."""
    base = base_url.rstrip("/") + "/admin/v1"
    deployments = _ask(f"{base}/deployments", admin_key, list[_Deployment])
    found = [each for each in deployments if each.name == name]
    if not found:
        names = ", ".join(each.name for each in deployments) or "nothing"
        raise StudioError(f"{base_url} does not serve {name!r}; it serves {names}")
    ledger = _ask(f"{base}/ledger", admin_key, _Holds)
    audit = _ask(f"{base}/audit", admin_key, _Holds)
    at = instant(datetime.datetime.now(datetime.UTC))
    deployment = found[0]
    said: dict[str, Value | None] = {
        "deployment.name": deployment.name,
        "deployment.engine": f"{deployment.engine} {deployment.version}",
        "deployment.region": deployment.region,
        "deployment.digest": deployment.digest,
        "deployment.provenance": deployment.provenance,
        "deployment.licence": deployment.licence,
        "service.ledger-verified": ledger.holds,
        "service.audit-verified": audit.holds,
    }
    return [
        Evidence(
            subject=subject,
            claim=claim,
            value=value,
            source=f"admin API of {base_url}",
            method="computed" if claim.startswith("service.") else "read",
            observed_at=at,
        )
        for claim, value in said.items()
        if value is not None
    ]


def _ask(url: str, key: str, kind: type[T]) -> T:
    if not url.startswith(("http://", "https://")):
        raise StudioError(f"{url!r} is no HTTP address")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})  # noqa: S310
    try:
        with opener().open(request, timeout=_TIMEOUT_S) as answer:
            return msgspec.json.decode(answer.read(_ANSWER_BYTES_MAX), type=kind)
    except urllib.error.HTTPError as error:
        why = "the admin key is not taken" if error.code in (401, 403) else f"HTTP {error.code}"
        raise StudioError(f"{url}: {why}") from error
    except (OSError, msgspec.MsgspecError) as error:
        raise StudioError(f"{url} cannot be asked: {error}") from error
