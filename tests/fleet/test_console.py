"""What is printed about a rollout: exact where people will compare it, complete everywhere."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Callable
from itertools import count

import pytest
from msgspec.structs import replace
from rich.console import Console

from fleet.console import Progression, clock_text, closing_tables, duration_text, trouble_of
from fleet.experiment import Experiment, run_rollout
from fleet.journal import Journal, journal_header
from fleet.results import summarise
from fleet.scenario import Scenario
from fleet.steps import RequestKind
from node.api import FaultSpec, HostOutcome, UpdateCommand, UpdatePolicy
from tests.fleet.rollouts import NEW, SECOND, racks, result_of
from tests.fleet.sample_run import make_run
from tests.fleet.toys import SCENARIO, ToyBackend

DURATIONS = [
    (None, "∞"),
    (0.0000154, "15 µs"),
    (0.533, "533 ms"),
    (1.64, "1.6 s"),
    (99.94, "99.9 s"),
    (600.0, "10.0 min"),
]


@pytest.mark.parametrize(("seconds", "text"), DURATIONS)
def test_durations_have_about_three_figures(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


def test_virtual_time_reads_like_a_clock() -> None:
    assert clock_text(59 * SECOND + 999_999_999) == "0:00:59"
    assert clock_text(36_061 * SECOND) == "10:01:01"


COMMAND = UpdateCommand("r1-h01", 1, 0, NEW, UpdatePolicy())
TROUBLES = [
    # result                                                             usual    trouble
    (result_of(COMMAND, outcome=HostOutcome.ROLLED_BACK, reason="panic"), None, "panic: panic"),
    (replace(result_of(COMMAND), freeze_attempts=3), None, "freeze took 3 attempts"),
    (
        replace(result_of(COMMAND), phases_ns={"init": 30 * SECOND}),
        10 * SECOND,
        "blackout of 30.0 s, 3.0 × the median",
    ),
    (replace(result_of(COMMAND), phases_ns={"init": 20 * SECOND}), 10 * SECOND, ""),
    (result_of(COMMAND), None, ""),
]


@pytest.mark.parametrize(("result", "usual_ns", "trouble"), TROUBLES)
def test_what_did_not_go_well_is_pointed_out(
    result: object, usual_ns: int | None, trouble: str
) -> None:
    assert trouble_of(result, usual_ns) == trouble  # type: ignore[arg-type]


def told(
    scenario: Scenario, *, is_terminal: bool = False, clock: Callable[[], float] = time.monotonic
) -> str:
    """What a run of toys prints, the tables included."""
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=is_terminal)
    with Progression(console, clock) as progression:
        record = asyncio.run(run_rollout(scenario, ToyBackend(), on_change=progression))
    console.print(closing_tables(record, summarise(record)))
    return file.getvalue()


def test_every_wave_and_every_trouble_has_a_line() -> None:
    lines = told(SCENARIO).splitlines()
    assert [line[11:31].strip() for line in lines[:6]] == [
        "canary",
        "wave 1",
        "wave 2",
        "r2-h05 rolled back",
        "wave 3",
        "wave 4",
    ]
    assert lines[0].endswith("1 updated; soaked 10.0 min, passed")
    assert lines[4].endswith("5 updated, 1 rolled back; soaked 5.0 min, passed")


def test_a_wave_without_a_soak_has_not_soaked() -> None:
    rollout = replace(SCENARIO.rollout, soak_ns=0, canary_soak_ns=0)
    assert "1 updated; passed" in told(replace(SCENARIO, rollout=rollout))


@pytest.mark.parametrize("width", [50, 60, 79, 80])
def test_a_narrow_console_folds_and_cuts_nothing_off(width: int) -> None:
    record = make_run(lose_a_vm=True)
    file = io.StringIO()
    Console(file=file, width=width).print(closing_tables(record, summarise(record)))
    text = file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for whole in ("│ rolled back │", "│ restarted │", "│ userspace │", " of 192 │"):
        assert whole in text, whole
    assert record.digest in re.sub(r"\s", "", text)


def test_a_terminal_sees_a_bar_and_a_log_does_not() -> None:
    assert "ETA" in told(SCENARIO, is_terminal=True)
    assert "ETA" not in told(SCENARIO)


def test_a_log_hears_every_ten_seconds_how_far_a_rollout_is_and_how_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four seconds pass from one look to the next, in each of which a host is computed or ends."""
    monkeypatch.setattr("fleet.experiment._SNAPSHOT_SECONDS", 0)
    monkeypatch.setattr("fleet.experiment._SNAPSHOT_RATIO", 0)
    looks = count(0, 4)
    said = re.findall(r"under way +(.*)", told(SCENARIO, clock=lambda: next(looks)))
    done = [int(line.split()[0]) for line in said]
    assert len(said) > 9
    for before, now, line in zip(done, done[1:], said[1:], strict=False):
        rate = (now - before) / 12  # every third look is more than ten seconds after the last line
        assert rate >= 0
        left = clock_text(round((24 - now) / rate) * SECOND) if rate else ""
        told_rate = f", {rate:.1f} hosts/s, ETA {left}" if rate and now < 24 else ""
        assert line == f"{now} of 24 hosts{told_rate}"
    assert done[-1] == 24


