"""`lufleet run --dump-image HOST=FILE`: what a host's kernel handed over at its last jump.

The host's shard keeps the image while it updates the host; it is fetched when the rollout is over
and written here, wherever the shard ran. A shard that is rebuilt, also for `--resume`, replays its
hosts and has the same image.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from fleet.bad_input import InputFault
from lufleet.v1 import host_pb2
from node.api import HostCall

if TYPE_CHECKING:
    from fleet.experiment import Experiment
    from fleet.plan import RolloutPlan
    from node.calls import HostReply

__all__ = ["Dump", "DumpError", "resolved", "write_dumps"]

_FIRST: Final = "first"


class DumpError(Exception):
    """An image cannot be written."""


class Dump(Struct, frozen=True):
    """An image that is wanted. `host` may be `first`: the first one in the plan."""

    host: str
    path: Path


def resolved(dumps: Sequence[Dump], plan: RolloutPlan) -> tuple[list[Dump], list[InputFault]]:
    """The dumps with the names of hosts, and what is wrong with them."""
    found: list[Dump] = []
    faults: list[InputFault] = []
    for dump in dumps:
        option = f"--dump-image {dump.host}={dump.path}"
        if dump.host in plan.hosts:
            found.append(dump)
        elif dump.host in plan.up_to_date:
            what = f"{dump.host} runs the target already and is not updated"
            faults.append(InputFault(option, 0, what))
        elif dump.host == _FIRST and plan.hosts:
            found.append(Dump(plan.hosts[0], dump.path))
        else:
            what = f"there is no host {dump.host!r} that is updated"
            right = f"name a host such as {plan.hosts[0]}, or first" if plan.hosts else ""
            faults.append(InputFault(option, 0, what, right))
    for dump in () if faults else dumps:
        try:
            dump.path.parent.mkdir(parents=True, exist_ok=True)
            dump.path.open("ab").close()
        except OSError as error:
            option = f"--dump-image {dump.host}={dump.path}"
            faults.append(InputFault(option, 0, f"cannot be written: {error.strerror or error}"))
    return found, faults


async def write_dumps(experiment: Experiment, dumps: Sequence[Dump]) -> list[str]:
    """Fetch and write the images; a line about each for people to read.

    Raises:
        DumpError: a file cannot be written.
        HostUnreachable: a shard cannot be kept alive.
    """
    told = []
    for dump in dumps:
        data = bytearray()
        while True:
            request = host_pb2.DumpImageRequest(host=dump.host, offset=len(data))
            call = HostCall(dump.host, 0, "DumpImage", request.SerializeToString())
            reply: HostReply = await experiment.shard_of(dump.host).call("call_host", call)
            if reply.refusal is not None:
                dump.path.unlink(missing_ok=True)
                told.append(f"no image of {dump.host}: {_why_not(experiment, dump.host, reply)}")
                break
            chunk = host_pb2.DumpImageResponse.FromString(reply.response)
            data += chunk.data
            if len(data) == chunk.total_bytes:
                packed = dump.path.suffix == ".gz"
                try:
                    dump.path.write_bytes(data if packed else gzip.decompress(data))
                except OSError as error:
                    raise DumpError(f"{dump.path} cannot be written: {error}") from error
                left_out = "" if chunk.has_content else ", guests' memory left out"
                told.append(f"wrote {dump.path} (what {dump.host} handed over{left_out})")
                break
    return told


def _why_not(experiment: Experiment, host: str, reply: HostReply) -> str:
    """Why there is no image: what became of the host's update says more than its refusal."""
    ended = [result for result in experiment.results if result.host == host]
    if not ended:
        return f"the rollout ended before it was updated ({experiment.coordinator.why})"
    if ended[-1].blackout_start_ns is None or not ended[-1].phases_ns.get("kexec"):
        return f"it never jumped ({ended[-1].reason}: {ended[-1].detail})"
    return reply.refusal.message if reply.refusal is not None else ""
