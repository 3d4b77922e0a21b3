"""Licence texts are recognised word for word, and nothing that only looks similar is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core import licences
from qwenstack.core.licences import Category, ObligationKind

APACHE = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
ALL = licences.licences()


def test_apache_is_recognised_in_any_line_breaks_case_and_copyright_line() -> None:
    variants = [
        APACHE,
        APACHE.replace("\n", "\r\n"),
        APACHE.replace("\n\n", "\n"),
        APACHE.upper(),
        APACHE.replace(
            "Copyright [yyyy] [name of copyright owner]", "Copyright 2024 Alibaba Cloud"
        ),
        APACHE.replace("Copyright [yyyy] [name of copyright owner]", ""),
        APACHE[: APACHE.index("APPENDIX")],
        "\ufeff" + APACHE,
    ]
    found = [licences.recognise(text) for text in variants]
    assert [each and each.id for each in found] == ["Apache-2.0"] * len(variants)


def test_one_changed_word_is_not_the_licence_and_its_clause_is_named() -> None:
    changed = APACHE.replace("solely responsible", "not responsible")
    assert licences.recognise(changed) is None
    close = licences.closest(changed)
    assert close is not None
    assert close.licence.id == "Apache-2.0"
    assert close.differs_in == ("7",)
    assert "differs in 7" in close.describe()


def test_an_added_restriction_is_not_the_licence() -> None:
    text = APACHE + "\nCommons Clause: the licence does not grant the right to sell the software."
    assert licences.recognise(text) is None
    close = licences.closest(text)
    assert close is not None
    assert close.added > 0
    assert "text of its own" in close.describe()


@given(st.text(st.characters(), max_size=400))
def test_any_other_text_is_no_licence_and_resembles_none(text: str) -> None:
    assert licences.recognise(text) is None
    assert licences.closest(text) is None


def test_lone_surrogates_are_no_crash() -> None:
    text = APACHE.replace("perpetual", "\ud800 perpetual")
    assert licences.recognise(text) is None
    assert licences.closest(text) is not None


def test_a_text_beyond_the_limit_is_not_looked_at() -> None:
    text = "a " * licences.TEXT_CHARACTERS_MAX
    assert licences.recognise(text) is None
    assert licences.closest(text) is None


@pytest.mark.parametrize(
    ("license_", "name", "expected"),
    [
        ("apache-2.0", None, "Apache-2.0"),
        ("Apache-2.0", "", "Apache-2.0"),
        ("other", "tongyi-qianwen", "LicenseRef-scancode-tongyi-qianwen-2023"),
        ("other", "tongyi-qianwen-research", "LicenseRef-tongyi-qianwen-research-2023"),
        ("other", "qwen", "LicenseRef-scancode-qwen-2024"),
        ("other", "Qwen-Research", "LicenseRef-scancode-qwen-research-2024"),
        ("other", "qwen3.8-max", "LicenseRef-qwen3.8-max"),
        ("other", "qwen-community-1.0", "LicenseRef-qwen-community-1.0"),
        ("mit", None, "MIT"),
        ("other", None, None),
        (None, None, None),
        ("other", "my-own-terms", None),
        ("apache-2.0", "qwen", None),
        ("apache-2.0", "apache-2.0", "Apache-2.0"),
    ],
)
def test_what_a_card_declares(license_: str | None, name: str | None, expected: str | None) -> None:
    found = licences.declared(license_, name)
    assert (found and found.id) == expected


@pytest.mark.parametrize(
    ("sha256", "expected"),
    [
        (
            "7c7b8e244f6aa1ac8c32b74f56d42c41a0364dd2dabed8d9c6030a862e805b54",
            "LicenseRef-scancode-tongyi-qianwen-2023",
        ),
        (
            "A25EE06D1FA41E99EFAC462BDD3F525862CB567BD8E7BCABBFD90132077F22D2",
            "LicenseRef-scancode-tongyi-qianwen-2023",
        ),
        (
            "41f3a23ef5ca5bf9dec082e2f0da6a9c74b69e24d15b7baa8a8e9dd2edf7cf63",
            "LicenseRef-tongyi-qianwen-research-2023",
        ),
        (
            "ef52482bb785733093dc9a2e8edd8e764c77d12d8e9d8f10a80c9b547d32d0f9",
            "LicenseRef-scancode-qwen-research-2024",
        ),
        (
            "c04f7c8d5721b4081eb4e95ebf19224ffd459e5d185a13ca2d7dc4405b34ed95",
            "LicenseRef-scancode-qwen-2024",
        ),
        ("0" * 64, None),
        ("7c7b8e24", None),
    ],
)
def test_a_known_file_is_recognised_by_its_digest(sha256: str, expected: str | None) -> None:
    found = licences.by_digest(sha256)
    assert (found and found.id) == expected


def test_a_non_commercial_licence_is_never_taken_for_a_commercial_one() -> None:
    research = licences.declared("other", "qwen-research")
    conditional = licences.declared("other", "qwen")
    assert research is not None
    assert conditional is not None
    assert research.category is Category.NON_COMMERCIAL
    assert conditional.category is Category.CONDITIONAL
    assert not set(research.words) & set(conditional.words)


def test_thresholds_stand_where_the_texts_put_them() -> None:
    def clauses(name: str, kind: ObligationKind) -> list[tuple[str, int | None, int | None]]:
        found = licences.declared("other", name)
        assert found is not None
        return [
            (each.clause, each.monthly_users_over, each.revenue_usd_over)
            for each in found.obligations
            if each.kind is kind
        ]

    million = 1_000_000
    assert clauses("qwen", ObligationKind.USER_THRESHOLD) == [("4", 100 * million, None)]
    assert clauses("tongyi-qianwen", ObligationKind.USER_THRESHOLD) == [("4", 100 * million, None)]
    assert clauses("tongyi-qianwen", ObligationKind.NO_COMPETE) == [("5.b", None, None)]
    assert clauses("qwen", ObligationKind.NO_COMPETE) == []
    assert clauses("qwen", ObligationKind.NAMING) == [("5.b", None, None)]
    assert clauses("qwen3.8-max", ObligationKind.SERVICE_LICENCE) == [("2", None, 50 * million)]
    assert clauses("qwen-community-1.0", ObligationKind.SERVICE_LICENCE) == [("2", None, None)]
    assert clauses("qwen3.8-max", ObligationKind.NAMING) == [("1", 100 * million, 20 * million)]


@pytest.mark.parametrize("licence", ALL, ids=[each.id for each in ALL])
def test_every_licence_says_where_it_was_read_and_what_it_asks(licence: licences.Licence) -> None:
    assert licence.source.strip()
    assert licence.status in ("verified", "reported")
    assert licence.spdx != licence.id.startswith("LicenseRef-")
    assert licence.category is not Category.UNKNOWN
    assert licence.obligations, "a licence without an obligation has not been read"
    for digest in licence.digests:
        assert 8 <= len(digest.sha256) <= 64
        assert set(digest.sha256) <= set("0123456789abcdef")
    for words in licence.words:
        assert len(words) == len(hashlib.sha256().hexdigest())
    assert licences.by_id(licence.id.upper()) is licence


def test_no_name_or_text_stands_for_two_licences() -> None:
    for values in (
        [name.casefold() for each in ALL for name in each.hub_names],
        [words for each in ALL for words in each.words],
        [digest.sha256 for each in ALL for digest in each.digests],
    ):
        assert len(values) == len(set(values))
