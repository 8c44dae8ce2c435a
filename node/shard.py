"""Many hosts in one place: what a Ray actor holds, and what runs in-process without Ray.

Hosts are built when they are first needed and are independent of one another, so that a result
depends on the host alone, never on its shard. A shard that is rebuilt replays each host's own
commands when that host is needed again.
"""

from __future__ import annotations

from kernelmodel.errors import ModelBug
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
from node.calls import HostReply
from node.host import Host
from node.live_update import update_host
from node.operations import perform

__all__ = ["Shard"]


class Shard:
    """The hosts of one `ShardConfig`."""

    def __init__(self, config: ShardConfig) -> None:
        self._config = config
        self._cost = CostModel.load(config.cost_profile)
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
        if name in self._hosts:
            return self._hosts[name]
        if name not in self._specs:
            raise ModelBug(f"no host {name!r} in this shard")
        host = Host(
            self._specs[name],
            self._vms[name],
            seed=self._config.seed,
            cost=self._cost,
            fault_specs=self._faults[name],
            record_events=self._config.record_events,
        )
        host.kept_image.wanted = name in self._config.keep_images
        self._hosts[name] = host
        for command in self._done.get(name, ()):
            if isinstance(command, UpdateCommand):
                update_host(host, command)
            else:
                perform(host, command)
        return host

    def update(self, commands: list[UpdateCommand]) -> list[UpdateResult]:
        """Update hosts, in the order of the commands; one result for each."""
        results = [update_host(self.host(command.host), command) for command in commands]
        for result in results:
            if result.end_ns < result.start_ns + MIN_UPDATE_NS:
                raise ModelBug(f"{result.host}: update of {result.end_ns - result.start_ns} ns")
        return results

    def call_host(self, call: HostCall) -> HostReply:
        """Carry out a call of HostService."""
        return perform(self.host(call.host), call)

    def grpc_address(self) -> str:
        """Where it serves gRPC itself: a shard that is not in an actor does not."""
        return ""

    def gauges(self) -> dict[str, HostGauges]:
        """Every host's own counters."""
        return {name: self.host(name).gauges() for name in self._specs}
