"""Prometheus metrics of a living fleet.

A custom collector draws everything from one `FleetSnapshot` per scrape, so that the series of a
scrape agree with each other, and holds nothing itself. Every label value that can occur is there
from the start, at zero: a rate over a first event would otherwise miss it, and a panel would
show "no data" where the truth is 0.

Series are aggregates over the fleet and carry no VM and no host; `/metrics/hosts` gives the
state of each host to those who ask for it. All times are virtual, and so is the clock in
`lufleet_virtual_time_seconds`; nothing here is measured on the wall.

Simplification: a lost VM counts in the +Inf bucket of the downtime histogram and adds nothing to
its sum, so that quantiles are honest and `_sum / _count` is a lower bound once a VM was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from threading import Thread
from types import TracebackType
from typing import Final, Self
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fleet.api import (
    HISTOGRAM_EDGES_NS,
    HOST_STATES,
    PAGE_LABELS,
    POOL_STATES,
    UPDATE_PHASES,
    VM_STATES,
    FleetSnapshot,
    Histogram,
    RolloutState,
)
from node.api import HostOutcome, VmOutcome

__all__ = [
    "FleetCollector",
    "HostCollector",
    "MetricsServer",
    "fleet_registry",
    "metric_families",
]

#: As OpenMetrics and Prometheus 3 write numbers: "0.01", "1.0".
_EDGES: Final = tuple(str(ns / 1e9) for ns in HISTOGRAM_EDGES_NS)
_HUGE_PAGE_LABELS: Final = PAGE_LABELS[1:]

_PLAIN: Final = ("Content-Type", "text/plain; charset=utf-8")
_POLL_S: Final = 0.05  # how often the server looks whether it was closed

#: What an update that went well gives as its reason. An empty label value would be no label.
NO_REASON: Final = "none"
#: Reasons of the others; one that is missing here appears when it first happens.
_REASONS: Final = (
    NO_REASON,
    "boot-timeout",
    "freeze-failed",
    "freeze-retried",
    "kexec-load-failed",
    "not-ready",
    "panic",
    "preserve-failed",
    "vm-lost",
)


def metric_families(now: FleetSnapshot) -> Iterator[Metric]:
    """Every metric of the fleet at one instant."""
    yield from _rollout(now)
    yield from _hosts_and_vms(now)
    yield from _memory(now)
    yield from _durations(now)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _gauges(
    name: str,
    text: str,
    label: str,
    values: Mapping[str, float],
    kind: type[GaugeMetricFamily | CounterMetricFamily] = GaugeMetricFamily,
) -> Metric:
    family = kind(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _with_zeros(names: Iterable[str], values: Mapping[str, int]) -> dict[str, int]:
    return dict.fromkeys(names, 0) | dict(values)


def _rollout(now: FleetSnapshot) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "lufleet_rollout",
        "What is rolled out; the proposal is empty where the target is a kernel as released.",
        value={
            "scenario": now.scenario,
            "seed": str(now.seed),
            "source_release": now.source_release,
            "target_release": now.target_release,
            "proposal": now.proposal,
        },
    )
    yield _gauges(
        "lufleet_rollout_state",
        "1 for the state that the rollout is in, 0 for the others.",
        "state",
        {state: float(state == now.state) for state in RolloutState},
    )
    yield _gauge(
        "lufleet_rollout_wave", "Index of the current wave, -1 before the first.", now.wave
    )
    yield _gauge(
        "lufleet_rollout_waves", "Waves that the plan has, the canary included.", now.waves
    )
    yield _gauge(
        "lufleet_virtual_time_seconds",
        "The fleet's clock, from the start of the rollout.",
        now.virtual_time_ns / 1e9,
    )
    yield _gauge(
        "lufleet_downtime_budget_seconds",
        "What the scenario holds a VM's downtime against.",
        now.downtime_budget_ns / 1e9,
    )


def _hosts_and_vms(now: FleetSnapshot) -> Iterator[Metric]:
    yield _gauges("lufleet_hosts", "Hosts by state.", "state", _with_zeros(HOST_STATES, now.hosts))
    yield _gauges("lufleet_vms", "VMs by state.", "state", _with_zeros(VM_STATES, now.vms))
    updates = CounterMetricFamily(
        "lufleet_host_updates",
        "Host updates that have ended, by outcome and reason.",
        labels=["outcome", "reason"],
    )
    counted = {(str(outcome), reason): 0 for outcome in HostOutcome for reason in _REASONS}
    for (outcome, reason), count in now.host_updates_total.items():
        counted[str(outcome), reason or NO_REASON] = count
    for (outcome, reason), count in counted.items():
        updates.add_metric([outcome, reason], count)
    yield updates
    yield _gauges(
        "lufleet_vm_updates",
        "VMs of host updates that have ended, by what became of their memory.",
        "outcome",
        _with_zeros(VmOutcome, now.vm_outcomes),
        CounterMetricFamily,
    )


def _memory(now: FleetSnapshot) -> Iterator[Metric]:
    yield _gauges(
        "lufleet_preserved_pages",
        "Pages that KHO holds right now, from preserve to finish.",
        "page_size",
        _with_zeros(PAGE_LABELS, now.preserved_pages),
    )
    yield _gauges(
        "lufleet_pages_preserved",
        "Pages that have been carried over a kexec in memory.",
        "page_size",
        _with_zeros(PAGE_LABELS, now.pages_preserved_total),
        CounterMetricFamily,
    )
    pools = GaugeMetricFamily(
        "lufleet_hugetlb_pages",
        "Huge pages of the hosts' pools by state.",
        labels=["page_size", "state"],
    )
    for page_size in dict.fromkeys((*_HUGE_PAGE_LABELS, *now.hugetlb_pages)):
        counts = _with_zeros(POOL_STATES, now.hugetlb_pages.get(page_size, {}))
        for state, pages in counts.items():
            pools.add_metric([page_size, state], pages)
    yield pools
    yield _gauge(
        "lufleet_kho_scratch_bytes",
        "Memory that the hosts set aside as KHO scratch.",
        now.kho_scratch_bytes,
    )


def _durations(now: FleetSnapshot) -> Iterator[Metric]:
    downtime = HistogramMetricFamily(
        "lufleet_vm_downtime_seconds",
        "Downtime of a VM in one update of its host, in virtual time; lost VMs are in +Inf.",
    )
    downtime.add_metric([], *_buckets(now.downtime))
    yield downtime
    yield CounterMetricFamily(
        "lufleet_vm_downtimes_over_budget",
        "Downtimes of VMs that were longer than the budget, those of lost VMs included.",
        value=now.over_budget,
    )
    phases = HistogramMetricFamily(
        "lufleet_update_phase_seconds",
        "Length of a phase of a host update in which it happened, in virtual time.",
        labels=["phase"],
    )
    for phase in dict.fromkeys((*UPDATE_PHASES, *now.phases)):
        phases.add_metric([phase], *_buckets(now.phases.get(phase, Histogram())))
    yield phases


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets and the sum in seconds, as Prometheus wants them."""
    edges = (*_EDGES, "+Inf")
    return list(zip(edges, accumulate(histogram.counts), strict=True)), histogram.sum_ns / 1e9


