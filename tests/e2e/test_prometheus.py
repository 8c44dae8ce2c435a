"""A real Prometheus scrapes a running `lufleet serve`, and every panel of the dashboard has data.

Instants are Prometheus' own: its clock need not be that of this process.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import grpc
import pytest

from lufleet.v1.fleet_pb2 import StartRolloutRequest
from lufleet.v1.fleet_pb2_grpc import FleetServiceStub

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SMALL = ROOT / "examples" / "small.toml"
PATIENCE_S = 60.0


@contextmanager
def running(command: list[str], says: str) -> Iterator[re.Match[str]]:
    """A process that has printed what `says` matches; it ends with the block."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = Timer(PATIENCE_S, process.kill)
    deadline.start()
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(says, said):
                yield found
                break
        else:
            pytest.fail(f"{command[0]} ended without {says!r}:\n{said}")
    finally:
        deadline.cancel()
        process.terminate()
        process.communicate(timeout=20)


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[str]:
    """The address of a Prometheus with the committed configuration, aimed at `target`."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is missing: Debian package prometheus")
    committed = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert "lufleet:9464" in committed
    config = committed.replace("lufleet:9464", target).replace("2s", "250ms")
    (directory / "prometheus.yml").write_text(config)
    shutil.copy(DEPLOY / "prometheus" / "rules.yml", directory)
    command = [
        program,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with running(command, r"Listening on\D*address=(\S+)|address=(\S+).*Listening on") as found:
        yield f"http://{found[1] or found[2]}"


def ask(base: str, what: str, **parameters: object) -> Any:
    """`data` of an answer of Prometheus' API, None while it is not ready."""
    try:
        with urlopen(f"{base}/api/v1/{what}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]
    except URLError as error:
        if getattr(error, "code", None) in {None, 503}:
            return None
        raise


def eventually(what: Callable[[], Any], why: str) -> Any:
    """The first truthy answer of `what`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        time.sleep(0.05)
    return pytest.fail(f"in vain: {why}")


def expressions() -> list[tuple[str, str, bool]]:
    """(panel, expression, whether it is instant) of every target of the committed dashboard."""
    text = (DEPLOY / "grafana" / "dashboards" / "lufleet.json").read_text()
    return [
        (panel["title"], target["expr"], bool(target.get("instant")))
        for panel in json.loads(text)["panels"]
        for target in panel.get("targets", [])
    ]


def test_every_expression_of_the_dashboard_returns_data_of_a_served_fleet(
    tmp_path: Path,
) -> None:
    serve = [
        *(str(Path(sys.executable).parent / "lufleet"), "serve", str(SMALL)),
        *("--backend", "local", "--out", str(tmp_path / "out"), "--speed", "30"),
        *("--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0"),
    ]
    with (
        running(serve, r"gRPC\s+(\S+)[^\n]*\nmetrics\s+http://(\S+)/metrics") as fleet,
        prometheus(tmp_path, fleet[2]) as base,
        grpc.insecure_channel(fleet[1]) as channel,
    ):

        def instant(expr: str) -> list[Any]:
            answer = ask(base, "query", query=expr)
            return [] if answer is None else list(answer["result"])

        def clock() -> float:
            return float(ask(base, "query", query="time()")["result"][0])

        # Prometheus takes five seconds to its first scrape; the rollout must not be over by then.
        eventually(lambda: instant("up == 1"), "the first scrape")
        assert instant("sum(lufleet_vm_downtime_seconds_count)")[0]["value"][1] == "0"
        began = clock()
        FleetServiceStub(channel).StartRollout(StartRolloutRequest())
        eventually(
            lambda: instant('lufleet_rollout_state{state="completed"} == 1'),
            "the rollout's end in Prometheus",
        )
        for panel, template, is_instant in expressions():
            expr = template.replace("$instance", ".*").replace("$__rate_interval", "2s")
            if is_instant:
                series = instant(expr)
            else:
                span = {"start": began, "end": clock(), "step": 0.5}
                series = ask(base, "query_range", query=expr, **span)["result"]
            assert series, f"{panel}: {expr} returns nothing"
            values = [v for s in series for _, v in s.get("values", [s.get("value")])]
            assert any(value != "NaN" for value in values), f"{panel}: {expr} is never a number"

        assert instant('sum(lufleet_hosts{state="updated"})')[0]["value"][1] == "3"
        assert instant("lufleet_vm_downtime_seconds_count")[0]["value"][1] == "9"
        kept = 'lufleet_vm_updates_total{outcome="preserved"}'
        assert instant(kept)[0]["value"][1] == "9"
        came_in = "increase(lufleet_vm_downtime_seconds_count[1m])"
        assert float(instant(came_in)[0]["value"][1]) > 0

        (group,) = ask(base, "rules")["groups"]
        assert {rule["health"] for rule in group["rules"]} == {"ok"}
        (scraped,) = ask(base, "targets")["activeTargets"]
        assert (scraped["health"], scraped["lastError"]) == ("up", "")
