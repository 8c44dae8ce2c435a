"""A finished rollout as a file that Prometheus can take in, in virtual time.

    python -m fleet.backfill SCENARIO.toml metrics.om
    promtool tsdb create-blocks-from openmetrics metrics.om data

Prometheus drops samples that lie in its future, so a rollout of days that was computed in seconds
cannot be scraped; it can be backfilled. The file holds what `/metrics` would have shown, at even
steps of virtual time from `--start` on. A scenario and its seed determine their run, so the
rollout is simply run once more, in this process.

Simplification: hugetlb pools and scratch of a host are known from its first update on.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from fleet.api import FleetSnapshot, RolloutState, RunRecord
from fleet.bad_input import BadInput
from fleet.coordinator import Coordinator
from fleet.experiment import run_rollout
from fleet.launcher import LocalBackend
from fleet.openmetrics import openmetrics
from fleet.plan import make_plan
from fleet.scenario import Scenario, load_scenario
from fleet.snapshot import Books
from fleet.unwritable import CannotWrite, writing
from kernelmodel.sim.trace import Trace

__all__ = ["replay", "write_backfill"]

#: The dashboard asks for increases over little more than a point of its graphs, some 700 of which
#: are a panel's width; there are none between fewer than two samples.
_STEPS: Final = 1600
_LEAST_STEP_NS: Final = 1_000_000_000
#: Five minutes after its last sample, a series is gone for Prometheus.
_LONGEST_STEP_NS: Final = 240_000_000_000


def replay(record: RunRecord) -> Iterator[FleetSnapshot]:
    """The fleet at even steps of virtual time, the last of them at the rollout's end."""
    scenario = record.scenario
    books = Books(scenario)
    idle = Coordinator(make_plan(scenario), scenario.rollout.gate, Trace("fleet"))
    begins = sorted(record.results, key=lambda result: result.start_ns, reverse=True)
    ends = list(reversed(record.results))
    step_ns = max(_LEAST_STEP_NS, min(-(-record.virtual_ns // _STEPS), _LONGEST_STEP_NS))
    for now_ns in (*range(0, record.virtual_ns, step_ns), record.virtual_ns):
        # A host may be updated more than once: its end comes before its next start.
        while ends or begins:
            end_ns = ends[-1].end_ns if ends else now_ns + 1
            begin_ns = begins[-1].start_ns if begins else now_ns + 1
            if min(end_ns, begin_ns) > now_ns:
                break
            if end_ns <= begin_ns:
                books.ended(ends.pop())
            else:
                result = begins.pop()
                books.started(result.host)
                books.answered(result)
        if now_ns >= record.virtual_ns:
            books.over()
        yield _stamped(books.snapshot(now_ns, idle), record, now_ns)


def _stamped(snapshot: FleetSnapshot, record: RunRecord, now_ns: int) -> FleetSnapshot:
    """`snapshot` with the state and the wave that the rollout was in."""
    state, wave, name = RolloutState.PENDING, -1, ""
    for passed in record.waves:
        if passed.start_ns is None or passed.start_ns > now_ns:
            break
        wave, name = passed.index, passed.name
        state = RolloutState.CANARY if name == "canary" else RolloutState.WAVE
        if passed.end_ns is not None and passed.end_ns <= now_ns:
            state = RolloutState.SOAKING
    if now_ns >= record.virtual_ns:
        state = record.state
    return msgspec.structs.replace(snapshot, state=state, wave=wave, wave_name=name)


def write_backfill(record: RunRecord, path: Path, start_s: float) -> None:
    """Write the metrics of `record` as OpenMetrics, virtual time 0 at Unix time `start_s`."""
    instance = f"{record.scenario.name}-seed{record.seed}"
    path.write_text(openmetrics(replay(record), start_s, instance), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fleet.backfill", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("scenario", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=v")
    parser.add_argument(
        "--start", type=float, help="Unix time of virtual 0; if not given, so that it ends now"
    )
    options = parser.parse_args(arguments)
    try:
        scenario = load_scenario(options.scenario, options.overrides, options.seed)
    except BadInput as bad:
        sys.stderr.write(f"{bad}\n")
        return 2
    try:
        return _backfill(scenario, options.file, options.start)
    except CannotWrite as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _backfill(scenario: Scenario, file: Path, start_s: float | None) -> int:
    """Run it and write it down. Raises: CannotWrite, and not after the whole run if it can."""
    with writing(file):
        file.open("a").close()
    record = asyncio.run(run_rollout(scenario, LocalBackend()))
    start_s = time.time() - record.virtual_ns / 1e9 if start_s is None else start_s
    with writing(file):
        write_backfill(record, file, start_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
