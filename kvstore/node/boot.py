"""The first boot: all seeds agree on one cluster, or none begins.

A cluster begins exactly once. A seed whose disk was emptied must neither found a second history beside
a living one nor vote again in the first (pitfalls 20, 26), and a seed that is merely late must not need
a human. So the seeds run single-decree Paxos (Lamport, "Paxos Made Simple") in which a quorum is ALL of
them and the acceptors are data directories, not nodes:

1. The lowest seed promises itself a new ballot, once every seed answers, is no member, and has the same
   configuration. Each seed that hears of the ballot promises it.
2. When all have promised, the lowest seed proposes: the newest proposal that any of them holds (with the
   same configuration), else a newly minted cluster id and plan. The proposal names the directory in which
   each seed has promised. Each named directory accepts, unless it has promised a later ballot.
3. Whoever sees that all named directories have accepted is a member; a member's word promotes the rest.

Why this is safe: a member exists only if every directory has accepted its ballot. A later ballot needs a
promise from every seed, and a member gives none. A seed emptied after it had accepted has a new
directory, which no earlier proposal names, so it can get in only through a later ballot, that is, only
while no seed is a member: before it can have voted in anything that counts.

There is one message, `BootState`: a copy of what its sender has made durable. It may be lost, late,
twice, out of order. A state is said only after it was persisted, so a crash takes back nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from kvstore.errors import Fatal
from kvstore.node.identity import Identity
from kvstore.types import NodeId
from kvstore.wire.boot_messages import (
    EMPTY,
    MEMBER,
    PROPOSED,
    Ballot,
    BootState,
    Directory,
    Proposal,
    ShardPlan,
)

SILENT_TICKS = 10
"""A seed unheard for so long counts as not reached."""
BALLOT_TICKS = 10
"""How long the lowest seed lets a ballot run before it tries another."""


class ClusterKnowsMe(Fatal):
    """The cluster has a node of this id with another data directory: this one may have voted before."""


class BootReady(msgspec.Struct, frozen=True):
    """What the host must do. Messages tell durable things only: send them at any time. `persist` must be
    made durable, then `Boot.persisted` called with it; until then no other is handed out."""

    persist: Identity | None
    messages: tuple[tuple[NodeId, BootState], ...]


class Boot:
    """The part of one seed in the agreement.

    `facts` is what the configurations must have in common, by name; `config_hash` a hash of the same.
    `make_plan` computes every shard's first voters; `mint_id` gives 16 random bytes. `knows` tells a
    member which node ids its cluster has; the seeds by default.
    """

    def __init__(
        self,
        identity: Identity,
        seeds: Sequence[NodeId],
        facts: Mapping[str, Any],
        config_hash: bytes,
        make_plan: Callable[[], tuple[ShardPlan, ...]],
        mint_id: Callable[[], bytes],
        knows: Callable[[NodeId], bool] | None = None,
    ) -> None:
        assert identity.node in seeds or identity.is_member, "only seeds take part in the first boot"
        self.identity = identity
        """As durable. `is_member` may be believed."""
        self.refusal: ClusterKnowsMe | None = None
        """Set when this node must not start; the host raises it."""
        self._me = identity.node
        self._seeds = tuple(sorted(seeds))
        self._facts = {name: _text(value) for name, value in facts.items()}
        self._config_hash = config_hash
        self._make_plan = make_plan
        self._mint_id = mint_id
        self._knows = knows or (lambda node: node in self._seeds)
        self._heard: dict[NodeId, BootState] = {}
        self._heard_at: dict[NodeId, int] = {}
        self._ticks = 0
        self._ballot = identity.promised
        """Of the lowest seed: the ballot it is running, its own also after a restart."""
        self._ballot_at = -BALLOT_TICKS
        self._wanted: Identity | None = None
        self._is_persisting = False
        self._outbox: dict[NodeId, BootState] = {}

    # ---- what the host does ------------------------------------------------------------------------

    @property
    def is_member(self) -> bool:
        return self.identity.is_member

    def tick(self) -> None:
        """Call about every 200 ms until `is_member`."""
        self._ticks += 1
        if not self.is_member:
            self._tell_all()
            self._advance()

    def greet(self, node: NodeId) -> None:
        """A link to `node` has come up: let it know at once where we stand."""
        if not self.is_member and node in self._seeds:
            self._tell(node)

    def on_message(self, node: NodeId, state: BootState) -> None:
        if state.node != node or node == self._me or self.refusal is not None:
            return
        if self._newest().is_member:
            # Until that is durable, nothing new is promised and nothing said.
            if self.is_member and state.stage != MEMBER:
                self._tell(node)
            return
        if state.stage == MEMBER:
            self._on_member(state)
        elif node in self._seeds:
            self._heard[node] = state
            self._heard_at[node] = self._ticks
            self._follow(state)
        self._advance()

    def has_ready(self) -> bool:
        return bool(self._outbox) or (self._wanted is not None and not self._is_persisting)

    def take_ready(self) -> BootReady:
        messages = tuple(self._outbox.items())
        self._outbox = {}
        if self._wanted is None or self._is_persisting:
            return BootReady(None, messages)
        self._is_persisting = True
        return BootReady(self._wanted, messages)

    def persisted(self, identity: Identity) -> None:
        """`identity`, handed out by `take_ready`, survives a crash from here on."""
        assert self._is_persisting, "nothing was handed out to persist"
        self._is_persisting = False
        if self._wanted == identity:
            self._wanted = None
        self.identity = identity
        self._tell_all()
        if not self.is_member:
            self._advance()

    def waiting_for(self) -> list[str]:
        """What keeps this node from being a member, for people; empty when nothing does."""
        if self.is_member:
            return []
        if self.refusal is not None:
            return [str(self.refusal)]
        reasons = []
        for node in self._seeds:
            if node != self._me and (reason := self._reason(node)) is not None:
                reasons.append(f"{node}: {reason}")
        if not reasons and self._me != self._seeds[0]:
            reasons.append(f"{self._seeds[0]}: has not proposed the cluster yet")
        return reasons or ["storing the agreement"]

    # ---- hearing others ----------------------------------------------------------------------------

    def _follow(self, theirs: BootState) -> None:
        """Promise and accept what `theirs` shows, where the rules allow it."""
        mine = self._newest()
        if theirs.node == self._seeds[0] and theirs.facts == self._facts and theirs.promised > mine.promised:
            mine = replace(mine, promised=theirs.promised)
        offer = theirs.accepted
        if (
            offer is not None
            and offer.ballot >= mine.promised
            and (mine.accepted is None or offer.ballot > mine.accepted.ballot)
            and offer.directory_of(self._me) == mine.directory
            and offer.config_hash == self._config_hash
        ):
            mine = replace(mine, promised=offer.ballot, accepted=offer, stage=PROPOSED)
        self._want(mine)

    def _on_member(self, theirs: BootState) -> None:
        """A cluster exists: we are of it, or we must not start."""
        mine, word = self._newest(), theirs.accepted
        self._heard[theirs.node] = theirs
        self._heard_at[theirs.node] = self._ticks
        if word is not None and word.directory_of(self._me) == mine.directory:
            # Of another id only if the speaker's life is over and a later ballot has won since. What a
            # member holds must be what all have accepted, so the word replaces a later, unfinished try.
            if mine.accepted is not None and mine.accepted.cluster_id == word.cluster_id:
                self._want(replace(mine, stage=MEMBER, accepted=word))
        elif theirs.knows_you and self.refusal is None:
            cluster_id = word.cluster_id.hex() if word is not None else "unknown"
            self.refusal = ClusterKnowsMe(
                f"cluster {self.identity.cluster!r} (id {cluster_id}) already has a node {self._me}, with "
                "another data directory. That one may have voted, so an empty directory must not take its "
                f"place. Restore the old directory, or run `kvctl node rm {self._me}` against the cluster "
                "and start this node with `--join`"
            )

    # ---- the agreement -----------------------------------------------------------------------------

    def _advance(self) -> None:
        """Do what has become possible. Decisions rest on durable state: one step at a time."""
        if self._wanted is not None or self.refusal is not None:
            return
        if self._is_agreed():
            self._want(replace(self.identity, stage=MEMBER))
        elif self._me == self._seeds[0]:
            self._coordinate()

    def _is_agreed(self) -> bool:
        accepted = self.identity.accepted
        return (
            accepted is not None
            and accepted.ballot == self.identity.promised
            and accepted.config_hash == self._config_hash
            and all(self._has_accepted(node, accepted) for node in self._seeds)
        )

    def _has_accepted(self, node: NodeId, proposal: Proposal) -> bool:
        if node == self._me:
            return self.identity.accepted == proposal
        heard = self._heard.get(node)
        return (
            heard is not None
            and heard.accepted is not None
            and heard.accepted.ballot == proposal.ballot
            and heard.directory == proposal.directory_of(node)
        )

    def _coordinate(self) -> None:
        """The lowest seed's part: open ballots, propose when all have promised."""
        others = [node for node in self._seeds if node != self._me]
        if any(self._obstacle(node) is not None for node in others):
            return
        if self._is_open(others):
            return
        if self._ballot.round and self._has_all_promises(others, self._ballot):
            self._propose(others, self._ballot)
        elif self._ticks - self._ballot_at >= BALLOT_TICKS:
            rounds = [self._heard[node].promised.round for node in others]
            self._ballot = Ballot(max([self.identity.promised.round, *rounds]) + 1, self._mint_id())
            self._ballot_at = self._ticks
            self._want(replace(self.identity, promised=self._ballot))

    def _is_open(self, others: list[NodeId]) -> bool:
        """Whether our proposal can still be accepted by everybody, if only they hear of it."""
        proposal = self.identity.accepted
        if proposal is None or proposal.ballot != self._ballot or proposal.config_hash != self._config_hash:
            return False
        return all(
            self._heard[node].directory == proposal.directory_of(node)
            and self._heard[node].promised <= proposal.ballot
            for node in others
        )

    def _has_all_promises(self, others: list[NodeId], ballot: Ballot) -> bool:
        if self.identity.promised != ballot:
            return False
        is_proposed = self.identity.accepted is not None and self.identity.accepted.ballot == ballot
        return not is_proposed and all(self._heard[node].promised == ballot for node in others)

    def _propose(self, others: list[NodeId], ballot: Ballot) -> None:
        held = [self._heard[node].accepted for node in others] + [self.identity.accepted]
        newest = max((each for each in held if each is not None), key=lambda each: each.ballot, default=None)
        directories = [Directory(node, self._heard[node].directory) for node in others]
        directories.append(Directory(self._me, self.identity.directory))
        if newest is not None and newest.config_hash == self._config_hash:
            cluster_id, plan = newest.cluster_id, newest.plan
        else:
            # Nobody holds a proposal, or it was made for a configuration that all have since changed.
            cluster_id, plan = self._mint_id(), self._make_plan()
        proposal = Proposal(
            ballot, cluster_id, self._config_hash, plan, tuple(sorted(directories, key=_node))
        )
        self._want(replace(self.identity, accepted=proposal, stage=PROPOSED))

    # ---- small parts -------------------------------------------------------------------------------

    def _newest(self) -> Identity:
        return self._wanted or self.identity

    def _want(self, identity: Identity) -> None:
        if identity != self._newest():
            self._wanted = identity

    def _tell(self, node: NodeId) -> None:
        mine = self.identity
        self._outbox[node] = BootState(
            self._me,
            mine.directory,
            mine.stage,
            self._facts,
            mine.promised,
            mine.accepted,
            mine.is_member and self._knows(node),
        )

    def _tell_all(self) -> None:
        for node in self._seeds:
            if node != self._me:
                self._tell(node)

    def _reason(self, node: NodeId) -> str | None:
        """Why `node` keeps us waiting, if it does."""
        heard, mine = self._heard.get(node), self.identity.accepted
        if heard is not None and heard.stage == MEMBER:
            known = "knows this node" if heard.knows_you else "does not know this node: start it with --join"
            return f"is a member of a cluster that {known}"
        if mine is not None and self._has_accepted(node, mine):
            return self._config_difference(node)
        if (obstacle := self._obstacle(node)) is not None:
            return obstacle
        return "has not stored the proposal yet" if mine is not None else None

    def _obstacle(self, node: NodeId) -> str | None:
        """Why no ballot can be won with `node` as we know it."""
        heard = self._heard.get(node)
        if heard is None or self._ticks - self._heard_at[node] > SILENT_TICKS:
            return "not reached"
        if heard.stage not in (EMPTY, PROPOSED):
            return "is a member of a cluster"
        return self._config_difference(node)

    def _config_difference(self, node: NodeId) -> str | None:
        heard = self._heard[node]
        names = sorted(set(heard.facts) | set(self._facts))
        differing = [
            f"{name} is {heard.facts.get(name, 'not set')} there and {self._facts.get(name, 'not set')} here"
            for name in names
            if heard.facts.get(name) != self._facts.get(name)
        ]
        return "its cluster.yaml differs: " + "; ".join(differing) if differing else None


def _node(directory: Directory) -> NodeId:
    return directory.node


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, order="deterministic").decode()
