"""The report: one page that fetches nothing, shows the figures of result.json and stays small."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from fleet.api import WaveRecord
from fleet.charts.downtime import downtime_chart
from fleet.charts.phases import MOST_BARS, Bar, phase_bars, phases_chart
from fleet.charts.svg import LETTER, WIDTH, clock, clock_step, linear, log, seconds, tick_step
from fleet.charts.time_axis import StretchKind, TimeAxis
from fleet.charts.timeline import timeline_chart
from fleet.html import Markup, table, text
from fleet.outputs import write_outputs
from fleet.report import render_report
from fleet.results import summarise
from kernelmodel.sim.cost import CostModel
from node.api import HostOutcome, VmOutcome
from tests.fleet.sample_run import SEC, make_run

SPACE = "\N{NO-BREAK SPACE}"


class Page(HTMLParser):
    """Elements, ids and text of a page; raises on tags that do not match."""

    VOID = frozenset(("meta", "link", "br", "img"))

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace(SPACE, " ").split())


def page(**kwargs: object) -> Page:
    run = make_run(**kwargs)  # type: ignore[arg-type]
    return Page(render_report(run, summarise(run)))


def test_the_page_fetches_nothing_and_runs_no_script() -> None:
    run = make_run()
    html = render_report(run, summarise(run))
    parsed = Page(html)
    assert {tag for tag, _ in parsed.elements}.isdisjoint({"script", "img", "iframe", "object"})
    for tag, attributes in parsed.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
    assert "@import" not in html
    assert "url(http" not in html


def test_every_chart_says_in_words_what_it_shows_and_every_table_has_a_caption() -> None:
    parsed = page()
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    charts = [attributes for tag, attributes in parsed.elements if tag == "svg"]
    assert len(charts) == 3
    for chart in charts:
        assert chart["role"] == "img"
        assert set((chart["aria-labelledby"] or "").split()) <= set(ids)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("table") == tags.count("caption") > 5
    assert tags.count("h1") == 1


def test_the_page_shows_the_figures_of_the_summary() -> None:
    run = make_run(lose_a_vm=True, halt_after=2)
    result = summarise(run)
    shown = Page(render_report(run, result)).text
    assert "8 of 24 hosts run 7.3.4+hugetlb" in shown
    assert "183 of 192 VMs kept their memory, 120 of them never touched; 8 were" in shown
    assert "8 were restarted, 1 was lost." in shown
    assert "The rollout was halted: wave 1: 1 VM was lost, the gate allows 0." in shown
    assert f"downtime p50 {seconds(result.downtime_seconds.p50 or 0)}".replace(SPACE, " ") in shown
    assert "downtime p99 lost longest lost" in shown
    for label, pages in result.preserved_pages.items():
        assert f"{label} {pages:,}" in shown
    assert result.digest in shown


SHARES = [
    # within, of, shown
    (2, 3, "66.7 %"),
    (1, 3, "33.3 %"),
    (9999, 10_000, "99.9 %"),
    (1, 10_000, "0.1 %"),
    (125, 1000, "12.5 %"),
    (3, 3, "100 %"),
    (0, 3, "0 %"),
]


@pytest.mark.parametrize(("within", "count", "shown"), SHARES)
def test_a_share_is_rounded_but_never_up_to_all_or_down_to_none(
    within: int, count: int, shown: str
) -> None:
    run = make_run(hosts=2)
    result = summarise(run)
    downtime = msgspec.structs.replace(result.downtime_seconds, within_budget=within, count=count)
    result = msgspec.structs.replace(result, downtime_seconds=downtime)
    assert f"{shown} stayed within the budget" in Page(render_report(run, result)).text


def test_the_mark_of_a_host_that_lost_a_vm_stays_clear_of_its_name() -> None:
    """Also if its update takes the whole chart."""
    run = make_run(hosts=1, racks=1)
    (update,) = run.results
    lost = msgspec.structs.replace(update.vms[0], outcome=VmOutcome.LOST, downtime_ns=None)
    update = msgspec.structs.replace(update, start_ns=0, end_ns=run.virtual_ns, vms=(lost,))
    wave = msgspec.structs.replace(
        run.waves[0], start_ns=0, end_ns=run.virtual_ns, soak_end_ns=None
    )
    chart = timeline_chart(msgspec.structs.replace(run, results=(update,), waves=(wave,)), "rack")
    found = re.search(r'class="sign-bad" x="([\d.]+)"', chart)
    assert found is not None
    assert WIDTH - 16 < float(found[1]) <= WIDTH - 8


def test_long_names_of_hosts_and_racks_are_not_cut_off_by_the_edge_of_a_chart() -> None:
    """What is left of each keeps its ends, by which names of a fleet differ."""
    name = "compute-{}.rack-017.eu-central-1.cloud.example.net-{}".format
    few, many = make_run(hosts=2, racks=1), make_run(hosts=80, racks=4)
    hosts = tuple(
        msgspec.structs.replace(host, name=name(nr, nr))
        for nr, host in enumerate(few.scenario.hosts)
    )
    racked = tuple(
        msgspec.structs.replace(host, domains={"rack": name(host.domains["rack"], 9)})
        for host in many.scenario.hosts
    )
    charts = [phases_chart([Bar(name(1, 1), {"init": 1.0})])]
    for run, renamed in ((few, hosts), (many, racked)):
        scenario = msgspec.structs.replace(run.scenario, hosts=renamed)
        charts.append(timeline_chart(msgspec.structs.replace(run, scenario=scenario), "rack"))
    for chart in charts:
        ends = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="end">(comp.*?)<', chart)
        assert ends
        for x, label in ends:
            assert len(label) * LETTER <= float(x)
            assert re.fullmatch(r"compu.*…..*-\d", label)


def test_a_table_names_each_host_that_did_not_just_go_well_and_why() -> None:
    run = make_run(lose_a_vm=True)
    shown = Page(render_report(run, summarise(run))).text
    for said in (
        "r1-h02 rolled back wave 1",
        "panic the next kernel panicked in kho_memory_init",
        "r3-h02 updated wave 1",
        "freeze-retried after 2 freezes",
        "r2-h01-vm0 lost r2-h01 lost content-mismatch",
        "3 host updates, worst first",  # and none of the others
        "9 VMs, worst first",
    ):
        assert said in shown


def test_a_vm_may_be_over_budget_without_a_blackout_of_its_host() -> None:
    run = make_run(hosts=2)
    given_up = [
        msgspec.structs.replace(vm, downtime_ns=31 * SEC, phases_ns={"failed_freeze": 31 * SEC})
        for vm in run.results[0].vms
    ]
    failed = msgspec.structs.replace(
        run.results[0],
        outcome=HostOutcome.FAILED,
        reason="freeze-failed",
        phases_ns={},
        blackout_start_ns=None,
        blackout_end_ns=None,
        vms=tuple(given_up),
    )
    run = msgspec.structs.replace(run, results=(failed, run.results[1]))
    assert "8 over budget freeze-failed" in Page(render_report(run, summarise(run))).text


def test_the_page_tells_proposal_from_release_and_names_each_cost_with_its_source() -> None:
    shown = page().text
    assert "proposal: flb-counts, RFC of Dec 2025" in shown
    assert "Linux 7.3 preserves plain memfds and nothing else" in shown
    assert f"Of its {len(CostModel.load().rows)} rows" in shown
    for row in CostModel.load().rows.values():
        assert row.op in shown
        assert " ".join(row.source.split()) in shown
    assert "boot-tail 0 % → 0.92, 50 % → 1, 90 % → 1.12, 99 % → 1.5, 100 % → 2.5" in shown
    run = make_run()
    own = "[spread.boot-tail]\npoints = [[0, 500], [1000, 9000]]\n"
    scenario = msgspec.structs.replace(run.scenario, cost_profile=own)
    run = msgspec.structs.replace(run, scenario=scenario)
    shown = Page(render_report(run, summarise(run))).text
    assert "spreads are boot-tail. " in shown
    assert "boot-tail 0 % → 0.5, 100 % → 9 estimate" in shown


def test_a_release_without_a_proposal_says_that_it_refuses_hugetlb() -> None:
    run = make_run()
    plain = msgspec.structs.replace(run.scenario, target_release="7.3.4")
    run = msgspec.structs.replace(run, scenario=plain)
    shown = Page(render_report(run, summarise(run))).text
    assert "hugetlb memfd absent Linux as released refused" in shown


def test_names_from_an_inventory_cannot_break_out_of_the_page() -> None:
    run = make_run(hosts=2)
    evil = msgspec.structs.replace(run.scenario, name='<script>alert("x")</script>')
    html = render_report(
        msgspec.structs.replace(run, scenario=evil),
        summarise(msgspec.structs.replace(run, scenario=evil)),
    )
    assert "<script" not in html


@pytest.mark.parametrize(("hosts", "racks"), [(1, 1), (24, 3), (73, 9), (600, 20), (5000, 400)])
def test_the_page_stays_small_whatever_the_fleet(hosts: int, racks: int) -> None:
    run = make_run(hosts, racks, 2)
    html = render_report(run, summarise(run))
    Page(html)
    assert len(html) < 200_000


def test_a_run_that_did_nothing_has_a_report_too() -> None:
    run = msgspec.structs.replace(make_run(hosts=2), results=(), waves=(), virtual_ns=0)
    shown = Page(render_report(run, summarise(run))).text
    assert "No VM was paused." in shown
    assert "downtime p50 – p90 – downtime p99 – longest –" in shown
    assert "0 – – – – –" in shown
    assert "None" not in shown
    assert "No host went through a blackout." in shown


def test_outputs_are_written_whole_into_a_new_directory(tmp_path: Path) -> None:
    outputs = write_outputs(make_run(), tmp_path / "new" / "out")
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert names == {"result.json", "report.html", "run.duckdb"}
    assert outputs.report_html.read_text("utf-8").startswith("<!DOCTYPE html>")


def test_of_many_updates_the_longest_stand_alone_and_the_others_are_averaged() -> None:
    updates = [(f"h{i}", {"freeze": i * SEC, "init": 2 * i * SEC}) for i in range(1, 109)]
    bars = phase_bars(updates)
    assert [bar.label for bar in bars[:8]] == [f"h{i}" for i in range(108, 100, -1)]
    assert [bar.label for bar in bars[8:10]] == ["0–5 %", "5–10 %"]
    assert bars[8].phases_s == {"freeze": 98.0, "init": 196.0}  # of h100 … h96
    assert len(bars) == 28
    assert len(phase_bars(updates[:MOST_BARS])) == MOST_BARS


def test_a_chart_whose_every_percentile_is_lost_still_shows_the_lost() -> None:
    chart = downtime_chart({"preserved": [12.0]}, 3, 30.0, {"p50": None, "p90": None})
    assert "3 VMs lost" in chart


def test_no_bin_of_the_histogram_holds_both_sides_of_the_budget() -> None:
    chart = downtime_chart({"preserved": [29.9, 30.0, 30.1]}, 0, 30.0, {})
    assert ": 2 VMs preserved" in chart
    assert ": 1 VMs preserved" in chart


def test_the_time_axis_rises_and_shortens_soaks_and_waits() -> None:
    run = make_run()
    axis = TimeAxis(run.waves, run.results, run.virtual_ns, 100.0, 900.0)
    at = [axis(t) for t in range(0, run.virtual_ns // SEC + 100, 5)]
    assert at == sorted(at)
    assert (at[0], at[-1]) == (100.0, 900.0)
    by_kind = {kind: [s for s in axis.stretches if s.kind is kind] for kind in StretchKind}
    assert len(by_kind[StretchKind.SOAK]) == 4
    assert len(by_kind[StretchKind.WAIT]) == 1  # for the cold boot of r1-h02
    assert all(s.right - s.left < 63 for s in by_kind[StretchKind.SOAK])


@pytest.mark.parametrize("minutes", range(3, 20))
def test_times_on_the_axis_do_not_run_into_each_other(minutes: int) -> None:
    """Waves without soaks, each of so many minutes, in a rollout of three hours."""
    wave_ns, end_ns = minutes * 60 * SEC, 180 * 60 * SEC
    waves = tuple(
        WaveRecord(nr, f"wave {nr}", (), at, at + wave_ns, None, "passed")
        for nr, at in enumerate(range(0, end_ns, wave_ns))
    )
    run = make_run(hosts=200)
    results = tuple(
        msgspec.structs.replace(result, start_ns=nr * 54 * SEC, end_ns=(nr + 1) * 54 * SEC)
        for nr, result in enumerate(run.results)
    )
    record = msgspec.structs.replace(run, waves=waves, results=results, virtual_ns=end_ns)
    drawn = timeline_chart(record, "rack")
    times = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d:]+)</text>', drawn)
    ends = [(float(x) - len(time) * 3.5, float(x) + len(time) * 3.5) for x, time in times]
    assert len(ends) > 5
    assert all(right < left for (_, right), (left, _) in pairwise(ends)), times


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0000146, "14.6 µs"),
        (0.038, "38 ms"),
        (4.25, "4.2 s"),
        (14.03, "14 s"),
        (119.9, "119.9 s"),
        (423, "7 min 3 s"),
        (3600, "1 h"),
    ],
)
def test_durations_read_as_people_write_them(value: float, said: str) -> None:
    assert seconds(value).replace(SPACE, " ") == said


def test_scales_and_ticks() -> None:
    assert linear(0, 10, 100, 200)(5) == 150
    assert log(1, 100, 0, 200)(10) == pytest.approx(100)
    assert (tick_step(100, 5), tick_step(87, 10)) == (20, 10)
    assert tick_step(0.4, 4) == pytest.approx(0.1)
    assert (clock_step(3600, 6), clock_step(40, 5)) == (600, 10)
    assert (clock(0), clock(754.6), clock(3750)) == ("0:00", "12:34", "1:02:30")


def test_markup_is_kept_and_everything_else_escaped() -> None:
    assert text("a < b & c") == "a &lt; b &amp; c"
    assert text(Markup("<b>a</b>")) == "<b>a</b>"
    made = table("cap", ("x", "n"), [("<", 1)], numeric=(1,))
    assert '<th scope="row">&lt;</th><td class="num">1</td>' in made
