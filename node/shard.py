"""Many hosts in one place: what a Ray actor holds, and what runs in-process without Ray.

Hosts are built when they are first needed and are independent of one another, so that a result
depends on the host alone, never on its shard. Only the hosts that were needed last are kept: a
host is its commands, and one that is needed again is built again and goes through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kernelmodel.errors import ModelBug
from kernelmodel.releases import catalogue_with
from kernelmodel.sim.cost import CostModel
from node.api import (
    MIN_UPDATE_NS,
    FaultSpec,
    HostCall,
    HostGauges,
    HostSpec,
    ShardConfig,
    UpdateCommand,
    UpdateResult,
    VmSpec,
)
from node.calls import READING, HostReply
from node.host import Host
from node.live_update import update_host
from node.operations import perform

__all__ = ["LIVE_HOSTS", "Shard"]

#: How many hosts a shard keeps, each up to a third of a megabyte once it has been updated.
LIVE_HOSTS: Final = 64


class Shard:
    """The hosts of one `ShardConfig`."""

    def __init__(self, config: ShardConfig) -> None:
        self._config = config
        self._cost = CostModel.load(config.cost_profile)
        self._releases = catalogue_with(config.releases)
        self._specs: dict[str, HostSpec] = {spec.name: spec for spec in config.hosts}
        self._vms: dict[str, list[VmSpec]] = {name: [] for name in self._specs}
        for vm in config.vms:
            self._vms[vm.host].append(vm)
        self._faults: dict[str, list[FaultSpec]] = {name: [] for name in self._specs}
        for fault in config.faults:
            self._faults[fault.host].append(fault)
        self._done: dict[str, list[UpdateCommand | HostCall]] = {}
        for command in config.commands:
            self._done.setdefault(command.host, []).append(command)
        self._hosts: dict[str, Host] = {}

    def host(self, name: str) -> Host:
        """A host, built and brought to where its commands left it.

        Raises:
            ModelBug: it is not in this shard.
        """
        host = self._hosts.pop(name, None) or self._built(name)
        self._hosts[name] = host  # the last in order: the first is dropped first
        if len(self._hosts) > LIVE_HOSTS:
            self._hosts.pop(next(iter(self._hosts))).drop_kernel()
        return host

    def _built(self, name: str) -> Host:
        if name not in self._specs:
            raise ModelBug(f"no host {name!r} in this shard")
        host = Host(
            self._specs[name],
            self._vms[name],
            seed=self._config.seed,
            cost=self._cost,
            fault_specs=self._faults[name],
            record_events=self._config.record_events,
            releases=self._releases,
        )
        host.kept_image.wanted = name in self._config.keep_images
        for command in self._done.get(name, ()):
            if isinstance(command, UpdateCommand):
                update_host(host, command)
            else:
                perform(host, command)
        return host

    def update(self, commands: list[UpdateCommand]) -> list[UpdateResult]:
        """Update hosts, in the order of the commands; one result for each."""
        results = []
        for command in commands:
            result = update_host(self.host(command.host), command)
            if result.end_ns < result.start_ns + MIN_UPDATE_NS:
                raise ModelBug(f"{result.host}: update of {result.end_ns - result.start_ns} ns")
            self._done.setdefault(command.host, []).append(command)
            results.append(result)
        return results

    def call_host(self, call: HostCall) -> HostReply:
        """Carry out a call of HostService."""
        reply = perform(self.host(call.host), call)
        if call.method not in READING:
            self._done.setdefault(call.host, []).append(call)
        return reply

    def grpc_address(self) -> str:
        """Where it serves gRPC itself: a shard that is not in an actor does not."""
        return ""

    def gauges(self, names: Sequence[str]) -> dict[str, HostGauges]:
        """The counters of some hosts, which are booted for it."""
        return {name: self.host(name).gauges() for name in names}
