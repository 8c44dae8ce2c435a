"""`lufleet sweep`, whole: real runs in real processes, killed, resumed, failed and compared.

`LUFLEET_SWEEP_RUNS=200 pytest tests/fleet/test_sweep.py -k killed` kills a sweep of so many runs.
"""

from __future__ import annotations

import os
import resource
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import duckdb
import pytest
from msgspec.structs import replace

from fleet.sweep.cells import cells_of
from fleet.sweep.experiment_file import read_plan
from fleet.sweep.metrics import METRICS
from fleet.sweep.store import Store, StoreError
from fleet.sweep.worker import Job, Outcome, Workers, perform
from fleet.unwritable import CannotWrite
from tests.fleet.sweep_plans import EXPERIMENT, SCENARIO, written

#: Runs of the sweep that is killed, six to a seed.
RUNS = int(os.environ.get("LUFLEET_SWEEP_RUNS", "18")) // 6 * 6


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "fleet.cli", "sweep", *map(str, words)]


def sweep(*words: object, code: int = 0) -> str:
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def rows(out: Path, columns: str = "*") -> list[tuple[object, ...]]:
    with duckdb.connect(str(out / "sweep.duckdb"), read_only=True) as db:
        return db.execute(f"SELECT {columns} FROM runs ORDER BY cell, seed").fetchall()


RESULTS = "cell, seed, wave_size, trouble, state, digest, " + ", ".join(METRICS)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a sweep over two processes, and what it said."""
    folder = tmp_path_factory.mktemp("sweep")
    said = sweep(written(folder), "--out", folder / "out", "--jobs", 2)
    return folder / "out", said


def test_every_cell_with_every_seed(swept: tuple[Path, str]) -> None:
    out, said = swept
    assert "6 cells, 18 runs to make" in said
    assert "Least rollout with VMs lost ≤ 0: wave_size 4, trouble none" in said.replace("\n", " ")
    found = rows(out, RESULTS)
    assert len(found) == len({row[:2] for row in found}) == 18
    page = (out / "report.html").read_text()
    assert "wave_size 4, trouble none" in page
    assert page.count("<svg") == 3
    with duckdb.connect() as db:
        parquet = str(out / "runs.parquet")
        same = db.execute(f"SELECT {RESULTS} FROM '{parquet}' ORDER BY cell, seed").fetchall()
    assert same == found


def test_a_row_says_how_to_make_its_run_again(swept: tuple[Path, str]) -> None:
    out, _ = swept
    for cell, seed, overrides, digest in rows(out, "cell, seed, overrides, digest")[::5]:
        scenario = str(out.with_name("s.toml"))
        again = perform(
            Job(str(cell), int(str(seed)), scenario, tuple(shlex.split(str(overrides))))
        )
        assert again.digest == digest


def test_cells_share_their_luck(swept: tuple[Path, str]) -> None:
    """Which hosts boot slowly depends on the seed alone, so waves of any size meet the same."""
    longest: dict[object, set[object]] = {}
    for trouble, seed, downtime in rows(swept[0], "trouble, seed, downtime_max_seconds"):
        longest.setdefault((trouble, seed), set()).add(downtime)
    assert all(len(values) == 1 for values in longest.values())
    assert longest["some", 1] != longest["none", 1]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_importing(pid: int) -> bool:
    """Whether the process is a worker that has begun to load what it needs."""
    try:
        started = "--multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_text()
        return started and "numpy" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # it has ended
        return False


def has_ended(process: int) -> bool:
    """Whether the process of this descriptor ends, at once or soon."""
    return bool(select.select([process], [], [], 30)[0])


@pytest.mark.timeout(60 + 3 * RUNS)
def test_a_sweep_that_is_killed_goes_on_without_making_a_run_twice(
    tmp_path: Path, swept: tuple[Path, str]
) -> None:
    text = EXPERIMENT.replace("seeds = 3", f"seeds = {RUNS // 6}")
    experiment, out = written(tmp_path, text), tmp_path / "out"
    killed = subprocess.Popen(
        command(experiment, "--out", out, "--jobs", 2), stdout=subprocess.PIPE, text=True
    )
    with killed:
        assert killed.stdout is not None
        assert f"{RUNS} runs to make" in killed.stdout.readline()
        while int(killed.stdout.readline().split()[0]) < RUNS * 4 // 10:
            pass
        started = [os.pidfd_open(child) for child in children(killed.pid)]
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    assert len(started) >= 2
    assert all(map(has_ended, started)), "a worker is left behind"
    before = rows(out, "cell, seed, digest, wall_seconds")
    assert RUNS * 4 // 10 <= len(before) < RUNS
    assert "--resume goes on with them" in sweep(experiment, "--out", out, code=2)
    said = sweep(experiment, "--out", out, "--resume")
    assert f"{RUNS - len(before)} runs to make, {len(before)} run" in said
    after = rows(out, "cell, seed, digest, wall_seconds")
    assert len(after) == len({row[:2] for row in after}) == RUNS
    assert set(before) <= set(after), "wall time and all: they were not made again"
    assert set(rows(swept[0], RESULTS)) <= set(rows(out, RESULTS)), "as if undisturbed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    """And nothing else, while a worker begins: a terminal's Ctrl-C comes to that one as well."""
    (tmp_path / "a b").mkdir()
    experiment = written(tmp_path / "a b", EXPERIMENT.replace("seeds = 3", "seeds = 150"))
    words = (experiment, "--out", tmp_path / "out", "--jobs", 1)
    stopped = subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with stopped:
        assert stopped.stdout is not None
        assert "900 runs to make" in stopped.stdout.readline()
        while stopped.poll() is None and not any(map(is_importing, children(stopped.pid))):
            pass
        os.killpg(stopped.pid, number)
        _, said = stopped.communicate()
    assert stopped.returncode == 130
    assert "Traceback" not in said
    again = shlex.split(said.splitlines()[-1])
    assert again == ["lufleet", "sweep", *map(str, words), "--resume"]


