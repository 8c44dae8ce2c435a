"""Small experiments, as files and as plans, and what their runs may yield, made by hand."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from fleet.sweep.cells import Cell
from fleet.sweep.plan import Adaptive, Choice, Goal, Parameter, Range, SweepPlan
from fleet.sweep.worker import Outcome

SCENARIO = """\
[[fleet.host_class]]
name = "n"
count = 4
memory = "16GiB"
cpus = 8
release = "7.3.2"
[[fleet.vm_class]]
name = "v"
per_host = 2
memory = "1GiB"
backing = "memfd"
vcpus = 2
[update]
target = "7.3.4"
[rollout]
canary = 0
wave_size = 1
soak = "1min"
[rollout.gate]
max_failed_hosts = 4
[[faults]]
kind = "slow-boot"
rate = 0.5
factor = 3
"""
EXPERIMENT = """\
name = "small"
scenario = "s.toml"
seeds = 3
[[parameters]]
key = "rollout.wave_size"
values = [1, 2, 4]
[[parameters]]
name = "trouble"
[parameters.choices]
none = { "faults.0.rate" = 0.0 }
some = { "faults.0.rate" = 0.5 }
[goal]
minimise = "rollout_seconds"
[goal.within]
vms_lost = 0
"""


def written(folder: Path, experiment: str = EXPERIMENT, scenario: str = SCENARIO) -> Path:
    (folder / "s.toml").write_text(scenario)
    (folder / "e.toml").write_text(experiment)
    return folder / "e.toml"


def choices(key: str, *values: int) -> tuple[Choice, ...]:
    return tuple(Choice(str(value), (f"{key}={value}",), float(value)) for value in values)


PLAN = SweepPlan(
    name="p",
    source=Path("e.toml"),
    scenario=Path("s.toml"),
    seeds=(1, 2, 3),
    parameters=(Parameter("a", choices("a", 1, 2)), Parameter("b", choices("b", 10, 20, 30))),
    method="grid",
    samples=0,
    sampling_seed=1,
    adaptive=Adaptive(),
    goal=Goal(),
    base_digest="",
    cost_digest="",
    budget_seconds=30.0,
)
RANGED = replace(
    PLAN,
    parameters=(
        Parameter("rate", range=Range("faults.0.rate", 0.001, 0.1, log=True)),
        Parameter("wave", range=Range("rollout.wave_size", 1, 16, whole=True)),
        Parameter("soak", range=Range("rollout.soak", 10, 600, whole=True, unit="s")),
        Parameter("b", choices("b", 10, 20)),
    ),
    samples=64,
)


def outcome(cell: Cell, seed: int, seconds: float, **more: float) -> Outcome:
    usual = {"rollout_seconds": seconds, "vms_lost": 0.0, "hosts_updated": 1.0}
    return Outcome(cell.key, seed, "", metrics={**usual, **more})
