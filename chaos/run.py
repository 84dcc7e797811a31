"""One chaos run: load before, during and after composed faults, final reads, verdict.

The verdict is `ok` only if the checker decided every key, every fault bit, and enough operations succeeded
in each of the three phases: a run that tested nothing must not look like one that found nothing.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from chaos.callers import Caller
from chaos.cluster import Cluster, TargetError
from chaos.explain import core_of, explanation
from chaos.history import History, Operation
from chaos.linearizability import Verdict, Violation, check
from chaos.nemeses import Fault, Nemesis, heal
from chaos.workloads import WORKLOADS

OK, VIOLATION, INCONCLUSIVE = 0, 1, 7
EXPLAINED_MAX = 5
READER_TIMEOUT_S = 0.8
BITE_S = 15.0
"""How much longer a fault may last if nobody has run into it."""
BITE_PAUSE_S = 0.25
RECOVERY_S = 30.0
"""The longest wait between faults for operations to succeed again; mostly they have never ceased to."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. Seconds, unless a name says otherwise."""

    workload: str
    nemeses: tuple[str, ...]
    faults_s: float
    seed: int
    clients: int = 16
    quiet_s: float = 5.0
    """Length of the phases before and after the faults; longer, up to ten times, on a machine that is too
    busy for enough operations in that time."""
    fault_s: tuple[float, float] = (1.0, 6.0)
    pause_s: tuple[float, float] = (1.0, 4.0)
    at_once_max: int = 2
    """Faults at the same time."""
    heal_s: float = 120.0
    successes_min: int = 100
    """Operations that must succeed in each phase."""
    timeout_s: float = 10.0
    """Deadline of each operation."""
    think_s: float = 0.0
    """Mean pause of a client between two rounds."""