def test_runs_that_fail_are_rows(tmp_path: Path) -> None:
    experiment = written(
        tmp_path,
        EXPERIMENT.replace('{ "faults.0.rate" = 0.5 }', '{ "fleet.vm_class.0.memory" = "64GiB" }'),
    )
    said = sweep(experiment, "--out", tmp_path / "out")
    assert "9 runs failed" in said
    assert "\nwave_size 2, trouble some, seed 3: cannot be run: " in said
    failed = rows(tmp_path / "out", "trouble, error, rollout_seconds")
    assert {trouble for trouble, error, _ in failed if error} == {"some"}
    assert all("cannot be run: " in str(error) for trouble, error, _ in failed if error)
    assert all((seconds is None) == bool(error) for _, error, seconds in failed)
    assert "9 runs failed" in (tmp_path / "out" / "report.html").read_text()
    again = sweep(experiment, "--out", tmp_path / "out", "--resume", "--retry-failed")
    assert "9 runs to make, 9 runs done before" in again


@pytest.mark.parametrize(
    ("error", "code"),
    [("cannot be run: VMs do not fit", 2), ("the simulator itself has failed: ModelBug", 4)],
)
def test_a_sweep_without_a_result_is_no_success(tmp_path: Path, error: str, code: int) -> None:
    experiment, out = written(tmp_path), tmp_path / "out"
    plan = read_plan(experiment)
    out.mkdir()
    with Store(out / "sweep.duckdb", plan) as store:
        for cell in cells_of(plan):
            for seed in plan.seeds:
                store.add(cell, Outcome(cell.key, seed, error))
    said = sweep(experiment, "--out", out, "--resume", code=code)
    assert "18 runs failed" in said
    again = shlex.split(said.splitlines()[-1])
    assert again[:3] == ["lufleet", "run", str(plan.scenario)]
    assert perform(Job("", int(again[4]), again[2], tuple(again[6:-2:2]))).digest, "as a command"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_keeps_what_was_there(tmp_path: Path) -> None:
    plan, path = read_plan(written(tmp_path)), tmp_path / "sweep.duckdb"
    cell = cells_of(plan)[0]
    kept: list[int] = []
    with largest_file(5_000), pytest.raises(CannotWrite, match=r"File too large; make room"):
        Store(path, plan)
    assert not path.exists(), "half a store, with which nothing could ever be begun"
    with Store(path, plan) as store:

        def fill() -> None:
            for seed in range(100):
                store.add(cell, Outcome(cell.key, seed, "failed"))
                kept.append(seed)

        for fails in (fill, partial(store.write_parquet, tmp_path / "runs.parquet")):
            with largest_file(20_000), pytest.raises(CannotWrite, match=r"duckdb: File too large"):
                fails()
    assert kept
    with Store(path, plan) as store:
        assert [outcome.seed for outcome in store.outcomes()] == kept


