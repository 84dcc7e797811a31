"""Identities of writes: session, sequence, acknowledgement."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.client.session import WINDOW, Session, Sessions


def sessions() -> Sessions:
    names = iter(str(number) for number in range(1000))
    return Sessions(lambda: next(names))


def test_sequences_count_up_from_one_within_one_session() -> None:
    made = sessions()
    tickets = [made.begin() for _ in range(3)]
    assert [(ticket.session, ticket.sequence) for ticket in tickets] == [("0", 1), ("0", 2), ("0", 3)]


def test_acknowledgement_never_passes_an_open_write() -> None:
    made = sessions()
    first, second, third = made.begin(), made.begin(), made.begin()
    second.finish()
    third.finish()
    assert first.acked_below == 1
    first.finish()
    assert made.begin().acked_below == 4


def test_a_full_window_goes_on_under_a_new_session() -> None:
    made = sessions()
    stuck = made.begin()
    for _ in range(WINDOW - 1):
        made.begin().finish()
    over = made.begin()
    assert (stuck.session, over.session) == ("0", "1")
    assert (over.sequence, over.acked_below) == (1, 1)
    assert stuck.acked_below == 1


def test_a_session_stays_while_its_window_moves() -> None:
    made = sessions()
    for _ in range(3 * WINDOW):
        made.begin().finish()
    assert made.begin().session == "0"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60))
def test_acknowledged_are_exactly_the_writes_before_the_oldest_open_one(choices: list[int]) -> None:
    session = Session("s")
    open_sequences: list[int] = []
    for choice in choices:
        if choice < 5 or not open_sequences:
            open_sequences.append(session.begin().sequence)
        else:
            session.finish(open_sequences.pop(choice % len(open_sequences)))
        oldest = min(open_sequences, default=session.next_sequence)
        assert session.acked_below == oldest
        assert session.open_count == len(open_sequences)
