"""POST /v1/embeddings, in OpenAI's shape."""

from __future__ import annotations

import base64
import struct
from typing import Literal

import msgspec

from qwenstack.core.generation import EmbeddingRequest, EmbeddingResult
from qwenstack.core.refusals import Refusal, invalid
from qwenstack.studio.surfaces.interface import EmbeddingCall, Reply
from qwenstack.studio.surfaces.json_body import decode
from qwenstack.studio.surfaces.openai_completions import read_tokens
from qwenstack.studio.surfaces.openai_errors import refuse
from qwenstack.studio.surfaces.openai_fields import check_model, check_positive, out_of_range

INPUTS_MAX = 2048
DIMENSIONS_MAX = 65_536


class EmbeddingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of an embedding request."""

    model: str
    input: str | list[str | int | list[int]]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class EmbeddingShape(msgspec.Struct, frozen=True):
    """What the answer's shape depends on."""

    base64: bool


class VectorAnswer(msgspec.Struct, frozen=True):
    """An element of `data`; base64 holds little-endian 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: tuple[float, ...] | str


class UsageAnswer(msgspec.Struct, frozen=True):
    """`usage`."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(msgspec.Struct, frozen=True):
    """The whole answer."""

    object: Literal["list"]
    data: tuple[VectorAnswer, ...]
    model: str
    usage: UsageAnswer


_DECODER = msgspec.json.Decoder(EmbeddingFields)
_ENCODER = msgspec.json.Encoder()


class EmbeddingsSurface:
    """The embeddings route."""

    name = "openai.embeddings"

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> EmbeddingCall:
        """Read an embedding request; raises Refusal for what is wrong in it."""
        wire = decode(_DECODER, body)
        request = EmbeddingRequest(
            model=check_model(wire.model),
            inputs=_read_inputs(wire.input),
            dimensions=check_positive("dimensions", wire.dimensions, DIMENSIONS_MAX),
        )
        return EmbeddingCall(request=request, wire=EmbeddingShape(wire.encoding_format == "base64"))

    def encode(
        self, call: EmbeddingCall, result: EmbeddingResult, request_id: str, created: int
    ) -> bytes:
        """The list of vectors. OpenAI's shape holds neither an id nor a time."""
        wire = call.wire
        packed = isinstance(wire, EmbeddingShape) and wire.base64
        return _ENCODER.encode(
            EmbeddingAnswer(
                "list",
                tuple(
                    [
                        VectorAnswer("embedding", index, _pack(vector) if packed else vector)
                        for index, vector in enumerate(result.vectors)
                    ]
                ),
                call.request.model,
                UsageAnswer(result.usage.prompt, result.usage.prompt),
            )
        )

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """The error answer."""
        return refuse(refusal, request_id)


def _pack(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _read_inputs(given: str | list[str | int | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(given, str):
        return (_read_input(given, "input"),)
    if given and all(isinstance(token, int) for token in given):
        return (read_tokens(given, "input"),)
    if not 0 < len(given) <= INPUTS_MAX:
        raise out_of_range("input", len(given), f"a list of 1 to {INPUTS_MAX} inputs")
    return tuple([_read_input(one, f"input[{index}]") for index, one in enumerate(given)])


def _read_input(one: str | int | list[int], param: str) -> str | tuple[int, ...]:
    if isinstance(one, int):
        raise invalid(f"Invalid value for '{param}': token ids and texts are mixed.", param)
    if not one:
        raise invalid(f"Invalid value for '{param}': it must not be empty.", param)
    return one if isinstance(one, str) else read_tokens([*one], param)
