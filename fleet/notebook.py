"""Rollouts from Python: build a scenario in code, run it, look at it as tables.

    from fleet.notebook import roll_out, scenario_of

    scenario = scenario_of({"fleet": {...}, "update": {...}, "rollout": {...}})
    rollout = roll_out(scenario)
    rollout.table("vm_updates").df()         # a pandas frame; .pl() polars, .arrow() pyarrow

It works in a notebook, where an event loop runs already, and in a script. Tables are DuckDB
relations: they print themselves, take SQL, and become the frames of whichever library is installed.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import duckdb

from fleet.api import RunRecord
from fleet.event_store import fill_event_store
from fleet.experiment import run_rollout
from fleet.launcher import LocalBackend, RayBackend
from fleet.outputs import write_outputs
from fleet.results import Result, summarise
from fleet.scenario import BadInput, Scenario, load_scenario, scenario_of

__all__ = ["BadInput", "Rollout", "Scenario", "load_scenario", "roll_out", "scenario_of"]


class Rollout:
    """A rollout that has ended."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    @cached_property
    def result(self) -> Result:
        """The summary, as `result.json` has it."""
        return summarise(self.record)

    @cached_property
    def store(self) -> duckdb.DuckDBPyConnection:
        """Everything as tables in memory; `fleet.event_store` lists them."""
        store = duckdb.connect()
        fill_event_store(store, self.record)
        return store

    def table(self, name: str) -> duckdb.DuckDBPyRelation:
        """A table or view of the store. Raises: duckdb.CatalogException, there is none."""
        return self.store.table(name)

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """The answer to a query."""
        return self.store.sql(query)

    def write(self, out: Path | str) -> Path:
        """`result.json`, `report.html` and `run.duckdb` into a directory; the report's path."""
        return write_outputs(self.record, Path(out)).report_html

    def __repr__(self) -> str:
        hosts, vms = self.result.hosts, self.result.vms
        return (
            f"<Rollout {self.record.scenario.name} {self.record.state}: "
            f"{hosts.updated} of {hosts.total} hosts updated, "
            f"{vms.preserved} of {vms.total} VMs preserved, digest {self.record.digest[:8]}>"
        )


def roll_out(
    scenario: Scenario, *, backend: str = "local", actors: int | str | None = None
) -> Rollout:
    """Run a scenario to its end, in this process or (`backend="ray"`) in Ray actors.

    Raises:
        kernelmodel.errors.ModelBug: the simulator is wrong.
    """

    async def run() -> RunRecord:
        where = RayBackend() if backend == "ray" else LocalBackend()
        try:
            return await run_rollout(scenario, where, actors=actors)
        finally:
            await where.close()

    # A thread of its own: in a notebook this one has an event loop that runs.
    with ThreadPoolExecutor(1) as thread:
        return Rollout(thread.submit(asyncio.run, run()).result())
