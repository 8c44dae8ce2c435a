"""One HTML file about one rollout, for people: everything is in it, nothing is fetched.

It answers, in this order: did it go well and what did it cost; how long VMs were down against
their budget; where the blackout went; how the rollout ran over time; what went wrong, where and
why; what memory was carried over; which of all this is Linux as released, which a proposal,
and where the times come from. There is no script in it. A hundred thousand hosts make a
page as small as twenty do: charts aggregate, and tables stop at `MOST_ROWS` rows and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from fleet.api import RolloutState, RunRecord
from fleet.charts.downtime import downtime_chart
from fleet.charts.phases import MOST_BARS, phase_bars, phases_chart
from fleet.charts.svg import clock, seconds
from fleet.charts.timeline import MOST_ROWS, timeline_chart
from fleet.html import Markup, code, legend, table, text
from fleet.report_notes import again, cost_notes, memory_notes, model_notes
from fleet.report_trouble import trouble_notes
from fleet.results import DowntimeSummary, PhaseSummary, Result
from fleet.units import counted
from node.api import BLACKOUT_PHASES, UpdateResult, VmOutcome

__all__ = ["own_version", "page_style", "render_report", "write_report"]

_FALLBACK: Final = "fallback"
_STATE_STYLE: Final = {
    RolloutState.COMPLETED: "good",
    RolloutState.HALTED: "bad",
    RolloutState.ABORTED: "warn",
}
_VM_COLOURS: Final = {
    VmOutcome.PRESERVED: "accent",
    VmOutcome.MIGRATED: "good",
    VmOutcome.RESTARTED: "warn",
    VmOutcome.LOST: "bad",
}
_HOST_COLOURS: Final = {
    "updated": "accent",
    "rolled_back": "warn",
    "failed": "bad",
    "updating": "good",
    "pending": "line",
}


def write_report(record: RunRecord, result: Result, path: Path) -> None:
    """Write the report of `record`, whose summary is `result`, to `path`."""
    part = path.with_name(path.name + ".part")
    part.write_text(render_report(record, result), "utf-8")
    part.replace(path)


def render_report(record: RunRecord, result: Result) -> str:
    """The whole page."""
    domain = record.scenario.rollout.spread or "rack"
    template = Template((files("fleet") / "templates" / "report.html").read_text("utf-8"))
    return template.substitute(
        version=text(own_version()),
        title=text(f"{result.scenario}: {result.target_release}, rollout {result.rollout.state}"),
        name=text(result.scenario),
        state=text(result.rollout.state),
        state_style=_STATE_STYLE.get(record.state, "idle"),
        subtitle=text(
            f"{record.scenario.update_title}"
            f" · {counted(result.hosts.total, 'host')}, {counted(result.vms.total, 'VM')}"
            f" · seed {result.seed}"
            " · simulated, all times virtual"
        ),
        headline=text(_headline(result)),
        tiles=_tiles(result),
        style=page_style(),
        classes=_classes(),
        downtime_legend=_downtime_legend(record),
        downtime_chart=_downtime_chart(record, result),
        downtime_table=_downtime_table(result),
        phases_note=text(_phases_note(record)),
        phases_legend=_phases_legend(record, result),
        phases_chart=phases_chart(phase_bars(map(_blackout, record.results))),
        phases_table=_phases_table(result),
        timeline_note=text(_timeline_note(record)),
        timeline_legend=_timeline_legend(record),
        timeline_chart=timeline_chart(record, domain),
        waves_table=_waves_table(result),
        trouble=trouble_notes(record, result),
        memory=memory_notes(result),
        model=model_notes(record),
        costs=cost_notes(record),
        footer=_footer(record, result),
    )


def page_style() -> str:
    """The style sheet that every page shares."""
    return (files("fleet") / "templates" / "page.css").read_text("utf-8")


def own_version() -> str:
    """The version of this package, for pages to say who wrote them."""
    try:
        return version("lufleet")
    except PackageNotFoundError:
        return "from source"


def _classes() -> str:
    """The CSS classes of the charts that follow from a colour each."""
    rules = [f".ph-{phase} {{ fill: var(--{phase}); }}" for phase in (*BLACKOUT_PHASES, "other")]
    rules += [f".vm-{outcome} {{ fill: var(--{c}); }}" for outcome, c in _VM_COLOURS.items()]
    rules += [
        f".host-{state}, .area-{state} {{ fill: var(--{c}); }}"
        for state, c in _HOST_COLOURS.items()
    ]
    rules += [f".heat-{n} {{ fill: var(--accent); fill-opacity: .{n * 2 + 1}; }}" for n in range(5)]
    return "\n".join(rules)


def _headline(result: Result) -> str:
    hosts, vms, downtime = result.hosts, result.vms, result.downtime_seconds
    told = [f"{hosts.updated:,} of {hosts.total:,} hosts run {result.target_release}."]
    fates = [
        f"{count:,} {'was' if count == 1 else 'were'} {fate}"
        for count, fate in (
            (vms.migrated, "migrated"),
            (vms.restarted, "restarted"),
            (vms.lost, "lost"),
        )
        if count
    ]
    kept = f"{vms.preserved:,} of {vms.total:,} VMs kept their memory"
    if vms.untouched:
        kept += f", {vms.untouched:,} of them never touched"
    told.append(f"{kept}; {', '.join(fates) or 'none was restarted or lost'}.")
    if downtime.count and downtime.p50 is not None:
        told.append(
            f"Half of the VMs that were paused ({downtime.count:,}) were down for at most "
            f"{seconds(downtime.p50)}; {_share(result)} stayed within the budget of "
            f"{seconds(downtime.budget)}."
        )
    if result.rollout.state != RolloutState.COMPLETED:
        told.append(f"The rollout was {result.rollout.state}: {result.rollout.why}.")
    return " ".join(told)


def _share(result: Result) -> str:
    """Downtimes within budget in percent, rounded; 100 % means all and 0 % none."""
    downtime = result.downtime_seconds
    if not downtime.count:
        return "–"
    permille = round(Fraction(1000 * downtime.within_budget, downtime.count))
    if 0 < downtime.within_budget < downtime.count:
        permille = min(max(permille, 1), 999)
    return f"{permille / 10:g}\N{NO-BREAK SPACE}%"


def _tile(name: str, value: str, of: str) -> str:
    said = f'{text(value)}<span class="of">{text(of)}</span>'
    return f'<div class="tile"><dt>{text(name)}</dt><dd>{said}</dd></div>'


def _tiles(result: Result) -> Markup:
    hosts, vms, downtime, rollout = (
        result.hosts,
        result.vms,
        result.downtime_seconds,
        result.rollout,
    )
    went = ", ".join(
        f"{count:,} {name}"
        for count, name in (
            (hosts.rolled_back, "rolled back"),
            (hosts.failed, "failed"),
            (hosts.skipped, "skipped"),
        )
        if count
    )
    p50, p90, p99, longest = _ranks(downtime)
    tiles = [
        _tile("hosts updated", f"{hosts.updated:,}", f"of {hosts.total:,}; {went or 'all well'}"),
        _tile(
            "VMs preserved",
            f"{vms.preserved:,}",
            f"of {vms.total:,}; {vms.restarted:,} restarted, {vms.lost:,} lost",
        ),
        _tile("downtime p50", p50, f"p90 {p90}"),
        _tile("downtime p99", p99, f"longest {longest}"),
        _tile(
            "within budget",
            _share(result),
            f"of {downtime.count:,} downtimes ≤ {seconds(downtime.budget)}",
        ),
        _tile(
            "rollout",
            clock(rollout.virtual_seconds),
            f"virtual; {rollout.waves} of {rollout.waves_planned} waves",
        ),
    ]
    return Markup("".join(tiles))


def _ranks(downtime: DowntimeSummary) -> list[str]:
    """p50, p90, p99 and the longest; a lost VM has none, and without downtimes there is none."""
    none = "lost" if downtime.count else "–"
    values = (downtime.p50, downtime.p90, downtime.p99, downtime.max)
    return [none if value is None else seconds(value) for value in values]


def _downtime_legend(record: RunRecord) -> Markup:
    seen = {vm.outcome for result in record.results for vm in result.vms}
    return legend({c: f"VMs {outcome}" for outcome, c in _VM_COLOURS.items() if outcome in seen})


def _downtime_chart(record: RunRecord, result: Result) -> str:
    finite: dict[str, list[float]] = {
        outcome: [] for outcome in _VM_COLOURS if outcome is not VmOutcome.LOST
    }
    for update in record.results:
        for vm in update.vms:
            if vm.downtime_ns is not None and vm.phases_ns:
                finite[vm.outcome].append(vm.downtime_ns / 1e9)
    downtime = result.downtime_seconds
    marks = {"p50": downtime.p50, "p90": downtime.p90, "p99": downtime.p99}
    return downtime_chart(finite, downtime.lost, downtime.budget, marks)


def _downtime_table(result: Result) -> Markup:
    d = result.downtime_seconds
    mean = "–" if d.finite_mean is None else seconds(d.finite_mean)
    row = [f"{d.count:,}", *_ranks(d), mean]
    said = f"{d.lost:,} lost" if d.lost else "no VM lost"
    caption = f"Nearest-rank percentiles; {said}, {d.never_paused:,} were never paused"
    columns = ("downtimes", "p50", "p90", "p99", "longest", "mean of the finite")
    return table(caption, columns, [row], numeric=range(1, 6))


def _blackout(update: UpdateResult) -> tuple[str, dict[str, int]]:
    """A host update and the phases of its blackout.

    Of one whose next kernel did not come up, the rest of the update is shown too: for its VMs
    the blackout went on until a cold boot had ended.
    """
    if update.blackout_start_ns is None or update.blackout_end_ns is not None:
        return update.host, update.phases_ns
    rest = update.end_ns - update.blackout_start_ns - sum(update.phases_ns.values())
    return update.host, update.phases_ns | {_FALLBACK: rest}


def _phases_note(record: RunRecord) -> str:
    ran = sum(1 for result in record.results if result.phases_ns)
    bars = (
        "one bar each"
        if ran <= MOST_BARS
        else "the longest one bar each, the others averaged in groups of 5 % each"
    )
    return (
        f"{counted(ran, 'host update')} went through a blackout, {bars}, longest first. "
        "The phases of a host sum to its blackout. A cut bar goes on beyond the axis; its figure "
        "is the whole."
    )


def _phases_legend(record: RunRecord, result: Result) -> Markup:
    phases = result.blackout_phases_seconds
    known = {phase: phase for phase in phases if phase in BLACKOUT_PHASES}
    other = [phase for phase in phases if phase not in BLACKOUT_PHASES]
    if any(r.blackout_start_ns is not None and r.blackout_end_ns is None for r in record.results):
        other.append(f"{_FALLBACK} (cold boot)")
    return legend(known | ({"other": ", ".join(other)} if other else {}))


def _phases_table(result: Result) -> Markup:
    def rows(of: dict[str, PhaseSummary], where: str) -> list[Sequence[object]]:
        return [
            (phase, where, f"{s.count:,}", seconds(s.mean), seconds(s.p99))
            for phase, s in of.items()
        ]

    return table(
        "Phases over the host updates in which they happened",
        ("phase", "", "count", "mean", "p99"),
        rows(result.blackout_phases_seconds, "blackout")
        + rows(result.outside_phases_seconds, "VMs run"),
        numeric=(2, 3, 4),
    )


def _timeline_note(record: RunRecord) -> str:
    most = record.scenario.rollout.max_unavailable.items()
    limits = ", ".join(f"{counted(count, 'host')} per {key}" for key, count in most)
    return (
        "Virtual time. Soaks (hatched) and long waits for single hosts (dotted) are shortened."
        + (f" At most {limits} at once." if limits else "")
    )


def _timeline_legend(record: RunRecord) -> Markup:
    seen = {str(outcome) for outcome in record.hosts.values()}
    is_large = len(record.hosts) > MOST_ROWS
    if is_large:
        seen |= {"updating", "pending"}
    colours = {c: s.replace("_", " ") for s, c in _HOST_COLOURS.items() if s in seen}
    if is_large:
        return legend(colours)
    marks = "▲ fell back or failed · ↻ freeze retried · ✕ VM lost"
    shown = legend({"light-bar": "update, VMs running", **colours})
    return Markup(shown.replace("</ul>", f"<li>{text(marks)}</li></ul>"))


def _waves_table(result: Result) -> Markup:
    def instant(value: float | None) -> str:
        return "–" if value is None else clock(value)

    waves = result.rollout.wave_records
    rows = [
        (
            wave.name,
            f"{wave.hosts:,}",
            instant(wave.start_seconds),
            instant(wave.end_seconds),
            instant(wave.soak_end_seconds),
            wave.verdict,
        )
        for wave in waves[:100]
    ]
    columns = ("wave", "hosts", "started", "done", "soaked", "verdict")
    caption = counted(len(waves), "wave") + ("; the first 100" if len(waves) > len(rows) else "")
    return table(caption, columns, rows, numeric=(1, 2, 3, 4))


def _footer(record: RunRecord, result: Result) -> Markup:
    return Markup(
        f"<p>Digest {code(result.digest)}. The same scenario and seed give it again: "
        f"{code(again(record))}. Scenario {code(result.scenario_digest)}.</p>"
        f"<p>Made by lufleet {text(own_version())}, backend {text(record.backend)} with "
        f"{counted(record.actors, 'actor')}, in "
        f"{seconds(record.wall_seconds)} of wall time. Every row behind these figures is in "
        f"{code('run.duckdb')}, the summary in {code('result.json')}.</p>"
    )
