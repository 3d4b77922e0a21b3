"""The recording that the upstream replays: one answer, as a stream and as a whole.

The shape is vLLM's (a role chunk, one content chunk a token, a finish chunk, a usage chunk,
`[DONE]`); the text is fixed, so that every run on every machine moves the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

PROMPT_TOKENS = 24
MARKER = "quicksilver"  # the last word of the answer: whoever saw it saw all of it

_TEXT = (
    "Paris is the capital of France. The city lies on the Seine, in the north of the country, and "
    "has been its seat of government for most of the last thousand years; its light is"
)
_CREATED = 1_790_000_000
_ID = "chatcmpl-5f1d0c8e2b6a4b0d9f3e7a1c4d2b8e60"


class Recording(msgspec.Struct, frozen=True):
    """Bytes to replay, and what they say was used."""

    stream: bytes
    whole: bytes
    content_chunks: int
    prompt_tokens: int
    completion_tokens: int


def make_recording() -> Recording:
    """Build the answer; the same bytes each time."""
    words = [*_split(_TEXT), f" {MARKER}"]
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": len(words) + 1,
        "total_tokens": PROMPT_TOKENS + len(words) + 1,
    }
    events = [_event({"role": "assistant", "content": ""}, None)]
    events += [_event({"content": word}, None) for word in words]
    events.append(_event({}, "stop"))
    events.append(_frame({"choices": [], "usage": usage}, "chat.completion.chunk"))
    stream = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(words)},
        "logprobs": None,
        "finish_reason": "stop",
    }
    whole = _frame({"choices": [choice], "usage": usage}, "chat.completion")
    return Recording(
        stream.encode(), whole.encode(), len(words), PROMPT_TOKENS, usage["completion_tokens"]
    )


def write_recording(folder: Path) -> tuple[Path, Path]:
    """Write the stream and the whole answer as files; returns their paths."""
    recording = make_recording()
    stream, whole = folder / "stream.sse", folder / "whole.json"
    stream.write_bytes(recording.stream)
    whole.write_bytes(recording.whole)
    return stream, whole


def request_body(model: str, *, stream: bool) -> bytes:
    """The chat completion that every client sends."""
    body: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France, and where does it lie?"},
        ],
        "max_tokens": 64,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    return json.dumps(body, separators=(",", ":")).encode()


def _split(text: str) -> list[str]:
    head, *rest = text.split(" ")
    return [head, *(f" {word}" for word in rest)]


def _event(delta: dict[str, str], finish: str | None) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _frame({"choices": [choice], "usage": None}, "chat.completion.chunk")


def _frame(part: dict[str, object], kind: str) -> str:
    frame = {"id": _ID, "object": kind, "created": _CREATED, "model": "bench", **part}
    return json.dumps(frame, separators=(",", ":"))
