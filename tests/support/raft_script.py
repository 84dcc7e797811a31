"""Runs the golden interaction scripts of `tests/raft_scripts/`.

A script is prose (`# ...`) and blocks. A block is a list of commands, a line `---`, and what they must
print; a blank line ends it. Nothing happens in a group unless a command says so:

    group 3 [learners=4,5] [setting=value ...]   start empty replicas n1, n2, n3; all past their fresh period
    timeouts n1=10 n2=14                         election timeouts, now and for later draws (default 10)
    tick COUNT [n1 n2 ...]                       let time pass for some or all
    take n1 | sync n1                            take one Ready without completing its sync | complete syncs
    work [n1 ...]                                take Readys and complete their syncs until none is left
    deliver|drop [from=n1] [to=n2] [kind=append] messages under way, in order
    run [only n1 n2 ...] [quietly]               work and deliver until rest; others are cut off
    propose n1 x y | read n1 7 | transfer n1 n2 | forget n1 n2 | wake n1 | hear n2 n1 TERM
    change n1 voters=n4 learners=n5 removed=n1   propose a change of members
    join n4                                      start an empty replica that knows no configuration
    crash n1 | restart n1                        a restarted replica is fresh until it has ticked
    flush n1 | compact n1 5                      make the state machine durable | cut the log
    offer n1 | fetch n2                          make what n1's core wants | install what n2 was offered
    quiet n1                                     let an idle leader stop its heartbeats
    show [n1 ...] | log n1 | progress n1
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kvstore.errors import Fatal, KvError
from kvstore.raft import Change, RaftSettings
from kvstore.raft.membership import decode
from kvstore.raft.messages import (
    CONFIGURATION,
    AppendReply,
    AppendRequest,
    Configuration,
    Entry,
    Heartbeat,
    HeartbeatReply,
    Message,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvstore.types import LogIndex, ReplicaId, Term, node_of
from tests.support.raft_group import QUICK, Group, Replica, voters


def short(replica: ReplicaId | None) -> str:
    return "-" if replica is None else node_of(replica)


def members(configuration: Configuration) -> str:
    parts = [" ".join(map(short, configuration.voters))]
    if configuration.is_joint:
        parts.append("& " + " ".join(map(short, configuration.outgoing)))
    if configuration.learners:
        parts.append("learners " + " ".join(map(short, configuration.learners)))
    if configuration.learners_next:
        parts.append("then learners " + " ".join(map(short, configuration.learners_next)))
    return "(" + " ".join(parts) + ")"


def entry_text(entry: Entry) -> str:
    at = f"{entry.index}/{entry.term}"
    if entry.kind == CONFIGURATION:
        return f"{at}:{members(decode(entry.payload))}"
    return f"{at}:{entry.payload.decode()}" if entry.payload else at


def entries_text(entries: Iterable[Entry]) -> str:
    return "[" + " ".join(map(entry_text, entries)) + "]"


KINDS: dict[type, str] = {
    VoteRequest: "vote?",
    VoteReply: "vote",
    AppendRequest: "append",
    AppendReply: "answer",
    Heartbeat: "beat",
    HeartbeatReply: "alive",
    SnapshotOffer: "offer",
    TimeoutNow: "hand-over",
}


def message_text(message: Message) -> str:
    route = f"{short(message.source)} -> {short(message.target)} "
    match message:
        case VoteRequest():
            pre = "pre-" if message.is_pre_vote else ""
            why = " for transfer" if message.is_transfer else ""
            body = f"{pre}vote? term={message.term} last={message.last_index}/{message.last_term}{why}"
        case VoteReply():
            pre = "pre-" if message.is_pre_vote else ""
            body = f"{pre}vote {'yes' if message.is_granted else 'no'} term={message.term}"
        case AppendRequest():
            body = (
                f"append term={message.term} prev={message.prev_index}/{message.prev_term} "
                f"commit={message.commit} round={message.round} {entries_text(message.entries)}"
            )
        case AppendReply(is_rejected=True):
            hint = f"try {message.hint_index}/{message.hint_term}"
            body = f"answer term={message.term} not {message.index}, {hint} round={message.round}"
        case AppendReply():
            body = f"answer term={message.term} matches {message.index} round={message.round}"
        case Heartbeat():
            body = f"beat term={message.term} commit={message.commit} round={message.round}"
        case HeartbeatReply():
            body = f"alive term={message.term} round={message.round}"
        case SnapshotOffer():
            body = f"offer term={message.term} snapshot={message.snapshot.index}/{message.snapshot.term}"
        case TimeoutNow():
            body = f"hand-over term={message.term}"
    return route + body


class RaftScript:
    """Executes commands and collects what they print."""

    def __init__(self) -> None:
        self.group = Group(voters(1))
        self.timeouts: dict[ReplicaId, int] = {}
        self.out: list[str] = []
        self.is_quiet = False

    def execute(self, line: str) -> None:
        name, *words = shlex.split(line)
        options = dict(word.split("=", 1) for word in words if "=" in word)
        arguments = [word for word in words if "=" not in word]
        command = getattr(self, f"do_{name}", None)
        if command is None:
            raise ValueError(f"unknown command: {line}")
        try:
            command(*arguments, **options)
        except (KvError, Fatal) as error:
            self.say(f"refused: {type(error).__name__}: {error}")
        self.group.check()

    def say(self, text: str) -> None:
        self.out.append(text)

    def _replica(self, name: str) -> Replica:
        return self.group.replicas[ReplicaId(f"{name}/1")]

    def _replicas(self, names: Iterable[str]) -> list[Replica]:
        chosen = [self._replica(name) for name in names]
        return chosen or self.group.living

    # --- the group

    def do_group(self, count: str, learners: str = "", **settings: str) -> None:
        learner_numbers = [int(number) for number in learners.split(",") if number]
        fields = {name: getattr(QUICK, name) for name in QUICK.__struct_fields__}
        fields |= {name: int(value) for name, value in settings.items()}
        self.timeouts = {}
        self.group = Group(
            voters(*range(1, int(count) + 1), learners=learner_numbers),
            RaftSettings(**fields),
            dice=lambda me: lambda low, _high: self.timeouts.get(me, low),
            observe=self._observe,
        )
        for replica in self.group.living:
            self._age(replica)

    def _age(self, replica: Replica) -> None:
        core = replica.living
        core.ticks, core.promise_left = self.group.settings.election_ticks_min, 0

    def do_timeouts(self, **timeouts: str) -> None:
        for name, ticks in timeouts.items():
            replica = self._replica(name)
            self.timeouts[replica.me] = int(ticks)
            replica.living.election_timeout = int(ticks)

    def do_join(self, name: str) -> None:
        self.group.add(ReplicaId(f"{name}/1"), Configuration())

    def do_crash(self, name: str) -> None:
        self._replica(name).crash()

    def do_restart(self, name: str) -> None:
        self._replica(name).start()

    def _observe(self, me: ReplicaId, event: str, fields: dict[str, Any]) -> None:
        if event.startswith("become_"):
            self.say(f"{short(me)} becomes {event.removeprefix('become_')} in term {fields['term']}")
        elif event == "commit":
            self.say(f"{short(me)} commits {fields['commit']}")
        elif event == "apply_conf_change":
            self.say(f"{short(me)} adopts {members(fields['configuration'])}")

    # --- time, disk, network

    def do_tick(self, count: str, *names: str) -> None:
        for _ in range(int(count)):
            for replica in self._replicas(names):
                replica.living.tick()

    def _take(self, replica: Replica) -> bool:
        reads, lost = set(replica.reads), len(replica.reads_lost)
        ready = replica.take()
        if ready is None:
            return False
        name = short(replica.me)
        if ready.truncate_after is not None:
            self.say(f"{name} voids what is above {ready.truncate_after}")
        if ready.installed is not None:
            self.say(f"{name} installs {ready.installed.index}/{ready.installed.term}")
        applied = [entry for entry in ready.committed if entry.payload and entry.kind != CONFIGURATION]
        if applied:
            self.say(f"{name} applies {entries_text(applied)}")
        for context in sorted(set(replica.reads) - reads):
            self.say(f"{name} serves read {context} at {replica.reads[context]}")
        for context in replica.reads_lost[lost:]:
            self.say(f"{name} loses read {context}")
        for target in ready.snapshots_wanted:
            self.say(f"{name} wants a snapshot for {short(target)}")
        return True

    def do_take(self, name: str) -> None:
        self._take(self._replica(name))

    def do_sync(self, name: str) -> None:
        self._replica(name).sync()

    def do_work(self, *names: str) -> None:
        for replica in self._replicas(names):
            while self._take(replica):
                replica.sync()

    def do_deliver(self, **filters: str) -> None:
        self._move(filters, is_delivered=True)

    def do_drop(self, **filters: str) -> None:
        self._move(filters, is_delivered=False)

    def _move(self, filters: dict[str, str], *, is_delivered: bool) -> None:
        under_way, self.group.network = self.group.network, []
        kept: list[Message] = []
        for message in under_way:
            facts = {"from": short(message.source), "to": short(message.target), "kind": KINDS[type(message)]}
            if any(facts[name] != wanted for name, wanted in filters.items()):
                kept.append(message)
            elif is_delivered:
                self.say(message_text(message))
                self.group.deliver(message)
            else:
                self.say(f"lost: {message_text(message)}")
        self.group.network = kept + self.group.network

    def do_run(self, *words: str) -> None:
        names = [word for word in words if word not in ("only", "quietly")]
        inside = self._replicas(names)
        ids = {replica.me for replica in inside}
        said = len(self.out)
        for _ in range(100):
            self.do_work(*(short(replica.me) for replica in inside))
            under_way, self.group.network = self.group.network, []
            for message in under_way:
                if message.source in ids and message.target in ids:
                    self.say(message_text(message))
                    self.group.deliver(message)
                    self.group.check()
            if not under_way:
                break
        if "quietly" in words:
            self.out[said:] = [line for line in self.out[said:] if " -> " not in line]

    # --- what hosts do

    def do_propose(self, name: str, *commands: str) -> None:
        term, index = self._replica(name).living.propose([command.encode() for command in commands])
        self.say(f"proposed at {index}/{term}")

    def do_change(self, name: str, **parts: str) -> None:
        change = Change(
            **{
                part: tuple(ReplicaId(f"{member}/1") for member in names.split(","))
                for part, names in parts.items()
            }
        )
        self.say(f"proposed at {self._replica(name).living.propose_configuration(change)}")

    def do_read(self, name: str, context: str) -> None:
        self._replica(name).living.read(int(context))

    def do_transfer(self, name: str, target: str) -> None:
        self._replica(name).living.transfer_leadership(ReplicaId(f"{target}/1"))

    def do_forget(self, name: str, target: str) -> None:
        self._replica(name).living.forget(ReplicaId(f"{target}/1"))

    def do_wake(self, name: str) -> None:
        self._replica(name).living.wake()

    def do_quiet(self, name: str) -> None:
        core = self._replica(name).living
        core.quiet = core.can_be_quiet()
        self.say(f"{name} {'goes quiet' if core.quiet else 'cannot be quiet'}")

    def do_hear(self, name: str, leader: str, term: str) -> None:
        agrees = self._replica(name).living.hear_leader(ReplicaId(f"{leader}/1"), Term(int(term)))
        self.say(f"{name} {'agrees' if agrees else 'disagrees'}")

    def do_flush(self, name: str) -> None:
        self._replica(name).flush_machine()

    def do_compact(self, name: str, index: str) -> None:
        replica = self._replica(name)
        replica.flush_machine()
        replica.compact(LogIndex(int(index)))

    def do_offer(self, name: str) -> None:
        leader = self._replica(name)
        for source, target in self.group.wanted:
            if source == leader.me:
                leader.living.offer_snapshot(target, leader.machine.meta())
        self.group.wanted.clear()

    def do_fetch(self, name: str) -> None:
        replica = self._replica(name)
        offer = replica.living.offered
        if offer is None:
            self.say(f"{name} was offered nothing")
            return
        machine = self.group.replicas[offer.source].machine
        replica.fetched = machine
        installed = replica.living.install(machine.meta())
        self.say(f"{name} {'starts after' if installed else 'has no use for'} snapshot {machine.applied}")

    # --- looking

    def do_show(self, *names: str) -> None:
        for replica in self._replicas(names):
            core = replica.living
            self.say(
                f"{short(core.me)} {core.role.value} term={core.term} leader={short(core.leader)} "
                f"commit={core.commit} applied={core.applied_index} synced={core.synced} "
                f"log={core.first_index}..{core.last_index} {members(core.configuration)}"
            )

    def do_log(self, *names: str) -> None:
        for replica in self._replicas(names):
            log = replica.living.log
            self.say(f"{short(replica.me)} {entries_text(log.between(log.base_index, log.last_index))}")

    def do_progress(self, name: str) -> None:
        for peer in self._replica(name).living.peers:
            paused = " waits" if peer.is_probe_sent else ""
            self.say(
                f"{short(peer.replica)} {peer.state.value}{paused} match={peer.match} next={peer.next} "
                f"inflight={len(peer.inflight)} round={peer.round}"
            )


def run_script(path: Path) -> str:
    """Return the script with the output that its commands give now."""
    script = RaftScript()
    lines: list[str] = []
    is_expected = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line == "---":
            lines.extend(["---", *script.out])
            script.out = []
            is_expected = True
        elif not line.strip():
            lines.append("")
            is_expected = False
        elif is_expected:
            continue
        else:
            lines.append(line)
            if not line.startswith("#"):
                script.execute(line)
    assert not script.out, f"{path.name} ends without `---`"
    return "\n".join(lines).rstrip("\n") + "\n"
