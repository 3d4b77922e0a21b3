"""docs/openai-surface.md names every field that a route reads and every code that it answers."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from qwenstack.core.refusals import RefusalKind
from qwenstack.studio.surfaces.openai_chat import ChatRequest
from qwenstack.studio.surfaces.openai_completions import CompletionRequest
from qwenstack.studio.surfaces.openai_embeddings import EmbeddingFields
from qwenstack.studio.surfaces.openai_errors import wording_of
from qwenstack.studio.surfaces.openai_fields import SharedFields
from qwenstack.studio.surfaces.openai_responses import ResponseRequest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "openai-surface.md").read_text()
SHARED = "Fields of chat, completions and responses"


def section(title: str) -> str:
    return DOCUMENT.split(f"## {title}\n")[1].split("\n## ")[0]


def names(struct: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize(
    ("title", "struct"),
    [
        ("POST /v1/chat/completions", ChatRequest),
        ("POST /v1/completions", CompletionRequest),
        ("POST /v1/responses", ResponseRequest),
    ],
)
def test_every_field_of_a_route_is_explained(title: str, struct: type[msgspec.Struct]) -> None:
    explained = set(re.findall(r"`(\w+)`", section(SHARED) + section(title)))
    assert names(struct) - explained == set()


def test_no_explained_row_is_of_a_field_that_is_gone() -> None:
    for title, struct in (
        (SHARED, SharedFields),
        ("POST /v1/chat/completions", ChatRequest),
        ("POST /v1/completions", CompletionRequest),
        ("POST /v1/responses", ResponseRequest),
        ("POST /v1/embeddings", EmbeddingFields),
    ):
        rows = re.findall(r"^\| (`.*?) \|", section(title), re.MULTILINE)
        assert rows
        fields = set(re.findall(r"`(\w+)`", " ".join(rows)))
        assert fields - names(struct) == set()


@pytest.mark.parametrize("kind", RefusalKind)
def test_every_error_is_explained_at_its_status(kind: RefusalKind) -> None:
    words = wording_of(kind)
    rows = [row for row in section("Errors").split("\n") if row.startswith(f"| {words.status} |")]
    assert f"`{words.code}`" in " ".join(rows)
