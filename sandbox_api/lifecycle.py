"""The life of a sandbox. No I/O.

    creating ──started──▶ running ◀──resumed──┐
       │                    │  └───paused──▶ paused
       │ failed             │                   │
       ▼                    ├──── ending ───────┘
     failed                 ▼
       ▲               terminating ──ended──▶ terminated
       └── lost ── running, paused, terminating: the host has nothing left of it

`terminated` and `failed` are final: nothing leads out of them.
"""

from enum import StrEnum
from typing import Final, Literal


class State(StrEnum):
    """Where a sandbox stands."""

    CREATING = "creating"
    RUNNING = "running"
    PAUSED = "paused"
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    FAILED = "failed"


class Event(StrEnum):
    """What happens to it."""

    STARTED = "started"
    FAILED = "failed"
    PAUSED = "paused"
    RESUMED = "resumed"
    ENDING = "ending"
    ENDED = "ended"


Reason = Literal["requested", "timeout", "idle", "oom", "exited", "failed", "lost"]

FINAL: Final = frozenset({State.TERMINATED, State.FAILED})
USABLE: Final = frozenset({State.RUNNING})

_TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.CREATING, Event.STARTED): State.RUNNING,
    (State.CREATING, Event.FAILED): State.FAILED,
    (State.CREATING, Event.ENDING): State.TERMINATING,
    (State.RUNNING, Event.PAUSED): State.PAUSED,
    (State.RUNNING, Event.ENDING): State.TERMINATING,
    (State.RUNNING, Event.FAILED): State.FAILED,
    (State.PAUSED, Event.RESUMED): State.RUNNING,
    (State.PAUSED, Event.ENDING): State.TERMINATING,
    (State.PAUSED, Event.FAILED): State.FAILED,
    (State.TERMINATING, Event.ENDED): State.TERMINATED,
    (State.TERMINATING, Event.FAILED): State.FAILED,
}


class IllegalTransition(ValueError):
    """An event that cannot happen in this state."""


def after(state: State, event: Event) -> State:
    """The state that follows; IllegalTransition where the drawing has no arrow."""
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event} while {state}") from None
