"""From settings to engines: the one place that knows every kind."""

from __future__ import annotations

import os

from qwenstack.engines.interface import Capabilities, Engine, EngineIdentity
from qwenstack.engines.openai_body import Wording
from qwenstack.engines.openai_http import OpenAiHttp, RemoteOptions
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

_RUNNING_USAGE = frozenset({"vllm", "sglang", "llama_server"})


def build_deployment(settings: DeploymentSettings, admission: AdmissionSettings) -> Deployment:
    """A deployment whose engine is not started yet; raises SettingsError."""
    engine = _engine(settings)
    parallel = engine.capabilities.parallel
    embedded = not isinstance(settings.engine, RemoteSettings)
    return Deployment(
        name=settings.name,
        engine=engine,
        aliases=settings.aliases,
        max_output_tokens=settings.max_output_tokens,
        price_scope=settings.price_scope,
        queue=(
            FairQueue(
                parallel or 1,
                max_waiting=admission.queue_max,
                max_wait_s=admission.queue_wait_s,
            )
            if embedded
            else None
        ),
        licence=settings.licence,
        provenance=settings.provenance,
    )


def _engine(settings: DeploymentSettings) -> Engine:
    match settings.engine:
        case RemoteSettings():
            return _remote(settings.name, settings.engine)
        case LlamaCppSettings():
            raise SettingsError("llamacpp comes next")
        case OpenVinoSettings():
            raise SettingsError("openvino comes next")


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
    return replicas[0]


def _replica(url: str, key: str, settings: RemoteSettings) -> OpenAiHttp:
    options = RemoteOptions(
        base_url=url,
        api_key=key,
        wording=Wording(
            dialect=settings.dialect,
            model=settings.upstream_model,
            running_usage=settings.dialect in _RUNNING_USAGE,
        ),
        connections_max=settings.connections_max,
        connect_timeout_s=settings.connect_timeout_s,
        first_byte_timeout_s=settings.first_byte_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
    )
    return OpenAiHttp(
        options,
        EngineIdentity(
            name=f"openai_http/{settings.dialect}", version="unknown", region=settings.region
        ),
        Capabilities(
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
    )
