"""Edit distance against its textbook definition, and look-alike letters."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from qwenstack.catalog.which.spelling import distance, nearest, plain


def by_definition(one: str, other: str) -> int:
    """Optimal string alignment distance, as it is defined."""

    @cache
    def edits(i: int, j: int) -> int:
        if min(i, j) == 0:
            return max(i, j)
        least = min(
            edits(i - 1, j) + 1,
            edits(i, j - 1) + 1,
            edits(i - 1, j - 1) + (one[i - 1] != other[j - 1]),
        )
        if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
            least = min(least, edits(i - 2, j - 2) + 1)
        return least

    return edits(len(one), len(other))


@given(st.text("ab3-", max_size=9), st.text("ab3-", max_size=9))
def test_distance_is_the_definition_up_to_its_limit(one: str, other: str) -> None:
    assert distance(one, other, 2) == min(by_definition(one, other), 3)


def test_another_digit_is_another_model_and_comes_last() -> None:
    assert nearest("qwen3-8bb", ["qwen3-4b", "qwen3-8b"])[0] == "qwen3-8b"


def test_look_alike_letters_become_latin() -> None:
    assert plain("Qw\u0435n") == "Qwen"
    assert plain("\uff31wen") == "Qwen"
    assert plain("Qwen") == "Qwen"