class FleetCollector(Collector):
    """Collects the whole fleet's metrics from `source`, which is asked once a scrape."""

    def __init__(self, source: Callable[[], FleetSnapshot]) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        """The metrics of one scrape."""
        return metric_families(self._source())


class HostCollector(Collector):
    """Collects one series a host: the state that it is in."""

    def __init__(self, source: Callable[[], FleetSnapshot]) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        """The metrics of one scrape."""
        family = GaugeMetricFamily(
            "lufleet_host_state", "1 for the state that a host is in.", labels=["host", "state"]
        )
        for host, state in self._source().host_states.items():
            family.add_metric([host, state], 1)
        yield family


def fleet_registry(source: Callable[[], FleetSnapshot]) -> CollectorRegistry:
    """A registry with the fleet's metrics alone: no process or Python metrics beside them."""
    return _registry(FleetCollector(source))


def _registry(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)  # without it ?name[]= finds nothing
    registry.register(collector)
    return registry


class _QuietHandler(WSGIRequestHandler):
    """Does not write a line to stderr for each scrape."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's
        """Say nothing."""


class MetricsServer:
    """Serves `/metrics` and `/metrics/hosts` from a thread of its own until it is closed."""

    def __init__(
        self,
        source: Callable[[], FleetSnapshot],
        host: str,
        port: int,
        is_up: Callable[[], bool] = lambda: True,
    ) -> None:
        """Listen on `host`:`port` (port 0: any that is free).

        Until `is_up`, scrapes are refused with 503: the zeros of a fleet that is being brought up
        again would be a reset of every counter, and its past would count twice.

        Raises:
            OSError: the address cannot be listened on.
        """
        pages: dict[str, WSGIApplication] = {
            "/metrics": make_wsgi_app(fleet_registry(source)),
            "/metrics/hosts": make_wsgi_app(_registry(HostCollector(source))),
        }

        def application(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            if (page := pages.get(environ["PATH_INFO"].rstrip("/"))) is None:
                start("404 Not Found", [_PLAIN])
                return [b"here are /metrics and /metrics/hosts\n"]
            if not is_up():
                start("503 Service Unavailable", [_PLAIN])
                return [b"the fleet is being brought up\n"]
            return page(environ, start)

        self._server = make_server(
            host, port, application, ThreadingWSGIServer, handler_class=_QuietHandler
        )
        self._thread = Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()
