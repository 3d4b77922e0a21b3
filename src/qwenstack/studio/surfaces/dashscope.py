"""DashScope's native API: text and multimodal generation, and text embeddings.

Routes: `/api/v1/services/aigc/text-generation/generation`,
`/api/v1/services/aigc/multimodal-generation/generation`,
`/api/v1/services/embeddings/text-embedding/text-embedding`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qwenstack.core.generation import (
    Completion,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
)
from qwenstack.core.refusals import Refusal, RefusalKind, invalid
from qwenstack.studio.surfaces import dashscope_errors
from qwenstack.studio.surfaces.dashscope_answer import GenerationStream, Shape, whole_answer
from qwenstack.studio.surfaces.dashscope_request import read_generation
from qwenstack.studio.surfaces.interface import (
    SSE_COMMENT,
    Call,
    EmbeddingCall,
    Reply,
    StreamEncoder,
)
from qwenstack.studio.surfaces.json_body import decode
from qwenstack.studio.surfaces.openai_fields import check_model, check_positive

_ENCODER = msgspec.json.Encoder()
_INPUTS_MAX = 25
_REFUSED_HEADERS = {
    b"x-dashscope-async": "send the request without it and wait for the answer.",
    b"x-dashscope-datainspection": "contents are not inspected here.",
    b"x-dashscope-plugin": "no plugins are run here; use tools.",
    b"x-dashscope-encryptionkey": "use TLS in front of this server.",
}


class DashScopeGeneration:
    """The two generation routes; `multimodal` wraps an answer's text in a content list."""

    stream_content_type = b"text/event-stream;charset=UTF-8"
    sign_of_life = SSE_COMMENT

    def __init__(self, *, multimodal: bool) -> None:
        self.name = "dashscope.multimodal" if multimodal else "dashscope.text"
        self._multimodal = multimodal

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> Call:
        """Read a request; raises Refusal."""
        for name, reason in _REFUSED_HEADERS.items():
            if headers.get(name):
                raise Refusal(RefusalKind.UNSUPPORTED, f"{name.decode()} is not offered: {reason}")
        wire, request = read_generation(body)
        parameters = wire.parameters
        sse = headers.get(b"x-dashscope-sse", b"").lower() == b"enable"
        # Chat models answer with messages where nothing is said; `text` is the older form.
        text = parameters.result_format == "text" and not self._multimodal
        if text:
            _check_text_form(request)
        return Call(
            request=request,
            stream=sse or b"text/event-stream" in headers.get(b"accept", b""),
            wire=Shape(text, self._multimodal, bool(parameters.incremental_output), request.n > 1),
        )

    def encode(self, call: Call, completion: Completion, request_id: str, created: int) -> bytes:
        """The whole answer."""
        return whole_answer(_shape(call), completion, request_id)

    def encoder(self, call: Call, request_id: str, created: int) -> StreamEncoder:
        """The encoder of one stream."""
        return GenerationStream(_shape(call), call.request.n, request_id)

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """A refusal in DashScope's shape."""
        return dashscope_errors.refuse(refusal, request_id)


def _check_text_form(request: GenerationRequest) -> None:
    """Refuse what the older form has no room for, rather than generate and drop it."""
    wanted = None
    if request.n > 1:
        wanted = "n"
    elif request.tools:
        wanted = "tools"
    elif request.logprobs is not None:
        wanted = "logprobs"
    if wanted is not None:
        raise invalid(
            f"'parameters.{wanted}' needs the result_format 'message': the result_format 'text' "
            "has room for one text only.",
            f"parameters.{wanted}",
        )


def _shape(call: Call) -> Shape:
    assert isinstance(call.wire, Shape)
    return call.wire


class _EmbeddingInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    texts: list[str]


class EmbeddingParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`parameters` of an embedding request."""

    text_type: Literal["query", "document"] | None = None
    dimension: int | None = None
    output_type: str | None = None
    instruct: str | None = None


class EmbeddingBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an embedding request."""

    model: str
    input: _EmbeddingInput
    parameters: EmbeddingParameters = EmbeddingParameters()


class VectorAnswer(msgspec.Struct, frozen=True):
    """The vector of one text."""

    text_index: int
    embedding: tuple[float, ...]


class VectorsAnswer(msgspec.Struct, frozen=True):
    """`output` of an embedding answer."""

    embeddings: tuple[VectorAnswer, ...]


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """`usage` of an embedding answer."""

    total_tokens: int


class EmbeddingAnswer(msgspec.Struct, frozen=True):
    """The whole answer."""

    output: VectorsAnswer
    usage: EmbeddingUsage
    request_id: str


_EMBEDDINGS = msgspec.json.Decoder(EmbeddingBody)


class DashScopeEmbeddings:
    """The text embedding route."""

    name = "dashscope.embeddings"

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> EmbeddingCall:
        """Read a request; raises Refusal."""
        wire = decode(_EMBEDDINGS, body)
        texts, parameters = wire.input.texts, wire.parameters
        if not 1 <= len(texts) <= _INPUTS_MAX:
            raise invalid(
                f"'input.texts' has {len(texts)} texts; send 1 to {_INPUTS_MAX}.", "input.texts"
            )
        if not all(texts):
            raise invalid("'input.texts' holds an empty text.", "input.texts")
        if parameters.output_type not in (None, "dense"):
            raise invalid("'parameters.output_type' must be dense.", "parameters.output_type")
        if parameters.instruct is not None:
            raise invalid("'parameters.instruct' is not offered here.", "parameters.instruct")
        return EmbeddingCall(
            request=EmbeddingRequest(
                model=check_model(wire.model),
                inputs=tuple(texts),
                dimensions=check_positive("parameters.dimension", parameters.dimension),
            )
        )

    def encode(
        self, call: EmbeddingCall, result: EmbeddingResult, request_id: str, created: int
    ) -> bytes:
        """The whole answer."""
        vectors = [VectorAnswer(index, vector) for index, vector in enumerate(result.vectors)]
        return _ENCODER.encode(
            EmbeddingAnswer(
                VectorsAnswer(tuple(vectors)), EmbeddingUsage(result.usage.prompt), request_id
            )
        )

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """A refusal in DashScope's shape."""
        return dashscope_errors.refuse(refusal, request_id)
