"""An upper bound on a prompt's tokens, from its bytes: for reservations, never for a bill.

Byte-level BPE (every Qwen tokenizer, also Llama 3's and GPT's) gives each token at least one byte
of text, so that a text has at most as many tokens as UTF-8 bytes.
"""

from __future__ import annotations

import msgspec

from qwenstack.core.generation import (
    EmbeddingRequest,
    GenerationRequest,
    Message,
    TextPart,
)

# Role markers and the template's own words around a turn; the tools preamble of Qwen's templates.
_PER_MESSAGE = 16
_PER_PROMPT = 64
_PER_TOOLS = 400
# Qwen2-VL and later: at most 16 384 visual tokens an image unless configured otherwise; audio is
# 25 tokens a second, and base64 text of it is far longer than that.
_PER_IMAGE = 16_384


def prompt_bound(request: GenerationRequest | EmbeddingRequest) -> int:
    """The most tokens that the engine can count in this prompt."""
    if isinstance(request, EmbeddingRequest):
        return sum(_text(item) if isinstance(item, str) else len(item) for item in request.inputs)
    if request.prompt is not None:
        prompt = request.prompt
        return (_text(prompt) if isinstance(prompt, str) else len(prompt)) + _PER_MESSAGE
    bound = _PER_PROMPT + sum(_message(message) for message in request.messages)
    if request.tools:
        bound += _PER_TOOLS + len(msgspec.json.encode(request.tools))
    return bound


def _message(message: Message) -> int:
    bound = _PER_MESSAGE + _text(message.reasoning or "") + _text(message.name or "")
    for part in message.content:
        if isinstance(part, TextPart):
            bound += _text(part.text)
        else:
            bound += _PER_IMAGE
    for call in message.tool_calls:
        bound += _PER_MESSAGE + _text(call.name) + _text(call.arguments)
    return bound


def _text(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
