"""docs/anthropic-surface.md and docs/dashscope-surface.md name every field and every error."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from qwenstack.core.refusals import RefusalKind
from qwenstack.studio.http.prefixes import ANTHROPIC_PREFIXES
from qwenstack.studio.surfaces import anthropic_errors, dashscope_errors
from qwenstack.studio.surfaces.anthropic_messages import REFUSED_BLOCKS, Block
from qwenstack.studio.surfaces.anthropic_request import (
    MessagesRequest,
    PromptFields,
    ToolFields,
)
from qwenstack.studio.surfaces.dashscope import EmbeddingParameters
from qwenstack.studio.surfaces.dashscope_request import DashScopeRequest, Parameters

DOCS = Path(__file__).parents[2] / "docs"
ANTHROPIC = (DOCS / "anthropic-surface.md").read_text()
DASHSCOPE = (DOCS / "dashscope-surface.md").read_text()
PROMPT = "The prompt: both routes"
MESSAGES = "POST /v1/messages"


def section(document: str, title: str) -> str:
    return document.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> set[str]:
    """The names in the first column of the first table."""
    table = text.split("|---|")[1].split("\n\n")[0]
    return set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))))


def names(struct: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize(
    ("explained", "fields"),
    [
        (rows(section(ANTHROPIC, PROMPT)), names(PromptFields)),
        (rows(section(ANTHROPIC, MESSAGES)), names(MessagesRequest) - names(PromptFields)),
        (rows(section(DASHSCOPE, "Generation: the body")), names(DashScopeRequest)),
        (rows(section(DASHSCOPE, "Generation: `parameters`")), names(Parameters)),
        (rows(section(DASHSCOPE, "Embeddings: `parameters`")), names(EmbeddingParameters)),
    ],
    ids=["prompt", "messages", "body", "parameters", "embeddings"],
)
def test_the_tables_name_the_fields_that_are_read_and_no_other(
    explained: set[str], fields: set[str]
) -> None:
    assert explained == fields


def test_every_block_and_every_field_of_a_tool_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", section(ANTHROPIC, MESSAGES)))
    blocks = {str(block.__struct_config__.tag) for block in Block.__args__}
    assert blocks - explained == set()
    results = {"mcp_tool_result", "tool_reference"}
    assert set(REFUSED_BLOCKS) - explained == results
    assert names(ToolFields) - explained == {"type"}


def test_the_paths_are_those_that_are_served() -> None:
    for prefix in ANTHROPIC_PREFIXES:
        assert f"`{prefix}`" in ANTHROPIC or f"{prefix}/messages" in ANTHROPIC


@pytest.mark.parametrize("kind", RefusalKind)
def test_every_error_is_explained_at_its_status(kind: RefusalKind) -> None:
    status, type_ = anthropic_errors.wording_of(kind)
    assert f"| {status} | `{type_}` |" in section(ANTHROPIC, "Errors")
    status, code = dashscope_errors.code_of(kind)
    lines = section(DASHSCOPE, "Errors").split("\n")
    assert f"`{code}`" in " ".join(line for line in lines if line.startswith(f"| {status} |"))
