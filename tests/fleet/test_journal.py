"""The journal: what is in it survives its writer, and it knows whose it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.journal import Header, Journal, JournalError
from fleet.steps import Request, RequestKind
from node.api import HostCall, HostOutcome, UpdateCommand, UpdatePolicy
from tests.fleet.rollouts import NEW, lost_vm, result_of

HEADER = Header("invented", "aa", "bb", records_events=False)
POLICY = UpdatePolicy(freeze_retries=5)
FIRST = UpdateCommand("r1-h01", 1, 0, NEW, POLICY)
SECOND = UpdateCommand("r1-h02", 1, 5, NEW, POLICY)
CALL = HostCall("r1-h01", 3, "PauseVm", b"\0\1")

OTHERS = [
    # header of the run that wants to go on             what is said
    (replace(HEADER, scenario="other"), "of the scenario 'invented'; choose another --out"),
    (replace(HEADER, scenario_digest="cc"), "of another seed, or the scenario has changed"),
    (replace(HEADER, cost_digest="cc"), "with other costs; go on with those that it began with"),
    (replace(HEADER, records_events=True), "without a trace, .*; go on without --trace-out"),
    (replace(HEADER, format=99), "written by another version of lufleet"),
]


@pytest.mark.parametrize(("header", "said"), OTHERS)
def test_another_run_s_journal_is_refused(tmp_path: Path, header: Header, said: str) -> None:
    path = tmp_path / "journal.sqlite"
    Journal.create(path, HEADER).close()
    with pytest.raises(JournalError, match=f"belongs to another run, {said}"):
        Journal.resume(path, header)


def test_a_run_with_a_trace_goes_on_with_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Journal.create(path, replace(HEADER, records_events=True)).close()
    with pytest.raises(JournalError, match="with a trace; go on with --trace-out"):
        Journal.resume(path, HEADER)


def test_no_journal_and_no_sqlite_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no run to resume"):
        Journal.resume(tmp_path / "journal.sqlite", HEADER)
    (tmp_path / "text").write_text("not a database, but long enough to be looked at" * 30)
    (tmp_path / "empty").touch()
    for name in ("text", "empty"):
        with pytest.raises(JournalError, match="not the journal of a run"):
            Journal.resume(tmp_path / name, HEADER)


def test_a_journal_that_the_disk_has_spoilt_is_told_from_a_simulator_that_is_wrong(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.create(path, HEADER) as journal:
        for nr in range(400):
            journal.called(HostCall("h1", nr, "PauseVm", b"x" * 200))
    spoilt = bytearray(path.read_bytes())
    middle = len(spoilt) // 2 // 4096 * 4096
    spoilt[middle : middle + 4096] = b"\xa5" * 4096
    path.write_bytes(spoilt)
    with pytest.raises(JournalError, match="is damaged"):
        Journal.resume(path, HEADER)


def test_what_was_noted_is_there_after_the_writer_died(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    result = replace(
        result_of(FIRST, outcome=HostOutcome.FAILED, vms=(lost_vm("vm-1"),)), events=b"\0\xff"
    )
    request = Request(9, RequestKind.PAUSE, "lunch")
    dead = Journal.create(path, HEADER)
    dead.sent([FIRST, SECOND])
    dead.called(CALL)
    dead.called(CALL)
    dead.answered([result])
    dead.obeyed(4, request)
    assert dead._lock is not None
    dead._lock.close()  # and no more than that: it is what the system does for a process that dies
    with Journal.resume(path, HEADER) as journal:
        assert journal.results() == {("r1-h01", 1): result}
        assert journal.history() == [FIRST, CALL, CALL]
        assert journal.requests() == {4: request}
        journal.sent([SECOND])  # unanswered, so it is sent again
        journal.answered([result_of(SECOND)])
        assert journal.history() == [FIRST, CALL, CALL, SECOND]
    dead.close()


def test_two_runs_do_not_write_to_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.create(path, HEADER):
        for make in (Journal.create, Journal.resume):
            with pytest.raises(JournalError, match="another run is at work in this directory"):
                make(path, HEADER)


def test_a_new_run_replaces_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.create(path, HEADER) as old:
        old.answered([result_of(FIRST)])
    with Journal.create(path, HEADER) as new:
        assert new.results() == {}


def test_a_journal_without_a_path_is_kept_in_memory() -> None:
    with Journal.create(None, HEADER) as journal:
        journal.sent([FIRST])
        journal.answered([])
        assert journal.results() == {}
