"""`result.json` holds what the contract names, with figures that can be checked by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import duckdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.event_store import fill_event_store, write_event_store
from fleet.results import nearest_rank, phase_order, summarise, write_result
from node.api import HostOutcome, UpdateResult, VmOutcome, VmResult
from tests.fleet.sample_run import SEC, make_run, make_update

CONTRACT = {
    "": {"scenario", "seed", "digest", "hosts", "vms", "downtime_seconds"}
    | {"blackout_phases_seconds", "preserved_pages", "rollout"}
    | {"wall_seconds", "host_updates_per_second", "peak_rss_bytes"},
    "hosts": {"total", "updated", "failed", "skipped", "rolled_back"},
    "vms": {"total", "preserved", "migrated", "restarted", "lost"},
    "downtime_seconds": {"count", "mean", "p50", "p90", "p99", "max"},
    "preserved_pages": {"4KiB", "2MiB", "1GiB"},
    "rollout": {"state", "virtual_seconds", "waves"},
}


def with_downtimes(*downtimes_s: float | None) -> UpdateResult:
    """One host update whose VMs were down that long; None is a lost VM."""
    vms = tuple(
        VmResult(
            name=f"vm{i}",
            outcome=VmOutcome.LOST if s is None else VmOutcome.PRESERVED,
            reason="",
            downtime_ns=None if s is None else int(s * SEC),
            phases_ns={} if s == 0 else {"freeze": int((s or 1) * SEC)},
        )
        for i, s in enumerate(downtimes_s)
    )
    update = make_update(make_run(hosts=2).scenario, 0, 0)
    return msgspec.structs.replace(update, vms=vms)


@pytest.mark.parametrize(
    ("finite", "lost", "percent", "expected"),
    [
        ([], 0, 50, None),
        ([], 3, 50, None),
        ([7], 0, 0, 7),
        ([7], 0, 99, 7),
        ([7], 1, 50, 7),
        ([7], 1, 51, None),
        ([1, 2, 3, 4, 5], 0, 50, 3),
        ([1, 2, 3, 4], 0, 50, 2),
        ([15, 20, 35, 40, 50], 0, 30, 20),
        ([15, 20, 35, 40, 50], 0, 40, 20),
        ([15, 20, 35, 40, 50], 0, 100, 50),
        (list(range(1, 100)), 1, 99, 99),
        (list(range(1, 99)), 2, 99, None),
    ],
)
def test_a_percentile_is_the_value_at_the_nearest_rank(
    finite: list[int], lost: int, percent: int, expected: int | None
) -> None:
    assert nearest_rank(finite, lost, percent) == expected


@given(st.lists(st.integers(0, 10**12), min_size=1), st.integers(0, 20), st.integers(1, 100))
def test_nearest_rank_is_the_smallest_value_that_covers_its_share(
    values: list[int], lost: int, percent: int
) -> None:
    ranked = sorted([*map(float, values), *[math.inf] * lost])
    covering = next(
        v for v in ranked if 100 * sum(1 for w in ranked if w <= v) >= percent * len(ranked)
    )
    got = nearest_rank(sorted(values), lost, percent)
    assert (math.inf if got is None else got) == covering


def test_downtimes_of_five_vms_add_up_by_hand() -> None:
    run = msgspec.structs.replace(make_run(hosts=2), results=(with_downtimes(10, 12, 14, 20, 44),))
    downtime = summarise(run).downtime_seconds
    assert (downtime.count, downtime.mean, downtime.max) == (5, 20.0, 44.0)
    assert (downtime.p50, downtime.p90, downtime.p99) == (14.0, 44.0, 44.0)
    assert (downtime.within_budget, downtime.budget) == (4, 30.0)


def test_a_lost_vm_ranks_above_every_finite_downtime() -> None:
    run = msgspec.structs.replace(make_run(hosts=2), results=(with_downtimes(10, None, 20),))
    downtime = summarise(run).downtime_seconds
    assert (downtime.count, downtime.lost) == (3, 1)
    assert downtime.p50 == 20.0
    assert (downtime.p90, downtime.p99, downtime.max, downtime.mean) == (None, None, None, None)
    assert downtime.finite_mean == 15.0


def test_a_vm_that_was_never_paused_has_no_downtime() -> None:
    run = msgspec.structs.replace(make_run(hosts=2), results=(with_downtimes(0, 0, 8),))
    downtime = summarise(run).downtime_seconds
    assert (downtime.count, downtime.mean, downtime.never_paused) == (1, 8.0, 2)


def test_a_run_without_updates_has_no_downtime_and_no_phases() -> None:
    result = summarise(msgspec.structs.replace(make_run(hosts=2), results=()))
    assert result.downtime_seconds.count == 0
    assert result.downtime_seconds.p50 is None
    assert result.blackout_phases_seconds == {}
    assert result.preserved_pages == {"4KiB": 0, "2MiB": 0, "1GiB": 0}
    assert result.host_updates_per_second == 0.0


def test_a_phase_that_did_not_happen_is_absent_and_means_come_with_their_count() -> None:
    updates = (
        msgspec.structs.replace(with_downtimes(1), phases_ns={"freeze": 1 * SEC}),
        msgspec.structs.replace(with_downtimes(1), phases_ns={"freeze": 2 * SEC, "kho": SEC // 4}),
    )
    run = msgspec.structs.replace(make_run(hosts=2), results=updates)
    phases = summarise(run).blackout_phases_seconds
    assert list(phases) == ["freeze", "kho"]
    assert (phases["freeze"].count, phases["freeze"].mean, phases["freeze"].p99) == (2, 1.5, 2.0)
    assert (phases["kho"].count, phases["kho"].mean) == (1, 0.25)


def test_phases_come_in_the_order_of_the_blackout() -> None:
    assert phase_order({"zzz", "retrieve", "init", "freeze", "firmware"}) == [
        "freeze",
        "init",
        "retrieve",
        "firmware",
        "zzz",
    ]
    assert phase_order({"finish", "freeze", "preserve", "kexec_file_load"}) == [
        "kexec_file_load",
        "preserve",
        "freeze",
        "finish",
    ]


def test_outcomes_sum_to_the_totals() -> None:
    result = summarise(make_run(lose_a_vm=True, halt_after=2))
    hosts, vms = result.hosts, result.vms
    assert hosts.updated + hosts.failed + hosts.skipped + hosts.rolled_back == hosts.total == 24
    assert vms.preserved + vms.migrated + vms.restarted + vms.lost == vms.total == 192
    assert (hosts.skipped, vms.restarted, vms.lost) == (15, 8, 1)
    assert vms.untouched == 15 * 8
    assert (result.rollout.waves, result.rollout.waves_planned) == (2, 4)


def test_a_vm_whose_host_failed_before_it_was_paused_is_untouched() -> None:
    run = make_run(hosts=2)
    run = msgspec.structs.replace(run, results=(with_downtimes(0, 0, 8),))
    names = [vm.name for vm in run.results[0].vms]
    run = msgspec.structs.replace(run, vms=dict.fromkeys([*names, "x"], VmOutcome.PRESERVED))
    assert summarise(run).vms.untouched == 3, "two never paused, one never spoken of"


def test_result_json_has_every_field_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(summarise(make_run()), path)
    content = json.loads(path.read_text())
    for part, names in CONTRACT.items():
        assert names <= set(content[part] if part else content), part
    for phase in content["blackout_phases_seconds"].values():
        assert set(phase) == {"count", "mean", "p99"}
    assert content["hosts"] == {
        "total": 24,
        "updated": 23,
        "failed": 0,
        "skipped": 0,
        "rolled_back": 1,
    }
    assert content["host_updates_per_second"] == 24 / content["wall_seconds"]


def test_result_json_depends_on_the_run_alone(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        write_result(summarise(make_run(lose_a_vm=True)), tmp_path / name)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]


def test_the_event_store_agrees_with_the_summary(tmp_path: Path) -> None:
    run = make_run(lose_a_vm=True)
    path = tmp_path / "run.duckdb"
    write_event_store(run, path)
    write_event_store(run, path)  # replaces what is there
    result = summarise(run)
    with duckdb.connect(str(path), read_only=True) as store:

        def rows(query: str) -> list[tuple[object, ...]]:
            return store.execute(query).fetchall()

        assert rows("SELECT scenario, seed, digest FROM run") == [
            (result.scenario, result.seed, result.digest)
        ]
        assert rows("SELECT count(*), sum(numa_nodes) FROM hosts") == [(24, 48)]
        assert rows("SELECT count(DISTINCT value) FROM domains WHERE domain = 'rack'") == [(3,)]
        assert rows("SELECT outcome, count(*) FROM vms GROUP BY 1 ORDER BY 1") == [
            ("lost", 1),
            ("preserved", 183),
            ("restarted", 8),
        ]
        assert rows("SELECT count(*), count(downtime_ns) FROM vm_updates") == [(192, 191)]
        assert rows("SELECT count(*) FROM waves") == [(4,)]
        counted = rows("SELECT phase, count(*), sum(ns) FROM phases GROUP BY phase")
        by_phase = {str(phase): (count, ns) for phase, count, ns in counted}
        for phase, summary in result.blackout_phases_seconds.items():
            count, ns = by_phase[phase]
            assert count == summary.count
            assert ns == pytest.approx(summary.mean * summary.count * 1e9)


@pytest.mark.parametrize("rows", [1, 7, 191])
def test_the_event_store_does_not_show_how_many_rows_were_written_at_a_time(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    def written() -> dict[str, list[tuple[object, ...]]]:
        tables = ("run", "hosts", "domains", "vms", "waves", "updates", "vm_updates")
        with duckdb.connect() as store:
            fill_event_store(store, run)
            return {name: store.execute(f"SELECT * FROM {name}").fetchall() for name in tables}

    run = make_run(lose_a_vm=True)
    at_once = written()
    monkeypatch.setattr("fleet.event_store._CHUNK", rows)
    assert written() == at_once


def test_in_the_event_store_phases_sum_to_blackout_and_downtime(tmp_path: Path) -> None:
    path = tmp_path / "run.duckdb"
    write_event_store(make_run(), path)
    with duckdb.connect(str(path), read_only=True) as store:
        hosts = store.execute(
            "SELECT count(*) FROM updates u WHERE blackout_end_ns - blackout_start_ns != ("
            "  SELECT sum(ns) FROM phases p WHERE p.host = u.host AND p.seq = u.seq"
            "  AND phase NOT IN ('kexec_file_load', 'preserve', 'finish'))"
        ).fetchone()
        vms = store.execute(
            "SELECT count(*) FROM vm_updates u WHERE downtime_ns != ("
            "  SELECT sum(ns) FROM vm_phases p WHERE p.vm = u.vm AND p.seq = u.seq)"
        ).fetchone()
    assert (hosts, vms) == ((0,), (0,))


def test_a_query_does_not_depend_on_what_happened(tmp_path: Path) -> None:
    path = tmp_path / "run.duckdb"
    write_event_store(make_run(), path)
    with duckdb.connect(str(path), read_only=True) as store:
        phases = ("pause_wait", "resume_wait", "restart", "failed_freeze")
        columns = ", ".join(f"count({phase}_ns)" for phase in phases)
        (counts,) = store.execute(f"SELECT {columns} FROM vm_updates").fetchall()
    assert counts[-1] == 0, "no freeze failed"


def test_an_empty_run_still_has_every_table(tmp_path: Path) -> None:
    run = msgspec.structs.replace(make_run(hosts=2), results=(), waves=())
    skipped = dict.fromkeys(run.hosts, HostOutcome.SKIPPED)
    path = tmp_path / "run.duckdb"
    write_event_store(msgspec.structs.replace(run, hosts=skipped), path)
    with duckdb.connect(str(path), read_only=True) as store:
        for table in ("updates", "vm_updates", "phases", "vm_phases", "waves"):
            assert store.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_the_queries_of_the_documentation_run(tmp_path: Path) -> None:
    path = tmp_path / "run.duckdb"
    write_event_store(make_run(), path)
    page = (Path(__file__).parents[2] / "docs" / "watching.md").read_text()
    (block,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    queries = [query for query in block.split(";") if query.strip()]
    assert len(queries) == 2
    with duckdb.connect(str(path), read_only=True) as store:
        for query in queries:
            assert store.execute(query).fetchall()
