"""A policy decides by its rules, gives a reason for each, and a wrong file is refused in words."""

from __future__ import annotations

import contextlib
import json
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.catalog.policy import (
    Decision,
    Deployed,
    Outcome,
    Policy,
    PolicyError,
    Rule,
    evaluate,
    load_policy,
    parse_policy,
    too_long,
)
from qwenstack.catalog.which import which

TODAY = date(2026, 11, 24)

TEAM = """
version = 1
[layers]
allow = ["weights", "studio"]
unknown = "deny"
[licences]
allow = ["LicenseRef-scancode-qwen-2024"]
deny = ["LicenseRef-scancode-qwen-research-2024"]
categories = ["permissive"]
[api]
operators = ["Alibaba Cloud"]
[regions]
allow = ["ap-southeast-1", "eu-central-1"]
"""


def decide(text: str, reference: str, **deployed: str) -> Decision:
    found = which(reference, files=False)
    return evaluate(parse_policy(text), found, TODAY, Deployed(**deployed))


def outcome(text: str, reference: str, **deployed: str) -> str:
    return decide(text, reference, **deployed).decision.value


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("Qwen/Qwen3-8B", "allow"),
        ("Qwen/Qwen2.5-72B-Instruct", "allow"),
        ("Qwen/Qwen2.5-3B-Instruct", "deny"),
        ("Qwen/Qwen3.8-2.4T-A95B", "deny"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deny"),
        ("Qwen/Qwen3.8-35B-A3B", "deny"),
        ("hello", "deny"),
        ("qwen-plus", "warn"),
        ("qwen3-8b", "deny"),
        ("openrouter/qwen/qwen3-8b", "deny"),
        ("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "allow"),
        ("https://dashscope.aliyuncs.com/compatible-mode/v1", "deny"),
    ],
)
def test_team_policy_decides(reference: str, expected: str) -> None:
    decision = decide(TEAM, reference)
    assert decision.decision.value == expected, decision.reasons


def test_every_decision_has_its_reason_first() -> None:
    reasons = decide(TEAM, "Qwen/Qwen2.5-3B-Instruct").reasons
    assert reasons[0].outcome is Outcome.DENY
    assert reasons[0].rule is Rule.LICENCE
    assert "LicenseRef-scancode-qwen-research-2024 is denied" in reasons[0].text


def test_unknown_is_never_taken_for_allowed() -> None:
    assert outcome("version = 1", "acme/Qwen3-8B") == "warn"
    assert outcome("version = 1", "hello") == "warn"
    assert outcome('version = 1\n[licences]\nunknown = "deny"', "acme/Qwen3-8B") == "deny"


def test_conflicting_sources_are_warned_of() -> None:
    assert outcome("version = 1", "Qwen/Qwen2.5-VL-3B-Instruct") == "warn"


def test_snippet_is_decided_by_its_strictest_model() -> None:
    text = 'a = "Qwen/Qwen3-8B"\nb = "Qwen/Qwen2.5-3B-Instruct"'
    decision = decide(TEAM, text)
    assert decision.decision is Outcome.DENY
    assert decision.reasons[0].text.startswith("Qwen/Qwen2.5-3B-Instruct:")


def test_certificate_has_a_least_level() -> None:
    rule = 'version = 1\n[certificate]\nminimum = "standard"'
    assert outcome(rule, "Qwen/Qwen3-8B") == "deny"
    assert outcome(rule, "Qwen/Qwen3-8B", certificate="smoke") == "deny"
    assert outcome(rule, "Qwen/Qwen3-8B", certificate="standard") == "allow"
    assert outcome(rule, "Qwen/Qwen3-8B", certificate="full") == "allow"
    assert outcome(rule, "Qwen/Qwen3-8B", certificate="home-made") == "deny"


def test_region_of_a_deployment_counts() -> None:
    rule = 'version = 1\n[regions]\nallow = ["eu-central-1"]'
    assert outcome(rule, "Qwen/Qwen3-8B", region="eu-central-1") == "allow"
    assert outcome(rule, "Qwen/Qwen3-8B", region="us-east-1") == "deny"
    assert outcome(rule, "Qwen/Qwen3-8B") == "allow"


