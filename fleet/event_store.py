"""The event store: one DuckDB file with everything that a rollout's record holds, as tables.

`result.json` answers the usual questions; this answers the others, in SQL:

    SELECT reason, count(*) FROM updates GROUP BY reason

Tables (times in integer nanoseconds of virtual time; what did not happen is NULL):

* `run` - one row: what was run and how it ended
* `hosts` - every host of the scenario with its outcome; `domains` - its failure domains
* `vms` - every VM of the scenario with its outcome
* `waves` - the waves of the plan
* `updates` - one row a host update; `vm_updates` - one row a VM and update

The last two have a column `<phase>_ns` for each phase. The views `phases` and `vm_phases`
give the same as one row a phase that happened.
"""

from __future__ import annotations

import os
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, TypeVar

import duckdb
import numpy as np

from fleet.api import PAGE_LABELS, UPDATE_PHASES
from fleet.results import phase_order
from fleet.unwritable import errno_told
from node.api import BLACKOUT_PHASES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from fleet.api import RunRecord, WaveRecord
    from node.api import HostSpec, UpdateResult, VmResult, VmSpec

__all__ = ["fill_event_store", "write_event_store"]

#: Those of a VM that always have a column, so that a query does not depend on what happened.
_VM_PHASES: Final = ("pause_wait", *BLACKOUT_PHASES, "resume_wait", "restart", "failed_freeze")

#: Rows that are held as columns at a time, as many as DuckDB stores together.
_CHUNK: Final = 122_880

_Row = TypeVar("_Row")


