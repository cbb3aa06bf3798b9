import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandbox_api.lifecycle import FINAL, Event, IllegalTransition, State, after


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state = State.CREATING
        self.ran = self.ended = False

    @rule(event=st.sampled_from(Event))
    def happens(self, event: Event) -> None:
        before = self.state
        try:
            self.state = after(self.state, event)
        except IllegalTransition:
            assert self.state == before
            return
        assert before not in FINAL, "nothing leads out of an end"
        self.ran = self.ran or self.state == State.RUNNING

    @invariant()
    def paused_only_after_running(self) -> None:
        assert self.state != State.PAUSED or self.ran


TestLife = Life.TestCase


def test_every_state_can_be_reached_and_every_life_can_end() -> None:
    reached = {State.CREATING}
    while True:
        further = set()
        for state in reached:
            for event in Event:
                try:
                    further.add(after(state, event))
                except IllegalTransition:
                    continue
        if further <= reached:
            break
        reached |= further
    assert reached == set(State)
    for state in set(State) - FINAL:
        assert after(state, Event.FAILED) == State.FAILED


def test_words_of_an_illegal_transition() -> None:
    with pytest.raises(IllegalTransition, match="paused while terminated"):
        after(State.TERMINATED, Event.PAUSED)
