"""The table of a session's life: no state without a way out."""

import pytest

from relay.core.lifecycle import TRANSITIONS, Event, State, Transition
from relay.errors import Reason
from relay.remedies import REMEDIES

# Ends that the client or the operator asked for.
NOTHING_TO_DO = (Reason.FINISHED, Reason.DRAINED)
LIVING = [state for state in State if state is not State.CLOSED]


# A session without a request goes on: the server may speak first.
GOES_ON = (State.SNIFF, Event.DEADLINE)


@pytest.mark.parametrize("state", LIVING)
@pytest.mark.parametrize("event", [Event.DEADLINE, Event.PEER_GONE, Event.DRAIN, Event.REFUSED])
def test_every_state_but_closed_has_the_four_ways_to_end(state, event):
    assert TRANSITIONS[state][event].state is (
        State.CONNECT if (state, event) == GOES_ON else State.CLOSED
    )


@pytest.mark.parametrize("state", LIVING)
@pytest.mark.parametrize("event", [Event.DEADLINE, Event.PEER_GONE, Event.DRAIN])
def test_an_end_that_nobody_gives_a_reason_for_has_one(state, event):
    reason = TRANSITIONS[state][event].reason
    assert (reason is None) is ((state, event) == GOES_ON)
    if reason is None:
        return
    assert REMEDIES[reason]


def test_closed_is_the_end():
    assert State.CLOSED not in TRANSITIONS
    assert set(TRANSITIONS) == set(LIVING)


def test_every_transition_leads_to_a_state_that_exists():
    for events in TRANSITIONS.values():
        for event, step in events.items():
            assert isinstance(event, Event)
            assert isinstance(step, Transition)
            assert step.state in TRANSITIONS or step.state is State.CLOSED


def test_every_state_can_be_reached_from_the_first():
    reached, new = set(), {State.INTAKE}
    while new:
        reached |= new
        new = {
            step.state
            for state in new
            if state in TRANSITIONS
            for step in TRANSITIONS[state].values()
        } - reached
    assert reached == set(State)


def test_every_event_has_a_row_in_some_state():
    assert {event for events in TRANSITIONS.values() for event in events} == set(Event)


def test_only_a_session_that_has_a_backend_can_lose_it_and_go_on():
    going_on = {state for state, events in TRANSITIONS.items() if Event.BACKEND_FAILED in events}
    assert going_on == {State.CONNECT, State.OUTBOUND_TLS, State.RELAY}
    assert {TRANSITIONS[state][Event.BACKEND_FAILED].state for state in going_on} == {State.CONNECT}


def test_every_reason_says_what_to_do():
    assert set(REMEDIES) == set(Reason)
    assert all(REMEDIES[reason] for reason in Reason if reason not in NOTHING_TO_DO)
