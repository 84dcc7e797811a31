"""Black-box proof that a cluster keeps what it acknowledges, while it is being broken.

A *workload* issues operations from many clients and records each in a *history*; a *nemesis* breaks
the cluster meanwhile; a *checker* decides whether any order of the operations explains all answers;
a *report* shows what happened. Nothing here imports the server: the cluster is met through its HTTP
API and its processes only, so that the verdict does not depend on the code under test.

Reading order: `history.py`, `atoms.py`, `linearizability.py`, `explain.py`, `report.py`, then
`callers.py`, `workloads.py`, `targets.py`, `nemeses.py`, `run.py`.
"""
