"""`make bench`: every row beside its target, as a ratio to a yardstick and to the committed result.

    python -m benchmarks.table [--full] [--keep]

Absolute times on a shared machine mean little. So each row is divided by a yardstick of the same
session (a gigabyte copied, or the same rollout in SimPy without a kernel), and that ratio by the
one in `results.json`: 1.00 is as it was, whatever the machine. `--full` adds the rows that take
minutes, `--keep` writes `results.json` anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.table import Table

_SECONDS = {"ms": 0.001, "s": 1.0}
RESULTS = Path(__file__).with_name("results.json")


class Row(Struct, frozen=True):
    """One figure: what it must not exceed (or, with `at_least`, not fall below)."""

    name: str
    title: str
    unit: str
    target: float
    yardstick: str = ""  # "copy", "simpy", or none for what is no time
    at_least: bool = False
    full: bool = False


ROWS = (
    Row("update-2MiB", "a host update, 8 VMs x 32 GiB on 2 MiB pages", "ms", 5, "simpy"),
    Row("update-1GiB", "the same on 1 GiB pages", "ms", 1.5, "simpy"),
    Row("update-4KiB", "64 GiB on 4 KiB pages, contiguous", "ms", 250, "copy"),
    Row("memory-4KiB", "the same: memory above idle", "MiB", 64),
    Row(
        "update-4KiB-scattered",
        "64 GiB on 4 KiB pages, a tenth of them scattered",
        "s",
        2.5,
        "copy",
    ),
    Row("memory-4KiB-scattered", "the same: memory above idle", "MiB", 512),
    Row("run-1000", "1,000 hosts, 10,000 VMs, with Ray's start", "s", 15, "simpy"),
    Row("run-20000", "20,000 hosts, 200,000 VMs", "s", 75, "simpy", full=True),
    Row("run-100000", "100,000 hosts, 1,000,000 VMs", "s", 480, "simpy", full=True),
    Row("idle-host", "an idle host with 10 VMs", "KiB", 40),
    Row("flatness", "an update late in a run, over an early one", "x", 1.1),
    Row("two-actors", "two actors over one: throughput", "x", 1.6, at_least=True),
    Row("store", "journal, event store, report and metrics: added", "%", 15),
)


def measured(name: str) -> float:
    """A row of `benchmarks.rows`, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rows", name], check=True, capture_output=True, text=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def measured_beside(row: Row) -> tuple[float, float]:
    """A row, and its yardstick as it was then: a shared machine is not as fast all the time."""
    if not row.yardstick:
        return measured(row.name), 0.0
    before = measured(row.yardstick)
    value = measured(row.name)
    return value, (before + measured(row.yardstick)) / 2


def main() -> None:
    """Measure, print, and with --keep write."""
    parser = argparse.ArgumentParser(description="Benchmarks beside their targets.")
    parser.add_argument("--full", action="store_true", help="also the rows that take minutes")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results.json anew")
    options = parser.parse_args()
    console = Console(width=max(120, Console().width))
    committed = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    table = Table(title="Benchmarks", title_justify="left")
    for column in ("row", "measured", "target", "met", "of yardstick", "of committed"):
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    kept = {}
    for row in ROWS:
        if row.full and not options.full:
            continue
        value, yardstick = measured_beside(row)
        ratio = value * _SECONDS.get(row.unit, 1.0) / yardstick if yardstick else value
        kept[row.name] = {"value": value, "ratio": ratio, "yardstick": yardstick}
        before = committed.get("rows", {}).get(row.name, {}).get("ratio")
        met = value >= row.target if row.at_least else value <= row.target
        table.add_row(
            row.title,
            f"{value:.3g} {row.unit}",
            f"{'>=' if row.at_least else '<='} {row.target:g} {row.unit}",
            "yes" if met else "no",
            f"{ratio:.3g} x {yardstick:.2g} s" if yardstick else "",
            f"{ratio / before:.2f}" if before else "",
        )
        console.print(f"{row.title}: {value:.3g} {row.unit}")
    console.print(table)
    console.print(
        "yardsticks, taken beside each row: a gigabyte copied, for small pages; a host of a SimPy "
        f"rollout without kernels, for huge pages and runs; load {os.getloadavg()[0]:.1f}"
    )
    if options.keep:
        rows = committed.get("rows", {}) | kept
        text = json.dumps({"rows": rows}, indent=2, sort_keys=True)
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
