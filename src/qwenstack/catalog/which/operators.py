"""Who operates a host or a client's prefix, for operators other than the vendor's own cloud.

Read in the provider modules of LiteLLM 1.109.1 (2026-11-24): prefixes as its clients write them,
and the hosts that it calls for them. Their terms were not read, so those stay unknown.
"""

from __future__ import annotations

import datetime
import re
from typing import Final, NamedTuple

SOURCE: Final = "provider modules of LiteLLM 1.109.1"
CHECKED: Final = datetime.date(2026, 11, 24)


class Operator(NamedTuple):
    """`host` is the end of the host's name; `{region}` stands for a region in it."""

    name: str
    host: str
    prefixes: tuple[str, ...]


OPERATORS: Final = (
    Operator("OpenRouter", "openrouter.ai", ("openrouter",)),
    Operator("Together AI", "api.together.xyz", ("together_ai", "together")),
    Operator("Together AI", "api.together.ai", ()),
    Operator("Fireworks AI", "api.fireworks.ai", ("fireworks_ai",)),
    Operator("DeepInfra", "api.deepinfra.com", ("deepinfra",)),
    Operator("Groq", "api.groq.com", ("groq",)),
    Operator("Amazon Bedrock", "bedrock-runtime.{region}.amazonaws.com", ("bedrock",)),
    Operator("Google Vertex AI", "{region}-aiplatform.googleapis.com", ("vertex_ai",)),
    Operator("Microsoft Azure", "services.ai.azure.com", ("azure_ai",)),
    Operator("Cerebras", "api.cerebras.ai", ("cerebras",)),
    Operator("Novita AI", "api.novita.ai", ("novita",)),
    Operator("Nebius", "api.studio.nebius.ai", ("nebius",)),
    Operator("NVIDIA", "integrate.api.nvidia.com", ("nvidia_nim",)),
    Operator("Replicate", "api.replicate.com", ("replicate",)),
    Operator("Hyperbolic", "api.hyperbolic.xyz", ("hyperbolic",)),
    Operator("SambaNova", "api.sambanova.ai", ("sambanova",)),
    Operator("Scaleway", "api.scaleway.ai", ("scaleway",)),
    Operator("OVHcloud", "endpoints.ai.cloud.ovh.net", ("ovhcloud",)),
    Operator("OVHcloud", "endpoints.kepler.ai.cloud.ovh.net", ()),
    Operator("Hugging Face", "router.huggingface.co", ("huggingface",)),
    Operator("Snowflake", "snowflakecomputing.com", ("snowflake",)),
    Operator("GitHub", "api.githubcopilot.com", ("github_copilot",)),
    Operator("Baseten", "inference.baseten.co", ("baseten",)),
    Operator("Friendli", "api.friendli.ai", ("friendliai",)),
    Operator("Cloudflare Workers AI", "api.cloudflare.com", ("cloudflare",)),
)

BY_PREFIX: Final = {prefix: each for each in OPERATORS for prefix in each.prefixes}

_REGION: Final = r"([a-z]{2}(?:-[a-z]+){1,2}-?\d)"
_PATTERNS: Final = tuple(
    (
        re.compile(r"(?:[\w-]+\.)*" + re.escape(each.host).replace(r"\{region\}", _REGION)),
        each,
    )
    for each in OPERATORS
)


def of_host(host: str) -> tuple[Operator, str] | None:
    """The operator of a host, and the region that its name tells (empty where it tells none)."""
    for pattern, operator in _PATTERNS:
        if match := pattern.fullmatch(host):
            return operator, match[1] if match.groups() else ""
    return None
