"""What the clients do while the cluster is being broken: one file for each workload, found by their names."""

import importlib
import pkgutil

from chaos.workloads.base import Workload

__all__ = ["WORKLOADS", "Workload"]


def _found() -> dict[str, type[Workload]]:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {kind.name: kind for kind in sorted(Workload.__subclasses__(), key=lambda kind: kind.name)}


WORKLOADS: dict[str, type[Workload]] = _found()
