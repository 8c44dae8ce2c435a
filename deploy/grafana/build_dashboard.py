"""Builds the Grafana dashboard `lufleet` as JSON.

    python deploy/grafana/build_dashboard.py > deploy/grafana/dashboards/lufleet.json

The JSON is committed, so that Grafana can be provisioned from a checkout; a test fails when it is
not what this script prints. From general to specific: how the rollout goes, how long VMs are down
against their budget, where the blackout goes, what memory is carried over, what went wrong.

All durations are virtual time. The horizontal axis is the clock of whoever watches: at
`--speed 60` a minute on it is an hour of the fleet.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, heatmap, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as dash
from grafana_foundation_sdk.builders import prometheus as prom
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

_SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_RED, _ORANGE, _GREEN, _BLUE, _GREY = "red", "orange", "green", "blue", "text"

#: In expressions, braces with nothing in them stand for the choice of the instance.
_OURS: Final = 'instance=~"$instance"'
_OUTSIDE: Final = "kexec_file_load|preserve|finish"


_Panel = TypeVar("_Panel", bargauge.Panel, heatmap.Panel, stat.Panel, table.Panel, timeseries.Panel)


class Query(NamedTuple):
    """A PromQL expression and the name of what it returns."""

    expr: str
    legend: str = ""
    instant: bool = False
    format: PromQueryFormat = PromQueryFormat.TIME_SERIES


def _target(query: Query, letter: str) -> prom.Dataquery:
    expr = query.expr.replace("{", "{" + _OURS + ",").replace(",}", "}")
    built = prom.Dataquery().datasource(_SOURCE).expr(expr).ref_id(letter).format(query.format)
    built = built.legend_format(query.legend) if query.legend else built
    return built.instant() if query.instant else built.range()


def _fill(
    panel: _Panel, title: str, text: str, queries: Sequence[Query], width: int, height: int
) -> _Panel:
    panel = panel.title(title).description(text).datasource(_SOURCE).span(width).height(height)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel = panel.with_target(_target(query, letter))
    return panel


def _steps(*steps: tuple[float | None, str]) -> dash.ThresholdsConfig:
    thresholds = [model.Threshold(value=value, color=color) for value, color in steps]
    return dash.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(thresholds)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _number(
    title: str, text: str, query: Query, unit: str, *steps: tuple[float | None, str], width: int = 4
) -> stat.Panel:
    panel = stat.Panel().unit(unit).thresholds(_steps(*(steps or ((None, _BLUE),))))
    panel = panel.reduce_options(_last()).graph_mode(kinds.BigValueGraphMode.NONE)
    # Over a range, a state that has passed would be shown beside the one that holds.
    return _fill(panel, title, text, [query._replace(instant=True)], width, 4)


def _lines(
    title: str, text: str, queries: Sequence[Query], unit: str, *, width: int = 12
) -> timeseries.Panel:
    panel = timeseries.Panel().unit(unit).line_width(2).fill_opacity(0).min(0)
    panel = panel.legend(
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel = panel.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI))
    return _fill(panel, title, text, queries, width, 8)


def _table(*hidden: str) -> table.Panel:
    """A table of labels without those that say nothing here."""
    hide = {"excludeByName": dict.fromkeys(("Time", "__name__", "job", *hidden), True)}
    organize = model.DataTransformerConfig(id_val="organize", options=hide)
    return table.Panel().show_header(True).with_transformation(organize)


def _stacked(panel: timeseries.Panel) -> timeseries.Panel:
    return (
        panel.fill_opacity(70)
        .line_width(1)
        .stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    )


def _colour(panel: timeseries.Panel, name: str, colour: str) -> timeseries.Panel:
    fixed = {"mode": "fixed", "fixedColor": colour}
    return panel.override_by_name(name, [model.DynamicConfigValue(id_val="color", value=fixed)])


def _rollout(board: dash.Dashboard) -> dash.Dashboard:
    board = board.with_row(dash.Row("Rollout"))
    state = _number(
        "State",
        "The state that the rollout is in.",
        Query("lufleet_rollout_state{} == 1", "{{state}}"),
        "none",
    ).text_mode(kinds.BigValueTextMode.NAME)
    board = board.with_panel(state)
    board = board.with_panel(
        _number(
            "Waves begun",
            "Waves that have begun, the canary included.",
            Query("lufleet_rollout_wave{} + 1", "begun"),
            "none",
        )
    )
    board = board.with_panel(
        _number(
            "Waves planned",
            "Waves that the plan has, the canary included.",
            Query("lufleet_rollout_waves{}", "planned"),
            "none",
        )
    )
    board = board.with_panel(
        _number(
            "Virtual time",
            "The fleet's clock since the rollout began.",
            Query("lufleet_virtual_time_seconds{}", "virtual"),
            "dtdurations",
        )
    )
    board = board.with_panel(
        _number(
            "Hosts updated",
            "Share of all hosts that run the target release because of this rollout.",
            Query('sum(lufleet_hosts{state="updated"}) / sum(lufleet_hosts{})', "updated"),
            "percentunit",
        )
    )
    board = board.with_panel(
        _number(
            "VMs lost",
            "VMs whose memory should have been preserved and was not.",
            Query('sum(lufleet_vms{state="lost"})', "lost"),
            "none",
            (None, _GREEN),
            (1, _RED),
        )
    )
    hosts = _stacked(
        _lines(
            "Hosts by state",
            "Every host is in one of these states.",
            [Query("sum by (state) (lufleet_hosts{})", "{{state}}")],
            "none",
        )
    )
    for name, colour in {
        "updated": _BLUE,
        "updating": _GREEN,
        "pending": _GREY,
        "skipped": "super-light-yellow",
        "rolled_back": _ORANGE,
        "failed": _RED,
    }.items():
        hosts = _colour(hosts, name, colour)
    board = board.with_panel(hosts)
    vms = _lines(
        "VMs that are not running",
        "Paused for an update, being restarted, or lost.",
        [Query('sum by (state) (lufleet_vms{state!="running"})', "{{state}}")],
        "none",
        width=6,
    )
    for name, colour in {"paused": _BLUE, "restarting": _ORANGE, "lost": _RED}.items():
        vms = _colour(vms, name, colour)
    board = board.with_panel(vms)
    return board.with_panel(
        _fill(
            _table("Value"),
            "What is rolled out",
            "The proposal is what the target carries beyond the kernel as released.",
            [Query("lufleet_rollout_info{}", "", True, PromQueryFormat.TABLE)],
            6,
            8,
        )
    )


def _downtime(board: dash.Dashboard) -> dash.Dashboard:
    board = board.with_row(dash.Row("VM downtime against its budget (virtual time)"))

    def quantile(q: float) -> str:
        return f"histogram_quantile({q}, sum by (le) (lufleet_vm_downtime_seconds_bucket{{}}))"

    lines = _lines(
        "Downtime percentiles since the start",
        "Interpolated in the histogram's buckets; result.json has the exact ones. A lost VM lies "
        "beyond every bucket.",
        [
            Query(quantile(0.5), "p50"),
            Query(quantile(0.9), "p90"),
            Query(quantile(0.99), "p99"),
            Query("max(lufleet_downtime_budget_seconds{})", "budget"),
        ],
        "s",
    )
    lines = lines.override_by_name(
        "budget",
        [
            model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": _RED}),
            model.DynamicConfigValue(
                id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]}
            ),
        ],
    )
    board = board.with_panel(lines)
    heat_map = (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heat.HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .steps(32)
        )
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .scale_distribution(common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LINEAR))
    )
    board = board.with_panel(
        _fill(
            heat_map,
            "Downtimes as they come in",
            "How many VMs came back after how long.",
            [
                Query(
                    "sum by (le) "
                    "(increase(lufleet_vm_downtime_seconds_bucket{}[$__rate_interval]))",
                    "{{le}}",
                    format=PromQueryFormat.HEATMAP,
                )
            ],
            9,
            8,
        )
    )
    return board.with_panel(
        _number(
            "p99 of the budget",
            "The 99th percentile of downtime as a share of the budget.",
            Query(f"{quantile(0.99)} / max(lufleet_downtime_budget_seconds{{}})", "p99 / budget"),
            "percentunit",
            (None, _GREEN),
            (0.8, _ORANGE),
            (1, _RED),
            width=3,
        ).height(8)
    )


def _blackout(board: dash.Dashboard) -> dash.Dashboard:
    board = board.with_row(dash.Row("Blackout by phase (virtual time)"))
    of = f'{{phase!~"{_OUTSIDE}"}}'
    mean = (
        f"sum by (phase) (lufleet_update_phase_seconds_sum{of})"
        f" / (sum by (phase) (lufleet_update_phase_seconds_count{of}) > 0)"
    )
    bars = (
        bargauge.Panel()
        .unit("s")
        .orientation(kinds.VizOrientation.HORIZONTAL)
        .display_mode(kinds.BarGaugeDisplayMode.BASIC)
        .reduce_options(_last())
        .thresholds(_steps((None, _BLUE)))
        .min(0)
    )
    board = board.with_panel(
        _fill(
            bars,
            "Mean of each phase",
            "Over the host updates in which the phase happened.",
            [Query(mean, "{{phase}}", instant=True)],
            8,
            9,
        )
    )
    board = board.with_panel(
        _stacked(
            _lines(
                "Phases stacked, mean so far",
                "The phases of a host add up to its blackout.",
                [Query(mean, "{{phase}}")],
                "s",
                width=8,
            )
        ).height(9)
    )
    p99 = (
        "histogram_quantile(0.99, sum by (le, phase) (lufleet_update_phase_seconds_bucket{})) >= 0"
    )
    return board.with_panel(
        _lines(
            "p99 of each phase",
            "Phases outside the blackout (kexec_file_load, preserve, finish) included.",
            [Query(p99, "{{phase}}")],
            "s",
            width=8,
        ).height(9)
    )


def _memory(board: dash.Dashboard) -> dash.Dashboard:
    board = board.with_row(dash.Row("Preserved memory"))
    sizes = {"4KiB": 4 << 10, "2MiB": 2 << 20, "1GiB": 1 << 30}
    board = board.with_panel(
        _lines(
            "Preserved right now, by page size",
            "What KHO holds between preserve and finish.",
            [
                Query(
                    f'sum by (page_size) (lufleet_preserved_pages{{page_size="{label}"}}) * {size}',
                    "{{page_size}}",
                )
                for label, size in sizes.items()
            ],
            "bytes",
            width=8,
        )
    )
    board = board.with_panel(
        _lines(
            "Pages carried over so far",
            "Pages that crossed a kexec in memory, by page size; the axis is logarithmic.",
            [Query("sum by (page_size) (lufleet_pages_preserved_total{})", "{{page_size}}")],
            "short",
            width=8,
        ).scale_distribution(
            common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LOG).log(10)
        )
    )
    return board.with_panel(
        _lines(
            "Huge page pools",
            "Pages of the hosts' hugetlb pools by state, and what is set aside as KHO scratch.",
            [
                Query(
                    "sum by (page_size, state) (lufleet_hugetlb_pages{})",
                    "{{page_size}} {{state}}",
                ),
                Query("sum(lufleet_kho_scratch_bytes{}) / 1048576", "KHO scratch, MiB"),
            ],
            "short",
            width=8,
        )
    )


def _trouble(board: dash.Dashboard) -> dash.Dashboard:
    board = board.with_row(dash.Row("What went wrong"))
    updates = "sum by (outcome, reason) (lufleet_host_updates_total{}) > 0"
    board = board.with_panel(
        _fill(
            _table(),
            "Host updates by outcome and reason",
            "An update that went well has the reason none.",
            [Query(updates, "", True, PromQueryFormat.TABLE)],
            12,
            8,
        )
    )
    return board.with_panel(
        _lines(
            "Host updates that have ended",
            "By outcome.",
            [Query("sum by (outcome) (lufleet_host_updates_total{})", "{{outcome}}")],
            "none",
        )
    )


def build() -> model.Dashboard:
    """The dashboard."""
    board = (
        dash.Dashboard("lufleet: live update of a fleet")
        .uid("lufleet")
        .tags(["lufleet", "live-update", "simulation"])
        .description("A simulated fleet under live update. All durations are virtual time.")
        .refresh("5s")
        .time("now-15m", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dash.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dash.QueryVariable("instance")
            .label("Fleet")
            .datasource(_SOURCE)
            .query("label_values(lufleet_rollout_info, instance)")
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .multi(True)
            .current(model.VariableOption(text="All", value="$__all"))
        )
    )
    for add in (_rollout, _downtime, _blackout, _memory, _trouble):
        board = add(board)
    built = board.build()
    for number, panel in enumerate(built.panels or [], start=1):
        panel.id_val = number  # Grafana would number them anew each time it loads the file
    return built


def render() -> str:
    """The dashboard as the text of the committed file."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