def test_a_reader_who_has_had_enough_ends_no_sweep(tmp_path: Path) -> None:
    """`lufleet sweep … | head -n 1`."""
    experiment = written(tmp_path, EXPERIMENT.replace("seeds = 3", "seeds = 1"))
    words = command(experiment, "--out", tmp_path / "out", "--jobs", 1)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"6 runs to make" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert len(rows(tmp_path / "out")) == 6
    assert (tmp_path / "out" / "report.html").is_file()


def test_adaptive_gives_seeds_to_cells_that_need_them(tmp_path: Path) -> None:
    rule = (
        '[adaptive]\nmetric = "rollout_seconds"\nhalf_width = 0.001\nmin_seeds = 2\nmax_seeds = 6\n'
    )
    experiment = written(tmp_path, EXPERIMENT.replace("[1, 2, 4]", "[4]") + rule)
    sweep(experiment, "--out", tmp_path / "out", "--adaptive")
    seeds: dict[object, list[object]] = {}
    for trouble, seed in rows(tmp_path / "out", "trouble, seed"):
        seeds.setdefault(trouble, []).append(seed)
    assert seeds["some"] == [1, 2, 3, 4, 5, 6]


def test_a_sweep_that_was_killed_before_its_first_table_begins_anew(tmp_path: Path) -> None:
    experiment, out = written(tmp_path), tmp_path / "sweep.duckdb"
    duckdb.connect(str(out)).close()
    with Store(out, read_plan(experiment)) as store:
        assert store.outcomes() == []


def test_nothing_is_started_with_a_mistake(tmp_path: Path) -> None:
    experiment = written(tmp_path, EXPERIMENT.replace("seeds = 3", "seeds = 0"))
    said = sweep(experiment, "--out", tmp_path / "out", code=2)
    assert "1 mistake; nothing was started" in said
    assert not (tmp_path / "out").exists()


def test_results_of_another_scenario_are_not_mixed_in(tmp_path: Path) -> None:
    experiment, out = (
        written(tmp_path, EXPERIMENT.replace("seeds = 3", "seeds = 1")),
        tmp_path / "out",
    )
    sweep(experiment, "--out", out)
    written(tmp_path, scenario=SCENARIO.replace('"1min"', '"2min"'))
    said = sweep(experiment, "--out", out, "--resume", code=2)
    assert "results of another scenario, or of one that was edited" in said.replace("\n", " ")


def test_results_of_other_costs_are_not_mixed_in(tmp_path: Path) -> None:
    """A later lufleet has others built in: its runs are of another model."""
    plan, path = read_plan(written(tmp_path)), tmp_path / "sweep.duckdb"
    with Store(path, plan):
        pass
    with pytest.raises(StoreError, match="results of another version of lufleet"):
        Store(path, replace(plan, cost_digest="other"))
    with duckdb.connect(str(path)) as db:
        db.execute("ALTER TABLE plan DROP cost_digest")
    with pytest.raises(StoreError, match="results of another version of lufleet"):
        Store(path, plan)


def test_a_run_that_kills_its_process_costs_that_run_alone(tmp_path: Path) -> None:
    scenario = str(written(tmp_path).with_name("s.toml"))
    good, bad = Job("good", 1, scenario, ()), Job("bad", 1, scenario, ("fleet=KILL",))
    with Workers(1) as workers:
        workers.start(bad)
        os.kill(workers.pids[0], signal.SIGKILL)
        (outcome,) = workers.ended()
        assert outcome.cell == "bad"
        assert outcome.error == "the process that made the run ended: by SIGKILL"
        workers.start(good)
        (outcome,) = workers.ended()
        assert not outcome.error
        assert outcome.metrics == perform(good).metrics
