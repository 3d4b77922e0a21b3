"""Results that a release claims: read where plain, counted where not, and compared honestly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.evidence import Evidence
from qwenstack.dossier.compose import compose
from qwenstack.dossier.gather.claimed import from_card_results, from_results_file
from qwenstack.dossier.results import UNREAD, beside, result

CARD = """---
license: apache-2.0
model-index:
- name: tuned
  results:
  - task: {type: text-generation}
    dataset: {name: GSM8K, type: openai/gsm8k, split: test, args: {num_few_shot: 5}}
    metrics:
    - {type: acc, value: 71.5}
    - {type: acc, value: "about seventy"}
  - task: {type: text-generation}
    dataset: {name: House rules, type: acme/rules}
    metrics: [{type: acc, value: 99.0}]
---
# Tuned

## Evaluation

| Benchmark | Qwen3-8B | **tuned** | Other-7B |
|---|---|---|---|
| MMLU (5-shot) | 74.2 | **76.1** | 60.0 |
| MMLU-Pro | 50.1 | 52.4% | - |
| HumanEval | 60.0 | 61.0 / 59.0 | 40 |
| House rules | 1 | 2 | 3 |
| BBH (ours) | 1 | 2 | 3 |
| IFEval | 80 | - | 3 |

## Shape

| Parameter | Value |
|---|---|
| Layers | 36 |
| Heads (Q) | 32 |

## Somebody else

| Task | Other-7B | Third-7B |
|---|---|---|
| MMLU | 60.0 | 61.0 |

<table><tr><td>MMLU</td><td>99</td></tr></table>
"""


def claims(text: str, subject: str = "acme/tuned") -> dict[str, Evidence]:
    found = from_card_results(subject, text, source="README.md", observed_at="2026-11-24")
    return {each.claim: each for each in found}


def test_every_claim_has_its_place_and_what_is_not_plain_is_counted() -> None:
    found = claims(CARD)
    unread = found.pop(UNREAD)
    assert {claim: each.value for claim, each in found.items()} == {
        "evaluation.claimed.gsm8k.acc.5-shot": 71.5,
        "evaluation.claimed.mmlu.5-shot": 76.1,
        "evaluation.claimed.mmlu-pro": 52.4,
    }
    mmlu = found["evaluation.claimed.mmlu.5-shot"]
    assert mmlu.source == "README.md, table 1 under “Evaluation”, row 1"
    assert mmlu.method == "declared" and mmlu.note == "column “tuned”"
    gsm8k = found["evaluation.claimed.gsm8k.acc.5-shot"]
    assert gsm8k.source == "README.md, model-index[0].results[0].metrics[0]"
    assert unread.value == 7
    assert unread.note == (
        "1: a table in HTML; 1: in a table where this model's column is not plain; "
        "2: no plain number; 3: of a benchmark that is not on record"
    )


@pytest.mark.parametrize(
    ("table", "claimed"),
    [
        ("| Tasks | n-shot | Metric | Value |\n|-|-|-|-|\n| gsm8k | 5 | exact_match | 0.7 |",
         {"gsm8k.exact_match.5-shot": 0.7}),
        ("| Model | MMLU | GSM8K |\n|-|-|-|\n| Other | 1 | 2 |\n| Tuned | 70 | 80 (4-shot) |",
         {"mmlu": 70.0, "gsm8k.4-shot": 80.0}),
        ("| Benchmark | Accuracy |\n|-|-|\n| ARC-C (25-shot, CoT) | 61.2 |",
         {"arc-challenge.25-shot.cot.acc": 61.2}),
        # Two columns of this model, two rows of it, two scores: none of them is plain.
        ("| Benchmark | tuned | Tuned |\n|-|-|-|\n| MMLU | 1 | 2 |", {}),
        ("| Model | MMLU | GSM8K |\n|-|-|-|\n| tuned | 1 | 2 |\n| Tuned | 3 | 4 |", {}),
        ("| Benchmark | Score | Result |\n|-|-|-|\n| MMLU | 1 | 2 |", {}),
        ("| Benchmark | Score |\n|-|-|\n| MMLU | 1,234 |\n| GSM8K | 70±2 |", {}),
        ("| n-shot | Tasks | Value |\n|-|-|-|\n| few | mmlu | 70 |", {}),
        ("```\n| Benchmark | Score |\n|-|-|\n| MMLU | 70 |\n```", {}),
    ],
)  # fmt: skip
def test_a_table_is_read_where_it_is_plain_which_number_is_this_models(
    table: str, claimed: dict[str, float]
) -> None:
    found = claims(f"# Tuned\n\n{table}\n")
    left = found.pop(UNREAD, None)
    assert {c.removeprefix("evaluation.claimed."): e.value for c, e in found.items()} == claimed
    assert claimed or left is not None or "```" in table


def test_the_hubs_result_files_are_read() -> None:
    text = """
