"""Model cards: sound ones are read as the client library reads them, hostile ones are bounded."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import EvalResult
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.hub.cards import Finding, parse, validate

SOUND = """---
license: apache-2.0
base_model:
- Qwen/Qwen3-0.6B
base_model_relation: finetune
language:
- en
- zh
tags: [chat, qwen]
pipeline_tag: text-generation
library_name: transformers
datasets: allenai/c4
---
# A card
"""


def only(text: str) -> Finding:
    (finding,) = validate(text)
    return finding


def with_lines(*lines: str) -> str:
    return "\n".join(["---", "license: apache-2.0", *lines, "---", "text"])


def test_a_sound_card_is_read_without_findings() -> None:
    card, findings = parse(SOUND.encode())
    assert findings == []
    assert (card.license, card.base_model) == ("apache-2.0", ("Qwen/Qwen3-0.6B",))
    assert (card.language, card.tags) == (("en", "zh"), ("chat", "qwen"))
    assert card.datasets == ("allenai/c4",)
    assert card.body == "\n# A card\n"


def test_windows_line_ends_are_the_same_card() -> None:
    card, findings = parse(SOUND.replace("\n", "\r\n"))
    assert findings == []
    assert card.metadata == parse(SOUND)[0].metadata


def client_reads(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    return fields


def test_what_the_client_library_writes_is_read_as_the_client_reads_it() -> None:
    data = ModelCardData(
        license="mit",
        language=["en", "de"],
        base_model="Qwen/Qwen3-8B",
        model_name="mine",
        tags=["a: b", "yes", "1.0", "null", "ünïcödé", "- x", "'"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type="gsm8k",
                dataset_name="GSM8K",
                metric_type="acc",
                metric_value=0.5,
            )
        ],
    )
    text = f"---\n{data.to_yaml()}\n---\nbody"
    card, findings = parse(text)
    assert findings == []
    assert card.metadata == client_reads(text) | {"model-index": card.metadata["model-index"]}


# Text, then line, field and words of the one finding.
WRONG: list[tuple[str, int, str, str]] = [
    ("# no metadata", 1, "", "license: …"),
    ("---\nlicense: apache-2.0\n# text", 2, "", "no end"),
    ("---\n---\n", 2, "", "empty"),
    ("---\n\n---\n", 2, "", "empty"),
    ("---\n- a\n---\n", 2, "", "`name: value`"),
    ("---\ntags: [a]\n---\n", 2, "license", "no licence is declared"),
    ("\ufeff" + SOUND, 1, "", "byte order mark"),
    (with_lines("a: 1", "b: 2", "a: 3"), 5, "a", "twice"),
    (with_lines("a:", "\t- b"), 4, "", "spaces, not"),
    (with_lines("a: &x [1]", "b: *x"), 4, "b", "alias"),
    (with_lines("a: !!python/object/apply:os.system ['id']"), 3, "a", "tag"),
    (with_lines("<<: {a: 1}"), 3, "", "plain text"),
    (with_lines("? [a, b]", ": c"), 3, "", "plain text"),
    (with_lines("a: [1, 2"), 4, "", "no YAML"),
    (with_lines("a: " + "[" * 50 + "]" * 50), 3, "a", "nests"),
    (with_lines("a: " + "[" + "1," * 30_000 + "]"), 3, "a", "over 20000 values"),
    (with_lines("a: " + "x" * 300_000), 2, "", "over 262144"),
    (with_lines("language: no"), 3, "language", "'no'"),
    (with_lines("language: english"), 3, "language", "ISO 639"),
    (with_lines("language: 5"), 3, "language", "a text or a list of texts, not the number 5"),
    (with_lines("tags: {a: b}"), 3, "tags", "not a mapping"),
    (with_lines("base_model: ../../etc/passwd"), 3, "base_model", "namespace/name"),
    (with_lines("base_model: https://example.org/a"), 3, "base_model", "namespace/name"),
    (with_lines("base_model: a/b", "base_model_relation: child"), 4, "base_model_relation", "none"),
    (with_lines("base_model_relation: merge"), 3, "base_model_relation", "add base_model"),
    (with_lines("pipeline_tag: magic"), 3, "pipeline_tag", "no task"),
    (with_lines("library_name: [a, b]"), 3, "library_name", "a text, not a list"),
    (with_lines("library_name: true"), 3, "library_name", "quotes"),
    (with_lines("model-index: x"), 3, "model-index", "name"),
    ("---\nlicense: other\n---\n", 2, "license", "license_name"),
    ("---\nlicense: wtf-1.0\n---\n", 2, "license", "SPDX"),
]


@pytest.mark.parametrize("case", WRONG, ids=[f"{w[2]}-{w[3][:20]}" for w in WRONG])
def test_what_is_wrong_is_said_with_its_line_and_the_way_out(
    case: tuple[str, int, str, str],
) -> None:
    text, line, field, words = case
    finding = validate(text)[0]
    assert (finding.line, finding.field) == (line, field)
    assert words in finding.message


def test_a_billion_laughs_are_not_expanded() -> None:
    lines = ['a0: &a0 ["ha", "ha"]']
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    finding = only(with_lines(*lines))
    assert (finding.level, finding.line) == ("error", 4)
    assert "alias" in finding.message


def test_a_card_that_is_no_utf8_says_where() -> None:
    _, (finding,) = parse(b"---\nlicense: mit\nx: \xff\n---\n")
    assert (finding.level, finding.line) == ("error", 3)
    assert "UTF-8" in finding.message


def test_a_result_without_its_parts_names_them() -> None:
    lines = ["model-index:", "- name: m", "  results:", "  - task: {type: t}", "    metrics: []"]
    messages = " ".join(finding.message for finding in validate(with_lines(*lines)))
    assert "dataset.type" in messages
    assert "metrics" in messages
    assert "task.type" not in messages


@settings(max_examples=400, deadline=None)
@given(
    st.text(
        alphabet=st.sampled_from(list("-: []{}&*!|>'\"#%@`,?\n\t ab0\r\x00\ufeff")), max_size=120
    )
)
def test_no_metadata_crash_it(noise: str) -> None:
    parse(f"---\n{noise}\n---\n")
    parse(noise)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120))
def test_no_bytes_crash_it(noise: bytes) -> None:
    parse(noise)
    parse(b"---\n" + noise + b"\n---\n")
