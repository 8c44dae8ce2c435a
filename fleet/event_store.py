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

from typing import TYPE_CHECKING, Final

import duckdb
import numpy as np

from fleet.results import PAGE_LABELS, phase_order
from node.api import BLACKOUT_PHASES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import Any

    from fleet.api import RunRecord
    from node.api import UpdateResult

__all__ = ["fill_event_store", "write_event_store"]

#: Phases that always have a column, so that a query does not depend on what happened.
_UPDATE_PHASES: Final = ("kexec_file_load", "preserve", *BLACKOUT_PHASES, "finish")
_VM_PHASES: Final = ("pause_wait", *BLACKOUT_PHASES, "resume_wait", "restart")

_TEXT: Final = "VARCHAR"
_INTEGER: Final = "BIGINT"


def write_event_store(record: RunRecord, path: Path) -> None:
    """Write `record` to a new DuckDB file at `path`, replacing one that is there.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    try:
        with duckdb.connect(str(part)) as store:
            fill_event_store(store, record)
    except duckdb.IOException as error:
        raise OSError(str(error)) from error
    part.replace(path)


def fill_event_store(store: duckdb.DuckDBPyConnection, record: RunRecord) -> None:
    """Make the tables and views of `record` in an empty database."""
    _write_run(store, record)
    _write_inventory(store, record)
    _write_updates(store, record.results)
    _write_vm_updates(store, record.results)


class _Table:
    """A table under construction: rows, and how each column is read off a row."""

    def __init__(self, name: str, rows: Sequence[Any]) -> None:
        self.name = name
        self.rows = rows
        self.kinds: dict[str, str] = {}
        self.cells: dict[str, list[Any]] = {}

    def text(self, **columns: Callable[[Any], str]) -> None:
        for name, read in columns.items():
            self.kinds[name] = _TEXT
            self.cells[name] = [str(read(row)) for row in self.rows]

    def integer(self, **columns: Callable[[Any], int | None]) -> None:
        for name, read in columns.items():
            self.kinds[name] = _INTEGER
            self.cells[name] = [read(row) for row in self.rows]

    def write(self, store: duckdb.DuckDBPyConnection) -> None:
        """Create and fill the table, through one array a column: row by row takes minutes."""
        declared = ", ".join(f'"{name}" {kind}' for name, kind in self.kinds.items())
        store.execute(f"CREATE TABLE {self.name} ({declared})")
        if not self.rows:
            return
        store.register(
            "incoming",
            {
                name: _integers(cells)
                if self.kinds[name] == _INTEGER
                else np.array(cells, dtype=object)
                for name, cells in self.cells.items()
            },
        )
        store.execute(f"INSERT INTO {self.name} SELECT * FROM incoming")  # noqa: S608  # our names
        store.unregister("incoming")


def _integers(cells: Sequence[int | None]) -> object:
    absent = [cell is None for cell in cells]
    return np.ma.masked_array(np.array([cell or 0 for cell in cells], dtype=np.int64), mask=absent)


def _write_run(store: duckdb.DuckDBPyConnection, record: RunRecord) -> None:
    table = _Table("run", [record])
    table.text(
        scenario=lambda r: r.scenario.name,
        target_release=lambda r: r.scenario.target_release,
        state=lambda r: r.state,
        why=lambda r: r.why,
        digest=lambda r: r.digest,
        scenario_digest=lambda r: r.scenario.digest,
        cost_digest=lambda r: r.cost_digest,
        backend=lambda r: r.backend,
    )
    table.integer(
        seed=lambda r: r.seed,
        virtual_ns=lambda r: r.virtual_ns,
        downtime_budget_ns=lambda r: r.scenario.downtime_budget_ns,
        actors=lambda r: r.actors,
        peak_rss_bytes=lambda r: r.peak_rss_bytes,
        wall_ns=lambda r: round(r.wall_seconds * 1e9),
    )
    table.write(store)


def _write_inventory(store: duckdb.DuckDBPyConnection, record: RunRecord) -> None:
    wave_of = {host: wave.index for wave in record.waves for host in wave.hosts}
    hosts = _Table("hosts", record.scenario.hosts)
    hosts.text(
        host=lambda h: h.name, release=lambda h: h.release, outcome=lambda h: record.hosts[h.name]
    )
    hosts.integer(
        cpus=lambda h: h.cpus,
        numa_nodes=lambda h: len(h.node_bytes),
        memory_bytes=lambda h: sum(h.node_bytes),
        wave=lambda h: wave_of.get(h.name),
    )
    hosts.write(store)

    pairs = [
        (host.name, key, value)
        for host in record.scenario.hosts
        for key, value in host.domains.items()
    ]
    domains = _Table("domains", pairs)
    domains.text(host=lambda d: d[0], domain=lambda d: d[1], value=lambda d: d[2])
    domains.write(store)

    vms = _Table("vms", record.scenario.vms)
    vms.text(
        vm=lambda v: v.name,
        host=lambda v: v.host,
        backing=lambda v: v.backing,
        outcome=lambda v: record.vms[v.name],
    )
    vms.integer(memory_bytes=lambda v: v.memory_bytes, vcpus=lambda v: v.vcpus)
    vms.write(store)

    waves = _Table("waves", record.waves)
    waves.text(name=lambda w: w.name, verdict=lambda w: w.verdict)
    waves.integer(
        wave=lambda w: w.index,
        hosts=lambda w: len(w.hosts),
        start_ns=lambda w: w.start_ns,
        end_ns=lambda w: w.end_ns,
        soak_end_ns=lambda w: w.soak_end_ns,
    )
    waves.write(store)


def _write_updates(store: duckdb.DuckDBPyConnection, results: Sequence[UpdateResult]) -> None:
    lengths = [result.phases_ns | result.outside_ns for result in results]
    phases = _phase_columns(_UPDATE_PHASES, lengths)
    table = _Table("updates", results)
    table.text(
        host=lambda r: r.host,
        outcome=lambda r: r.outcome,
        reason=lambda r: r.reason,
        detail=lambda r: r.detail,
        release=lambda r: r.release,
        digest=lambda r: r.digest,
    )
    table.integer(
        seq=lambda r: r.seq,
        freeze_attempts=lambda r: r.freeze_attempts,
        start_ns=lambda r: r.start_ns,
        end_ns=lambda r: r.end_ns,
        blackout_start_ns=lambda r: r.blackout_start_ns,
        blackout_end_ns=lambda r: r.blackout_end_ns,
    )
    for label in PAGE_LABELS:
        table.integer(
            **{f"preserved_{label}": lambda r, label=label: r.preserved_pages.get(label, 0)}
        )
    for phase in phases:
        table.integer(**{f"{phase}_ns": lambda r, p=phase: (r.phases_ns | r.outside_ns).get(p)})
    table.write(store)
    _phase_view(store, "phases", "updates", "host, seq", phases)


def _write_vm_updates(store: duckdb.DuckDBPyConnection, results: Sequence[UpdateResult]) -> None:
    every = [(result, vm) for result in results for vm in result.vms]
    phases = _phase_columns(_VM_PHASES, (vm.phases_ns for _, vm in every))
    table = _Table("vm_updates", every)
    table.text(
        vm=lambda row: row[1].name,
        host=lambda row: row[0].host,
        outcome=lambda row: row[1].outcome,
        reason=lambda row: row[1].reason,
    )
    table.integer(seq=lambda row: row[0].seq, downtime_ns=lambda row: row[1].downtime_ns)
    for phase in phases:
        table.integer(**{f"{phase}_ns": lambda row, p=phase: row[1].phases_ns.get(p)})
    table.write(store)
    _phase_view(store, "vm_phases", "vm_updates", "vm, host, seq", phases)


def _phase_columns(known: Sequence[str], seen: Iterable[dict[str, int]]) -> list[str]:
    extra = {name for phases in seen for name in phases} - set(known)
    return [*known, *phase_order(extra)]


def _phase_view(
    store: duckdb.DuckDBPyConnection, view: str, table: str, keys: str, phases: Sequence[str]
) -> None:
    columns = ", ".join(f'"{phase}_ns"' for phase in phases)
    store.execute(
        f"CREATE VIEW {view} AS SELECT {keys}, regexp_replace(phase, '_ns$', '') AS phase, ns "  # noqa: S608
        f"FROM (UNPIVOT {table} ON {columns} INTO NAME phase VALUE ns)"
    )
