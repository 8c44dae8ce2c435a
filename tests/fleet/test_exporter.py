"""The metrics that `/metrics` shows, and how it shows them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from fleet.api import FleetSnapshot, RolloutState
from fleet.exporter import FleetCollector, MetricsServer, fleet_registry, metric_families
from node.api import BLACKOUT_PHASES
from tests.fleet.sample_run import busy_snapshot, fresh_snapshot

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
EDGES = ".01 .02 .05 .1 .2 .3 .5 1 1.7 2.5 5 7.5 10 15 20 30 45 60 120 300 600 1200"


def samples(snapshot: FleetSnapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scrape returns, read back by the client library's parser."""
    text = generate_latest(fleet_registry(lambda: snapshot)).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def values(snapshot: FleetSnapshot, name: str, label: str) -> dict[str, float]:
    """label value -> value of a metric with that one label."""
    return {
        dict(labels)[label]: value
        for (sample, labels), value in samples(snapshot).items()
        if sample == name and label in dict(labels)
    }


def test_every_label_value_is_there_before_anything_has_happened() -> None:
    fresh = fresh_snapshot()
    assert values(fresh, "lufleet_hosts", "state") == {
        "pending": 24,
        "updating": 0,
        "updated": 0,
        "failed": 0,
        "skipped": 0,
        "rolled_back": 0,
    }
    assert values(fresh, "lufleet_vms", "state") == {
        "running": 192,
        "paused": 0,
        "restarting": 0,
        "lost": 0,
    }
    zero_pages = {"4KiB": 0, "2MiB": 0, "1GiB": 0}
    assert values(fresh, "lufleet_preserved_pages", "page_size") == zero_pages
    assert values(fresh, "lufleet_pages_preserved_total", "page_size") == zero_pages
    assert values(fresh, "lufleet_update_phase_seconds_count", "phase") == dict.fromkeys(
        ("kexec_file_load", "preserve", *BLACKOUT_PHASES, "finish"), 0
    )
    pools = {k for k in samples(fresh) if k[0] == "lufleet_hugetlb_pages"}
    assert len(pools) == 2 * 4
    assert values(fresh, "lufleet_vm_updates_total", "outcome") == {
        "preserved": 0,
        "migrated": 0,
        "restarted": 0,
        "lost": 0,
    }
    updates = {k for k in samples(fresh) if k[0] == "lufleet_host_updates_total"}
    assert {dict(labels)["outcome"] for _, labels in updates} == {
        "updated",
        "failed",
        "skipped",
        "rolled_back",
    }


def test_no_series_comes_or_goes_when_something_happens() -> None:
    known = ("none", "panic")
    before, after = set(samples(fresh_snapshot())), set(samples(busy_snapshot()))
    assert before == after
    assert {dict(labels).get("reason", known[0]) for _, labels in after} >= set(known)


def test_the_downtime_histogram_has_the_edges_of_the_contract_and_lost_vms_beyond_them() -> None:
    buckets = values(busy_snapshot(), "lufleet_vm_downtime_seconds_bucket", "le")
    edges = [float(edge) for edge in EDGES.split()]
    assert [float(le) for le in buckets] == [*edges, float("inf")]
    assert (buckets["10.0"], buckets["15.0"], buckets["1200.0"], buckets["+Inf"]) == (0, 2, 2, 3)
    found = samples(busy_snapshot())
    assert found["lufleet_vm_downtime_seconds_count", ()] == 3
    assert found["lufleet_vm_downtime_seconds_sum", ()] == 26


def test_values_are_in_base_units() -> None:
    found = samples(busy_snapshot())
    assert found["lufleet_virtual_time_seconds", ()] == 754.5
    assert found["lufleet_downtime_budget_seconds", ()] == 30
    assert found["lufleet_kho_scratch_bytes", ()] == 536_870_912
    assert found["lufleet_update_phase_seconds_sum", (("phase", "freeze"),)] == 0.04
    assert found["lufleet_rollout_wave", ()] == 1
    assert found["lufleet_rollout_waves", ()] == 4


def test_an_update_without_a_reason_counts_under_none() -> None:
    found = samples(busy_snapshot())
    assert found["lufleet_host_updates_total", (("outcome", "updated"), ("reason", "none"))] == 2
    rolled_back = (("outcome", "rolled_back"), ("reason", "panic"))
    assert found["lufleet_host_updates_total", rolled_back] == 1


