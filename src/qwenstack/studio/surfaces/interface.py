"""What an API surface is: a pure translation between a vendor's wire format and our own types."""

from __future__ import annotations

from typing import Protocol

import msgspec

from qwenstack.core.generation import (
    Completion,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    Step,
)
from qwenstack.core.refusals import Refusal


class Reply(msgspec.Struct, frozen=True):
    """An HTTP answer, whole."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"application/json"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed generation call: what to run, and what the answer's shape depends on.

    `wire` is the surface's own: whatever of the request its encoders need again.
    """

    request: GenerationRequest
    stream: bool
    wire: object = None


class StreamEncoder(Protocol):
    """Turns steps into the bytes of one streamed answer. Holds only what the wire format needs.

    The order of calls: `start` once, `step` for each non-final step, then either `finish` (after
    the settlement is durable) or `fail`.
    """

    def start(self) -> bytes:
        """The first bytes; may be none."""
        ...

    def step(self, step: Step) -> bytes:
        """A step's bytes; may be none."""
        ...

    def finish(self, step: Step) -> bytes:
        """The last bytes, from the final step (it may carry deltas besides the usage)."""
        ...

    def fail(self, refusal: Refusal) -> bytes:
        """The last bytes of a stream that broke after it began, in the vendor's shape."""
        ...


class GenerationSurface(Protocol):
    """A route that generates.

    `sign_of_life` is a whole event that clients pass over, for a stream that stands still.
    """

    name: str
    stream_content_type: bytes
    sign_of_life: bytes

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> Call:
        """Read a request; header names are lower-case. Raises Refusal for what is wrong in it."""
        ...

    def encode(self, call: Call, completion: Completion, request_id: str, created: int) -> bytes:
        """The whole answer of a call that does not stream. `created` is in Unix seconds."""
        ...

    def encoder(self, call: Call, request_id: str, created: int) -> StreamEncoder:
        """The encoder of one streamed answer."""
        ...

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """A refusal in the vendor's shape."""
        ...


# A comment: readers of server-sent events pass it over.
SSE_COMMENT = b": keep-alive\n\n"


class EmbeddingCall(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed embedding call."""

    request: EmbeddingRequest
    wire: object = None


class EmbeddingSurface(Protocol):
    """A route that embeds."""

    name: str

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> EmbeddingCall:
        """Read a request; raises Refusal."""
        ...

    def encode(
        self, call: EmbeddingCall, result: EmbeddingResult, request_id: str, created: int
    ) -> bytes:
        """The whole answer."""
        ...

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """A refusal in the vendor's shape."""
        ...
