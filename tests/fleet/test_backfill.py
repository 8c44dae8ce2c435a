"""A finished rollout, replayed in virtual time for Prometheus."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import msgspec
import pytest

from fleet.api import RolloutState
from fleet.backfill import main, replay, write_backfill
from fleet.results import summarise
from tests.fleet.sample_run import make_run

SMALL = Path(__file__).parents[2] / "examples" / "small.toml"
START = 1_700_000_000.0


def test_the_last_instant_of_a_replay_says_what_the_summary_says() -> None:
    run = make_run(lose_a_vm=True)
    *_, last = replay(run)
    result = summarise(run)
    assert last.virtual_time_ns == run.virtual_ns
    assert last.state is RolloutState.COMPLETED
    assert last.hosts["updated"] == result.hosts.updated
    assert last.vms["lost"] == result.vms.lost
    assert last.pages_preserved_total == result.preserved_pages
    assert sum(last.downtime.counts) == result.downtime_seconds.count


def test_a_replay_goes_through_every_state_and_time_never_goes_back() -> None:
    snapshots = list(replay(make_run()))
    assert list(dict.fromkeys(snapshot.state for snapshot in snapshots)) == [
        RolloutState.CANARY,
        RolloutState.SOAKING,
        RolloutState.WAVE,
        RolloutState.COMPLETED,
    ]
    times = [snapshot.virtual_time_ns for snapshot in snapshots]
    assert times == sorted(times)
    assert len(times) == len(set(times))
    assert {sum(snapshot.hosts.values()) for snapshot in snapshots} == {24}
    assert {sum(snapshot.vms.values()) for snapshot in snapshots} == {192}
    assert any(snapshot.vms["paused"] for snapshot in snapshots)


@pytest.mark.parametrize("days", [1, 8])
def test_no_graph_of_the_dashboard_falls_between_two_samples(days: int) -> None:
    """Increases are over one of some 700 points, and a series is gone after five minutes."""
    length_ns = days * 86_400_000_000_000
    run = msgspec.structs.replace(make_run(), virtual_ns=length_ns)
    times = [snapshot.virtual_time_ns for snapshot in replay(run)]
    longest_ns = max(after - before for before, after in pairwise(times))
    assert 2 * longest_ns < length_ns / 700
    assert longest_ns < 300_000_000_000


def test_hosts_that_a_halted_rollout_left_alone_are_skipped_at_its_end() -> None:
    *_, last = replay(make_run(halt_after=2))
    assert (last.state, last.hosts["skipped"], last.hosts["pending"]) == ("halted", 15, 0)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of one rollout."""
    path = tmp_path_factory.mktemp("backfill") / "metrics.om"
    write_backfill(make_run(), path, START)
    return path.read_text()


def test_samples_carry_virtual_time_and_the_name_of_the_fleet(text: str) -> None:
    labels = r'\{instance="rolling-update-seed7",job="lufleet"\}'
    clock = re.findall(rf"^lufleet_virtual_time_seconds{labels} (\S+) (\S+)$", text, re.MULTILINE)
    for value, timestamp in clock:
        assert float(timestamp) - START == pytest.approx(float(value), abs=1e-3)
    assert float(clock[-1][0]) == make_run().virtual_ns / 1e9
    assert text.endswith("# EOF\n")


def test_all_samples_of_a_histogram_stand_together_and_in_order_of_time(text: str) -> None:
    lines = re.findall(r'^lufleet_update_phase_.*phase="(\w+)".* (\S+)$', text, re.MULTILINE)
    phases = [phase for phase, _ in groupby(lines, key=itemgetter(0))]
    assert len(phases) == len(set(phases)) == 11
    for phase in phases:
        times = [float(at) for name, at in lines if name == phase]
        assert times == sorted(times)


def test_promtool_makes_blocks_of_a_run_of_a_scenario(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: Debian package prometheus")
    path = tmp_path / "metrics.om"
    assert main([str(SMALL), str(path), "--start", str(START)]) == 0
    done = subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", str(path), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "data").iterdir())) >= 1


def test_a_scenario_with_mistakes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "bad.toml"
    scenario.write_text("name = 3\n")
    assert main([str(scenario), str(tmp_path / "metrics.om")]) == 2
    assert "bad.toml:1" in capsys.readouterr().err
    assert not (tmp_path / "metrics.om").exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("none/metrics.om", "No such file or directory; choose a place that can be written to"),
        (".", "Is a directory; choose the name of a file"),
        ("/dev/full", "No space left on device; make room there, or choose another place"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_in_a_line(
    file: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(SMALL), file]) == 2
    assert capsys.readouterr().err == f"cannot write {file}: {said}\n"
