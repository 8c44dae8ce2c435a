"""The committed dashboard is what its script builds, is whole, and asks for metrics there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from fleet.exporter import metric_families
from tests.fleet.sample_run import busy_snapshot

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
COMMITTED = GRAFANA / "dashboards" / "lufleet.json"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(COMMITTED.read_text())
    return content


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_the_committed_dashboard_is_what_the_script_builds() -> None:
    built = subprocess.run(
        [sys.executable, "-m", "deploy.grafana.build_dashboard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    again = "python -m deploy.grafana.build_dashboard > deploy/grafana/dashboards/lufleet.json"
    assert built.stdout.decode() == COMMITTED.read_text(), f"out of date: {again}"


def test_a_round_trip_through_grafanas_schema_loses_nothing(dashboard: dict[str, Any]) -> None:
    register_default_plugins()
    read = Dashboard.from_json(dashboard)
    assert json.loads(JSONEncoder(sort_keys=True).encode(read)) == dashboard


def test_every_metric_that_the_dashboard_asks_for_is_exported(dashboard: dict[str, Any]) -> None:
    there = {
        sample.name for family in metric_families(busy_snapshot()) for sample in family.samples
    }
    for panel in panels(dashboard):
        for target in panel["targets"]:
            asked = set(re.findall(r"lufleet_\w+", target["expr"]))
            assert asked, target["expr"]
            assert asked <= there, f"{panel['title']}: {sorted(asked - there)}"


def test_every_label_value_that_the_dashboard_asks_for_is_exported(
    dashboard: dict[str, Any],
) -> None:
    there = {
        (name, value)
        for family in metric_families(busy_snapshot())
        for sample in family.samples
        for name, value in sample.labels.items()
    }
    for panel in panels(dashboard):
        for target in panel["targets"]:
            for name, values in re.findall(r'(\w+)!?=~?"([^"$]+)"', target["expr"]):
                for value in values.split("|"):
                    assert (name, value) in there, f"{panel['title']}: {name}={value}"


def test_panels_have_a_title_a_description_and_a_place_of_their_own(
    dashboard: dict[str, Any],
) -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        taken.update((at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"]))
        assert at["x"] + at["w"] <= 24
    assert set(taken.values()) == {1}
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_provisioning_points_to_where_compose_mounts_things() -> None:
    compose = yaml.safe_load((GRAFANA.parent / "compose.yaml").read_text())
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/lufleet.yaml").read_text())[
        "providers"
    ]
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    mounts = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts
    assert "/etc/grafana/provisioning" in mounts
    assert source["url"] == "http://prometheus:9090"
    scrape = yaml.safe_load((GRAFANA.parent / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
