"""Rollouts from Python, as a notebook has them: mistakes, own frames, interruption."""

from __future__ import annotations

import html
import os
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fleet.notebook import Rollout, Scenario, load_scenario, roll_out, scenario_of

SMALL = Path(__file__).parents[2] / "examples" / "small.toml"

#: A fleet that takes half a minute, interrupted once hosts are being updated; says when it is over.
INTERRUPTED = """
import os, signal, threading
import fleet.notebook as notebook
import node.shard as shard
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
scenario = notebook.load_scenario({path!r}, ["fleet.host_class.0.count=4000"])
update, seen = shard.Shard.update, []
def counted(self, commands):
    seen.extend(commands)
    if len(seen) == len(commands):
        os.kill(os.getpid(), signal.SIGINT)
    return update(self, commands)
shard.Shard.update = counted
try:
    notebook.roll_out(scenario)
except KeyboardInterrupt:
    print(len(seen), threading.active_count())
"""


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(SMALL)


@pytest.fixture(scope="module")
def rollout(scenario: Scenario) -> Rollout:
    return roll_out(scenario)


def test_queries_see_the_frames_of_whoever_asks(rollout: Rollout) -> None:
    owners = {"vm": np.array(["node-1-huge-1", "node-2-huge-1"]), "team": np.array(["a", "b"])}
    asked = "SELECT team, outcome FROM owners JOIN vm_updates USING (vm) ORDER BY team"
    assert len(owners) == 2
    assert rollout.sql(asked).fetchall() == [("a", "preserved"), ("b", "preserved")]


def test_a_report_says_how_its_run_is_made_again(rollout: Rollout, tmp_path: Path) -> None:
    page = html.unescape(rollout.write(tmp_path / "file").read_text())
    assert f"lufleet run {SMALL} --seed 1" in page
    scenario = scenario_of(tomllib.loads(SMALL.read_text()), ["rollout.wave_size=3"], 8)
    page = html.unescape(roll_out(scenario).write(tmp_path / "code").read_text())
    assert "roll_out(scenario_of(values, ['rollout.wave_size=3'], seed=8))" in page
    assert "lufleet run" not in page


def test_what_is_no_scenario_backend_or_number_is_told(scenario: Scenario) -> None:
    with pytest.raises(TypeError, match=r"a dict is no scenario: scenario_of\(\)"):
        roll_out({"fleet": {}})  # type: ignore[arg-type] # what a notebook may hold
    with pytest.raises(ValueError, match="'rya' is not known"):
        roll_out(scenario, backend="rya")
    for actors in (0, -1, True, np.int64(0), "many"):
        with pytest.raises(ValueError, match="a number from 1"):
            roll_out(scenario, actors=actors)


def test_a_scenario_that_was_changed_is_not_run(scenario: Scenario) -> None:
    """What its faults strike was drawn for the seed that it was read with, and it was checked."""
    other = msgspec.structs.replace(scenario, seed=2)
    with pytest.raises(ValueError, match="changed after it had been checked"):
        roll_out(other)
    other = load_scenario(SMALL)
    other.rollout.max_unavailable["rack"] = 0
    with pytest.raises(ValueError, match="changed after it had been checked"):
        roll_out(other)


def test_numbers_of_numpy_make_the_same_run(rollout: Rollout) -> None:
    again = roll_out(load_scenario(SMALL, seed=np.int64(1)), actors=np.int64(2))
    assert again.record.digest == rollout.record.digest


def test_a_rollout_that_was_looked_at_goes_between_processes(rollout: Rollout) -> None:
    rows = rollout.sql("SELECT * FROM vm_updates").fetchall()
    there = pickle.loads(pickle.dumps(rollout))
    assert there.sql("SELECT * FROM vm_updates").fetchall() == rows


def threads_there() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_tables_that_are_kept_take_few_threads(scenario: Scenario) -> None:
    """A notebook keeps the rollouts of a loop in a list; each table opens a database of its own."""
    kept = [roll_out(scenario), roll_out(scenario)]
    kept[0].table("run")
    before = threads_there()
    kept[1].table("run")
    assert threads_there() - before < (os.cpu_count() or 1)


def test_an_interrupted_run_ends_soon_and_leaves_no_thread() -> None:
    path = str(SMALL.with_name("scale.toml"))
    told = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(path=path)],
        capture_output=True,
        text=True,
        check=True,
    )
    updated, threads = map(int, told.stdout.split())
    assert 0 < updated < 400, "of 4,000"
    assert threads == 1
