"""Embeddings and the model list, in OpenAI's shapes."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from qwenstack.core.generation import EmbeddingResult
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.interface import EmbeddingCall
from qwenstack.studio.surfaces.openai_embeddings import EmbeddingsSurface
from qwenstack.studio.surfaces.openai_models import ModelCard, encode_model, encode_models
from tests.openai_schema import check

SURFACE = EmbeddingsSurface()
RESULT = EmbeddingResult(((0.5, -0.25), (0.125, 1.0)), TokenUsage(prompt=7))


def parse(**fields: Any) -> EmbeddingCall:
    return SURFACE.parse(json.dumps({"model": "e", "input": "a", **fields}).encode(), {})


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_every_form_of_input_is_read(given: Any, inputs: Any) -> None:
    assert parse(input=given).request.inputs == inputs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [1, -1]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 10**9}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"model": ""}, "model"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse(**fields)
    assert caught.value.param == param


def test_floats_fit_the_schema() -> None:
    answer = json.loads(SURFACE.encode(parse(dimensions=2), RESULT, "r", 5))
    check(answer, "CreateEmbeddingResponse")
    assert [row["embedding"] for row in answer["data"]] == [[0.5, -0.25], [0.125, 1.0]]
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


def test_base64_holds_the_same_vectors_as_32_bit_floats() -> None:
    answer = json.loads(SURFACE.encode(parse(encoding_format="base64"), RESULT, "r", 5))
    packed = base64.b64decode(answer["data"][1]["embedding"])
    assert struct.unpack("<2f", packed) == (0.125, 1.0)


def test_the_model_list_fits_the_schema() -> None:
    models = [ModelCard("qwen-plus", 1_700_000_000, "qwenstack"), ModelCard("b", 1, "c")]
    check(json.loads(encode_models(models)), "ListModelsResponse")
    check(json.loads(encode_models([])), "ListModelsResponse")
    one = json.loads(encode_model(models, "qwen-plus"))
    check(one, "Model")
    assert one["id"] == "qwen-plus"


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(Refusal) as caught:
        encode_model([], "m" * 1000)
    assert caught.value.kind is RefusalKind.MODEL_NOT_FOUND
    assert len(caught.value.message) < 300