def test_age_is_counted_in_days_from_the_release() -> None:
    assert outcome("version = 1\n[age]\nmaximum_days = 365", "Qwen/Qwen2-7B") == "warn"
    strict = 'version = 1\n[age]\nmaximum_days = 365\noutcome = "deny"'
    assert outcome(strict, "Qwen/Qwen2-7B") == "deny"
    assert outcome(strict, "Qwen/Qwen3.8-27B") == "allow"


def test_evidence_has_a_least_status() -> None:
    rule = 'version = 1\n[evidence]\nminimum = "verified"\noutcome = "deny"'
    assert outcome(rule, "Qwen/Qwen3-8B") == "allow"
    assert outcome(rule, "Qwen/Qwen3.8-27B") == "deny"


EXCEPTION = (
    TEAM
    + """
[[exception]]
reference = "Qwen/Qwen2.5-3B*"
rules = ["licence"]
owner = "legal@acme.example"
reason = "research project Alpha"
expires = {expires}
"""
)


def test_exception_lifts_its_rule_until_it_ends() -> None:
    lifted = decide(EXCEPTION.format(expires="2026-12-31"), "Qwen/Qwen2.5-3B-Instruct")
    assert lifted.decision is Outcome.ALLOW
    assert any("legal@acme.example" in each.text for each in lifted.reasons)
    ended = decide(EXCEPTION.format(expires="2026-11-23"), "Qwen/Qwen2.5-3B-Instruct")
    assert ended.decision is Outcome.DENY
    assert "ended on 2026-11-23" in ended.reasons[0].text
    assert outcome(EXCEPTION.format(expires="2026-12-31"), "Qwen/Qwen2.5-Coder-3B") == "deny"


def test_exceptions_that_need_a_review_are_listed() -> None:
    due = too_long(parse_policy(EXCEPTION.format(expires="2031-01-01")), TODAY)
    assert len(due) == 1
    assert "runs until 2031-01-01" in due[0]
    assert not too_long(parse_policy(EXCEPTION.format(expires="2026-12-31")), TODAY)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["version: missing", "version = 1"]),
        ("version = 2", ["version: 2 is not known"]),
        ("version = 'one'", ["version", "int"]),
        ("version = 1\n[licenses]\nallow = []", ["licenses: no such field", "licences?"]),
        ("version = 1\n[layers]\nalow = []", ["layers.alow", "line 3", "did you mean allow"]),
        ('version = 1\n[layers]\nallow = ["weight"]', ["'weight'", "line 3", "weights?"]),
        ('version = 1\n[layers]\nunknown = "no"', ["'no'", "allow, warn, deny"]),
        ('version = 1\n[licences]\nallow = "MIT"', ["licences.allow"]),
        ('version = 1\n[licences]\nallow = ["not a licence!"]', ["no licence id"]),
        ('version = 1\n[certificate]\nminimum = "gold"', ["certificate.minimum", "smoke"]),
        ("version = 1\n[age]\nmaximum_days = 0", ["age.maximum_days"]),
        ("version = 1\n[[exception]]\nreference = 'x'", ["exception[0]", "missing"]),
        (
            "version = 1\n[[exception]]\nreference='*'\nrules=['licence']\nowner='a'\nreason='b'\n"
            "expires=2027-01-01",
            ["names everything"],
        ),
        (
            "version = 1\n[[exception]]\nreference='x'\nrules=['licence']\nowner=' '\nreason='b'\n"
            "expires=2027-01-01",
            ["owner and reason"],
        ),
        ("version = 1\nx = [", ["not valid TOML"]),
    ],
)
def test_wrong_file_is_refused_with_field_value_and_way_out(text: str, words: list[str]) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "policy.toml")
    message = str(caught.value)
    assert message.startswith("policy.toml: ")
    for word in words:
        assert word in message


def test_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="No such file"):
        load_policy(tmp_path / "none.toml")
    large = tmp_path / "large.toml"
    with large.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(PolicyError, match="more than"):
        load_policy(large)


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    with contextlib.suppress(PolicyError):
        assert isinstance(parse_policy("version = 1\n" + text), Policy)


def test_a_denied_licence_denies_also_where_the_model_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: Qwen/Qwen2.5-3B\n---\n")
    config = {"model_type": "qwen2", "hidden_size": 2048, "num_hidden_layers": 36}
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = which(tmp_path)
    assert (answer.layer, answer.governing_document.id) == ("unknown", "MIT")
    denied = parse_policy('version = 1\n[licences]\ndeny = ["MIT"]\n')
    assert evaluate(denied, answer, TODAY).decision is Outcome.DENY
