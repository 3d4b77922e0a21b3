"""A raise lifts what it names, for as long as it says, and never takes anything away."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.studio.admission.limits import LIMIT_MAX, Limit
from qwenstack.studio.admission.raises import Raise, lifted_key, lifted_model, lifted_whole
from qwenstack.studio.admit import limit_scopes
from qwenstack.studio.tenancy import ApiKey, Caller, Plan, Workspace

UNTIL_US = 1_000
PLAN = Plan(
    id="p",
    per_model=Limit(requests_per_minute=60, tokens_per_minute=1000).with_bursts(),
    whole=Limit(requests_per_minute=100),
    per_key=Limit(requests_per_minute=50),
)

figures = st.none() | st.integers(1, LIMIT_MAX)
limits = st.builds(
    Limit,
    requests_per_minute=figures,
    tokens_per_minute=figures,
    requests_per_second=figures,
    tokens_per_second=figures,
    concurrency=figures,
)


def a_raise(**fields: object) -> Raise:
    defaults = {"id": "lim", "workspace_id": "ws", "created_us": 0, "until_us": UNTIL_US}
    return msgspec.convert({**defaults, **fields}, Raise)


def scopes(*raises: Raise, model: str = "m", at_us: int = 0) -> dict[str, Limit]:
    workspace = Workspace(
        id="ws", name="acme", plan="p", region=None, currency="USD", billing="prepaid"
    )
    key = ApiKey(id="k", workspace_id="ws", name="k", prefix="", digest="", scopes=("inference",))
    return dict(limit_scopes(Caller(workspace, key, PLAN, (), raises), model, at_us, batch=False))


def test_a_workspaces_raise_lifts_each_model_and_the_whole_with_their_bursts() -> None:
    raised = scopes(a_raise(requests_per_minute=600, tokens_per_minute=12_000))
    assert raised["model:m"] == Limit(
        requests_per_minute=600,
        tokens_per_minute=12_000,
        requests_per_second=10,
        tokens_per_second=200,
    )
    assert raised["all"] == Limit(requests_per_minute=600)
    assert raised["key:k"] == PLAN.per_key


def test_a_models_raise_lifts_that_model_alone() -> None:
    raise_ = a_raise(model="m", requests_per_minute=600)
    assert scopes(raise_)["model:m"].requests_per_minute == 600
    assert scopes(raise_)["all"] == PLAN.whole
    assert scopes(raise_, model="other") == scopes(model="other")


def test_a_keys_raise_lifts_the_keys_own_limit_alone() -> None:
    raised = scopes(a_raise(key_id="k", requests_per_minute=600))
    assert raised == {**scopes(), "key:k": Limit(requests_per_minute=600)}


def test_a_raise_ends_by_itself_at_its_instant() -> None:
    raise_ = a_raise(requests_per_minute=600)
    assert scopes(raise_, at_us=UNTIL_US - 1) != scopes()
    assert scopes(raise_, at_us=UNTIL_US) == scopes()


@given(limits, figures, figures, st.integers(0, 2 * UNTIL_US))
def test_no_raise_lowers_a_limit_or_makes_one(
    limit: Limit, requests: int | None, tokens: int | None, at_us: int
) -> None:
    if requests is None and tokens is None:
        return
    every = a_raise(requests_per_minute=requests, tokens_per_minute=tokens)
    one = a_raise(requests_per_minute=requests, tokens_per_minute=tokens, key_id="k")
    for lifted in (
        lifted_model(limit, "m", [every], at_us),
        lifted_whole(limit, [every], at_us),
        lifted_key(limit, "k", [one], at_us),
    ):
        for name in Limit.__struct_fields__:
            before, after = getattr(limit, name), getattr(lifted, name)
            assert (before is None) == (after is None)
            assert before is None or after >= before
        assert lifted.concurrency == limit.concurrency


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"requests_per_minute": 0},
        {"tokens_per_minute": LIMIT_MAX + 1},
        {"requests_per_minute": 9, "key_id": "k", "model": "m"},
    ],
)
def test_a_raise_of_nothing_or_of_too_much_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        a_raise(**fields)
