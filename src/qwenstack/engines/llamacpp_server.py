"""A llama.cpp server in a child process of our own, with a client for the child that runs now."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp
import msgspec

from qwenstack.engines.child import Child, ChildSpec
from qwenstack.engines.interface import (
    Capabilities,
    EngineIdentity,
    EngineProtocolError,
    EngineUnavailable,
)
from qwenstack.engines.llamacpp_child import LlamaCppConfiguration
from qwenstack.engines.openai_http import OpenAIEngine
from qwenstack.engines.openai_settings import OpenAIServer

_RESTART_WAIT_S: Final = 30.0
_FIRST_BYTE_TIMEOUT_S: Final = 900.0
_IDLE_TIMEOUT_S: Final = 180.0
_REASON_MARK: Final = "error loading model:"
# llguidance reached one of its own limits while it followed a grammar, which from then on nothing
# holds. It says so itself, before the next token; llama.cpp's own log comes at some later time
# (tried on xllamacpp 2026.10.11549).
_GIVEN_UP: Final = re.compile(r"Warning: (lexer|parser) error: .*; stopping", re.IGNORECASE)


class ServerBounds(msgspec.Struct, frozen=True, kw_only=True):
    """`memory_bytes_max` 0 is no limit; `silence_s_max` is how long its loop may stand still."""

    memory_bytes_max: int
    silence_s_max: float
    model_bytes: int


class LlamaCppServer:
    """One model in one child. A child that dies is replaced, and so is the client to it."""

    def __init__(
        self,
        configuration: LlamaCppConfiguration,
        bounds: ServerBounds,
        identity: EngineIdentity,
        capabilities: Capabilities,
        on_loading: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._configuration = msgspec.structs.replace(
            configuration, api_key=secrets.token_urlsafe(32)
        )
        self._identity = identity
        self._capabilities = capabilities
        self._client: OpenAIEngine | None = None
        self._options: OpenAIServer | None = None
        kind = "embedding" if configuration.embedding else "generation"
        self.child = Child(
            ChildSpec(
                name=f"llama.cpp ({kind})",
                module="qwenstack.engines.llamacpp_child",
                configuration=msgspec.json.encode(self._configuration),
                memory_bytes_max=bounds.memory_bytes_max,
                loaded_bytes=bounds.model_bytes,
                probe_timeout_s=bounds.silence_s_max,
                probe_every_s=min(5.0, bounds.silence_s_max),
            ),
            on_ready=self._connect,
            on_down=self._disconnect,
            on_loading=on_loading,
            probe=self.probe,
            explain=_reason,
            on_word=self._heed,
        )
        self.grammars_given_up = 0

    async def start(self) -> None:
        """Load the model; raises EngineUnavailable with llama.cpp's reason."""
        await self.child.start()

    async def close(self) -> None:
        """End the child; what runs in it ends with EngineUnavailable."""
        await self.child.close()
        await self._disconnect()

    async def client(self) -> OpenAIEngine:
        """The client to the child that runs; waits, within a bound, for one that is restarting."""
        await self.child.wait_ready(_RESTART_WAIT_S)
        if self._client is None:
            raise EngineUnavailable("the engine is closed")
        return self._client

    async def probe(self) -> None:
        """Ask something that only the server's own loop can answer: the state of its slots."""
        await self.slots()

    async def slots(self) -> list[dict[str, object]]:
        """The state of each slot, as llama.cpp tells it (`id`, `is_processing`, …)."""
        options = self._options
        if options is None:
            raise EngineUnavailable("the engine is restarting")
        root = options.base_url.removesuffix("/v1")
        headers = {"Authorization": f"Bearer {options.api_key}"}
        try:
            # A connection of its own: the pool may be full of generations that hang.
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
                session.get(f"{root}/slots", headers=headers) as response,
            ):
                return msgspec.json.decode(await response.read(), type=list[dict[str, object]])
        except aiohttp.ClientError as error:
            raise EngineUnavailable(f"the child broke off: {error}") from error
        except msgspec.MsgspecError as error:
            raise EngineProtocolError(f"the child sent what are no slots: {error}") from error

    def _heed(self, word: str) -> None:
        if _GIVEN_UP.search(word):
            self.grammars_given_up += 1

    async def _connect(self, port: int) -> None:
        self._options = OpenAIServer(
            base_url=f"http://127.0.0.1:{port}/v1",
            name=self._identity.name,
            region=self._identity.region,
            version=self._identity.version,
            dialect="llama_server",
            api_key=self._configuration.api_key,
            capabilities=self._capabilities,
            max_connections=self._configuration.clients_max,
            # An idle connection holds one of the child's threads, and a request that is sent again
            # on a fresh one after it killed the child would kill the next child, too.
            keepalive_s=None,
            first_byte_s=_FIRST_BYTE_TIMEOUT_S,
            idle_s=_IDLE_TIMEOUT_S,
        )
        client = OpenAIEngine(self._options)
        await client.start()
        self._client = client

    async def _disconnect(self) -> None:
        client, self._client, self._options = self._client, None, None
        if client is not None:
            await client.close()


def _reason(words: Sequence[str]) -> str | None:
    """Why the model would not load, in llama.cpp's words but told for a user."""
    found = [line.split(_REASON_MARK, 1)[1].strip() for line in words if _REASON_MARK in line]
    if not found:
        return None
    reason = found[-1]
    if reason.startswith("unknown model architecture"):
        return f"{reason}; this release of llama.cpp does not know it. Serve it with vLLM or SGLang"
    return reason
