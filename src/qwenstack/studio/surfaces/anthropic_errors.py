"""Refusals in Anthropic's error shape: `{"type": "error", "error": {"type", "message"}, …}`.

Source: Anthropic, "Errors" (read 2026-11), and the types that its client names. Spent money is a
402 `billing_error`, which no client repeats; what is unavailable for a while is a 503, overload the
vendor's own 529.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.surfaces.openai_errors import retry_headers

_MESSAGE_CHARACTERS = 2000


class Wording(NamedTuple):
    """How Anthropic's surface says a kind of refusal."""

    status: int
    type: str


_INVALID = "invalid_request_error"
_WORDING: dict[RefusalKind, Wording] = {
    RefusalKind.INVALID_REQUEST: Wording(400, _INVALID),
    RefusalKind.CONTEXT_LENGTH: Wording(400, _INVALID),
    RefusalKind.BODY_TOO_LARGE: Wording(413, "request_too_large"),
    RefusalKind.UNSUPPORTED: Wording(400, _INVALID),
    RefusalKind.INVALID_KEY: Wording(401, "authentication_error"),
    RefusalKind.ACCESS_DENIED: Wording(403, "permission_error"),
    RefusalKind.MODEL_ACCESS_DENIED: Wording(403, "permission_error"),
    RefusalKind.RESIDENCY: Wording(403, "permission_error"),
    RefusalKind.MODEL_NOT_FOUND: Wording(404, "not_found_error"),
    RefusalKind.NOT_FOUND: Wording(404, "not_found_error"),
    RefusalKind.METHOD_NOT_ALLOWED: Wording(405, _INVALID),
    RefusalKind.CONFLICT: Wording(409, "conflict_error"),
    RefusalKind.OUT_OF_CREDIT: Wording(402, "billing_error"),
    RefusalKind.BUDGET_EXCEEDED: Wording(402, "billing_error"),
    RefusalKind.FREE_QUOTA_ONLY: Wording(402, "billing_error"),
    RefusalKind.RATE_REQUESTS: Wording(429, "rate_limit_error"),
    RefusalKind.RATE_TOKENS: Wording(429, "rate_limit_error"),
    RefusalKind.RATE_CONCURRENCY: Wording(429, "rate_limit_error"),
    RefusalKind.CONTENT_FILTERED: Wording(400, _INVALID),
    RefusalKind.OVERLOADED: Wording(529, "overloaded_error"),
    RefusalKind.DRAINING: Wording(503, "api_error"),
    RefusalKind.ENGINE_UNAVAILABLE: Wording(503, "api_error"),
    RefusalKind.ENGINE_TIMEOUT: Wording(504, "timeout_error"),
    RefusalKind.ENGINE_FAILED: Wording(500, "api_error"),
    RefusalKind.STORAGE_UNAVAILABLE: Wording(503, "api_error"),
    RefusalKind.INTERNAL: Wording(500, "api_error"),
}


class ErrorFields(msgspec.Struct, frozen=True):
    """The `error` object."""

    type: str
    message: str


class ErrorBody(msgspec.Struct, frozen=True):
    """A whole error answer, and the data of the event that ends a broken stream."""

    type: Literal["error"]
    error: ErrorFields
    request_id: str


def wording_of(kind: RefusalKind) -> Wording:
    """Status and type of a kind of refusal."""
    return _WORDING[kind]


def error_body(refusal: Refusal, request_id: str) -> bytes:
    """The JSON of a refusal, of bounded size whatever the refusal repeats."""
    message = refusal.message
    if len(message) > _MESSAGE_CHARACTERS:
        message = message[:_MESSAGE_CHARACTERS] + "…"
    fields = ErrorFields(_WORDING[refusal.kind].type, message)
    return msgspec.json.encode(ErrorBody("error", fields, request_id))


def error_event(refusal: Refusal, request_id: str) -> bytes:
    """The server-sent event that ends a broken stream."""
    return b"event: error\ndata: " + error_body(refusal, request_id) + b"\n\n"


def statuses() -> list[int]:
    """Every HTTP status that a refusal can have, for the published document."""
    return sorted({each.status for each in _WORDING.values()})


def refuse(refusal: Refusal, request_id: str) -> Reply:
    """The whole answer to a refused request."""
    status = _WORDING[refusal.kind].status
    return Reply(status, error_body(refusal, request_id), retry_headers(refusal))
