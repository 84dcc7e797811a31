import msgspec
import pytest

from kvstore.raft.messages import (
    AppendReply,
    AppendRequest,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    Ready,
    SnapshotMeta,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvstore.types import LogIndex, Term
from tests.support.raft_group import rid, voters

ROUTE = {"source": rid(1), "target": rid(2), "term": Term(7)}
META = SnapshotMeta(LogIndex(5), Term(3), voters(1, 2))
EVERY_MESSAGE: list[Message] = [
    VoteRequest(
        **ROUTE, last_index=LogIndex(4), last_term=Term(3), is_pre_vote=True, is_transfer=False, clock_ms=9
    ),
    VoteReply(**ROUTE, is_granted=True, is_pre_vote=False, clock_ms=9),
    AppendRequest(
        **ROUTE,
        prev_index=LogIndex(4),
        prev_term=Term(3),
        commit=LogIndex(2),
        round=6,
        entries=(Entry(LogIndex(5), Term(7), 0, b"payload"),),
    ),
    AppendReply(
        **ROUTE, index=LogIndex(5), is_rejected=False, hint_index=LogIndex(0), hint_term=Term(0), round=6
    ),
    Heartbeat(**ROUTE, commit=LogIndex(2), round=6),
    HeartbeatReply(**ROUTE, round=6),
    SnapshotOffer(**ROUTE, commit=LogIndex(5), snapshot=META),
    TimeoutNow(**ROUTE),
]


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_message_survives_the_wire(message: Message) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Message) == message


def test_members_are_everybody_once() -> None:
    configuration = Configuration((rid(1), rid(2)), (rid(1), rid(3)), (rid(4),), (rid(3),))
    assert configuration.members() == (rid(1), rid(2), rid(3), rid(4))
    assert configuration.is_joint
    assert not voters(1).is_joint


def ready(**parts: object) -> Ready:
    fields: dict[str, object] = dict.fromkeys(Ready.__struct_fields__, ())
    fields |= {"number": 1, "hard_state": None, "installed": None, "truncate_after": None}
    return Ready(**(fields | parts))  # type: ignore[arg-type]


def test_ready_has_writes_only_if_something_must_reach_the_disk() -> None:
    reply = HeartbeatReply(**ROUTE, round=6)
    assert not ready(messages_now=(reply,), messages_after_sync=(reply,)).has_writes
    assert ready(messages_after_sync=(reply,)).must_sync
    assert ready(hard_state=HardState()).has_writes
    assert ready(installed=META).has_writes
    assert ready(truncate_after=LogIndex(0)).has_writes
    assert ready(entries=(Entry(LogIndex(1), Term(1), 1, b""),)).has_writes
