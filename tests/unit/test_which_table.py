"""Every reference of the table resolves to the layer and the document that its source says.

The table is `tests/data/which_table.tsv`: reference (JSON text), kind, layer, governing document
(a licence id, `api-terms`, `unknown`) and the source of the expectation. `*` leaves a kind open.
`which_unlisted.tsv` holds references that the catalogue mostly does not list, with their base:
there "unknown" is the answer, and a confident one would be wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from qwenstack.catalog.model import Status
from qwenstack.catalog.which import Answer, GoverningKind, which
from qwenstack.core import licences

TABLE = Path(__file__).parent.parent / "data" / "which_table.tsv"
UNLISTED = TABLE.with_name("which_unlisted.tsv")
FIRST_KEYS = (
    "reference", "kind", "layer", "release", "operator", "governing_document", "obligations",
    "lookalikes", "base", "status",
)  # fmt: skip


class Row(NamedTuple):
    reference: str
    kind: str
    layer: str
    document: str
    source: str


def rows() -> list[Row]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()[1:]
    cells = [line.split("\t") for line in lines]
    return [Row(msgspec.json.decode(first, type=str), *rest) for first, *rest in cells]


def unlisted() -> list[tuple[Row, str]]:
    """The rows of the second table, each with its base (`-` where there is none)."""
    lines = UNLISTED.read_text(encoding="utf-8").splitlines()[1:]
    found = []
    for first, kind, layer, document, base, source in (line.split("\t") for line in lines):
        row = Row(msgspec.json.decode(first, type=str), kind, layer, document, source)
        found.append((row, base))
    return found


def document_of(answer: Answer) -> str:
    found = answer.governing_document
    return found.id if found.kind is GoverningKind.LICENCE else found.kind.value


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.reference[:60] or "(empty)")
def test_reference_resolves_as_its_source_says(row: Row) -> None:
    answer = which(row.reference, files=False)
    assert (answer.layer, document_of(answer)) == (row.layer, row.document), answer.why
    assert row.kind in ("*", answer.kind)


@pytest.mark.parametrize(("row", "base"), unlisted(), ids=lambda each: ascii(each)[:50])
def test_a_reference_that_no_table_holds_gets_no_confident_wrong_answer(
    row: Row, base: str
) -> None:
    answer = which(row.reference, files=False)
    assert (answer.layer, document_of(answer)) == (row.layer, row.document), answer.why
    assert (answer.base or "-") == base
    assert row.kind in ("*", answer.kind) and row.source
    if row.document == "unknown":
        assert not answer.obligations
        assert answer.status is not Status.VERIFIED or row.layer == "unknown"


@pytest.mark.parametrize(
    ("repo", "base"),
    [
        ("Qwen/QwQ-32B-Preview", "Qwen/Qwen2.5-32B-Instruct"),
        ("Qwen/Qwen2.5-Math-PRM-7B", "Qwen/Qwen2.5-Math-7B-Instruct"),
        ("Qwen/Qwen2.5-Math-RM-72B", "Qwen/Qwen2.5-Math-72B-Instruct"),
        ("Qwen/Qwen2-Math-RM-72B", "Qwen/Qwen2-Math-72B-Instruct"),
        ("Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-0.6B-Base"),
        ("Qwen/Qwen3Guard-Gen-8B", "Qwen/Qwen3-8B"),
    ],
)
def test_base_is_the_repo_that_the_card_names(repo: str, base: str) -> None:
    # The cards' `base_model`, in the makers' own commits to these repos.
    assert which(repo).base == base


def test_table_is_large_and_each_row_has_a_source() -> None:
    table = rows()
    assert len(table) >= 150
    assert all(row.source for row in table)
    assert len({row.reference for row in table}) == len(table)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.reference[:60] or "(empty)")
def test_answer_never_conflates_a_licence_with_api_terms(row: Row) -> None:
    answer = which(row.reference, files=False)
    document = answer.governing_document
    if answer.layer == "studio":
        assert document.kind is GoverningKind.API_TERMS
        assert licences.by_id(document.id) is None
    if document.kind is GoverningKind.LICENCE:
        assert licences.by_id(document.id) is not None, "an id that no licence has"
        assert document.source
        assert document.checked is not None
    for line in answer.lines:
        assert line.source


def test_json_has_the_published_keys_first() -> None:
    plain = msgspec.to_builtins(which("Qwen/Qwen3-8B"))
    assert tuple(plain)[: len(FIRST_KEYS)] == FIRST_KEYS
    assert tuple(plain["governing_document"])[:4] == ("kind", "id", "source", "checked")
    assert msgspec.json.decode(msgspec.json.encode(plain))["layer"] == "weights"


def test_conflicting_sources_are_said_and_not_decided_in_silence() -> None:
    answer = which("Qwen/Qwen2.5-VL-3B-Instruct")
    assert any("Apache-2.0" in each for each in answer.conflicts)


def test_research_size_names_its_obligation() -> None:
    kinds = {duty.kind for duty in which("Qwen/Qwen2.5-3B-Instruct").obligations}
    assert "field-of-use" in kinds
    assert "user-threshold" in {duty.kind for duty in which("Qwen/Qwen2.5-72B").obligations}
    assert "user-threshold" not in {duty.kind for duty in which("Qwen/Qwen3-8B").obligations}


def test_distillation_is_its_makers_with_a_qwen_base() -> None:
    answer = which("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B")
    assert answer.publisher == "DeepSeek"
    assert answer.base == "Qwen/Qwen2.5-Math-7B"


def test_name_of_another_publisher_proves_no_base() -> None:
    answer = which("acme/Qwen3-8B")
    assert (answer.layer, answer.base, answer.status) == ("community", "unknown", Status.UNKNOWN)


def test_one_name_on_three_layers_lists_the_others() -> None:
    answer = which("qwen3-8b")
    layers = {like.reference: like.layer for like in answer.lookalikes}
    assert answer.layer == "studio"
    assert layers.get("Qwen/Qwen3-8B") == "weights"
    assert layers.get("qwen3:8b") == "weights"


def test_setting_decides_what_a_bare_name_means() -> None:
    from qwenstack.catalog.which.reading import Setting

    assert which("qwen3", setting=Setting.OLLAMA).kind == "ollama-tag"
    assert which("qwen3-8b", setting=Setting.WEIGHTS).layer == "weights"
    assert which("qwen3-8b", setting=Setting.API).layer == "studio"


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("Qwen/Qwen2.5-7B-Instrct", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwenn/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("qwen-plsu", "qwen-plus"),
        ("qwen3:8bb", "qwen3:8b"),
        ("Qwen3_8B", "Qwen"),
        ("Qw\u0435n/Qwen3-8B", "Qwen/Qwen3-8B"),
    ],
)
def test_typing_error_gets_a_suggestion(typo: str, meant: str) -> None:
    answer = which(typo)
    near = (*answer.suggestions, answer.repo or "", *(like.reference for like in answer.lookalikes))
    assert any(each.startswith(meant) for each in near)


def test_foreign_letters_are_named() -> None:
    answer = which("Qw\u0435n/Qwen3-8B")
    assert "U+0435" in " ".join((answer.why, *answer.conflicts))
    assert answer.layer == "unknown"


def test_hosted_name_without_open_weights_says_so() -> None:
    answer = which("Qwen/Qwen2.5-Max")
    assert answer.release is None
    assert any(each.startswith("qwen-max") for each in answer.suggestions)


def test_tag_that_carries_the_wrong_text_reports_the_conflict() -> None:
    answer = which("qwen2.5:72b")
    assert document_of(answer) == "LicenseRef-scancode-qwen-2024"
    assert any("tag" in each for each in answer.conflicts)


def test_same_model_at_two_hosts_has_two_operators() -> None:
    def at(base: str) -> Answer:
        return which(f'base_url: {base}\nmodel: "qwen3-8b"')

    assert at("https://dashscope-intl.aliyuncs.com/compatible-mode/v1").operator == "Alibaba Cloud"
    assert at("https://openrouter.ai/api/v1").operator == "OpenRouter"
    assert at("https://dashscope-intl.aliyuncs.com/compatible-mode/v1").region == "ap-southeast-1"