- dataset: {id: Idavidrein/gpqa, task_id: gpqa_diamond}
  value: 63.3
  date: "2026-02-03"
  source: {url: https://example.org/x, name: Model Card}
  notes: no-tools, 0-shot
- dataset: {id: acme/secret, task_id: default}
  value: 3
- {}
"""
    found = from_results_file(
        "m", ".eval_results/gpqa.yaml", text, source="m", observed_at="2026-11-24"
    )
    first, left = found
    assert first.claim == "evaluation.claimed.gpqa-diamond.no-tools.0-shot"
    assert (first.value, first.source) == (63.3, ".eval_results/gpqa.yaml of m, entry 1")
    assert (left.claim, left.value) == (UNREAD, 2)


@pytest.mark.parametrize("text", ["", "a: 1", "- [", "- !!python/object:x {}", "&a [*a]", "- 1"])
def test_a_result_file_of_another_form_is_counted_and_nothing_more(text: str) -> None:
    found = from_results_file("m", ".eval_results/a.yaml", text, source="m", observed_at="2026")
    assert [each.claim for each in found] == [UNREAD]


@given(st.text(alphabet="|-:# \n()0123456789.%MLUGSK8tuned\\`<>*", max_size=400))
def test_any_text_is_read_without_a_fault(text: str) -> None:
    for each in from_card_results("tuned", text, source="c", observed_at="2026"):
        assert each.claim == UNREAD or each.claim.startswith("evaluation.claimed.")


def said(claim: str, value: float) -> Evidence:
    return Evidence(
        subject="m", claim=claim, value=value, source="s", method="read", observed_at="2026-11-24"
    )


@pytest.mark.parametrize(
    ("claimed", "measured", "stands"),
    [
        (("mmlu.5-shot", 76.1), ("mmlu.acc.5-shot", 0.751), "measured 1.0 points lower"),
        (("mmlu.5-shot", 75.1), ("mmlu.acc.5-shot", 0.751), "measured as claimed"),
        (("gsm8k.acc.5-shot", 0.7), ("gsm8k.acc.5-shot", 0.8),
         "measured 10.0 points higher (0.7 read as a share)"),
        (("mmlu", 76.1), ("mmlu.acc.5-shot", 0.7),
         "not comparable: the claim does not say how many examples were shown"),
        (("mmlu.5-shot", 76.1), ("mmlu.acc", 0.7),
         "not comparable: the measurement does not say how many examples were shown"),
        (("mmlu.4-shot", 76.1), ("mmlu.acc.5-shot", 0.7),
         "not comparable: claimed 4-shot, measured 5-shot"),
        (("gsm8k.5-shot", 76.1), ("gsm8k_cot.exact_match.5-shot", 0.7),
         "not comparable: claimed plain, measured cot"),
        (("gsm8k.acc.5-shot", 76.1), ("gsm8k.exact_match.5-shot", 0.7),
         "not comparable: claimed acc, measured exact_match"),
        (("mmlu.5-shot", 76.1), ("mmlu_pro.exact_match.5-shot", 0.7),
         "not comparable: another benchmark"),
        (("mt-bench.0-shot", 8.1), ("mt-bench.0-shot", 0.7), "measured 7.4 lower"),
    ],
)  # fmt: skip
def test_results_are_compared_only_where_the_method_is_the_same_and_said(
    claimed: tuple[str, float], measured: tuple[str, float], stands: str
) -> None:
    says = result(said(f"evaluation.claimed.{claimed[0]}", claimed[1]))
    found = result(said(f"evaluation.measured.{measured[0]}", measured[1]))
    assert beside(says, found) == stands


def test_the_dossier_sets_them_side_by_side_and_says_what_was_left_out() -> None:
    measured = said("evaluation.measured.mmlu.acc.5-shot", 0.751)
    document = compose("acme/tuned", [*claims(CARD).values(), measured])
    rows = {row.label: row for row in document.section("benchmarks").rows}
    assert rows["MMLU"].cells == (
        "76.1 (5-shot)",
        "0.751 (acc, 5-shot)",
        "measured 1.0 points lower",
    )
    assert rows["MMLU-Pro"].cells == ("52.4", "not measured", "")
    assert (rows["MMLU"].standing, rows["MMLU-Pro"].standing) == ("shown", "gap")
    assert rows["Left out"].cells[0] == "7 values could not be read for certain"
