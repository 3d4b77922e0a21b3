"""What OpenAI-compatible servers answer instead of an answer, as our own errors. No I/O."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from qwenstack.engines.interface import EngineError, EngineRejected, EngineUnavailable

_MESSAGE_CHARACTERS_MAX = 600


class WireErrorDetail(msgspec.Struct, gc=False):
    """`error` of an error body or of a stream event. `code` is a name or an HTTP status."""

    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _WireErrorBody(msgspec.Struct, gc=False):
    """The shapes of an error body: OpenAI's nested one, vLLM's and Model Studio's flat ones."""

    error: WireErrorDetail | str | None = None
    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    detail: msgspec.Raw | None = None


_error_decoder = msgspec.json.Decoder(_WireErrorBody)

_CONTEXT_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
# The words of: OpenAI and vLLM ("maximum context length is"), newer vLLM ("maximum model length",
# "max_model_len"), SGLang ("the model's context length"), llama-server ("available context size",
# "physical batch size" for embeddings), Model Studio ("Range of input length should be").
_CONTEXT_WORDS: Final = re.compile(
    r"context[ _](length|size|window)|maximum model length|max_model_len|physical batch size"
    r"|range of input length|input length should be",
    re.IGNORECASE,
)
# Model Studio answers 400 for these, though the fault is the operator's account, not the request's.
_ACCOUNT_CODES: Final = frozenset({"arrearage"})
_REJECTING: Final = frozenset({400, 413, 422})
# llama-server answers 500 to what only the caller can mend (tried on xllamacpp 2026.10.11549).
_REJECTED_AS_500: Final = re.compile(
    r"failed to parse tool call arguments as json|(image|audio|video) input is not supported"
    r"|input \(\d+ tokens\) is too large to process",
    re.IGNORECASE,
)
# llama-server's and vLLM's advice to who started them.
_OPERATORS_HINT: Final = re.compile(r" - hint:.*| Please set --.*", re.DOTALL)
_REJECTING_TYPES: Final = frozenset(
    {"badrequesterror", "bad_request", "invalid_request_error", "invalid_parameter_error"}
)


def decode_error(status: int, body: bytes, *, hide: tuple[str, ...] = ()) -> EngineError:
    """What an HTTP answer that is not 200 stands for.

    `hide` are strings that must not reach a caller (the upstream's key).
    """
    return error_for(status, _error_detail(body), hide=hide)


def error_for(
    status: int | None, detail: WireErrorDetail, *, hide: tuple[str, ...] = ()
) -> EngineError:
    """Map a status (None: not told) and the server's own words to one of our errors.

    Only a rejection repeats the server's words: its cause is in the caller's own request. All else
    is between operator and upstream.
    """
    code = "" if detail.code is None else str(detail.code).lower()
    misnamed = status == 500 and _REJECTED_AS_500.search(detail.message or "") is not None
    if misnamed or (status in _REJECTING and code not in _ACCOUNT_CODES):
        said = _OPERATORS_HINT.sub("", detail.message or "")
        message = _clean(said, hide) or f"the engine refused the request ({status})"
        context_length = (
            code in _CONTEXT_CODES
            or (detail.type or "").lower() in _CONTEXT_CODES
            or _CONTEXT_WORDS.search(message) is not None
        )
        return EngineRejected(message, context_length=context_length)
    if status in (401, 403):
        return EngineUnavailable(f"the engine refused the credentials configured for it ({status})")
    if status == 404:
        return EngineUnavailable(
            "the engine does not know the route or the model asked of it (404)"
        )
    if status == 429:
        return EngineUnavailable("the engine takes no more requests at the moment (429)")
    if status is None:
        return EngineUnavailable("the engine reported an error instead of an answer")
    return EngineUnavailable(f"the engine answered with status {status}")


def _error_detail(body: bytes) -> WireErrorDetail:
    try:
        wire = _error_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return WireErrorDetail()
    if isinstance(wire.error, WireErrorDetail):
        return wire.error
    message = wire.message or wire.error
    if message is None and wire.detail is not None:
        message = bytes(wire.detail).decode("utf-8", "replace").strip('"')
    return WireErrorDetail(message=message, type=wire.type, code=wire.code)


def status_of(detail: WireErrorDetail) -> int | None:
    """The HTTP status that an in-stream error stands for, where it says so."""
    if isinstance(detail.code, int) and 400 <= detail.code < 600:
        return detail.code
    if isinstance(detail.code, str) and detail.code.isdecimal() and len(detail.code) == 3:
        return int(detail.code)
    kinds = {str(detail.type).lower(), str(detail.code).lower()}
    return 400 if kinds & (_REJECTING_TYPES | _CONTEXT_CODES) else None


def _clean(message: str | None, hide: tuple[str, ...]) -> str:
    """One line of bounded length, without what must stay hidden."""
    text = " ".join((message or "").split())
    for secret in hide:
        if secret:
            text = text.replace(secret, "…")
    return text[:_MESSAGE_CHARACTERS_MAX]
