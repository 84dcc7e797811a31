import pytest

from kvstore.raft.settings import RaftSettings


def test_default_timeouts_leave_room_for_many_heartbeats() -> None:
    settings = RaftSettings()
    assert (settings.election_ticks_min, settings.election_ticks_max) == (20, 40)
    assert settings.heartbeat_ticks * 5 <= settings.election_ticks_min


@pytest.mark.parametrize(
    "ticks",
    [
        {"heartbeat_ticks": 0},
        {"heartbeat_ticks": 20},
        {"election_ticks_min": 41},
        {"election_ticks_min": 10, "election_ticks_max": 9},
    ],
)
def test_timeouts_that_cannot_work_are_refused(ticks: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="heartbeat_ticks"):
        RaftSettings(**ticks)
