"""From settings to engines: the one place that knows every kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from qwenstack.engines.interface import Capabilities, Engine
from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions
from qwenstack.engines.models import LocalModel, Progress, obtain
from qwenstack.engines.openai_http import OpenAIEngine
from qwenstack.engines.openai_settings import OpenAIServer
from qwenstack.engines.openvino import OpenVino, OpenVinoOptions
from qwenstack.engines.replicas import Replicas
from qwenstack.studio.admission.queue import FairQueue
from qwenstack.studio.deployments import Deployment
from qwenstack.studio.settings import (
    AdmissionSettings,
    DeploymentSettings,
    LlamaCppSettings,
    OpenVinoSettings,
    RemoteSettings,
    SettingsError,
)


class Building(Protocol):
    """Is told what takes long: getting a model, and loading it (a share from 0 to 1)."""

    def obtaining(self, progress: Progress) -> None:
        """A model is downloaded or hashed."""
        ...

    def loading(self, share: float) -> None:
        """An engine reads its model."""
        ...


def build_deployment(
    settings: DeploymentSettings,
    admission: AdmissionSettings,
    *,
    cache: Path,
    building: Building,
) -> Deployment:
    """A deployment whose engine is not started yet.

    Obtains the model of an embedded engine, which may block for minutes. Raises SettingsError,
    ModelError, GgufError.
    """
    match settings.engine:
        case RemoteSettings():
            return _deployment(settings, settings.name, _remote(settings.name, settings.engine))
        case LlamaCppSettings():
            model = obtain(settings.engine.model or None, cache, building.obtaining)
            engine = _llamacpp(settings.engine, model, building)
            return _deployment(settings, settings.name or model.name, engine, model, admission)
        case OpenVinoSettings():
            model = obtain(settings.engine.model or None, cache, building.obtaining)
            engine = _openvino(settings.engine, model, cache, building)
            return _deployment(settings, settings.name or model.name, engine, model, admission)


def _deployment(
    settings: DeploymentSettings,
    name: str,
    engine: Engine,
    model: LocalModel | None = None,
    admission: AdmissionSettings | None = None,
) -> Deployment:
    if not name:
        raise SettingsError("a deployment on a remote engine needs a name")
    queue = None
    if admission is not None:
        queue = FairQueue(
            engine.capabilities.parallel or 1,
            max_waiting=admission.queue_max,
            max_wait_s=admission.queue_wait_s,
        )
    context = engine.capabilities.context_tokens
    return Deployment(
        name=name,
        engine=engine,
        aliases=settings.aliases,
        max_output_tokens=min(settings.max_output_tokens, context or settings.max_output_tokens),
        price_scope=settings.price_scope,
        queue=queue,
        licence=settings.licence or (model.licence if model else None),
        provenance=settings.provenance or (model.provenance if model else ""),
    )


def _llamacpp(settings: LlamaCppSettings, model: LocalModel, building: Building) -> Engine:
    return LlamaCpp(
        model.path,
        digest=model.digest,
        region=settings.region,
        settings=LlamaCppOptions(
            parallel=settings.parallel,
            context_tokens=settings.context_tokens,
            threads=settings.threads,
            memory_bytes_max=settings.memory_bytes_max,
            embeds=settings.embeds,
            warms=True,
        ),
        on_loading=building.loading,
    )


def _openvino(
    settings: OpenVinoSettings, model: LocalModel, cache: Path, building: Building
) -> Engine:
    return OpenVino(
        model.path,
        digest=model.digest,
        region=settings.region,
        recoded=cache,
        settings=OpenVinoOptions(
            parallel=settings.parallel,
            context_tokens=settings.context_tokens,
            threads=settings.threads,
            memory_bytes_max=settings.memory_bytes_max,
        ),
        on_loading=building.loading,
    )


def _remote(name: str, settings: RemoteSettings) -> Engine:
    if not settings.urls:
        raise SettingsError(f"deployment {name!r} names no urls; give at least one base URL")
    key = ""
    if settings.api_key_env:
        key = os.environ.get(settings.api_key_env, "")
        if not key:
            raise SettingsError(
                f"deployment {name!r} takes its key from the environment variable "
                f"{settings.api_key_env}, which is not set"
            )
    replicas = [_replica(url, key, settings) for url in settings.urls]
    return replicas[0] if len(replicas) == 1 else Replicas(replicas)


def _replica(url: str, key: str, settings: RemoteSettings) -> OpenAIEngine:
    try:
        server = OpenAIServer(
            base_url=url,
            region=settings.region,
            name=f"openai_http/{settings.dialect}",
            dialect=settings.dialect,
            upstream_model=settings.upstream_model,
            api_key=key or None,
            capabilities=Capabilities(
                context_tokens=settings.context_tokens,
                generates=settings.generates,
                embeds=settings.embeds,
                embedding_width=settings.embedding_width,
                tools=settings.generates,
                json_schema=settings.generates,
                logprobs=settings.generates,
                images=settings.images,
                thinks=settings.thinks,
            ),
            max_connections=settings.connections_max,
            connect_s=settings.connect_timeout_s,
            first_byte_s=settings.first_byte_timeout_s,
            idle_s=settings.idle_timeout_s,
            total_s=settings.total_timeout_s,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return OpenAIEngine(server)
