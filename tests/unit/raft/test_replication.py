from kvstore.raft import Core, RaftSettings
from kvstore.raft.messages import AppendRequest, Heartbeat, SnapshotOffer
from kvstore.raft.progress import ProgressState
from kvstore.types import LogIndex
from tests.support.raft_core import accept, alive, make_leader, meta, only, reject, sent, settled_leader, work
from tests.support.raft_group import QUICK, rid, voters


def limited(**limits: int) -> RaftSettings:
    fields = {name: getattr(QUICK, name) for name in QUICK.__struct_fields__}
    return RaftSettings(**(fields | limits))


def to(number: int, messages: list[object]) -> list[AppendRequest]:
    return [message for message in only(messages, AppendRequest) if message.target == rid(number)]


def test_all_proposals_of_a_pass_leave_as_one_message() -> None:
    core = settled_leader()
    core.propose([b"a"])
    core.propose([b"b", b"c"])
    [request] = to(2, sent(core))
    assert (request.prev_index, [entry.payload for entry in request.entries]) == (1, [b"a", b"b", b"c"])


def test_probing_leader_waits_for_an_answer() -> None:
    core = make_leader(1)
    assert len(to(2, sent(core))) == 1
    core.propose([b"a"])
    assert to(2, sent(core)) == []
    accept(core, 2, 2)
    [request] = to(2, sent(core))
    assert [entry.payload for entry in request.entries] == [b"a"]


def test_replicating_leader_sends_ahead_up_to_the_message_window() -> None:
    core = settled_leader(settings=limited(inflight_messages_max=2))
    counts = []
    for _ in range(4):
        core.propose([b"a"])
        counts.append(len(to(2, sent(core))))
    assert counts == [1, 1, 0, 0]
    accept(core, 2, 2)
    [request] = to(2, sent(core))
    assert [entry.index for entry in request.entries] == [4, 5]


def test_byte_window_stops_sending_ahead() -> None:
    core = settled_leader(settings=limited(inflight_bytes_max=100))
    core.propose([b"x" * 200])
    assert len(to(2, sent(core))) == 1
    core.propose([b"y"])
    assert to(2, sent(core)) == []


def test_long_tail_is_split_by_bytes_but_one_large_entry_goes_alone() -> None:
    core = settled_leader(settings=limited(append_bytes_max=100))
    core.propose([b"a" * 30, b"b" * 30, b"c" * 500, b"d"])
    requests = to(2, sent(core))
    assert [[entry.payload[:1] for entry in request.entries] for request in requests] == [
        [b"a"],
        [b"b"],
        [b"c"],
        [b"d"],
    ]


def test_commit_is_told_once_when_nothing_else_goes_out() -> None:
    core = settled_leader()
    core.propose([b"a"])
    work(core)
    accept(core, 2, 2)
    notices = only(sent(core), Heartbeat)
    assert [(notice.target, notice.commit, notice.round) for notice in notices] == [(rid(2), 2, 0)]
    accept(core, 3, 2)
    notices = only(sent(core), Heartbeat)
    assert [(notice.target, notice.commit, notice.round) for notice in notices] == [(rid(3), 2, 0)]
    assert sent(core) == []


def test_commit_rides_on_entries_that_go_out_anyway() -> None:
    core = settled_leader()
    core.propose([b"a"])
    work(core)
    accept(core, 2, 2)
    accept(core, 3, 2)
    core.propose([b"b"])
    messages = sent(core)
    assert only(messages, Heartbeat) == []
    assert {request.commit for request in only(messages, AppendRequest)} == {2}


def test_heartbeat_never_tells_a_commit_beyond_the_match() -> None:
    core = settled_leader()
    core.propose([b"a"])
    work(core)
    accept(core, 2, 2)
    core.tick()
    commits = {message.target: message.commit for message in only(sent(core), Heartbeat)}
    assert commits == {rid(2): 2, rid(3): 1}


def test_sign_of_life_of_a_lagging_peer_finds_what_was_lost() -> None:
    core = settled_leader()
    core.propose([b"a"])
    work(core)
    core.tick()
    work(core)
    alive(core, 2)
    [request] = to(2, sent(core))
    assert (request.prev_index, request.entries) == (2, ())
    reject(core, 2, 2, hint=(1, 1))
    [request] = to(2, sent(core))
    assert [entry.payload for entry in request.entries] == [b"a"]


