"""Which path is served by what: the whole table of the studio's API."""

from __future__ import annotations

from qwenstack.studio.batch.lines import LineServer
from qwenstack.studio.batch.runner import BatchRunner
from qwenstack.studio.http.admin import PREFIX as ADMIN_PREFIX
from qwenstack.studio.http.admin import AdminRoutes
from qwenstack.studio.http.app import App, Handler
from qwenstack.studio.http.batches import BatchRoutes, FileRoutes
from qwenstack.studio.http.embeddings import EmbeddingRoute
from qwenstack.studio.http.generation import GenerationRoute
from qwenstack.studio.http.health import Health
from qwenstack.studio.http.metrics import MetricsRoute
from qwenstack.studio.http.models import ModelRoutes
from qwenstack.studio.http.openapi import serve_document
from qwenstack.studio.http.prefixes import ANTHROPIC_PREFIXES, DASHSCOPE_PREFIX, OPENAI_PREFIXES
from qwenstack.studio.http.request_path import RequestPath
from qwenstack.studio.http.token_count import TokenCountRoute
from qwenstack.studio.http.usage import UsageRoute
from qwenstack.studio.installation import Installation
from qwenstack.studio.observability.metrics import Metrics
from qwenstack.studio.surfaces import anthropic_errors, dashscope_errors, openai_errors
from qwenstack.studio.surfaces.anthropic import AnthropicMessages
from qwenstack.studio.surfaces.dashscope import DashScopeEmbeddings, DashScopeGeneration
from qwenstack.studio.surfaces.interface import EmbeddingSurface, GenerationSurface
from qwenstack.studio.surfaces.openai_chat import ChatSurface
from qwenstack.studio.surfaces.openai_completions import CompletionsSurface
from qwenstack.studio.surfaces.openai_embeddings import EmbeddingsSurface
from qwenstack.studio.surfaces.openai_responses import ResponsesSurface

BATCH_FOLDER = "files"

_OPENAI_GENERATION: dict[str, GenerationSurface] = {
    "/chat/completions": ChatSurface(),
    "/completions": CompletionsSurface(),
    "/responses": ResponsesSurface(),
}
_OPENAI_EMBEDDING: dict[str, EmbeddingSurface] = {"/embeddings": EmbeddingsSurface()}
_DASHSCOPE_GENERATION: dict[str, GenerationSurface] = {
    "/aigc/text-generation/generation": DashScopeGeneration(multimodal=False),
    "/aigc/multimodal-generation/generation": DashScopeGeneration(multimodal=True),
}
_DASHSCOPE_EMBEDDING: dict[str, EmbeddingSurface] = {
    "/embeddings/text-embedding/text-embedding": DashScopeEmbeddings(),
}
_ANTHROPIC = AnthropicMessages()
# In which shape a path that nothing serves is refused, by how it begins.
_REFUSE_AT = {
    "/": openai_errors.refuse,
    "/v1/messages": anthropic_errors.refuse,
    "/apps/anthropic": anthropic_errors.refuse,
    "/api/v1": dashscope_errors.refuse,
}


class Studio:
    """The application and what runs beside it: the batch runner."""

    def __init__(self, installation: Installation, metrics: Metrics | None = None) -> None:
        """`metrics` None: there is no `/metrics`."""
        self._installation = installation
        self._metrics = metrics
        self.batches = BatchRunner(
            database=installation.database,
            journal=installation.journal,
            folder=installation.home / BATCH_FOLDER,
            worker_id=installation.worker_id,
            run_line=(lines := self._lines()).run,
            refuse_line=lines.refuse,
        )
        self.app = App(
            routes=self._routes(),
            prefixes=self._prefixes(),
            refuse_at=_REFUSE_AT,
        )

    def _lines(self) -> LineServer:
        installation = self._installation
        return LineServer(
            tenants=installation.tenants,
            door=installation.door,
            serving=installation.serving,
            generation={f"/v1{path}": each for path, each in _OPENAI_GENERATION.items()},
            embedding={f"/v1{path}": each for path, each in _OPENAI_EMBEDDING.items()},
        )

    def _routes(self) -> dict[tuple[str, str], Handler]:
        installation = self._installation
        settings, telemetry = installation.settings, installation.settings.telemetry
        models = ModelRoutes(installation.tenants, installation.deployments)
        usage = UsageRoute(installation.tenants, installation.database, installation.journal)
        files = FileRoutes(installation.tenants, self.batches)
        batches = BatchRoutes(installation.tenants, self.batches)
        health = Health(installation)
        passes = RequestPath(
            tenants=installation.tenants,
            door=installation.door,
            serving=installation.serving,
            observer=installation.observer,
            body_bytes_max=settings.server.body_bytes_max,
            sample_ratio=telemetry.sample_ratio if telemetry.otlp_endpoint else None,
            keep_alive_s=settings.server.keep_alive_s,
        )
        routes: dict[tuple[str, str], Handler] = {
            ("GET", "/healthz"): health.alive,
            ("GET", "/openapi.json"): serve_document,
            ("GET", "/readyz"): health.ready,
        }
        if self._metrics is not None:
            routes["GET", "/metrics"] = MetricsRoute(installation, self._metrics)
        for prefix in OPENAI_PREFIXES:
            for path, generation in _OPENAI_GENERATION.items():
                routes["POST", prefix + path] = GenerationRoute(generation, passes)
            for path, embedding in _OPENAI_EMBEDDING.items():
                routes["POST", prefix + path] = EmbeddingRoute(embedding, passes)
            routes["GET", f"{prefix}/models"] = models.index
            routes["GET", f"{prefix}/usage"] = usage
            routes["POST", f"{prefix}/files"] = files.create
            routes["GET", f"{prefix}/files"] = files.index
            routes["POST", f"{prefix}/batches"] = batches.create
            routes["GET", f"{prefix}/batches"] = batches.index
        counting = TokenCountRoute(passes)
        for prefix in ANTHROPIC_PREFIXES:
            routes["POST", f"{prefix}/messages"] = GenerationRoute(_ANTHROPIC, passes)
            routes["POST", f"{prefix}/messages/count_tokens"] = counting
        for path, generation in _DASHSCOPE_GENERATION.items():
            routes["POST", DASHSCOPE_PREFIX + path] = GenerationRoute(generation, passes)
        for path, embedding in _DASHSCOPE_EMBEDDING.items():
            routes["POST", DASHSCOPE_PREFIX + path] = EmbeddingRoute(embedding, passes)
        return routes

    def _prefixes(self) -> dict[tuple[str, str], Handler]:
        installation = self._installation
        models = ModelRoutes(installation.tenants, installation.deployments)
        files = FileRoutes(installation.tenants, self.batches)
        batches = BatchRoutes(installation.tenants, self.batches)
        admin = AdminRoutes(installation)
        prefixes: dict[tuple[str, str], Handler] = {
            (method, f"{ADMIN_PREFIX}/"): admin for method in ("GET", "POST", "PUT", "DELETE")
        }
        for prefix in OPENAI_PREFIXES:
            prefixes["GET", f"{prefix}/models/"] = models.by_name
            prefixes["GET", f"{prefix}/files/"] = files.by_id
            prefixes["DELETE", f"{prefix}/files/"] = files.delete
            prefixes["GET", f"{prefix}/batches/"] = batches.by_id
            prefixes["POST", f"{prefix}/batches/"] = batches.cancel
        return prefixes
