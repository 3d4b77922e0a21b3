"""Refusals in DashScope's flat shape: `{"code", "message", "request_id"}`.

Source: Model Studio, "Error codes" (read 2026-11). What it has no code for takes the nearest one.
"""

from __future__ import annotations

import msgspec

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.surfaces.openai_errors import retry_headers

_CODES: dict[RefusalKind, tuple[int, str]] = {
    RefusalKind.INVALID_REQUEST: (400, "InvalidParameter"),
    RefusalKind.CONTEXT_LENGTH: (400, "InvalidParameter"),
    RefusalKind.BODY_TOO_LARGE: (413, "BadRequest.TooLarge"),
    RefusalKind.UNSUPPORTED: (400, "InvalidParameter"),
    RefusalKind.INVALID_KEY: (401, "InvalidApiKey"),
    RefusalKind.ACCESS_DENIED: (403, "AccessDenied"),
    RefusalKind.MODEL_ACCESS_DENIED: (403, "Model.AccessDenied"),
    RefusalKind.RESIDENCY: (403, "Workspace.AccessDenied"),
    RefusalKind.MODEL_NOT_FOUND: (404, "ModelNotFound"),
    RefusalKind.NOT_FOUND: (404, "InvalidURL"),
    RefusalKind.METHOD_NOT_ALLOWED: (405, "InvalidParameter"),
    RefusalKind.CONFLICT: (409, "Conflict"),
    RefusalKind.OUT_OF_CREDIT: (400, "Arrearage"),
    RefusalKind.BUDGET_EXCEEDED: (403, "AccessDenied.BudgetExceeded"),
    RefusalKind.FREE_QUOTA_ONLY: (403, "AllocationQuota.FreeTierOnly"),
    RefusalKind.RATE_REQUESTS: (429, "Throttling.RateQuota"),
    RefusalKind.RATE_TOKENS: (429, "Throttling.AllocationQuota"),
    RefusalKind.RATE_CONCURRENCY: (429, "Throttling.BurstRate"),
    RefusalKind.CONTENT_FILTERED: (400, "DataInspectionFailed"),
    RefusalKind.OVERLOADED: (503, "ModelUnavailable"),
    RefusalKind.DRAINING: (503, "ModelUnavailable"),
    RefusalKind.ENGINE_UNAVAILABLE: (503, "ModelUnavailable"),
    RefusalKind.ENGINE_TIMEOUT: (500, "RequestTimeOut"),
    RefusalKind.ENGINE_FAILED: (500, "ModelServingError"),
    RefusalKind.STORAGE_UNAVAILABLE: (503, "InternalError"),
    RefusalKind.INTERNAL: (500, "InternalError"),
}


_MESSAGE_CHARACTERS = 2000


class ErrorBody(msgspec.Struct, frozen=True):
    """A whole error answer, and the data of an error event."""

    code: str
    message: str
    request_id: str


def code_of(kind: RefusalKind) -> tuple[int, str]:
    """The HTTP status and the code of a kind of refusal."""
    return _CODES[kind]


def error_body(refusal: Refusal, request_id: str) -> bytes:
    """The JSON of a refusal, of bounded size whatever the refusal repeats."""
    message = refusal.message
    if len(message) > _MESSAGE_CHARACTERS:
        message = message[:_MESSAGE_CHARACTERS] + "…"
    return msgspec.json.encode(ErrorBody(_CODES[refusal.kind][1], message, request_id))


def statuses() -> list[int]:
    """Every HTTP status that a refusal can have, for the published document."""
    return sorted({status for status, _ in _CODES.values()})


def refuse(refusal: Refusal, request_id: str) -> Reply:
    """The whole answer to a refused request."""
    status, _ = _CODES[refusal.kind]
    return Reply(status, error_body(refusal, request_id), retry_headers(refusal))


def error_event(refusal: Refusal, request_id: str, number: int) -> bytes:
    """The event that ends a broken stream.

    The vendor writes the status as a comment; its client looks for a field `status`.
    """
    status, _ = _CODES[refusal.kind]
    return b"id:%d\nevent:error\n:HTTP_STATUS/%d\nstatus:%d\ndata:%s\n\n" % (
        number,
        status,
        status,
        error_body(refusal, request_id),
    )