def test_hosts_count_when_they_are_computed_not_when_their_wave_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fleet.experiment._SNAPSHOT_SECONDS", 0)
    monkeypatch.setattr("fleet.experiment._SNAPSHOT_RATIO", 0)
    seen: list[tuple[int, int]] = []

    def look(experiment: Experiment) -> None:
        seen.append((experiment.answered, len(experiment.results)))

    asyncio.run(run_rollout(SCENARIO, ToyBackend(), actors=1, on_change=look))
    assert seen == sorted(seen)
    assert {answered for answered, _ in seen} == set(range(25))
    assert max(answered - ended for answered, ended in seen) == 6, "a wave"


def test_a_halted_rollout_says_why_and_where() -> None:
    text = told(replace(SCENARIO, faults=(FaultSpec("r1-h01", "drop-preserved-page"),)))
    assert "1 rolled back; halted: 2 VMs lost, the gate allows 0" in text
    assert "rollout       halted: 2 VMs lost" in text
    assert "∞" in text, "a lost VM has no finite downtime"


def test_a_fleet_that_needs_nothing_has_tables_too() -> None:
    text = told(replace(SCENARIO, hosts=racks(2, release=NEW), vms=(), faults=()))
    assert f"completed: all run {NEW} already" in text
    assert "Blackout of a host" not in text


def test_a_pause_has_a_line() -> None:
    file = io.StringIO()

    async def paused() -> None:
        journal = Journal.create(None, journal_header(SCENARIO, records_events=False))
        progression = Progression(Console(file=file, width=120))
        experiment = Experiment(SCENARIO, ToyBackend(), journal, on_change=progression)
        await experiment.open()
        running = asyncio.create_task(experiment.run())
        while not experiment.results:
            await experiment.changed()
        await experiment.request(RequestKind.PAUSE, "lunch")
        await experiment.request(RequestKind.RESUME)
        await running

    asyncio.run(paused())
    assert "paused              lunch" in file.getvalue()


def test_a_blackout_that_broke_off_is_not_averaged_with_whole_ones() -> None:
    record = asyncio.run(run_rollout(SCENARIO, ToyBackend()))
    first, *others = record.results
    first = replace(first, blackout_end_ns=None, phases_ns={"kexec": 3600 * SECOND})
    record = replace(record, results=(first, *others))
    file = io.StringIO()
    Console(file=file, width=120).print(closing_tables(record, summarise(record)))
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    whole = next(line for line in lines if "│ all " in line)
    seconds = sum(sum(result.phases_ns.values()) for result in others) / len(others) / 1e9
    assert [cell.strip() for cell in whole.split("│")[2:4]] == ["23", duration_text(seconds)]
    assert '1 host fell back in the midst of a blackout: not in "all"' in lines
    assert any("24 shards" in line and "host updates/s" in line for line in lines)


def test_vms_that_nobody_touched_are_told_apart() -> None:
    text = told(replace(SCENARIO, faults=(FaultSpec("r1-h01", "drop-preserved-page"),)))
    assert re.search(r"untouched +│ +46 ", text)


def test_a_long_list_of_troubles_is_cut() -> None:
    faults = tuple(FaultSpec(host.name, "next-kernel-panics") for host in SCENARIO.hosts[1:])
    gate = replace(SCENARIO.rollout.gate, max_failed_hosts=99)
    scenario = replace(SCENARIO, faults=faults, rollout=replace(SCENARIO.rollout, gate=gate))
    assert "and 3 more" in told(scenario)


def test_the_digest_is_whole_on_a_narrow_terminal() -> None:
    record = asyncio.run(run_rollout(SCENARIO, ToyBackend()))
    file = io.StringIO()
    Console(file=file, width=50).print(closing_tables(record, summarise(record)))
    assert record.digest in "".join(file.getvalue().split())
