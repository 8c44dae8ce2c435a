"""One host's live update, step by step over gRPC, as an agent and its VMMs would do it.

Start a fleet, then this::

    lufleet serve examples/rolling-update.toml --grpc 127.0.0.1:50051
    python examples/host_update.py --address 127.0.0.1:50051 r1-h01

Without a host's name it takes the first of the fleet. Every refusal of the modelled kernel comes
back with its errno; the example provokes one to show it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import grpc

from lufleet.v1 import host_pb2, host_pb2_grpc, vm_pb2
from node.status import errno_of

SECOND_NS = 1_000_000_000
MEMORY_TOKEN = 1


class Update:
    """The steps of one update of one host."""

    def __init__(self, stub: host_pb2_grpc.HostServiceStub, host: str, release: str) -> None:
        self.stub = stub
        self.host = host
        self.release = release
        self.vms = [vm.spec.name for vm in self.look().vms]
        self.paused_ns: dict[str, int] = {}

    def look(self) -> host_pb2.Host:
        """The host as it stands."""
        return self.stub.GetHost(host_pb2.GetHostRequest(host=self.host)).host

    def preserve(self) -> None:
        """Before the blackout, VMs running: load the next kernel, preserve each VM's memory."""
        self.stub.LoadKexec(host_pb2.LoadKexecRequest(host=self.host, release=self.release))
        for vm in self.vms:
            self.stub.CreateSession(host_pb2.CreateSessionRequest(host=self.host, session=vm))
            self.stub.PreserveFd(
                host_pb2.PreserveFdRequest(host=self.host, session=vm, token=MEMORY_TOKEN, vm=vm)
            )

    def preserve_twice(self) -> str:
        """What the kernel says to a second file under a token that is taken, e.g. "EEXIST"."""
        request = host_pb2.PreserveFdRequest(
            host=self.host, session=self.vms[0], token=MEMORY_TOKEN, vm=self.vms[0]
        )
        try:
            self.stub.PreserveFd(request)
        except grpc.RpcError as refused:
            return errno_of(refused) or "no errno"
        return "accepted"

    def reboot(self) -> Iterator[host_pb2.RebootResponse]:
        """Pause the VMs and jump. Yields what happens on the way and at last the outcome."""
        for vm in self.vms:
            done = self.stub.PauseVm(host_pb2.PauseVmRequest(host=self.host, vm=vm))
            self.paused_ns[vm] = done.virtual_time_ns
        yield from self.stub.Reboot(host_pb2.RebootRequest(host=self.host))

    def retrieve(self) -> dict[str, tuple[bool, int]]:
        """In the next kernel: memory back, VM on. VM -> (memory intact, downtime in ns)."""
        found = {}
        for vm in self.vms:
            self.stub.RetrieveSession(host_pb2.RetrieveSessionRequest(host=self.host, session=vm))
            memory = self.stub.RetrieveFd(
                host_pb2.RetrieveFdRequest(host=self.host, session=vm, token=MEMORY_TOKEN, vm=vm)
            )
            resumed = self.stub.ResumeVm(host_pb2.ResumeVmRequest(host=self.host, vm=vm))
            downtime_ns = resumed.virtual_time_ns - self.paused_ns[vm]
            found[vm] = memory.content_intact, downtime_ns
        return found

    def finish(self) -> None:
        """After the blackout: the sessions end, what they held becomes ordinary memory."""
        for vm in self.vms:
            self.stub.FinishSession(host_pb2.FinishSessionRequest(host=self.host, session=vm))
            self.stub.CloseSession(host_pb2.CloseSessionRequest(host=self.host, session=vm))


def describe(host: host_pb2.Host) -> str:
    """A host in one line."""
    running = sum(vm.state == vm_pb2.VM_STATE_RUNNING for vm in host.vms)
    return (
        f"{host.spec.name}: {host.release_title}, live update {host.liveupdate_num},"
        f" {running} of {len(host.vms)} VMs running"
    )


def describe_event(event: host_pb2.HostEvent) -> str:
    """Something that happened on the way, in one line."""
    fields = event.fields
    when_ns, what = event.virtual_time_ns, event.name
    if event.name == "phase":  # told when it is over
        when_ns = fields["start"].number
        what += f" {fields['name'].text} took {fields['ns'].number / SECOND_NS:.6f} s"
    elif event.name == "host":
        what += f" {fields['state'].text}: {fields['why'].text}"
    return f"{when_ns / SECOND_NS:12.6f} s  {what}"


def run(stub: host_pb2_grpc.HostServiceStub, host: str, release: str) -> int:
    """Update `host` to `release` and say how it goes. Returns the exit code."""
    host = host or stub.ListHosts(host_pb2.ListHostsRequest(page_size=1)).names[0]
    update = Update(stub, host, release)
    print(describe(update.look()))
    update.preserve()
    print(f"preserved {len(update.vms)} VMs; once more under the same token: ", end="")
    print(update.preserve_twice() if update.vms else "no VM to try it with")

    outcome = host_pb2.RebootOutcome()
    for step in update.reboot():
        if step.HasField("event"):
            print(f"  {describe_event(step.event)}")
        else:
            outcome = step.outcome
    if outcome.state != host_pb2.HOST_STATE_UP:
        print(f"{host} did not come back: {outcome.panic}")
        return 1

    intact = True
    for vm, (is_intact, downtime_ns) in update.retrieve().items():
        intact = intact and is_intact
        print(f"  {vm}: {'intact' if is_intact else 'LOST'}, down {downtime_ns / SECOND_NS:.3f} s")
    update.finish()
    print(describe(update.look()))
    return 0 if intact else 1


def main() -> int:
    """Read the command line and update one host."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host", nargs="?", default="", help="name of the host (default: the first)")
    parser.add_argument("--address", default="127.0.0.1:50051", help="of `lufleet serve`")
    parser.add_argument("--release", default="7.3.4+hugetlb", help="kernel to update to")
    options = parser.parse_args()
    with grpc.insecure_channel(options.address) as channel:
        try:
            return run(host_pb2_grpc.HostServiceStub(channel), options.host, options.release)
        except grpc.RpcError as refused:
            print(f"{refused.code().name}: {refused.details()}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
