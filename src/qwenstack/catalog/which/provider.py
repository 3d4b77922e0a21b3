"""Names of other operators: `openrouter/qwen/qwen3-8b`, `qwen.qwen3-32b-v1:0`, `@cf/qwen/…`.

The part before the model's name is what client libraries use to choose an operator (LiteLLM's
prefixes, and the operators' own forms). The model behind such a name is what the operator says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from qwenstack.catalog.which import hosted, hub, ollama
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.catalog.which.spelling import fold
from qwenstack.core.layers import Layer


class _Operator(NamedTuple):
    name: str
    host: str


_PREFIXES: Final = {
    "openrouter": _Operator("OpenRouter", "openrouter.ai"),
    "together_ai": _Operator("Together AI", "api.together.xyz"),
    "together": _Operator("Together AI", "api.together.xyz"),
    "fireworks_ai": _Operator("Fireworks AI", "api.fireworks.ai"),
    "deepinfra": _Operator("DeepInfra", "api.deepinfra.com"),
    "groq": _Operator("Groq", "api.groq.com"),
    "bedrock": _Operator("Amazon Bedrock", "bedrock-runtime.us-east-1.amazonaws.com"),
    "vertex_ai": _Operator("Google Vertex AI", "aiplatform.googleapis.com"),
    "azure_ai": _Operator("Microsoft Azure", "services.ai.azure.com"),
    "cerebras": _Operator("Cerebras", "api.cerebras.ai"),
    "novita": _Operator("Novita AI", "api.novita.ai"),
    "nebius": _Operator("Nebius", "api.studio.nebius.com"),
    "nvidia_nim": _Operator("NVIDIA", "integrate.api.nvidia.com"),
    "replicate": _Operator("Replicate", "api.replicate.com"),
    "siliconflow": _Operator("SiliconFlow", "api.siliconflow.cn"),
    "hyperbolic": _Operator("Hyperbolic", "api.hyperbolic.xyz"),
    "sambanova": _Operator("SambaNova", "api.sambanova.ai"),
    "scaleway": _Operator("Scaleway", "api.scaleway.ai"),
    "ovhcloud": _Operator("OVHcloud", "endpoints.ai.cloud.ovh.net"),
    "huggingface": _Operator("Hugging Face", "router.huggingface.co"),
    "snowflake": _Operator("Snowflake", "snowflakecomputing.com"),
    "github_copilot": _Operator("GitHub", "api.githubcopilot.com"),
}
_OWN_SERVER: Final = frozenset(
    {
        "hosted_vllm",
        "vllm",
        "lm_studio",
        "llamafile",
        "openai",
        "custom_openai",
        "triton",
        "xinference",
    }
)
_OLLAMA: Final = frozenset({"ollama", "ollama_chat"})
_FORMS: Final = (
    (re.compile(r"accounts/fireworks/models/([\w.-]+)"), "fireworks_ai"),
    (re.compile(r"@(?:cf|hf)/([\w.-]+/[\w.-]+)"), "cloudflare"),
    (re.compile(r"(?:[a-z]{2,6}\.)?(qwen\.[\w.-]+:\d+)"), "bedrock"),
    (re.compile(r"(qwen[\w.-]+-maas(?:@[\w.-]+)?)"), "vertex_ai"),
    (
        re.compile(r"(qwen/[\w.-]+:(?:free|nitro|floor|thinking|extended|online|exacto))"),
        "openrouter",
    ),
)
_CLOUDFLARE: Final = _Operator("Cloudflare Workers AI", "api.cloudflare.com")
_SLUG: Final = re.compile(r"qwen/([a-z0-9][a-z0-9.-]+)")


def read(text: str, index: Index) -> Iterator[Reading]:
    """A name with an operator's prefix, or in an operator's own form."""
    for form, key in _FORMS:
        match = form.fullmatch(text)
        if match is not None:
            operator = _CLOUDFLARE if key == "cloudflare" else _PREFIXES[key]
            yield served(match[1], operator.name, operator.host, index)
            return
    prefix, slash, rest = text.partition("/")
    if not slash or not rest:
        return
    if prefix == "dashscope":
        yield from hosted.read(rest, index)
    elif prefix in _OLLAMA:
        yield from ollama.read(rest, index, certain=True)
    elif prefix in _OWN_SERVER and ("/" in rest or prefix != "openai"):
        yield from hub.read_id(rest, index)
    elif prefix in _PREFIXES and _family(rest, index):
        operator = _PREFIXES[prefix]
        yield served(rest, operator.name, operator.host, index)
    elif (slug := _SLUG.fullmatch(text)) and _family(slug[1], index):
        operator = _PREFIXES["openrouter"]
        reading = served(text, operator.name, operator.host, index)
        yield _weaker(reading)


def served(name: str, operator: str, host: str, index: Index) -> Reading:
    """A model that `operator` serves under `name`: its terms govern, whatever the weights are."""
    return Reading(
        kind=Kind.HOSTED_MODEL,
        sure=Sureness.EXACT,
        why=f"the name of a model that {operator} serves; that it runs the weights of that name is "
        "its own statement",
        subject=name,
        layer=Layer.STUDIO,
        host=index.catalogue.find_host(host),
        operator=operator,
    )


def _weaker(reading: Reading) -> Reading:
    return Reading(
        kind=reading.kind,
        sure=Sureness.SHAPED,
        why="all in lower case, as OpenRouter names what it serves; a hub would write Qwen/…",
        subject=reading.subject,
        layer=reading.layer,
        host=reading.host,
        operator=reading.operator,
    )


def _family(name: str, index: Index) -> bool:
    bare = fold(name.rpartition("/")[2].partition(":")[0])
    return (
        "qw" in bare
        or "qvq" in bare
        or bare in index.repo_names
        or index.catalogue.find_derivative(name) is not None
    )
