"""Reading a batch's input file: JSON lines of OpenAI's batch format, each checked before any runs.

Source: OpenAI, "Batch API" guide, and Model Studio, "Batch interfaces compatible with OpenAI": one
model per batch (`mismatched_model`), no custom id twice (`duplicate_custom_id`).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qwenstack.core.refusals import Refusal, invalid

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
LINES_MAX = 50_000
LINE_BYTES_MAX = 6 * 1024 * 1024
_ERRORS_MAX = 20


class LineInput(msgspec.Struct, frozen=True):
    """One request of a batch; `body` stays as it was sent, for its endpoint's own parser."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Model(msgspec.Struct):
    model: str = ""


class InputError(Exception):
    """A file that cannot be run; `errors` are OpenAI's batch error objects, the first few."""

    def __init__(self, errors: list[dict[str, object]]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors


_line_decoder = msgspec.json.Decoder(LineInput)
_model_decoder = msgspec.json.Decoder(_Model)


def parse_line(raw: bytes, endpoint: str) -> LineInput:
    """One line; raises Refusal for what is wrong in it."""
    if len(raw) > LINE_BYTES_MAX:
        raise invalid(f"The line has {len(raw)} bytes; at most {LINE_BYTES_MAX} are.")
    try:
        line = _line_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The line is no batch request: {str(error)[:200]}") from error
    if line.method != "POST":
        raise invalid(f"'method' is {line.method[:20]!r}; it must be POST.", "method")
    if line.url != endpoint:
        raise invalid(
            f"'url' is {line.url[:80]!r} and the batch's endpoint is {endpoint!r}.", "url"
        )
    if not 1 <= len(line.custom_id) <= 200:
        raise invalid("'custom_id' must have 1 to 200 characters.", "custom_id")
    return line


def check_input(lines: Iterable[bytes], endpoint: str) -> list[str]:
    """The custom ids, in order; raises InputError with what is wrong in which line."""
    errors: list[dict[str, object]] = []
    ids: list[str] = []
    seen: set[str] = set()
    model: str | None = None
    for number, raw in enumerate(lines):
        problem, custom_id, named = _check_line(raw, endpoint, seen, model)
        model = model or named
        ids.append(custom_id)
        seen.add(custom_id)
        if problem is not None:
            errors.append({**problem, "line": number + 1})
        if len(ids) > LINES_MAX:
            errors.append(
                {"code": "too_many_lines", "message": f"More than {LINES_MAX} lines.", "line": None}
            )
        if len(errors) >= _ERRORS_MAX or len(ids) > LINES_MAX:
            break
    if not ids:
        errors.append({"code": "empty_file", "message": "The file has no lines.", "line": None})
    if errors:
        raise InputError(errors)
    return ids


def _check_line(
    raw: bytes, endpoint: str, seen: set[str], model: str | None
) -> tuple[dict[str, object] | None, str, str | None]:
    try:
        line = parse_line(raw, endpoint)
    except Refusal as refusal:
        return (
            {"code": "invalid_request", "message": refusal.message, "param": refusal.param},
            "",
            None,
        )
    if line.custom_id in seen:
        message = f"The custom_id {line.custom_id[:80]!r} was used before."
        return (
            {"code": "duplicate_custom_id", "message": message, "param": "custom_id"},
            line.custom_id,
            None,
        )
    try:
        named = _model_decoder.decode(line.body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        named = ""
    if model is not None and named != model:
        message = f"All lines must name one model; this one names {named[:80]!r}, not {model!r}."
        return (
            {"code": "mismatched_model", "message": message, "param": "model"},
            line.custom_id,
            named,
        )
    return None, line.custom_id, named
