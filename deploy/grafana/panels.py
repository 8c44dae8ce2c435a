"""Panels as this dashboard wants them, over the builders of Grafana's Foundation SDK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, heatmap, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as dash
from grafana_foundation_sdk.builders import prometheus as prom
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "SOURCE",
    "Query",
    "bars",
    "buckets",
    "coloured",
    "fill",
    "labels",
    "lines",
    "number",
    "stacked",
]

SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
RED, ORANGE, GREEN, BLUE, GREY = "red", "orange", "green", "blue", "text"

#: In expressions, braces with nothing in them stand for the choice of the instance.
_OURS: Final = 'instance=~"$instance"'


_Panel = TypeVar("_Panel", bargauge.Panel, heatmap.Panel, stat.Panel, table.Panel, timeseries.Panel)


class Query(NamedTuple):
    """A PromQL expression and the name of what it returns."""

    expr: str
    legend: str = ""
    instant: bool = False
    format: PromQueryFormat = PromQueryFormat.TIME_SERIES


def _target(query: Query, letter: str) -> prom.Dataquery:
    expr = query.expr.replace("{", "{" + _OURS + ",").replace(",}", "}")
    built = prom.Dataquery().datasource(SOURCE).expr(expr).ref_id(letter).format(query.format)
    built = built.legend_format(query.legend) if query.legend else built
    return built.instant() if query.instant else built.range()


def fill(
    panel: _Panel, title: str, text: str, queries: Sequence[Query], width: int, height: int
) -> _Panel:
    """Give a panel its title, its queries and its size in grid units."""
    panel = panel.title(title).description(text).datasource(SOURCE).span(width).height(height)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel = panel.with_target(_target(query, letter))
    return panel


def _steps(*colours: tuple[float | None, str]) -> dash.ThresholdsConfig:
    """Colours from a value on; None is the beginning."""
    thresholds = [model.Threshold(value=value, color=color) for value, color in colours]
    return dash.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(thresholds)


def _last_value() -> common.ReduceDataOptions:
    """The last value of a series."""
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def number(
    title: str,
    text: str,
    query: Query,
    unit: str,
    *colours: tuple[float | None, str],
    width: int = 4,
) -> stat.Panel:
    """One figure, as it is now."""
    panel = stat.Panel().unit(unit).thresholds(_steps(*(colours or ((None, BLUE),))))
    panel = panel.reduce_options(_last_value()).graph_mode(kinds.BigValueGraphMode.NONE)
    # Over a range, a state that has passed would be shown beside the one that holds.
    return fill(panel, title, text, [query._replace(instant=True)], width, 4)


def lines(
    title: str, text: str, queries: Sequence[Query], unit: str, *, width: int = 12
) -> timeseries.Panel:
    """Lines over time."""
    panel = timeseries.Panel().unit(unit).line_width(2).fill_opacity(0).min(0)
    panel = panel.legend(
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel = panel.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI))
    return fill(panel, title, text, queries, width, 8)


def labels(title: str, text: str, expr: str, *hidden: str, width: int = 8) -> table.Panel:
    """A table of the labels that an expression has now, without those that say nothing here."""
    hide = {"excludeByName": dict.fromkeys(("Time", "__name__", "job", *hidden), True)}
    organize = model.DataTransformerConfig(id_val="organize", options=hide)
    panel = table.Panel().show_header(True).with_transformation(organize)
    query = Query(expr, instant=True, format=PromQueryFormat.TABLE)
    return fill(panel, title, text, [query], width, 8)


def buckets(unit: str) -> heatmap.Panel:
    """A heat map of a histogram's buckets."""
    return (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heat.HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .steps(32)
        )
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .scale_distribution(common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LINEAR))
    )


def bars(unit: str) -> bargauge.Panel:
    """One horizontal bar for each series."""
    return (
        bargauge.Panel()
        .unit(unit)
        .orientation(kinds.VizOrientation.HORIZONTAL)
        .display_mode(kinds.BarGaugeDisplayMode.BASIC)
        .reduce_options(_last_value())
        .thresholds(_steps((None, BLUE)))
        .min(0)
    )


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """The same lines, stacked and filled."""
    return (
        panel.fill_opacity(70)
        .line_width(1)
        .stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    )


def coloured(panel: timeseries.Panel, name: str, colour: str) -> timeseries.Panel:
    """The panel with one series in a colour of its own."""
    fixed = {"mode": "fixed", "fixedColor": colour}
    return panel.override_by_name(name, [model.DynamicConfigValue(id_val="color", value=fixed)])