@dataclass
class Outcome:
    """What a run found. `reasons` say why it is inconclusive, `faults_found` why it is a violation."""

    plan: Plan
    history: list[Operation]
    faults: list[Fault]
    phases: list[tuple[str, float, float]]
    verdict: Verdict
    successes: dict[str, int]
    unexpected: Counter[str]
    heal_s: float = 0.0
    reasons: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    """What the tools of the run could not do."""
    explained: list[tuple[Violation, list[Operation]]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return VIOLATION if self.wrong else INCONCLUSIVE if self.reasons else OK

    @property
    def word(self) -> str:
        return {OK: "ok", VIOLATION: "violation", INCONCLUSIVE: "inconclusive"}[self.exit_code]


async def run(
    cluster: Cluster,
    plan: Plan,
    nemeses: Sequence[Nemesis],
    history_path: Path | None,
    say: Callable[[str], None],
) -> Outcome:
    """Carry out the plan against a cluster that is already served."""
    history = History(history_path)
    try:
        return await _Run(cluster, plan, nemeses, history, say).carry_out()
    finally:
        history.close()


class _Run:
    def __init__(
        self,
        cluster: Cluster,
        plan: Plan,
        nemeses: Sequence[Nemesis],
        history: History,
        say: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._plan = plan
        self._history = history
        self._say = say
        self._workload = WORKLOADS[plan.workload]()
        self._dice = random.Random(plan.seed)
        self._nemeses = list(nemeses)
        self._callers = [self._caller(number) for number in range(plan.clients)]
        # Clients that also write get stuck at a node that cannot commit. A stale read there would pass
        # unseen without some that do nothing but read at one node, and do not wait long.
        self._readers = [
            Caller(plan.clients + number, cluster.client, history, pin=name, timeout_s=READER_TIMEOUT_S)
            for number, name in enumerate(cluster.names)
        ]
        self._phases: list[tuple[str, float, float]] = []
        self._is_over = False
        self._wrong: list[str] = []
        self._troubles: list[str] = []

    def _caller(self, number: int) -> Caller:
        # Half of the clients send writes once only; a quarter insists on one node, whatever happens to it.
        pins = self._cluster.names
        return Caller(
            number,
            self._cluster.client,
            self._history,
            is_identified=number % 2 == 0,
            pin=pins[number % len(pins)] if number % 4 == 3 else None,
            timeout_s=self._plan.timeout_s,
        )

    async def carry_out(self) -> Outcome:
        plan = self._plan
        await self._workload.set_up(self._callers[0])
        async with asyncio.TaskGroup() as tasks:
            for caller in self._callers:
                tasks.create_task(self._workload.client(caller, self._has_ended, plan.think_s))
            for reader in self._readers:
                tasks.create_task(self._workload.reading_client(reader, self._has_ended, plan.think_s))
            await self._phase("before", self._leave_alone())
            await self._phase("faults", self._break_things())
            heal_s = await self._heal()
            await self._phase("after", self._leave_alone())
            self._is_over = True
        await self._read_everything()
        for caller in (*self._callers, *self._readers):
            caller.close()
        return await asyncio.to_thread(self._judge, heal_s)

    async def _heal(self) -> float:
        begun, heal_s = _now(), 0.0
        try:
            heal(self._cluster)
            heal_s = await asyncio.to_thread(self._cluster.wait_until_served, self._plan.heal_s)
            self._say(f"healed: every shard is served after {heal_s:.1f} s")
        except TargetError as error:
            self._wrong.append(f"the cluster did not come back: {error}")
        except OSError as error:
            self._troubles.append(f"could not heal: {error}")
        self._phases.append(("healing", begun, _now()))
        return heal_s

    async def _phase(self, name: str, activity: Awaitable[None]) -> None:
        begun = _now()
        await activity
        self._phases.append((name, begun, _now()))

    async def _leave_alone(self) -> None:
        begun, first = _now(), len(self._history.operations)
        await asyncio.sleep(self._plan.quiet_s)
        while _now() < begun + 10 * self._plan.quiet_s:
            if self._done_since(first) > 2 * self._plan.successes_min:
                return
            await asyncio.sleep(0.5)

    def _done_since(self, first: int) -> int:
        """Operations that have succeeded, of those from number `first` on."""
        return sum(item.outcome in ("ok", "conflict") for item in self._history.operations[first:])

    def _has_ended(self) -> bool:
        return self._is_over

    async def _break_things(self) -> None:
        plan, end, first = self._plan, _now() + self._plan.faults_s, len(self._history.operations)
        bag: list[Nemesis] = []
        while self._nemeses and (
            (now := _now()) < end
            or (
                now < end + plan.faults_s
                and (self._is_one_left() or self._done_since(first) < plan.successes_min)
            )
        ):
            # Out of a bag, so that every kind has its turn before any has its second.
            if not bag:
                bag = self._dice.sample(self._nemeses, len(self._nemeses))
            chosen = [bag.pop() for _ in range(min(len(bag), self._dice.randint(1, plan.at_once_max)))]
            begun: list[tuple[Nemesis, Fault]] = []
            for nemesis in chosen:
                fault = await self._begin(nemesis)
                if fault:
                    begun.append((nemesis, fault))
                    self._say(f"{fault.kind} of {', '.join(fault.nodes)}")
                    await asyncio.sleep(self._dice.uniform(0, 0.5))
            await asyncio.sleep(self._dice.uniform(*plan.fault_s))
            await self._wait_for_bites(begun)
            self._dice.shuffle(begun)
            for nemesis, fault in begun:
                self._end(nemesis, fault)
            await self._wait_for_life()
            await asyncio.sleep(self._dice.uniform(*plan.pause_s))

    async def _begin(self, nemesis: Nemesis) -> Fault | None:
        now = _now()
        try:
            return await asyncio.to_thread(nemesis.begin, now)
        except TargetError as error:
            self._wrong.append(f"{nemesis.kind}: {error}")
        except OSError as error:
            # Counts as a fault that did not bite.
            if not nemesis.faults or nemesis.faults[-1].begun != now:
                nemesis.faults.append(Fault(nemesis.kind, [], now))
            nemesis.faults[-1].proof, nemesis.faults[-1].ended = f"could not begin: {error}", _now()
        return None

    async def _wait_for_bites(self, begun: list[tuple[Nemesis, Fault]]) -> None:
        for _ in range(int(BITE_S / BITE_PAUSE_S)):
            if await asyncio.to_thread(lambda: all(nemesis.has_bitten(fault) for nemesis, fault in begun)):
                return
            await asyncio.sleep(BITE_PAUSE_S)

    async def _wait_for_life(self) -> None:
        """A cluster that is struck down again before it has got up shows nothing but that."""
        first = len(self._history.operations)
        for _ in range(int(RECOVERY_S / BITE_PAUSE_S)):
            if self._done_since(first) >= self._plan.clients:
                return
            await asyncio.sleep(BITE_PAUSE_S)

    def _end(self, nemesis: Nemesis, fault: Fault) -> None:
        try:
            nemesis.end(fault, _now())
        except TargetError as error:
            self._wrong.append(f"{nemesis.kind}: {error}")
        except OSError as error:
            self._troubles.append(f"{nemesis.kind} could not end: {error}")

    def _is_one_left(self) -> bool:
        return not all(nemesis.faults for nemesis in self._nemeses)

    async def _read_everything(self) -> None:
        begun, reads = _now(), self._workload.final_reads()
        for caller in self._callers:
            caller.timeout_s = (
                self._plan.heal_s
            )  # nothing is broken any more: whatever takes long is this machine
        for start in range(0, len(reads), len(self._callers)):
            chunk = reads[start : start + len(self._callers)]
            await asyncio.gather(*(read(caller) for read, caller in zip(chunk, self._callers, strict=False)))
        self._phases.append(("final reads", begun, _now()))
        self._say(f"read {len(reads)} keys or groups at the end")

    def _judge(self, heal_s: float) -> Outcome:
        verdict = check(self._history.operations)
        unexpected: Counter[str] = Counter()
        for caller in (*self._callers, *self._readers):
            unexpected += caller.unexpected
        faults = [fault for nemesis in self._nemeses for fault in nemesis.faults]
        outcome = Outcome(
            self._plan,
            self._history.operations,
            sorted(faults, key=lambda fault: fault.begun),
            self._phases,
            verdict,
            successes_by_phase(self._history.operations, self._phases),
            unexpected,
            heal_s,
            wrong=self._wrong,
            troubles=self._troubles,
        )
        judge(outcome)
        return outcome


def judge(outcome: Outcome) -> None:
    """Fill in what is wrong, and what keeps the run from proving anything."""
    violations = outcome.verdict.violations
    for violation in violations[:EXPLAINED_MAX]:
        core = core_of(violation)
        outcome.explained.append((violation, core))
        outcome.wrong.append(f"keys {', '.join(violation.keys)}: not linearizable\n{explanation(core)}")
    if len(violations) > EXPLAINED_MAX:
        outcome.wrong.append(f"{len(violations)} groups of keys in all are not linearizable")
    workload = WORKLOADS[outcome.plan.workload]()
    outcome.wrong += workload.check(outcome.history)
    outcome.reasons += workload.doubts(outcome.history)
    for answer, count in outcome.unexpected.items():
        outcome.wrong.append(f"{count} answers that no client may get: {answer}")
    for keys in outcome.verdict.undecided:
        outcome.reasons.append(f"keys {', '.join(keys[:3])} could not be decided within the budget")
    for phase in ("before", "faults", "after"):
        if outcome.successes.get(phase, 0) < outcome.plan.successes_min:
            outcome.reasons.append(
                f"only {outcome.successes.get(phase, 0)} operations succeeded in {phase!r}"
            )
    outcome.reasons += outcome.troubles
    outcome.reasons += _toothless(outcome.plan.nemeses, outcome.faults)
    failed = [item for item in outcome.history if item.invoked >= _begin_of(outcome, "final reads")]
    unread = sum(item.outcome not in ("ok", "conflict") for item in failed)
    if unread:
        outcome.reasons.append(f"{unread} of {len(failed)} final reads got no answer")


def _toothless(kinds: Sequence[str], faults: Sequence[Fault]) -> list[str]:
    """Kinds that did not bite. One fault may now and then be hidden behind another, such as a lossy link to
    a node that is down, but not half of the time."""
    found = []
    for kind in kinds:
        own = [fault for fault in faults if fault.kind == kind]
        if not own:
            found.append(f"{kind} never happened")
        elif 2 * sum(bool(fault.bites) for fault in own) < len(own) + 1:
            found.append(f"{kind} did nothing {sum(not fault.bites for fault in own)} of {len(own)} times")
    return found


def _begin_of(outcome: Outcome, name: str) -> float:
    return next((begun for phase, begun, _ in outcome.phases if phase == name), float("inf"))


def successes_by_phase(
    history: Sequence[Operation], phases: Sequence[tuple[str, float, float]]
) -> dict[str, int]:
    """Operations that returned well within each phase."""
    counts = dict.fromkeys((name for name, _, _ in phases), 0)
    for operation in history:
        if operation.outcome in ("ok", "conflict") and operation.returned is not None:
            for name, begun, ended in phases:
                if begun <= operation.returned < ended:
                    counts[name] += 1
    return counts


def _now() -> float:
    return asyncio.get_running_loop().time()