def test_append_that_goes_out_in_the_same_pass_replaces_the_heartbeat() -> None:
    core = settled_leader()
    core.tick()
    core.propose([b"a"])
    messages = sent(core)
    assert only(messages, Heartbeat) == []
    assert {request.round for request in only(messages, AppendRequest)} == {core.round}


# --- snapshots


def lagging_leader() -> Core:
    """A leader whose log is cut at 4, while n3 needs entry 2."""
    core = make_leader(1, 1, 1, 1, commit=4)
    work(core)
    accept(core, 2, 5)
    work(core)
    core.compact(LogIndex(4))
    reject(core, 3, 4, hint=(1, 1))
    return core


def test_peer_below_the_cut_gets_a_snapshot_not_entries() -> None:
    core = lagging_leader()
    ready = core.take_ready()
    assert ready.snapshots_wanted == (rid(3),)
    peer = core.progress[rid(3)]
    assert (peer.state, peer.snapshot) == (ProgressState.SNAPSHOT, None)
    assert to(3, list(ready.messages_now)) == []


def test_snapshot_is_offered_again_until_it_is_installed() -> None:
    core = lagging_leader()
    work(core)
    core.offer_snapshot(rid(3), meta(5, 2))
    [offer] = only(sent(core), SnapshotOffer)
    assert offer.snapshot == meta(5, 2)
    offers = 0
    for _ in range(20):
        alive(core, 2)
        alive(core, 3)
        core.tick()
        offers += len(only(sent(core), SnapshotOffer))
    assert offers == 2
    accept(core, 3, 5, round=0)
    assert core.progress[rid(3)].state is ProgressState.REPLICATE
    assert core.progress[rid(3)].next == 6


def test_host_is_reminded_of_a_snapshot_that_it_has_not_made() -> None:
    core = lagging_leader()
    wanted = 0
    for _ in range(21):
        alive(core, 2)
        alive(core, 3)
        core.tick()
        wanted += sum(len(ready.snapshots_wanted) for ready in work(core))
    assert wanted == 3


def test_no_snapshot_for_a_peer_that_is_not_there() -> None:
    core = lagging_leader()
    core.progress[rid(3)].become_probe(2)
    core.progress[rid(3)].is_active = False
    core.snapshots_wanted.clear()
    core.propose([b"a"])
    assert [ready.snapshots_wanted for ready in work(core)] == [()]
    assert core.progress[rid(3)].state is ProgressState.PROBE
    alive(core, 3)
    assert [ready.snapshots_wanted for ready in work(core)] == [(rid(3),)]


def test_silent_peer_that_the_cut_has_overtaken_is_probed_not_sent_a_snapshot() -> None:
    core = settled_leader()
    core.propose([b"a"])
    work(core)
    accept(core, 2)
    work(core)
    core.compact(LogIndex(2))
    peer = core.progress[rid(3)]
    peer.next, peer.is_active, peer.is_poked = 2, False, True
    core.flush_wanted = True
    assert [ready.snapshots_wanted for ready in work(core)] == [()]
    assert peer.state is ProgressState.PROBE


def test_silent_peer_loses_its_snapshot_and_is_probed_at_the_cut() -> None:
    core = lagging_leader()
    work(core)
    core.offer_snapshot(rid(3), meta(5, 2))
    for _ in range(QUICK.election_ticks_max * 10 + 2):
        alive(core, 2)
        core.tick()
        work(core)
    peer = core.progress[rid(3)]
    assert (peer.state, peer.next, peer.snapshot) == (ProgressState.PROBE, 5, None)


def test_snapshot_that_the_cut_has_overtaken_is_asked_for_again() -> None:
    core = lagging_leader()
    work(core)
    core.offer_snapshot(rid(3), meta(3, 1))
    assert [ready.snapshots_wanted for ready in work(core)] == [(rid(3),)]
    core.offer_snapshot(rid(3), meta(5, 2))
    core.propose([b"a"])
    work(core)
    accept(core, 2)
    work(core)
    core.compact(LogIndex(6))
    accept(core, 3, 5, round=0)
    assert [ready.snapshots_wanted for ready in work(core)] == [(rid(3),)]


def test_offer_for_a_peer_that_needs_none_is_ignored() -> None:
    core = settled_leader(configuration=voters(1, 2, 3))
    core.offer_snapshot(rid(2), meta(1, 1))
    core.offer_snapshot(rid(9), meta(1, 1))
    assert sent(core) == []
