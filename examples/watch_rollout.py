"""A rollout over gRPC: look at the inventory, start, watch, and fetch the result.

Start a fleet, then this::

    lufleet serve examples/rolling-update.toml --grpc 127.0.0.1:50051 --speed 600
    python examples/watch_rollout.py --address 127.0.0.1:50051

`--pause-after N` pauses the rollout when N hosts are done and resumes it at once; `--abort-after
N` aborts it there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import grpc

from lufleet.v1 import fleet_pb2, fleet_pb2_grpc, host_pb2

SECOND_NS = 1_000_000_000
DONE = ("updated", "failed", "skipped", "rolled_back")


def inventory(stub: fleet_pb2_grpc.FleetServiceStub) -> Iterator[fleet_pb2.InventoryHost]:
    """Every host of the fleet, page by page."""
    page_token = ""
    while True:
        page = stub.ListInventory(fleet_pb2.ListInventoryRequest(page_token=page_token))
        yield from page.hosts
        page_token = page.next_page_token
        if not page_token:
            return


def describe(status: fleet_pb2.RolloutStatus) -> str:
    """Where a rollout stands, in one line."""
    state = fleet_pb2.RolloutState.Name(status.state).removeprefix("ROLLOUT_STATE_").lower()
    hosts = ", ".join(f"{count} {name}" for name, count in sorted(status.hosts.items()) if count)
    wave = f", {status.wave_name}" if status.wave_name else ""
    return f"{status.virtual_time_ns / SECOND_NS:10.1f} s  {state}{wave}: {hosts}"


def describe_update(update: host_pb2.HostUpdate) -> str:
    """One finished host update, in one line."""
    outcome = host_pb2.HostOutcome.Name(update.outcome).removeprefix("HOST_OUTCOME_").lower()
    took_s = (update.end_ns - update.start_ns) / SECOND_NS
    why = f" ({update.reason}: {update.detail})" if update.reason else ""
    return f"{'':12}  {update.host} {outcome} after {took_s:.1f} s{why}"


def watch(stub: fleet_pb2_grpc.FleetServiceStub, pause_after: int, abort_after: int) -> None:
    """Say how the rollout goes until it has ended, interfering where asked to."""
    for message in stub.WatchRollout(fleet_pb2.WatchRolloutRequest()):
        print(describe(message.status))
        for update in message.finished:
            print(describe_update(update))
        done = sum(message.status.hosts[state] for state in DONE)
        if pause_after and done >= pause_after:
            pause_after = 0
            stub.PauseRollout(fleet_pb2.PauseRolloutRequest(reason="to show that it can be"))
            stub.ResumeRollout(fleet_pb2.ResumeRolloutRequest(reason="enough shown"))
        if abort_after and done >= abort_after:
            abort_after = 0
            stub.AbortRollout(fleet_pb2.AbortRolloutRequest(reason="asked for by --abort-after"))


def run(stub: fleet_pb2_grpc.FleetServiceStub, pause_after: int = 0, abort_after: int = 0) -> int:
    """Roll the served update out over its fleet. Returns the exit code."""
    hosts = list(inventory(stub))
    print(f"{len(hosts)} hosts, {sum(len(host.vms) for host in hosts)} VMs")
    stub.StartRollout(fleet_pb2.StartRolloutRequest())
    watch(stub, pause_after, abort_after)
    result = stub.GetResult(fleet_pb2.GetResultRequest())
    summary = json.loads(result.result_json)
    print(f"{result.why}; digest {result.digest}")
    for part in ("hosts", "vms", "downtime_seconds", "preserved_pages"):
        print(f"{part}: {json.dumps(summary[part])}")
    return 0 if result.state == fleet_pb2.ROLLOUT_STATE_COMPLETED else 3


def main() -> int:
    """Read the command line and run a rollout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="of `lufleet serve`")
    parser.add_argument("--pause-after", type=int, default=0, metavar="N", help="hosts")
    parser.add_argument("--abort-after", type=int, default=0, metavar="N", help="hosts")
    options = parser.parse_args()
    with grpc.insecure_channel(options.address) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        try:
            return run(stub, options.pause_after, options.abort_after)
        except grpc.RpcError as refused:
            print(f"{refused.code().name}: {refused.details()}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
