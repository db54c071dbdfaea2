"""The life of a job as data. Every change of a job's state is looked up here, by `transition`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from service.errors import IllegalTransition


class State(StrEnum):
    """Where a job stands. `stage` and `progress` refine `running`."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Change(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"  # a worker takes the job, or takes it over from a worker whose lease ran out
    RELEASE = "release"  # the worker gives the job back, to be run again
    EXPIRE = "expire"  # the lease ran out and nobody has taken over yet
    SUCCEED = "succeed"
    FAIL = "fail"
    EXHAUST = "exhaust"  # no attempts are left
    CANCEL = "cancel"


TERMINAL: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
ACTIVE: Final = frozenset({State.QUEUED, State.RUNNING})

TRANSITIONS: Final[Mapping[State, Mapping[Change, State]]] = MappingProxyType(
    {
        State.QUEUED: MappingProxyType(
            {
                Change.CLAIM: State.RUNNING,
                Change.CANCEL: State.CANCELLED,
            }
        ),
        State.RUNNING: MappingProxyType(
            {
                Change.CLAIM: State.RUNNING,
                Change.RELEASE: State.QUEUED,
                Change.EXPIRE: State.QUEUED,
                Change.SUCCEED: State.SUCCEEDED,
                Change.FAIL: State.FAILED,
                Change.EXHAUST: State.FAILED,
                Change.CANCEL: State.CANCELLED,
            }
        ),
        State.SUCCEEDED: MappingProxyType({}),
        State.FAILED: MappingProxyType({}),
        State.CANCELLED: MappingProxyType({}),
    }
)


def transition(state: State, change: Change) -> State:
    """The state that follows `state` when `change` happens.

    Raises:
        IllegalTransition: the machine has no such change; terminal states have none at all.
    """
    try:
        return TRANSITIONS[state][change]
    except KeyError:
        raise IllegalTransition(f"a {state} job cannot {change}") from None
