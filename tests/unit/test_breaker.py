"""The circuit breaker, on a clock of our own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.engines.breaker import Breaker, BreakerOptions, BreakerState


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def state_of(breaker: Breaker) -> BreakerState:
    return breaker.state


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(BreakerOptions(failures=2, rest_s=5.0), clock)
    breaker.failed()
    assert state_of(breaker) is BreakerState.CLOSED
    breaker.failed()
    return breaker, clock


def test_failures_in_a_row_open_it_and_a_rest_half_opens_it() -> None:
    breaker, clock = opened()
    assert state_of(breaker) is BreakerState.OPEN
    clock.now += 5.0
    assert state_of(breaker) is BreakerState.HALF_OPEN


def test_a_success_between_failures_keeps_it_closed() -> None:
    breaker = Breaker(BreakerOptions(failures=2))
    for _ in range(10):
        breaker.failed()
        breaker.succeeded()
    assert state_of(breaker) is BreakerState.CLOSED


def test_only_one_request_is_the_trial() -> None:
    breaker, clock = opened()
    clock.now += 5.0
    assert breaker.enter()
    assert state_of(breaker) is BreakerState.OPEN


def test_a_trial_that_fails_opens_it_again_for_a_whole_rest() -> None:
    breaker, clock = opened()
    clock.now += 5.0
    breaker.enter()
    breaker.failed()
    clock.now += 4.9
    assert state_of(breaker) is BreakerState.OPEN
    clock.now += 0.1
    assert state_of(breaker) is BreakerState.HALF_OPEN


def test_a_trial_that_answers_closes_it_and_one_more_failure_opens_it() -> None:
    breaker, clock = opened()
    clock.now += 5.0
    breaker.enter()
    breaker.answered()
    assert state_of(breaker) is BreakerState.CLOSED
    breaker.failed()
    assert state_of(breaker) is BreakerState.OPEN


def test_a_trial_whose_client_left_lets_another_one_run() -> None:
    breaker, clock = opened()
    clock.now += 5.0
    breaker.enter()
    breaker.forgotten()
    assert state_of(breaker) is BreakerState.HALF_OPEN


def test_a_health_check_ends_the_rest_but_does_not_close_it() -> None:
    breaker, _ = opened()
    breaker.well()
    assert state_of(breaker) is BreakerState.HALF_OPEN


@given(st.lists(st.sampled_from(["enter", "answered", "succeeded", "failed", "forgotten"])))
def test_after_a_rest_with_no_trial_running_a_request_gets_through(acts: list[str]) -> None:
    clock = Clock()
    breaker = Breaker(BreakerOptions(failures=2, rest_s=5.0), clock)
    for act in acts:
        getattr(breaker, act)()
    breaker.forgotten()
    clock.now += 5.0
    assert state_of(breaker) is not BreakerState.OPEN


@pytest.mark.parametrize("field", ["failures", "rest_s", "health_interval_s", "attempts_max"])
def test_an_option_without_a_positive_value_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        BreakerOptions(**{field: 0})
