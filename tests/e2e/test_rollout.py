"""Whole rollouts on whole kernels: one digest wherever they run and whatever dies on the way."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner, Result

from fleet.api import RunRecord
from fleet.cli import app
from fleet.experiment import Experiment, run_rollout
from fleet.journal import Journal, journal_header
from fleet.launcher import LocalBackend, RayBackend
from fleet.scenario import Scenario, load_scenario

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "examples/small.toml"
LUFLEET = [sys.executable, "-m", "fleet.cli"]


def lufleet(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def run_small(out: Path, *words: str) -> str:
    """The digest of the small example, with options."""
    result = lufleet("run", SMALL, "--backend", "local", "--out", out, *words)
    assert result.exit_code == 0, result.output
    return str(json.loads((out / "result.json").read_text())["digest"])


@pytest.fixture(scope="module")
def small() -> Scenario:
    return load_scenario(SMALL)


@pytest.fixture(scope="module")
def undisturbed(small: Scenario) -> RunRecord:
    return rolled_out(small, LocalBackend())


def rolled_out(
    scenario: Scenario, backend: LocalBackend | RayBackend, actors: int | str | None = None
) -> RunRecord:
    async def run() -> RunRecord:
        try:
            return await run_rollout(scenario, backend, actors=actors)
        finally:
            await backend.close()

    return asyncio.run(run())


@pytest.mark.parametrize("actors", [1, 2])
def test_local_shards_agree(small: Scenario, undisturbed: RunRecord, actors: int) -> None:
    record = rolled_out(small, LocalBackend(), actors)
    assert record.digest == undisturbed.digest
    assert record.actors == actors


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("actors", [2, "per-host"])
def test_actors_agree_with_local_shards(
    small: Scenario, undisturbed: RunRecord, actors: int | str
) -> None:
    record = rolled_out(small, RayBackend(), actors)
    assert record.digest == undisturbed.digest
    assert record.results == undisturbed.results


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_is_killed_changes_nothing(small: Scenario, undisturbed: RunRecord) -> None:
    """SIGKILL after the canary: the next call finds the actor dead and rebuilds it by replay."""
    pids: list[int] = []
    killed: list[int] = []

    def kill_once(experiment: Experiment) -> None:
        if experiment.results and not killed:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    async def run(journal: Journal) -> RunRecord:
        backend = RayBackend()
        try:
            experiment = Experiment(small, backend, journal, actors=1, on_change=kill_once)
            await experiment.open()
            (shard,) = experiment.shards
            pids.append(await shard.call("__ray_call__", lambda _: os.getpid()))
            record = await experiment.run()
            pids.append(await shard.call("__ray_call__", lambda _: os.getpid()))
            return record
        finally:
            await backend.close()

    with Journal.create(None, journal_header(small, records_events=False)) as journal:
        record = asyncio.run(run(journal))
    assert record.digest == undisturbed.digest
    assert record.results == undisturbed.results
    assert len(set(pids)) == 2


def test_the_digest_is_recomputed_from_the_trace_file_alone(tmp_path: Path) -> None:
    digest = run_small(tmp_path / "out", "--trace-out", str(tmp_path / "trace"))
    script = [sys.executable, str(ROOT / "examples/trace_digest.py"), str(tmp_path / "trace")]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == digest


CHANGES = {
    "nothing": (),
    "the seed": ("--seed", "2"),
    "one page": ("--set", "fleet.vm_class.0.memory=131076KiB"),
    "one cost row": ("--set", "costs.kho_extend_scratch.per_unit_ps=42000"),
    "one fault": ("--set", 'faults=[{kind = "slow-boot", host = "node-2", factor = 2}]'),
}


def test_the_digest_changes_with_every_part_of_the_input(
    tmp_path: Path, undisturbed: RunRecord
) -> None:
    digests = {what: run_small(tmp_path / what, *words) for what, words in CHANGES.items()}
    assert digests["nothing"] == undisturbed.digest
    assert len(set(digests.values())) == len(CHANGES), digests


@pytest.mark.parametrize("kind", ["drop-preserved-page", "corrupt-folio-entry"])
def test_a_vm_whose_memory_was_lost_is_reported_and_halts_the_rollout(
    tmp_path: Path, kind: str
) -> None:
    fault = f'faults=[{{kind = "{kind}", host = "node-2", vm = "node-2-huge-1"}}]'
    result = lufleet("run", SMALL, "--backend", "local", "--out", tmp_path / "out", "--set", fault)
    assert result.exit_code == 3, result.output
    written = json.loads((tmp_path / "out/result.json").read_text())
    assert written["vms"]["lost"] == 1
    assert written["rollout"]["state"] == "halted"
    assert written["downtime_seconds"]["max"] is None


LONG = (
    SMALL.read_text().replace("count = 3", "count = 150").replace("wave_size = 2", "wave_size = 9")
)


def test_ctrl_c_keeps_the_state_and_the_run_goes_on_to_the_same_digest(tmp_path: Path) -> None:
    """A real process, a real SIGINT after the canary, the printed command to go on."""
    (tmp_path / "long.toml").write_text(LONG)
    command = ["run", "long.toml", "--backend", "local"]
    process = subprocess.Popen(
        [*LUFLEET, *command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "canary" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "interrupted; " in said
    again = shlex.split(said.splitlines()[-1])
    assert again[:2] == ["lufleet", "run"]
    digests = []
    for words in (again[1:], [*command, "--out", "undisturbed"]):
        ended = subprocess.run([*LUFLEET, *words], cwd=tmp_path, check=True, capture_output=True)
        assert b"150 of 150 hosts updated" in ended.stdout
        out = tmp_path / words[words.index("--out") + 1]
        digests.append(json.loads((out / "result.json").read_text())["digest"])
    assert digests[0] == digests[1]


def test_a_served_fleet_starts_is_scraped_and_stops(tmp_path: Path) -> None:
    """`serve --start` reaches the digest of `run`, and SIGTERM makes it write its results."""
    options = ["--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--speed", "inf", "--start"]
    process = subprocess.Popen(
        [*LUFLEET, "serve", str(SMALL), "--backend", "local", "--out", "o", *options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(4)]
    assert said[0].startswith("small: 3 hosts, 9 VMs")
    url = said[2].split()[1]
    while b'lufleet_rollout_state{state="completed"} 1.0' not in urlopen(url).read():
        pass
    process.send_signal(signal.SIGTERM)
    closing, _ = process.communicate()
    assert process.returncode == 0
    assert "completed: 3 of 3 hosts updated" in closing
    digest = json.loads((tmp_path / "o/result.json").read_text())["digest"]
    assert digest == run_small(tmp_path / "run")
