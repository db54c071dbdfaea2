"""The state machine of jobs as data."""

from __future__ import annotations

from itertools import product

import pytest

from service.errors import IllegalTransition
from service.jobs.states import ACTIVE, TERMINAL, TRANSITIONS, Change, State, transition

ALLOWED = {
    (State.QUEUED, Change.CLAIM): State.RUNNING,
    (State.QUEUED, Change.CANCEL): State.CANCELLED,
    (State.RUNNING, Change.CLAIM): State.RUNNING,
    (State.RUNNING, Change.RELEASE): State.QUEUED,
    (State.RUNNING, Change.EXPIRE): State.QUEUED,
    (State.RUNNING, Change.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Change.FAIL): State.FAILED,
    (State.RUNNING, Change.EXHAUST): State.FAILED,
    (State.RUNNING, Change.CANCEL): State.CANCELLED,
}


@pytest.mark.parametrize(("state", "change"), list(product(State, Change)))
def test_every_change_of_every_state(state: State, change: Change) -> None:
    if (state, change) in ALLOWED:
        assert transition(state, change) is ALLOWED[state, change]
    else:
        with pytest.raises(IllegalTransition, match=f"a {state} job cannot {change}"):
            transition(state, change)


def test_every_state_is_active_or_terminal() -> None:
    assert set(TRANSITIONS) == set(State) == ACTIVE | TERMINAL
    assert not ACTIVE & TERMINAL
    assert all(not TRANSITIONS[state] for state in TERMINAL)


def test_the_machine_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[State.FAILED][Change.CLAIM] = State.RUNNING  # type: ignore[index]
