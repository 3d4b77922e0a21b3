"""How one OpenAI-compatible server is reached and how long it may take. No I/O."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from yarl import URL

from qwenstack.engines.interface import Capabilities
from qwenstack.engines.openai_body import Dialect, Wording

_RUNNING_USAGE: Final = frozenset({"vllm", "sglang", "llama_server"})
# SGLang's /tokenize knows plain text only and cannot render a chat.
_COUNTS_PROMPTS: Final = frozenset({"vllm", "llama_server"})
_HEADER_SAFE: Final = re.compile(r"[\x21-\x7e]+")


class OpenAIServer(msgspec.Struct, frozen=True, kw_only=True):
    """One server. Times are in seconds; every limit is enforced.

    `base_url` ends in the version prefix, as in `http://127.0.0.1:8000/v1`. `upstream_model` is the
    server's own name for the model; None sends the request's. `running_usage` None means: where
    the dialect is known to have it. `extra` are fields added to every generation as they are.
    `keepalive_s` stays under the 5 s after which uvicorn and cpp-httplib drop an idle connection;
    None makes a connection for each request, and then none is ever found stale.
    """

    base_url: str
    region: str
    name: str = "openai-compatible"
    version: str | None = None
    dialect: Dialect = "openai"
    upstream_model: str | None = None
    api_key: str | None = None
    running_usage: bool | None = None
    extra: dict[str, Any] = {}
    capabilities: Capabilities = Capabilities(tools=True, json_schema=True, logprobs=True)

    max_connections: int = 256
    keepalive_s: float | None = 4.0
    pool_wait_s: float = 30.0
    connect_s: float = 5.0
    first_byte_s: float = 300.0
    idle_s: float = 60.0
    total_s: float = 3600.0
    probe_s: float = 3.0
    start_wait_s: float = 0.0

    read_buffer_bytes: int = 64 * 1024
    max_event_bytes: int = 4 * 1024 * 1024
    max_body_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse what cannot work; the message names the field and never shows the key."""
        url = URL(self.base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(
                f"base_url is {str(url.with_user(None)) if url.host else self.base_url!r}; "
                "write it like http://127.0.0.1:8000/v1"
            )
        if url.user is not None or url.password is not None:
            raise ValueError("base_url holds credentials; put the key into api_key")
        if url.query_string or url.fragment:
            raise ValueError("base_url holds a query or a fragment; it must end in a path")
        if self.api_key is not None and not _HEADER_SAFE.fullmatch(self.api_key):
            raise ValueError("api_key holds a character that a header cannot carry, or is empty")
        if self.keepalive_s is not None:
            self._positive("keepalive_s")
        for field in ("pool_wait_s", "connect_s", "first_byte_s", "idle_s"):
            self._positive(field)
        for field in ("total_s", "probe_s", "max_connections", "read_buffer_bytes"):
            self._positive(field)
        for field in ("max_event_bytes", "max_body_bytes"):
            self._positive(field)

    def _positive(self, field: str) -> None:
        value = getattr(self, field)
        if not value > 0:
            raise ValueError(f"{field} is {value}; it must be more than 0")

    def __repr__(self) -> str:
        """Without the key, so that it never reaches a log."""
        key = "None" if self.api_key is None else "'…'"
        return (
            f"OpenAIServer(name={self.name!r}, base_url={self.base_url!r}, "
            f"dialect={self.dialect!r}, region={self.region!r}, api_key={key})"
        )

    def wording(self) -> Wording:
        """How this server wants to be asked."""
        running = self.running_usage
        return Wording(
            dialect=self.dialect,
            model=self.upstream_model,
            running_usage=self.dialect in _RUNNING_USAGE if running is None else running,
            extra=self.extra,
        )

    def known_capabilities(self) -> Capabilities:
        """The configured capabilities, with what follows from the dialect."""
        return msgspec.structs.replace(
            self.capabilities,
            running_usage=self.wording().running_usage,
            counts_prompts=self.dialect in _COUNTS_PROMPTS,
        )

    def headers(self) -> dict[str, str]:
        """The request headers, the same for every request."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",
        }
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers

    def url(self, path: str) -> URL:
        """A route under `base_url`, such as `/chat/completions`."""
        return URL(self.base_url.rstrip("/") + path, encoded=True)

    def root_url(self, path: str) -> URL:
        """A route beside the versioned ones, such as `/health` or `/tokenize`."""
        return URL(self.base_url.rstrip("/").removesuffix("/v1") + path, encoded=True)
