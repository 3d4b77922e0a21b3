"""Which path is served by what: the whole table of the studio's API."""

from __future__ import annotations

from qwenstack.studio.http.app import App, Handler, Refuse
from qwenstack.studio.http.generation import GenerationRoute
from qwenstack.studio.http.health import Health
from qwenstack.studio.installation import Installation
from qwenstack.studio.surfaces import openai_errors
from qwenstack.studio.surfaces.interface import GenerationSurface
from qwenstack.studio.surfaces.openai_chat import ChatSurface

# Model Studio serves the same OpenAI surface under this prefix.
OPENAI_PREFIXES = ("/v1", "/compatible-mode/v1")


def build_app(installation: Installation) -> App:
    """The application over an open installation."""
    generations: list[tuple[str, GenerationSurface]] = []
    for prefix in OPENAI_PREFIXES:
        generations.append((f"{prefix}/chat/completions", ChatSurface()))
    routes: dict[tuple[str, str], Handler] = {}
    for path, surface in generations:
        routes["POST", path] = GenerationRoute(
            surface,
            tenants=installation.tenants,
            door=installation.door,
            serving=installation.serving,
            observer=installation.observer,
            body_bytes_max=installation.settings.server.body_bytes_max,
        )
    health = Health(installation)
    routes["GET", "/healthz"] = health.alive
    routes["GET", "/readyz"] = health.ready
    refuse_at: dict[str, Refuse] = {"/": openai_errors.refuse}
    return App(routes, {}, refuse_at)