def test_vms_that_run_again_without_their_memory_are_told_from_those_that_kept_it() -> None:
    assert values(busy_snapshot(), "lufleet_vm_updates_total", "outcome") == {
        "preserved": 15,
        "migrated": 0,
        "restarted": 8,
        "lost": 1,
    }


def test_a_reason_that_nobody_foresaw_is_shown_when_it_happens() -> None:
    odd = msgspec.structs.replace(busy_snapshot(), host_updates_total={("failed", "new"): 3})
    labels = (("outcome", "failed"), ("reason", "new"))
    assert samples(odd)["lufleet_host_updates_total", labels] == 3


def test_exactly_one_state_of_the_rollout_is_on() -> None:
    states = values(busy_snapshot(), "lufleet_rollout_state", "state")
    assert set(states) == {str(state) for state in RolloutState}
    assert [state for state, on in states.items() if on] == ["wave"]


def test_the_info_metric_names_releases_and_proposal() -> None:
    ((_, labels),) = (k for k in samples(fresh_snapshot()) if k[0] == "lufleet_rollout_info")
    assert dict(labels) == {
        "scenario": "rolling-update",
        "seed": "7",
        "source_release": "7.3.2+hugetlb",
        "target_release": "7.3.4+hugetlb",
        "proposal": "with the proposal flb-counts, RFC of Dec 2025",
    }


def test_a_scrape_reads_one_snapshot() -> None:
    asked: list[int] = []

    def source() -> FleetSnapshot:
        asked.append(1)
        return busy_snapshot()

    assert len(list(FleetCollector(source).collect())) > 10
    assert len(asked) == 1


def test_no_vm_and_no_host_is_a_label() -> None:
    labels = {name for _, pairs in samples(busy_snapshot()) for name, _ in pairs}
    assert labels.isdisjoint({"vm", "host"})


def test_promtool_has_nothing_to_complain_about() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: Debian package prometheus")
    for snapshot in (fresh_snapshot(), busy_snapshot()):
        text = generate_latest(fleet_registry(lambda s=snapshot: s))  # type: ignore[misc]
        done = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_server_shows_the_fleet_and_on_request_its_hosts() -> None:
    with MetricsServer(busy_snapshot, "127.0.0.1", 0) as server:
        base = f"http://127.0.0.1:{server.port}"
        with urlopen(f"{base}/metrics") as answer:
            assert "lufleet_rollout_wave 1.0" in answer.read().decode()
        with urlopen(f"{base}/metrics/hosts") as answer:
            text = answer.read().decode()
        assert 'lufleet_host_state{host="r2-h01",state="updating"} 1.0' in text
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"{base}/elsewhere")


def test_a_page_can_be_asked_for_some_of_its_metrics() -> None:
    with MetricsServer(busy_snapshot, "127.0.0.1", 0) as server:
        base = f"http://127.0.0.1:{server.port}"
        with urlopen(f"{base}/metrics?name[]=lufleet_rollout_wave") as answer:
            shown = answer.read().decode().splitlines()
        assert [line for line in shown if not line.startswith("#")] == ["lufleet_rollout_wave 1.0"]
        with urlopen(f"{base}/metrics/hosts?name[]=lufleet_host_state") as answer:
            assert "r2-h01" in answer.read().decode()


def test_a_closed_server_gives_its_port_back() -> None:
    server = MetricsServer(busy_snapshot, "127.0.0.1", 0)
    port = server.port
    server.close()
    MetricsServer(busy_snapshot, "127.0.0.1", port).close()


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """metric -> (type, labels) as docs/metrics.md lists them."""
    row = re.compile(r"^\| `(lufleet_\w+)` \| (\w+) \| ([^|]*) \|", re.MULTILINE)
    rows = row.findall(DOCS.read_text())
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def exported(families: Iterable[Metric]) -> dict[str, tuple[str, frozenset[str]]]:
    """metric -> (type, labels) as the exporter has them."""
    suffix = {"counter": "_total", "info": "_info"}
    return {
        family.name + suffix.get(family.type, ""): (
            {"info": "gauge"}.get(family.type, family.type),
            frozenset(name for sample in family.samples for name in sample.labels) - {"le"},
        )
        for family in families
    }


def test_the_documentation_lists_exactly_the_metrics_that_there_are() -> None:
    there = exported(metric_families(busy_snapshot()))
    there["lufleet_host_state"] = ("gauge", frozenset({"host", "state"}))
    assert documented() == there
