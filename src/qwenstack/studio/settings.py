"""`qwenstack.toml`: every setting, its default, and what it means."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

CONFIGURATION_NAME = "qwenstack.toml"
DEFAULT_HOME = "~/.qwenstack"
DEFAULT_PORT = 8317


class SettingsError(ValueError):
    """A configuration that cannot be used; the message names the file, the field and the value."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: unknown names are refused, so that a typo cannot pass for a setting."""


class ServerSettings(_Section, frozen=True):
    """`[server]`. `workers` above 1 needs PostgreSQL, Valkey and remote engines.

    A stream that stands still for `keep_alive_s` sends a sign of life; 0 sends none.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    workers: int = 1
    body_bytes_max: int = 16 * 1024 * 1024
    drain_s: float = 20.0
    keep_alive_s: float = 15.0


class DatabaseSettings(_Section, frozen=True):
    """`[database]`. An empty `url` is SQLite in the home folder."""

    url: str = ""


class AdmissionSettings(_Section, frozen=True):
    """`[admission]`. An empty `url` counts limits in process; else a Valkey or Redis URL."""

    url: str = ""
    queue_max: int = 256
    queue_wait_s: float = 60.0


class AlertSettings(_Section, frozen=True):
    """`[alerts]`. Webhooks reach the public internet, and besides it these networks (CIDR).

    An empty `key_file` is `alerts.key` in the home folder.
    """

    allow_networks: tuple[str, ...] = ()
    key_file: str = ""


class PriceSettings(_Section, frozen=True):
    """`[prices]`. Folders with price books besides those that come with QwenStack."""

    folders: tuple[str, ...] = ()


class LogSettings(_Section, frozen=True):
    """`[log]`. No level puts the text of requests in the log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "text"


class TelemetrySettings(_Section, frozen=True):
    """`[telemetry]`. An OTLP/HTTP endpoint for traces; empty sends nothing anywhere."""

    otlp_endpoint: str = ""
    sample_ratio: float = 1.0


class LlamaCppSettings(_Section, frozen=True, tag_field="kind", tag="llamacpp"):
    """An embedded llama.cpp. `model` is a GGUF path or a reference, empty for the default model.

    0 chooses by the model and the machine.
    """

    model: str = ""
    region: str = "local"
    parallel: int = 4
    context_tokens: int = 0
    threads: int = 0
    memory_bytes_max: int = 0
    embeds: bool = True


class OpenVinoSettings(_Section, frozen=True, tag_field="kind", tag="openvino"):
    """An embedded OpenVINO GenAI: faster than llama.cpp for many requests at once (Linux, x86-64).

    The fields mean what llama.cpp's mean. It makes no embeddings.
    """

    model: str = ""
    region: str = "local"
    parallel: int = 8
    context_tokens: int = 0
    threads: int = 0
    memory_bytes_max: int = 0


class RemoteSettings(_Section, frozen=True, tag_field="kind", tag="openai_http"):
    """Any OpenAI-compatible server: vLLM, SGLang, llama-server, Model Studio.

    `urls` are replicas' base URLs, up to and with `/v1`. The key is read from the environment
    variable that `api_key_env` names, so that no secret stands in this file.
    """

    urls: tuple[str, ...]
    upstream_model: str
    dialect: Literal["openai", "vllm", "sglang", "llama_server", "model_studio"] = "openai"
    api_key_env: str = ""
    region: str = "local"
    context_tokens: int | None = None
    connections_max: int = 256
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    total_timeout_s: float = 3600.0
    generates: bool = True
    embeds: bool = False
    embedding_width: int | None = None
    images: bool = False
    thinks: bool = False


EngineSettings = LlamaCppSettings | OpenVinoSettings | RemoteSettings


class DeploymentSettings(_Section, frozen=True, kw_only=True):
    """One `[[deployments]]`: a public model name on an engine.

    An empty `name` takes the model's own, and an empty `licence` or `provenance` what is known of
    the weights; for a remote engine nothing is, so that `name` is needed.
    """

    name: str = ""
    engine: EngineSettings
    aliases: tuple[str, ...] = ()
    max_output_tokens: int = 8192
    price_scope: str = "*"
    licence: str | None = None
    provenance: str = ""


class Settings(_Section, frozen=True):
    """The whole file."""

    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    admission: AdmissionSettings = AdmissionSettings()
    alerts: AlertSettings = AlertSettings()
    prices: PriceSettings = PriceSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    deployments: tuple[DeploymentSettings, ...] = ()


def home_folder(override: str | None = None) -> Path:
    """Where all state lives: the argument, `QWENSTACK_HOME`, or `~/.qwenstack`."""
    return Path(override or os.environ.get("QWENSTACK_HOME") or DEFAULT_HOME).expanduser().resolve()


def load_settings(path: Path) -> Settings:
    """Read a file, or give the defaults where there is none; raises SettingsError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    try:
        return check(msgspec.convert(tomllib.loads(text), Settings))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is no valid TOML: {error}") from error
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error


def check(settings: Settings) -> Settings:
    """Give the settings back; raises ValueError where two of them do not go together."""
    server = settings.server
    if not 0 <= server.port <= 65_535:
        raise ValueError(f"server.port is {server.port}; it must lie between 0 and 65535")
    if server.workers < 1:
        raise ValueError(f"server.workers is {server.workers}; it must be at least 1")
    if not (server.keep_alive_s == 0 or 0.01 <= server.keep_alive_s <= 3600):
        raise ValueError(
            f"server.keep_alive_s is {server.keep_alive_s}; it must be 0 (off) or lie between 0.01 "
            "and 3600"
        )
    _check_networks(settings.alerts)
    _check_telemetry(settings.telemetry)
    if server.workers > 1:
        _check_shared(settings)
    return settings


def _check_networks(alerts: AlertSettings) -> None:
    for network in alerts.allow_networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ValueError(
                f"alerts.allow_networks: {error}; write networks such as 10.0.0.0/8"
            ) from None


def _check_telemetry(telemetry: TelemetrySettings) -> None:
    if not 0 <= telemetry.sample_ratio <= 1:
        raise ValueError(
            f"telemetry.sample_ratio is {telemetry.sample_ratio}; it must lie between 0 and 1"
        )
    endpoint = telemetry.otlp_endpoint
    if endpoint:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"telemetry.otlp_endpoint is {endpoint!r}; it must be a URL like "
                "http://127.0.0.1:4318"
            )


def _check_shared(settings: Settings) -> None:
    if not settings.database.url.startswith("postgres"):
        raise ValueError("server.workers above 1 needs database.url = postgresql://…")
    if not settings.admission.url:
        raise ValueError("server.workers above 1 needs admission.url = valkey://… (or redis://…)")
    for deployment in settings.deployments:
        if isinstance(deployment.engine, RemoteSettings):
            continue
        raise ValueError(
            f"deployment {deployment.name!r} embeds its engine, which one process alone can use; "
            "with several workers run the engine as a server and name it as openai_http"
        )
