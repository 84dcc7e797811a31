from kvstore.raft.messages import Configuration, SnapshotMeta
from kvstore.raft.progress import Progress, ProgressState
from kvstore.types import LogIndex, Term
from tests.support.raft_group import rid


def replicating(match: int) -> Progress:
    peer = Progress(rid(2), match + 1)
    peer.acknowledged(LogIndex(match))
    peer.become_replicate()
    return peer


def test_new_member_is_probed_from_the_end_of_the_log() -> None:
    peer = Progress(rid(2), 8)
    assert (peer.state, peer.match, peer.next, peer.is_active) == (ProgressState.PROBE, 0, 8, True)


def test_acknowledgement_frees_the_window_up_to_its_index() -> None:
    peer = replicating(3)
    peer.sent(4, 100)
    peer.sent(6, 50)
    peer.sent(7, 10)
    assert (peer.next, len(peer.inflight), peer.inflight_bytes) == (8, 3, 160)
    peer.acknowledged(LogIndex(6))
    assert (peer.match, peer.next, list(peer.inflight), peer.inflight_bytes) == (6, 8, [(7, 10)], 10)


def test_acknowledgement_beyond_what_was_sent_moves_next() -> None:
    peer = Progress(rid(2), 4)
    peer.acknowledged(LogIndex(9))
    assert peer.next == 10


def test_probe_never_starts_at_or_below_the_match() -> None:
    peer = replicating(5)
    peer.become_probe(2)
    assert (peer.state, peer.next) == (ProgressState.PROBE, 6)


def test_probe_forgets_what_was_sent_optimistically() -> None:
    peer = replicating(3)
    peer.sent(9, 100)
    peer.commit_sent = 9
    peer.become_probe(4)
    assert (peer.next, peer.inflight_bytes, len(peer.inflight), peer.commit_sent) == (4, 0, 0, 3)


def test_leaving_snapshot_state_drops_the_offer() -> None:
    peer = Progress(rid(2), 4)
    peer.become_snapshot()
    peer.snapshot = SnapshotMeta(LogIndex(9), Term(1), Configuration())
    peer.acknowledged(LogIndex(9))
    peer.become_replicate()
    assert (peer.state, peer.snapshot, peer.next) == (ProgressState.REPLICATE, None, 10)


def test_forgotten_peer_has_neither_match_nor_support() -> None:
    peer = replicating(5)
    peer.round = 7
    peer.forget(last_index=9, round_floor=8)
    assert (peer.match, peer.next, peer.round, peer.round_floor, peer.is_active) == (0, 10, 0, 8, False)
    assert peer.state is ProgressState.PROBE
