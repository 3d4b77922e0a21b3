"""Names of other operators: `openrouter/qwen/qwen3-8b`, `qwen.qwen3-32b-v1:0`, `@cf/qwen/…`.

The part before the model's name is what client libraries use to choose an operator (LiteLLM's
prefixes, and the operators' own forms). The model behind such a name is what the operator says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from qwenstack.catalog.model import ApiHost
from qwenstack.catalog.which import hosted, hub, ollama
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.catalog.which.spelling import fold
from qwenstack.core.layers import Layer

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
_NAMED_BY_ITS_OWNER: Final = {
    "azure": "a deployment on Azure",
    "sagemaker": "an endpoint on SageMaker",
    "sagemaker_chat": "an endpoint on SageMaker",
    "hosted_vllm": "a server of one's own",
    "lm_studio": "LM Studio on some machine",
    "llamafile": "a server of one's own",
}
_OLLAMA: Final = frozenset({"ollama", "ollama_chat"})
_FORMS: Final = (
    (re.compile(r"accounts/fireworks/models/([\w.-]+)"), "fireworks_ai"),
    (re.compile(r"@(?:cf|hf)/([\w.-]+/[\w.-]+)"), "cloudflare"),
    (
        re.compile(r"(?:arn:aws[\w-]*:bedrock:[\w:-]*/)?(?:[a-z]{2,6}\.)?(qwen\.[\w.-]+:\d+)"),
        "bedrock",
    ),
    (
        re.compile(
            r"(?:(?:projects/[\w.:-]+/locations/[\w-]+/)?publishers/qwen/models/)?"
            r"(qwen[\w.-]+-maas(?:@[\w.-]+)?)"
        ),
        "vertex_ai",
    ),
    (
        re.compile(r"(qwen/[\w.-]+:(?:free|nitro|floor|thinking|extended|online|exacto))"),
        "openrouter",
    ),
    # Hugging Face's router: which provider runs it, or by what one is chosen.
    (
        re.compile(
            r"([\w.-]+/[\w.-]*(?:[Qq]w|QVQ)[\w.-]*:(?:fastest|cheapest|preferred|auto|baseten|cerebras|"
            r"cohere|deepinfra|fal-ai|featherless-ai|fireworks-ai|groq|hf-inference|hyperbolic|nebius|"
            r"novita|nscale|ovhcloud|publicai|replicate|sambanova|scaleway|together|wavespeed|zai-org))"
        ),
        "huggingface",
    ),
)
_SLUG: Final = re.compile(r"qwen/([a-z0-9][a-z0-9.-]+)")
_GATEWAY_SLUG: Final = re.compile(r"alibaba/[a-z0-9][a-z0-9.-]+")


def read(text: str, index: Index) -> Iterator[Reading]:
    """A name with an operator's prefix, or in an operator's own form."""
    for form, key in _FORMS:
        match = form.fullmatch(text)
        if match is not None:
            yield served(match[1], _operator(key, index))
            return
    prefix, slash, rest = text.partition("/")
    if not slash or not rest:
        return
    if prefix == "dashscope":
        yield from hosted.read(rest, index)
    elif prefix in _OLLAMA:
        yield from ollama.read(rest, index, certain=True)
    elif prefix in ("openai", "custom_openai") and index.catalogue.find_hosted(rest):
        yield Reading(
            kind=Kind.HOSTED_MODEL,
            sure=Sureness.LISTED,
            why="LiteLLM's prefix for any server that speaks OpenAI's protocol: which one is asked "
            "for this name is said by its base URL",
            subject=rest,
        )
    elif prefix in _OWN_SERVER and "/" in rest:
        yield from hub.read_id(rest, index)
    elif prefix in _NAMED_BY_ITS_OWNER:
        yield Reading(
            kind=Kind.HOSTED_MODEL,
            sure=Sureness.LISTED,
            why=f"LiteLLM's name for {_NAMED_BY_ITS_OWNER[prefix]}: its owner chose the name, and "
            "it does not say which model answers",
            subject=rest,
        )
    elif (operator := _operator(prefix, index)) and _family(rest, index):
        yield served(rest, operator)
    elif (slug := _SLUG.fullmatch(text)) and _family(slug[1], index):
        yield _weaker(served(text, _operator("openrouter", index)), "OpenRouter")
    elif _GATEWAY_SLUG.fullmatch(text) and _family(rest, index):
        # vercel.com/ai-gateway/models, read 2026-11-24.
        yield _weaker(served(text, "Vercel"), "Vercel's AI Gateway")


def is_own_form(text: str) -> bool:
    """Whether `text` has a form that only one operator gives to its names."""
    return any(form.fullmatch(text) for form, _ in _FORMS)


def _operator(prefix: str, index: Index) -> str:
    """The operator that a client's prefix stands for; empty where it stands for none."""
    found = index.catalogue.find_operator(prefix)
    return found.name if found else ""


def served(name: str, operator: str, host: ApiHost | None = None, region: str = "") -> Reading:
    """A model that `operator` serves under `name`: its terms govern, whatever the weights are."""
    return Reading(
        kind=Kind.HOSTED_MODEL,
        sure=Sureness.EXACT,
        why=f"the name of a model that {operator} serves; that it runs the weights of that name is "
        "its own statement",
        subject=name,
        layer=Layer.STUDIO,
        host=host,
        operator=operator,
        region=region,
    )


def _weaker(reading: Reading, whose: str) -> Reading:
    return Reading(
        kind=reading.kind,
        sure=Sureness.SHAPED,
        why=f"all in lower case, as {whose} names what it serves; a hub would write Qwen/…",
        subject=reading.subject,
        layer=reading.layer,
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
