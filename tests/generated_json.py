"""Hypothesis strategies for request bodies: JSON that is made of a format's own words."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def scalars(words: list[str]) -> st.SearchStrategy[Any]:
    """Any JSON value that holds no other, among them `words` and numbers out of any range."""
    return (
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from(words)
        | st.text(max_size=5)
    )


def json_values(words: list[str], keys: list[str]) -> st.SearchStrategy[Any]:
    """Any small JSON value whose objects have keys among `keys`."""
    return st.recursive(
        scalars(words),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=5)
        ),
        max_leaves=15,
    )
