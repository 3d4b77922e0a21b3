"""Container images: of a model server, or of a model that somebody packed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.core.layers import Layer

_IMAGE: Final = re.compile(
    r"(?:[\w.-]+(?::\d+)?/)?(?:ai|vllm|ollama|lmsysorg|nim|ghcr\.io|modelscope|qwenllm|qwen)/[\w./-]+"
    r"(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?"
)
_SERVERS: Final = frozenset({"vllm/vllm-openai", "ollama/ollama", "lmsysorg/sglang"})
DOCKER_MODEL: Final = re.compile(r"(?:docker\.io/)?ai/([\w.-]+)(?::([\w.-]+))?")
NIM: Final = re.compile(r"nvcr\.io/nim/([\w.-]+)/([\w.-]+)(?::[\w.-]+)?")


def read(text: str) -> Iterator[Reading]:
    """A container image: Docker's model images, NVIDIA's, or a server without a model."""
    if NIM.fullmatch(text):
        yield Reading(
            kind=Kind.IMAGE,
            sure=Sureness.SHAPED,
            why="NVIDIA's image of a server with a model: NVIDIA's terms for the image come "
            "beside the licence of the weights in it",
            subject=text,
            layer=Layer.COMMUNITY,
        )
    elif DOCKER_MODEL.fullmatch(text):
        yield Reading(
            kind=Kind.IMAGE,
            sure=Sureness.SHAPED,
            why="a model image that Docker packs: weights as somebody else gives them out; the "
            "name is no proof of what is in it",
            subject=text,
            layer=Layer.COMMUNITY,
        )
    elif _IMAGE.fullmatch(text) and (":" in text or text in _SERVERS):
        yield Reading(
            kind=Kind.IMAGE,
            sure=Sureness.LISTED if text in _SERVERS else Sureness.SHAPED,
            why="the image of a server; which model it runs is said by its command",
            subject=text,
        )
