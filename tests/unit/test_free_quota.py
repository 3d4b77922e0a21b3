"""Free quota is drawn in a fixed order, never below zero, never after expiry, never for batch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.studio.free_quota import FreeDraw, FreeGrant, draw, free_tokens

AT = datetime(2026, 11, 24, tzinfo=UTC)


def grant(name: str, tokens: int, days: float, *, used: int = 0, model: str = "m") -> FreeGrant:
    return FreeGrant(
        id=name,
        account_id="a",
        model=model,
        tokens=tokens,
        used=used,
        starts_at=AT - timedelta(days=90),
        expires_at=AT + timedelta(days=days),
    )


grants = st.lists(
    st.builds(
        lambda name, tokens, days, used, model: grant(
            name, tokens, days, used=min(used, tokens), model=model
        ),
        st.sampled_from("abcdef"),
        st.integers(0, 1000),
        st.integers(-80, 80),
        st.integers(0, 1000),
        st.sampled_from("mn"),
    ),
    max_size=6,
    unique_by=lambda each: each.id,
)


@given(grants, st.integers(0, 3000))
def test_a_draw_takes_exactly_what_was_asked_or_nothing(held: list[FreeGrant], ask: int) -> None:
    left = free_tokens(held, "a", "m", AT)
    if ask > left:
        with pytest.raises(ValueError, match=f"has {left} free tokens of m left, not {ask}"):
            draw(held, "a", "m", AT, ask)
        return
    draws, after = draw(held, "a", "m", AT, ask)
    assert sum(each.tokens for each in draws) == ask
    assert free_tokens(after, "a", "m", AT) == left - ask
    for old, new in zip(held, after, strict=True):
        taken = sum(each.tokens for each in draws if each.grant_id == old.id)
        assert new.used - old.used == taken >= 0
        assert taken == 0 or old.usable("a", "m", AT)


def test_the_grant_that_expires_first_goes_first_then_by_id() -> None:
    held = [grant("z", 10, 5), grant("b", 10, 2), grant("a", 10, 2), grant("gone", 10, 0)]
    draws, after = draw(held, "a", "m", AT, 25)
    assert draws == (FreeDraw("a", 10), FreeDraw("b", 10), FreeDraw("z", 5))
    assert [each.used for each in after] == [5, 10, 10, 0]


def test_expiry_is_excluded_and_start_is_included() -> None:
    one = grant("g", 10, 1)
    assert free_tokens([one], "a", "m", one.starts_at) == 10
    assert free_tokens([one], "a", "m", one.expires_at - timedelta(microseconds=1)) == 10
    assert free_tokens([one], "a", "m", one.expires_at) == 0
    assert free_tokens([one], "a", "m", one.starts_at - timedelta(microseconds=1)) == 0


def test_batch_other_accounts_and_other_models_have_none() -> None:
    one = grant("g", 10, 1)
    assert free_tokens([one], "a", "m", AT, batch=True) == 0
    assert free_tokens([one], "b", "m", AT) == 0
    assert free_tokens([one], "a", "n", AT) == 0


def test_a_grant_used_beyond_its_size_can_not_exist() -> None:
    with pytest.raises(ValueError, match="11 used of 10"):
        grant("g", 10, 1, used=11)
    with pytest.raises(ValueError, match="not after"):
        grant("g", 10, -90)
    with pytest.raises(ValueError, match="cannot draw -1"):
        draw([], "a", "m", AT, -1)
