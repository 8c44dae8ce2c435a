"""Rollouts from Python: build a scenario in code, run it, look at it as tables.

    from fleet.notebook import roll_out, scenario_of

    scenario = scenario_of({"fleet": {...}, "update": {...}, "rollout": {...}})
    rollout = roll_out(scenario)
    rollout.table("vm_updates").df()   # a pandas frame; .pl() polars, .to_arrow_table() pyarrow

It works in a notebook, where an event loop runs already, and in a script. Tables are DuckDB
relations: they print themselves, take SQL, and become the frames of whichever library is installed;
SQL sees the caller's own frames by their names. A run that is interrupted ends soon after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import SupportsIndex

import duckdb

from fleet.api import RunRecord
from fleet.event_store import fill_event_store
from fleet.experiment import run_rollout
from fleet.launcher import LocalBackend, RayBackend
from fleet.outputs import write_outputs
from fleet.results import Result, summarise
from fleet.scenario import BadInput, Scenario, content_digest, load_scenario, scenario_of
from fleet.toml_source import plain

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
        # Its threads for files far away would be 8 idle ones for each rollout that is kept.
        store = duckdb.connect(config={"python_scan_all_frames": True, "async_threads": 0})
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

    def __reduce__(self) -> tuple[type[Rollout], tuple[RunRecord]]:
        return type(self), (self.record,)  # from another process: the tables are made again here

    def __repr__(self) -> str:
        hosts, vms = self.result.hosts, self.result.vms
        return (
            f"<Rollout {self.record.scenario.name} {self.record.state}: "
            f"{hosts.updated} of {hosts.total} hosts updated, "
            f"{vms.preserved} of {vms.total} VMs preserved, digest {self.record.digest[:8]}>"
        )


def roll_out(
    scenario: Scenario, *, backend: str = "local", actors: SupportsIndex | str | None = None
) -> Rollout:
    """Run a scenario to its end, in this process or (`backend="ray"`) in Ray actors.

    `actors` is how many shards the fleet is split into, or "per-host"; what suits it, if not given.

    Raises:
        TypeError: `scenario` is none, but the values of one, say.
        ValueError: there is no such backend, or number of actors, or the scenario was changed.
        kernelmodel.errors.ModelBug: the simulator is wrong.
    """
    if not isinstance(scenario, Scenario):
        raise TypeError(
            f"a {type(scenario).__name__} is no scenario: scenario_of() makes one of it"
        )
    if backend not in ("local", "ray"):
        raise ValueError(f'backend {backend!r} is not known: "local" or "ray"')
    if scenario.digest != content_digest(scenario):
        raise ValueError(
            "this scenario was changed after it had been checked, and its faults had been drawn:"
            " make another, of other values or with overrides or a seed"
        )
    shards = _number_of(actors)
    cancel: Future[Callable[[], object]] = Future()

    async def run() -> RunRecord:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None, "this is one"
        cancel.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        where = RayBackend() if backend == "ray" else LocalBackend()
        try:
            return await run_rollout(scenario, where, actors=shards)
        finally:
            await where.close()

    # A thread of its own: in a notebook this one has an event loop that runs.
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(asyncio.run, run())
        try:
            return Rollout(running.result())
        except KeyboardInterrupt:
            with suppress(RuntimeError):  # its loop is closed: it had just ended
                cancel.result()()
            raise


def _number_of(actors: object) -> int | str | None:
    """How many actors there are to be, as the launcher takes it."""
    match plain(actors):
        case None:
            return None
        case "per-host":
            return "per-host"
        case int(number) if number > 0 and not isinstance(number, bool):
            return number
    raise ValueError(f'actors {actors!r}: a number from 1, or "per-host"')
