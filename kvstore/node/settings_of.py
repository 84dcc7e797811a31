"""What the configuration means for each part of a node: one function per part."""

from __future__ import annotations

from kvstore.config import Config
from kvstore.node.host import HostSettings
from kvstore.node.keeper import KeeperSettings
from kvstore.node.replica import ReplicaLimits
from kvstore.raft import RaftSettings
from kvstore.store.limits import StoreLimits
from kvstore.wal import WalSettings

COMMAND_OVERHEAD_BYTES = 4096
"""What an entry holds beside one batch: its clock, an identity, the packing."""


def wal_settings(config: Config) -> WalSettings:
    storage = config.storage
    return WalSettings(segment_bytes=storage.wal_segment_bytes, reserve_bytes=storage.reserve_bytes)


QUIET_BEATS = 5
"""Beats for quiet shards within the shortest election timeout, where heartbeats are not as rare already."""


def host_settings(config: Config) -> HostSettings:
    timeouts = config.timeouts
    rare_ms = min(2 * timeouts.heartbeat_ms, timeouts.election_ms_min // QUIET_BEATS)
    return HostSettings(
        tick_s=timeouts.tick_ms / 1000,
        beat_ticks=max(1, max(timeouts.heartbeat_ms, rare_ms) // timeouts.tick_ms),
        lease_s=timeouts.lease_ms / 1000,
        inline_sync_s=config.storage.inline_sync_ms / 1000,
        disk_stalled_s=timeouts.election_ms_max / 1000,
        disk_dead_s=timeouts.disk_dead_s,
    )


def keeper_settings(config: Config) -> KeeperSettings:
    return KeeperSettings(free_bytes_min=config.storage.free_bytes_min)


def raft_settings(config: Config) -> RaftSettings:
    timeouts, limits = config.timeouts, config.limits
    return RaftSettings(
        election_ticks_min=timeouts.election_ms_min // timeouts.tick_ms,
        election_ticks_max=timeouts.election_ms_max // timeouts.tick_ms,
        heartbeat_ticks=timeouts.heartbeat_ms // timeouts.tick_ms,
        entry_bytes_max=limits.batch_bytes_max + limits.key_bytes_max + COMMAND_OVERHEAD_BYTES,
    )


def replica_limits(config: Config) -> ReplicaLimits:
    limits = config.limits
    return ReplicaLimits(
        queue_ops_max=limits.shard_queue_ops_max,
        queue_bytes_max=limits.shard_queue_bytes_max,
        entry_commands_max=limits.entry_commands_max,
        entry_bytes_max=limits.entry_bytes_max,
    )


def store_limits(config: Config) -> StoreLimits:
    sessions = config.sessions
    return StoreLimits(
        history_revisions=config.history.revisions,
        history_ms=int(config.history.minutes * 60_000),
        session_lifetime_ms=int(sessions.lifetime_s * 1000),
        session_window=sessions.window,
        sessions_bytes_max=sessions.bytes_max,
        session_share_bytes_max=max(1, sessions.bytes_max // 4),
    )
