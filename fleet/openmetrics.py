"""Metrics of a finished run as OpenMetrics text, for `promtool tsdb create-blocks-from`.

The metrics are those of `fleet/exporter.py`; each sample has its time, where a scrape has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fleet.api import FleetSnapshot
from fleet.exporter import metric_families

__all__ = ["openmetrics"]


def openmetrics(snapshots: Iterable[FleetSnapshot], start_s: float, instance: str) -> str:
    """The metrics of a series of instants in OpenMetrics text, each sample with its time.

    Virtual time 0 is put at Unix time `start_s`. A scrape would have added `job` and `instance`,
    by which dashboards tell fleets apart. The client library's own writer takes ten times as long.
    """
    scraped = {"job": "lufleet", "instance": instance}
    heads: dict[str, str] = {}
    # All instants of a series stand together, a histogram with all its buckets being one series.
    lines: dict[str, dict[tuple[str, ...], list[str]]] = {}
    named: dict[tuple[str, ...], str] = {}
    for snapshot in snapshots:
        at = f"{start_s + snapshot.virtual_time_ns / 1e9:.3f}"
        for family in metric_families(snapshot):
            heads[family.name] = (
                f"# HELP {family.name} {family.documentation}\n# TYPE {family.name} {family.type}\n"
            )
            groups = lines.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, *sample.labels.values())
                if (name := named.get(key)) is None:
                    named[key] = name = _series_name(sample.name, sample.labels | scraped)
                group = tuple(value for label, value in sample.labels.items() if label != "le")
                groups.setdefault(group, []).append(f"{name} {float(sample.value)!r} {at}\n")
    parts = [
        part
        for family_name, groups in lines.items()
        for part in (heads[family_name], *(line for group in groups.values() for line in group))
    ]
    return "".join((*parts, "# EOF\n"))


def _series_name(name: str, labels: Mapping[str, str]) -> str:
    escape = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    pairs = (f'{label}="{value.translate(escape)}"' for label, value in sorted(labels.items()))
    return f"{name}{{{','.join(pairs)}}}"
