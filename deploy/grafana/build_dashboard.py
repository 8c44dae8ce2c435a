"""Builds the Grafana dashboard `lufleet` as JSON.

    python -m deploy.grafana.build_dashboard > deploy/grafana/dashboards/lufleet.json

The JSON is committed, so that Grafana can be provisioned from a checkout; a test fails when it is
not what this script prints. From general to specific: how the rollout goes, how long VMs are down
against their budget, where the blackout goes, what memory is carried over, what went wrong.

All durations are virtual time. The horizontal axis is the clock of whoever watches: at
`--speed 60` a minute on it is an hour of the fleet.
"""

from __future__ import annotations

import sys
from typing import Final

from grafana_foundation_sdk.builders import common
from grafana_foundation_sdk.builders import dashboard as dash
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SOURCE,
    Query,
    bars,
    buckets,
    coloured,
    fill,
    labels,
    lines,
    number,
    stacked,
)

#: Phases of an update that lie outside the blackout.
_OUTSIDE: Final = "kexec_file_load|preserve|finish"


def _rollout(board: dash.Dashboard) -> dash.Dashboard:
    board = board.with_row(dash.Row("Rollout"))
    figures = (
        number(
            "State",
            "The state that the rollout is in.",
            Query("lufleet_rollout_state{} == 1", "{{state}}"),
            "none",
        ).text_mode(kinds.BigValueTextMode.NAME),
        number(
            "Waves begun",
            "Waves that have begun, the canary included.",
            Query("lufleet_rollout_wave{} + 1", "begun"),
            "none",
        ),
        number(
            "Waves planned",
            "Waves that the plan has, the canary included.",
            Query("lufleet_rollout_waves{}", "planned"),
            "none",
        ),
        number(
            "Virtual time",
            "The fleet's clock since the rollout began.",
            Query("lufleet_virtual_time_seconds{}", "virtual"),
            "dtdurations",
        ),
        number(
            "Hosts updated",
            "Share of all hosts that run the target release because of this rollout.",
            Query('sum(lufleet_hosts{state="updated"}) / sum(lufleet_hosts{})', "updated"),
            "percentunit",
        ),
        number(
            "VMs lost",
            "VMs whose memory should have been preserved and was not. Those that a fallback "
            "started afresh are in the table at the bottom.",
            Query('sum(lufleet_vms{state="lost"})', "lost"),
            "none",
            (None, GREEN),
            (1, RED),
        ),
    )
    for figure in figures:
        board = board.with_panel(figure)
    hosts = stacked(
        lines(
            "Hosts by state",
            "Every host is in one of these states.",
            [Query("sum by (state) (lufleet_hosts{})", "{{state}}")],
            "none",
        )
    )
    for name, colour in {
        "updated": BLUE,
        "updating": GREEN,
        "pending": GREY,
        "skipped": "super-light-yellow",
        "rolled_back": ORANGE,
        "failed": RED,
    }.items():
        hosts = coloured(hosts, name, colour)
    board = board.with_panel(hosts)
    vms = lines(
        "VMs that are not running",
        "Paused for an update, being restarted, or lost.",
        [Query('sum by (state) (lufleet_vms{state!="running"})', "{{state}}")],
        "none",
        width=6,
    )
    for name, colour in {"paused": BLUE, "restarting": ORANGE, "lost": RED}.items():
        vms = coloured(vms, name, colour)
    board = board.with_panel(vms)
    return board.with_panel(
        labels(
            "What is rolled out",
            "The proposal is what the target carries beyond the kernel as released.",
            "lufleet_rollout_info{}",
            "Value",
            width=6,
        )
    )


def _downtime(board: dash.Dashboard) -> dash.Dashboard:
    board = board.with_row(dash.Row("VM downtime against its budget (virtual time)"))

    def quantile(q: float) -> str:
        return f"histogram_quantile({q}, sum by (le) (lufleet_vm_downtime_seconds_bucket{{}}))"

    percentiles = lines(
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
    dashes = {"fill": "dash", "dash": [8, 6]}
    dashed = [model.DynamicConfigValue(id_val="custom.lineStyle", value=dashes)]
    percentiles = coloured(percentiles, "budget", RED).override_by_name("budget", dashed)
    board = board.with_panel(percentiles)
    board = board.with_panel(
        fill(
            buckets("s"),
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
        number(
            "Over the budget",
            "Share of the VM downtimes so far that are over the budget, those of lost VMs "
            "included; counted, not interpolated. Beyond 1 % there is an alert.",
            Query(
                "sum(lufleet_vm_downtimes_over_budget_total{})"
                " / clamp_min(sum(lufleet_vm_downtime_seconds_count{}), 1)",
                "over budget",
            ),
            "percentunit",
            (None, GREEN),
            (1e-9, ORANGE),
            (0.01, RED),
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
    board = board.with_panel(
        fill(
            bars("s"),
            "Mean of each phase",
            "Over the host updates in which the phase happened.",
            [Query(mean, "{{phase}}", instant=True)],
            8,
            9,
        )
    )
    board = board.with_panel(
        stacked(
            lines(
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
        lines(
            "p99 of each phase",
            "Phases outside the blackout (kexec_file_load, preserve, finish) included. "
            "Interpolated: one that always ends in the first bucket shows as just under 10 ms.",
            [Query(p99, "{{phase}}")],
            "s",
            width=8,
        ).height(9)
    )


def _memory(board: dash.Dashboard) -> dash.Dashboard:
    board = board.with_row(dash.Row("Preserved memory"))
    sizes = {"4KiB": 4 << 10, "2MiB": 2 << 20, "1GiB": 1 << 30}
    board = board.with_panel(
        lines(
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
        lines(
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
        lines(
            "Huge page pools and KHO scratch",
            "Memory of the hosts' hugetlb pools by state, and what is set aside as KHO scratch.",
            [
                *(
                    Query(
                        "sum by (page_size, state) "
                        f'(lufleet_hugetlb_pages{{page_size="{label}"}}) * {size}',
                        "{{page_size}} {{state}}",
                    )
                    for label, size in sizes.items()
                    if label != "4KiB"
                ),
                Query("sum(lufleet_kho_scratch_bytes{})", "KHO scratch"),
            ],
            "bytes",
            width=8,
        )
    )


def _trouble(board: dash.Dashboard) -> dash.Dashboard:
    board = board.with_row(dash.Row("What went wrong"))
    board = board.with_panel(
        labels(
            "Host updates by outcome and reason",
            "An update that went well has the reason none.",
            "sum by (outcome, reason) (lufleet_host_updates_total{}) > 0",
        )
    )
    board = board.with_panel(
        labels(
            "VMs by what became of their memory",
            "Of host updates that have ended. A restarted VM was given up by a fallback; a lost "
            "one should have kept its memory and did not, whether it was started afresh or not.",
            "sum by (outcome) (lufleet_vm_updates_total{}) > 0",
        )
    )
    return board.with_panel(
        lines(
            "Host updates that have ended",
            "By outcome.",
            [Query("sum by (outcome) (lufleet_host_updates_total{})", "{{outcome}}")],
            "none",
            width=8,
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
            .datasource(SOURCE)
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
    for place, panel in enumerate(built.panels or [], start=1):
        panel.id_val = place  # Grafana would number them anew each time it loads the file
    return built


def render() -> str:
    """The dashboard as the text of the committed file."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
