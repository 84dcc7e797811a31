"""The log through power cuts and deaths at every step: what was acknowledged is found again."""

from __future__ import annotations

from random import Random

import pytest

from kvstore.wal import Recovered, Wal
from tests.support.sim_files import Crashed, SimFiles
from tests.support.wal_model import (
    IDENTITY,
    SMALL,
    Chance,
    Model,
)

LOG = "/data/wal"


def _open(disk: SimFiles) -> tuple[Wal, Recovered]:
    return Wal.open(disk, LOG, SMALL, IDENTITY)


class _Run:
    """A log, its model, and the models that a crash at this moment may leave."""

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)
        self.chance = Chance(self.dice)
        self.disk = SimFiles(seed)
        self.model = Model()
        self.allowed = [self.model]
        self.wal, _ = _open(self.disk)

    def act(self) -> None:
        if self.dice.random() < 0.2:
            needed = self.chance.needed(self.model)
            self.model.need(needed)
            self.wal.reclaim(needed)
        else:
            records = self.chance.batch(self.model)
            after = self.model.copy()
            after.apply(records)
            self.allowed = [self.model, after]
            self.wal.append(records)
            self.model, self.allowed = after, [after]

    def act_until_dead(self) -> None:
        while True:
            self.act()

    def restart(self) -> None:
        """Start again after a crash and take over whichever allowed state is found."""
        self.wal, recovered = _open(self.disk)
        assert recovered.damage == []
        differences = [model.difference(recovered) for model in self.allowed]
        assert None in differences, differences
        self.model = [model for model, each in zip(self.allowed, differences, strict=True) if not each][-1]
        self.allowed = [self.model]


@pytest.mark.parametrize("seed", range(6))
def test_power_cut_at_every_step_loses_nothing_acknowledged(seed: int) -> None:
    run = _Run(seed)

    def cut_power_now(step: str, path: str) -> None:
        for each in range(2):
            disk = run.disk.copy()
            disk.crash(Random(run.disk.step_count * 2 + each))
            _, recovered = _open(disk)
            differences = [model.difference(recovered) for model in run.allowed]
            assert None in differences, (step, path, differences)
            assert recovered.damage == []

    run.disk.on_step = cut_power_now
    for _ in range(40):
        run.act()
    assert run.wal.oldest_segment > 1, "the run never dropped a segment"


@pytest.mark.parametrize("seed", range(20))
def test_pitfall_14_replicas_come_and_go_through_crashes_without_loss_or_ghosts(seed: int) -> None:
    run = _Run(1000 + seed)
    dice = Random(seed)
    for _ in range(25):
        die_at = run.disk.step_count + dice.randint(1, 60)

        def die(_step: str, _path: str, at: int = die_at) -> None:
            if run.disk.step_count >= at:
                raise Crashed

        run.disk.on_step = die
        with pytest.raises(Crashed):
            run.act_until_dead()
        if dice.random() < 0.3:
            run.disk.kill()
        else:
            run.disk.crash(dice)
        run.restart()
    assert run.wal.oldest_segment > 3