def write_event_store(record: RunRecord, path: Path) -> None:
    """Write `record` to a new DuckDB file at `path`, replacing one that is there.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    rests = (part, part.with_name(part.name + ".wal"))
    for rest in rests:  # of an attempt that broke off
        rest.unlink(missing_ok=True)
    try:
        with duckdb.connect(str(part)) as store:
            fill_event_store(store, record)
            store.execute("CHECKPOINT")  # closing would keep silent about what has no room
    except duckdb.Error as error:
        for rest in rests:
            rest.unlink(missing_ok=True)
        if (number := errno_told(error)) is not None:
            raise OSError(number, os.strerror(number)) from error
        if isinstance(error, duckdb.IOException):
            raise OSError(str(error)) from error
        raise
    part.replace(path)


def fill_event_store(store: duckdb.DuckDBPyConnection, record: RunRecord) -> None:
    """Make the tables and views of `record` in an empty database."""
    _write_run(store, record)
    _write_inventory(store, record)
    _write_updates(store, record.results)
    _write_vm_updates(store, record.results)


class _Columns:
    """Some rows of a table, by column: the cells of texts, then those of integers."""

    def __init__(
        self, text: dict[str, Sequence[str]], integer: dict[str, Sequence[int | None]]
    ) -> None:
        self.kinds = dict.fromkeys(text, "VARCHAR") | dict.fromkeys(integer, "BIGINT")
        self.arrays = {name: np.array(cells, dtype=object) for name, cells in text.items()}
        self.arrays |= {name: _integers(cells) for name, cells in integer.items()}


def _integers(cells: Sequence[int | None]) -> np.ndarray:
    if None not in cells:
        return np.array(cells, dtype=np.int64)
    absent = [cell is None for cell in cells]
    return np.ma.masked_array(np.array([cell or 0 for cell in cells], dtype=np.int64), mask=absent)


def _write(
    store: duckdb.DuckDBPyConnection,
    table: str,
    rows: Iterable[_Row],
    read: Callable[[Sequence[_Row]], _Columns],
) -> None:
    """Create and fill a table, through one array a column: row by row takes minutes."""
    left = iter(rows)
    kinds = read(()).kinds
    declared = ", ".join(f'"{name}" {kind}' for name, kind in kinds.items())
    store.execute(f"CREATE TABLE {table} ({declared})")
    while some := list(islice(left, _CHUNK)):
        store.register("incoming", read(some).arrays)
        store.execute(f"INSERT INTO {table} SELECT * FROM incoming")  # noqa: S608  # our names
        store.unregister("incoming")


def _write_run(store: duckdb.DuckDBPyConnection, record: RunRecord) -> None:
    def read(records: Sequence[RunRecord]) -> _Columns:
        scenarios = [r.scenario for r in records]
        return _Columns(
            {
                "scenario": [s.name for s in scenarios],
                "target_release": [s.target_release for s in scenarios],
                "state": [r.state for r in records],
                "why": [r.why for r in records],
                "digest": [r.digest for r in records],
                "scenario_digest": [s.digest for s in scenarios],
                "cost_digest": [r.cost_digest for r in records],
                "backend": [r.backend for r in records],
            },
            {
                "seed": [r.seed for r in records],
                "virtual_ns": [r.virtual_ns for r in records],
                "downtime_budget_ns": [s.downtime_budget_ns for s in scenarios],
                "actors": [r.actors for r in records],
                "peak_rss_bytes": [r.peak_rss_bytes for r in records],
                "wall_ns": [round(r.wall_seconds * 1e9) for r in records],
            },
        )

    _write(store, "run", [record], read)


def _write_inventory(store: duckdb.DuckDBPyConnection, record: RunRecord) -> None:
    wave_of = {host: wave.index for wave in record.waves for host in wave.hosts}

    def read_hosts(hosts: Sequence[HostSpec]) -> _Columns:
        return _Columns(
            {
                "host": [h.name for h in hosts],
                "release": [h.release for h in hosts],
                "outcome": [record.hosts[h.name] for h in hosts],
            },
            {
                "cpus": [h.cpus for h in hosts],
                "numa_nodes": [len(h.node_bytes) for h in hosts],
                "memory_bytes": [sum(h.node_bytes) for h in hosts],
                "wave": [wave_of.get(h.name) for h in hosts],
            },
        )

    def read_domains(domains: Sequence[tuple[str, str, str]]) -> _Columns:
        return _Columns(
            {
                "host": [host for host, _, _ in domains],
                "domain": [key for _, key, _ in domains],
                "value": [value for _, _, value in domains],
            },
            {},
        )

    def read_vms(vms: Sequence[VmSpec]) -> _Columns:
        return _Columns(
            {
                "vm": [v.name for v in vms],
                "host": [v.host for v in vms],
                "backing": [v.backing for v in vms],
                "outcome": [record.vms[v.name] for v in vms],
            },
            {"memory_bytes": [v.memory_bytes for v in vms], "vcpus": [v.vcpus for v in vms]},
        )

    def read_waves(waves: Sequence[WaveRecord]) -> _Columns:
        return _Columns(
            {"name": [w.name for w in waves], "verdict": [w.verdict for w in waves]},
            {
                "wave": [w.index for w in waves],
                "hosts": [len(w.hosts) for w in waves],
                "start_ns": [w.start_ns for w in waves],
                "end_ns": [w.end_ns for w in waves],
                "soak_end_ns": [w.soak_end_ns for w in waves],
            },
        )

    hosts = record.scenario.hosts
    domains = ((host.name, *pair) for host in hosts for pair in host.domains.items())
    _write(store, "hosts", hosts, read_hosts)
    _write(store, "domains", domains, read_domains)
    _write(store, "vms", record.scenario.vms, read_vms)
    _write(store, "waves", record.waves, read_waves)


def _write_updates(store: duckdb.DuckDBPyConnection, results: Sequence[UpdateResult]) -> None:
    happened = chain.from_iterable((r.phases_ns, r.outside_ns) for r in results)
    phases = _phase_columns(UPDATE_PHASES, happened)

    def read(some: Sequence[UpdateResult]) -> _Columns:
        lengths = [r.phases_ns | r.outside_ns for r in some]
        pages = [r.preserved_pages for r in some]
        return _Columns(
            {
                "host": [r.host for r in some],
                "outcome": [r.outcome for r in some],
                "reason": [r.reason for r in some],
                "detail": [r.detail for r in some],
                "release": [r.release for r in some],
                "digest": [r.digest for r in some],
            },
            {
                "seq": [r.seq for r in some],
                "freeze_attempts": [r.freeze_attempts for r in some],
                "start_ns": [r.start_ns for r in some],
                "end_ns": [r.end_ns for r in some],
                "blackout_start_ns": [r.blackout_start_ns for r in some],
                "blackout_end_ns": [r.blackout_end_ns for r in some],
                **{f"preserved_{label}": [p.get(label, 0) for p in pages] for label in PAGE_LABELS},
                **{f"{phase}_ns": [ns.get(phase) for ns in lengths] for phase in phases},
            },
        )

    _write(store, "updates", results, read)
    _phase_view(store, "phases", "updates", "host, seq", phases)


def _write_vm_updates(store: duckdb.DuckDBPyConnection, results: Sequence[UpdateResult]) -> None:
    phases = _phase_columns(_VM_PHASES, (vm.phases_ns for r in results for vm in r.vms))

    def read(some: Sequence[tuple[UpdateResult, VmResult]]) -> _Columns:
        lengths = [vm.phases_ns for _, vm in some]
        return _Columns(
            {
                "vm": [vm.name for _, vm in some],
                "host": [r.host for r, _ in some],
                "outcome": [vm.outcome for _, vm in some],
                "reason": [vm.reason for _, vm in some],
            },
            {
                "seq": [r.seq for r, _ in some],
                "downtime_ns": [vm.downtime_ns for _, vm in some],
                **{f"{phase}_ns": [ns.get(phase) for ns in lengths] for phase in phases},
            },
        )

    _write(store, "vm_updates", ((r, vm) for r in results for vm in r.vms), read)
    _phase_view(store, "vm_phases", "vm_updates", "vm, host, seq", phases)


def _phase_columns(known: Sequence[str], seen: Iterable[dict[str, int]]) -> list[str]:
    extra = set[str]().union(*seen) - set(known)
    return [*known, *phase_order(extra)]


def _phase_view(
    store: duckdb.DuckDBPyConnection, view: str, table: str, keys: str, phases: Sequence[str]
) -> None:
    columns = ", ".join(f'"{phase}_ns"' for phase in phases)
    # S608: names of ours, and of phases
    store.execute(
        f"CREATE VIEW {view} AS SELECT {keys}, regexp_replace(phase, '_ns$', '') AS phase, ns "  # noqa: S608
        f"FROM (UNPIVOT {table} ON {columns} INTO NAME phase VALUE ns)"
    )
