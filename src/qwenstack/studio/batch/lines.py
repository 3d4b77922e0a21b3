"""One line of a batch through the same path as any request: parse, admit, run, settle."""

from __future__ import annotations

from collections.abc import Mapping

from qwenstack.core.generation import Completion, EmbeddingResult
from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind, invalid
from qwenstack.studio.admit import Door
from qwenstack.studio.batch.input import LineInput
from qwenstack.studio.batch.records import Batch
from qwenstack.studio.serving import Serving
from qwenstack.studio.surfaces.interface import EmbeddingSurface, GenerationSurface
from qwenstack.studio.tenancy import Caller
from qwenstack.studio.tenants import Tenants
from qwenstack.studio.ticket import BatchLine


class LineServer:
    """Serves batch lines by their endpoint's surface, as the key that made the batch."""

    def __init__(
        self,
        *,
        tenants: Tenants,
        door: Door,
        serving: Serving,
        generation: Mapping[str, GenerationSurface],
        embedding: Mapping[str, EmbeddingSurface],
    ) -> None:
        self._tenants = tenants
        self._door = door
        self._serving = serving
        self._generation = generation
        self._embedding = embedding

    async def run(self, batch: Batch, line: LineInput, place: BatchLine, request_id: str) -> None:
        """Serve a line and settle it with its answer; raises Refusal."""
        caller = self._caller(batch)
        body = bytes(line.body)
        embeddings = self._embedding.get(batch.endpoint)
        if embeddings is not None:
            await self._embed(embeddings, caller, body, place, request_id)
            return
        surface = self._generation[batch.endpoint]
        call = surface.parse(body, {})
        if call.stream:
            raise invalid("'stream' must be false in a batch.", "stream")
        ticket = await self._door.admit(
            caller,
            call.request,
            surface=surface.name,
            stream=False,
            line=place,
            request_id=request_id,
        )

        def encode(completion: Completion) -> bytes:
            return surface.encode(call, completion, request_id, ticket.started_us // 1_000_000)

        await self._serving.complete(ticket, encode)

    def refuse(self, endpoint: str, refusal: Refusal, request_id: str) -> tuple[int, bytes]:
        """The status and body of a refused line."""
        surface = self._embedding.get(endpoint) or self._generation[endpoint]
        reply = surface.refuse(refusal, request_id)
        return reply.status, reply.body

    async def _embed(
        self,
        surface: EmbeddingSurface,
        caller: Caller,
        body: bytes,
        place: BatchLine,
        request_id: str,
    ) -> None:
        call = surface.parse(body, {})
        ticket = await self._door.admit(
            caller,
            call.request,
            surface=surface.name,
            stream=False,
            line=place,
            request_id=request_id,
        )

        def encode(result: EmbeddingResult) -> bytes:
            return surface.encode(call, result, request_id, ticket.started_us // 1_000_000)

        await self._serving.embed(ticket, encode)

    def _caller(self, batch: Batch) -> Caller:
        caller = self._tenants.current.caller_of_key(batch.key_id, now_us())
        if caller.workspace.id != batch.workspace_id:
            raise Refusal(RefusalKind.ACCESS_DENIED, "The batch's key is of another workspace.")
        return caller
