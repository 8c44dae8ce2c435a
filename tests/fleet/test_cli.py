"""The command line: what it prints, what it writes, how it ends. Shards are toys here."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import fleet.run
from fleet.cli import app
from kernelmodel.errors import ModelBug
from kernelmodel.sim.trace import TraceFile
from tests.fleet.toys import ToyBackend

SCENARIO = """\
name = "small fleet"
seed = 7

[[fleet.host_class]]
name = "std"
count = 6
racks = 2
memory = "64GiB"
cpus = 8
release = "7.3.2+hugetlb"
hugepages = { "2MiB" = 4096 }

[[fleet.vm_class]]
name = "web"
per_host = 2
memory = "2GiB"
backing = "hugetlb-2M"
vcpus = 2

[update]
target = "7.3.4+hugetlb"

[rollout]
canary = 1
wave_size = 3
max_unavailable = { rack = 1 }
soak = "5min"

[rollout.gate]
max_failed_hosts = 1
max_lost_vms = 0

[[faults]]
host = "std-4"
kind = "next-kernel-panics"
"""

Backends = Callable[..., ToyBackend]


@pytest.fixture
def backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backends:
    """An empty working directory with a scenario, and a function that sets the next backend."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("s.toml").write_text(SCENARIO)

    def use(*args: object) -> ToyBackend:
        backend = ToyBackend(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(fleet.run, "make_backend", lambda _: backend)
        return backend

    use()
    return use


def lufleet(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_mistakes_are_listed_and_nothing_is_started(backends: Backends) -> None:
    Path("s.toml").write_text(SCENARIO.replace("+hugetlb", "+huge").replace("rack = 1", "rak = 1"))
    backend = backends()
    for command in ("run", "check", "serve"):
        result = lufleet(command, "s.toml")
        assert result.exit_code == 2
        assert "s.toml:10: " in result.stderr
        assert "mistakes; nothing was started" in result.stderr
    assert backend.handles == []
    assert not Path("runs").exists()


WRONG = [
    # command line                                         what is said
    ("run s.toml --actors 0", "neither a number of actors nor per-host"),
    ("run s.toml --actors all", "neither a number of actors nor per-host"),
    ("run s.toml --backend slurm", "slurm"),
    ("serve s.toml --speed 0", "is not a speed"),
    ("serve s.toml --grpc nowhere", "--grpc: 'nowhere' is no HOST:PORT"),
    ("serve s.toml --metrics :1", "--metrics: ':1' is no HOST:PORT"),
    ("run s.toml --backend local --address h:1", "--address is that of a Ray cluster"),
    ("run s.toml --address ray://h:1", "'ray://h:1' is not the address of a Ray cluster"),
    ("serve s.toml --address 10.0.0.1", "'10.0.0.1' is not the address of a Ray cluster"),
    ("run s.toml --resume", "there is no run to resume"),
    ("run missing.toml", "missing.toml"),
    ("run s.toml --set rollout.waves=3", "rollout.waves"),
    ("run s.toml --seed=-1", "--seed"),
    ("run s.toml --out s.toml", "s.toml"),
    ("run s.toml --trace-out .", "Is a directory"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[line for line, _ in WRONG])
@pytest.mark.usefixtures("backends")
def test_wrong_options_end_with_2(line: str, said: str) -> None:
    result = lufleet(*shlex.split(line))
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.usefixtures("backends")
def test_a_rollout_that_its_gate_halts_ends_with_3() -> None:
    result = lufleet("run", "s.toml", "--set", "rollout.gate.max_failed_hosts=0")
    assert result.exit_code == 3
    assert "halted: 1 host failed or rolled back, the gate allows 0" in result.stdout


def test_a_bug_of_the_model_ends_with_4_and_says_how_to_see_it_again(backends: Backends) -> None:
    backends(2, ModelBug("the radix tree has two roots"))
    result = lufleet("run", "s.toml", "--set", "rollout.wave_size=2", "--out", "o", "--seed", "9")
    assert result.exit_code == 4
    assert "the radix tree has two roots" in result.stderr
    assert "seed 9" in result.stderr
    assert "lufleet run s.toml --seed 9 --set rollout.wave_size=2 --backend local" in result.stderr
    assert "the radix tree has two roots" in Path("o/model-bug.txt").read_text()


def test_a_bug_that_nobody_foresaw_ends_with_4_too(backends: Backends) -> None:
    backends(2, KeyError("pfn"))
    result = lufleet("run", "s.toml")
    assert result.exit_code == 4
    assert "KeyError: 'pfn'" in result.stderr


def test_an_interrupted_run_is_kept_and_the_line_that_it_prints_goes_on(backends: Backends) -> None:
    first = backends(3, asyncio.CancelledError())
    result = lufleet("run", "s.toml", "--trace-out", "t/trace", "--seed", "8")
    assert result.exit_code == 130
    assert "interrupted; 3 host updates are kept" in result.stderr
    second = backends()
    command = result.stderr.splitlines()[-1].split()
    assert command[0] == "lufleet"
    assert command[-1] == "--resume"
    again = lufleet(*command[1:])
    assert again.exit_code == 0, again.stderr
    assert len(first.updated) == 3
    assert sorted(first.updated + second.updated) == [f"std-{nr}" for nr in range(1, 7)]
    backends()
    lufleet("run", "s.toml", "--trace-out", "u", "--seed", "8", "--out", "undisturbed")
    digests = [
        json.loads(path.read_text())["digest"]
        for path in (*Path("runs").glob("*/result.json"), Path("undisturbed/result.json"))
    ]
    assert digests[0] == digests[1]
    assert Path("t/trace").read_bytes() == Path("u").read_bytes()


def test_a_run_that_was_resumed_takes_no_credit_for_what_was_done_before(
    backends: Backends,
) -> None:
    backends(3, asyncio.CancelledError())
    lufleet("run", "s.toml", "--out", "o")
    backends()
    again = lufleet("run", "s.toml", "--out", "o", "--resume")
    assert "; 3 updates from before the interruption" in " ".join(again.stdout.split())
    written = json.loads(Path("o/result.json").read_text())
    rate = written["host_updates_per_second"]
    assert rate * written["wall_seconds"] == pytest.approx(3), "of six"


def test_a_resumed_run_tells_its_waves_in_order(backends: Backends) -> None:
    backends(5, asyncio.CancelledError())
    lufleet("run", "s.toml", "--out", "o")
    backends()
    again = lufleet("run", "s.toml", "--out", "o", "--resume").stdout
    times = re.findall(r"^  (\d:\d\d:\d\d)  ", again, re.MULTILINE)
    assert len(times) > 3
    assert times == sorted(times)


@pytest.mark.usefixtures("backends")
def test_a_report_says_how_to_make_the_run_again() -> None:
    replaced = ("--set", "rollout.wave_size='50%'", "--set", "update.freeze_retries=1")
    assert lufleet("run", "s.toml", "--out", "o", *replaced).exit_code == 0
    first = json.loads(Path("o/result.json").read_text())
    assert first["overrides"] == list(replaced[1::2])
    page = html.unescape(Path("o/report.html").read_text())
    (command,) = re.findall(r"<code[^>]*>(lufleet run .*?)</code>", page)
    assert lufleet(*shlex.split(command)[1:], "--out", "p").exit_code == 0
    assert json.loads(Path("p/result.json").read_text())["digest"] == first["digest"]
    assert lufleet("run", "s.toml", "--out", "q").exit_code == 0
    assert json.loads(Path("q/result.json").read_text())["digest"] != first["digest"]


def test_starting_over_after_an_interrupt_is_pointed_out(backends: Backends) -> None:
    backends(3, asyncio.CancelledError())
    lufleet("run", "s.toml")
    backends()
    result = lufleet("run", "s.toml")
    assert result.exit_code == 0
    assert "this replaces an interrupted run in runs/small-fleet-seed7-" in result.stderr
    backends()
    assert lufleet("run", "s.toml").stderr == "", "it had ended"


@pytest.mark.usefixtures("backends")
def test_results_that_cannot_be_written_are_not_lost() -> None:
    Path("o/report.html").mkdir(parents=True)
    result = lufleet("run", "s.toml", "--out", "o")
    assert result.exit_code == 2
    assert "cannot write o/report.html: Is a directory" in result.stderr
    Path("o/report.html").rmdir()
    assert lufleet(*shlex.split(result.stderr.splitlines()[-1])[1:]).exit_code == 0


def test_more_actors_than_hosts_are_pointed_out_once(backends: Backends) -> None:
    assert lufleet("run", "s.toml", "--actors", "6").stderr == ""
    backends()
    said = lufleet("run", "s.toml", "--actors", "99").stderr
    assert said == "--actors 99: the fleet has 6 hosts, so 6 are used\n"


def test_resume_refuses_another_scenario(backends: Backends) -> None:
    backends(3, asyncio.CancelledError())
    lufleet("run", "s.toml", "--out", "o")
    result = lufleet("run", "s.toml", "--out", "o", "--resume", "--seed", "8")
    assert result.exit_code == 2
    assert "belongs to another run" in result.stderr


@pytest.mark.usefixtures("backends")
def test_a_run_tells_how_it_goes_and_what_it_came_to() -> None:
    result = lufleet("run", "s.toml", "--actors", "2", "--trace-out", "trace")
    assert result.exit_code == 0, result.stderr
    for text in (
        "std-4 rolled back",
        "next-kernel-panics",
        "canary              1 updated",
        "wave 2              ",
        "completed: 5 of 6 hosts updated",
        "small fleet, seed 7",
        "7.3.4+hugetlb (with the proposal flb-counts, RFC of Dec 2025)",
        "2 shards",
        "Downtime of a VM",
        "Blackout of a host by phase",
        "Pages preserved in memory",
        "Hosts that did not go well",
    ):
        assert text in result.stdout
    (out,) = Path("runs").iterdir()
    assert out.name.startswith("small-fleet-seed7-")
    assert {path.name for path in out.iterdir()} >= {"result.json", "report.html", "run.duckdb"}
    written = json.loads((out / "result.json").read_text())
    assert written["digest"] in result.stdout
    assert len({name for name, _ in TraceFile.read("trace")}) == 7


@pytest.mark.usefixtures("backends")
def test_brackets_in_a_name_are_no_style() -> None:
    """Once a `[/dev]` ended a finished run in a traceback, and a `[s]` was gone."""
    Path("s.toml").write_text(SCENARIO.replace("small fleet", "to [/dev] [s] :b:"))
    result = lufleet("run", "s.toml")
    assert result.exit_code == 0, result.exception
    assert "to [/dev] [s] :b:, seed 7" in result.stdout


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    heavy = "ray", "grpc", "numpy", "matplotlib", "duckdb", "kernelmodel", "msgspec", "asyncio"
    code = (
        "import sys; from fleet.cli import app\n"
        "try: app(['--help'])\n"
        f"except SystemExit: sys.exit([name for name in {heavy} if name in sys.modules] or 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "Exit codes" in ended.stdout


def test_the_version_is_that_of_the_package() -> None:
    assert lufleet("--version").stdout.startswith("lufleet 0.")
