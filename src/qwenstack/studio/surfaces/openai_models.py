"""GET /v1/models and /v1/models/{model}, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.surfaces.json_body import show


class ModelCard(msgspec.Struct, frozen=True, tag_field="object", tag="model"):
    """A model that the caller may use; `created` is in Unix seconds.

    Besides OpenAI's fields it names the layer and the licence of what is served (None: unknown) and
    where the weights came from.
    """

    id: str
    created: int
    owned_by: str
    layer: str = "studio"
    licence: str | None = None
    provenance: str | None = None


class ModelList(msgspec.Struct, frozen=True):
    """The whole list; it has no pages."""

    object: Literal["list"]
    data: tuple[ModelCard, ...]


_ENCODER = msgspec.json.Encoder()


def encode_models(models: Iterable[ModelCard]) -> bytes:
    """The answer to GET /v1/models."""
    return _ENCODER.encode(ModelList("list", tuple(models)))


def encode_model(models: Iterable[ModelCard], name: str) -> bytes:
    """The answer to GET /v1/models/{name}; raises Refusal (MODEL_NOT_FOUND)."""
    for model in models:
        if model.id == name:
            return _ENCODER.encode(model)
    raise Refusal(
        RefusalKind.MODEL_NOT_FOUND,
        f"The model {show(name)} does not exist or you do not have access to it. "
        "GET /v1/models lists the models that you can use.",
        param="model",
    )
