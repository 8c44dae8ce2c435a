"""Rollouts from Python, as a notebook has them: mistakes, own frames, interruption."""

from __future__ import annotations

import html
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from fleet.notebook import Rollout, Scenario, load_scenario, roll_out, scenario_of

SMALL = Path(__file__).parents[2] / "examples" / "small.toml"

#: A fleet that takes half a minute, interrupted once hosts are being updated; says when it is over.
INTERRUPTED = """
import os, signal, threading
import fleet.notebook as notebook
import node.shard as shard
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
    for actors in (0, -1, "many"):
        with pytest.raises(ValueError, match="a number from 1"):
            roll_out(scenario, actors=actors)


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
