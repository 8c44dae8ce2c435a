"""Swarms of HostService calls on one host: whatever is asked, it answers, and it can be replayed.

Each seed draws which kinds of call it uses at all, then a sequence of them with arguments that make
sense, sometimes. Safety: every call gets a reply, never an exception, and the same history gives
the same host. Liveness: after a reset, with all VMs started again, an update goes through.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest
from google.protobuf.message import Message

from kernelmodel.sim.rng import stream
from lufleet.v1 import host_pb2, vm_pb2
from node.api import HostCall
from node.calls import READING
from node.shard import Shard
from tests.node.small_hosts import NEW, OLD, ask, host_call, shard_config

HOST, VMS = "h1", ("h1-huge", "h1-plain")
STEPS = 40
SEEDS = 25

RELEASES = (OLD, NEW, "7.3.2", "7.3.4", "7.2.13", "6.19", "6.16", "5.10")
CMDLINES = (
    "",
    "kho=on liveupdate=on kho_scratch=128M,256M,128M hugepagesz=2M hugepages=512",
    "kho=on liveupdate=on kho_scratch=128M,256M,128M",
    "kho=on kho_scratch=zz",
    "kho=off liveupdate=on",
    "liveupdate=off kho=on",
    "kho=on liveupdate=on hugepagesz=2M hugepages=100000",
    "hugepagesz=3M hugepages=abc",
)
FILES = ("kho/out/fdt", "proc/meminfo", "proc/buddyinfo", "proc/cmdline", "dmesg", "no such file")
FAULTS = (
    host_pb2.FaultSpec(kind="slow-boot", factor=4),
    host_pb2.FaultSpec(kind="slow-boot", factor=100, times=2),
    host_pb2.FaultSpec(kind="freeze-fails", errno="EIO", times=2),
    host_pb2.FaultSpec(kind="kexec-load-fails"),
    host_pb2.FaultSpec(kind="next-kernel-panics"),
    host_pb2.FaultSpec(kind="boot-hangs"),
    host_pb2.FaultSpec(kind="drop-preserved-page", vm=VMS[0]),
    host_pb2.FaultSpec(kind="corrupt-folio-entry", vm=VMS[1]),
    host_pb2.FaultSpec(kind="freeze-fails", errno="ENOSUCH"),
)


def kinds(rng: random.Random) -> dict[str, Callable[[], Message]]:
    """Kinds of call, each with arguments drawn afresh."""

    def vm() -> str:
        return rng.choice((*VMS, *VMS, *VMS, "other"))

    def session() -> str:
        return rng.choice((*VMS, *VMS, "s", "", "x" * 64))

    def token() -> int:
        return rng.choice((1, 1, 1, 0, 2**64 - 1))

    return {
        "look": lambda: host_pb2.GetHostRequest(host=HOST),
        "read": lambda: host_pb2.ReadDebugfsRequest(host=HOST, path=rng.choice(FILES)),
        "pause": lambda: host_pb2.PauseVmRequest(host=HOST, vm=vm()),
        "resume": lambda: host_pb2.ResumeVmRequest(host=HOST, vm=vm()),
        "restart": lambda: host_pb2.RestartVmRequest(host=HOST, vm=vm()),
        "create": lambda: host_pb2.CreateSessionRequest(host=HOST, session=session()),
        "preserve": lambda: host_pb2.PreserveFdRequest(
            host=HOST, session=session(), token=token(), vm=vm()
        ),
        "preserve VM": lambda: host_pb2.PreserveVmRequest(host=HOST, vm=vm()),
        "close": lambda: host_pb2.CloseSessionRequest(host=HOST, session=session()),
        "load": lambda: host_pb2.LoadKexecRequest(
            host=HOST, release=rng.choice(RELEASES), cmdline=rng.choice(CMDLINES)
        ),
        "load and go": lambda: host_pb2.LoadKexecRequest(host=HOST, release=NEW),
        "reboot": lambda: host_pb2.RebootRequest(host=HOST),
        "reset": lambda: host_pb2.ColdRebootRequest(host=HOST, release=rng.choice(RELEASES)),
        "retrieve": lambda: host_pb2.RetrieveSessionRequest(host=HOST, session=session()),
        "fetch": lambda: host_pb2.RetrieveFdRequest(
            host=HOST, session=session(), token=token(), vm=vm()
        ),
        "finish": lambda: host_pb2.FinishSessionRequest(host=HOST, session=session()),
        "update": lambda: host_pb2.UpdateHostRequest(host=HOST, release=rng.choice(RELEASES)),
        "inject": lambda: host_pb2.InjectFaultRequest(host=HOST, fault=rng.choice(FAULTS)),
    }


def look(shard: Shard) -> host_pb2.Host:
    reply = ask(shard, host_pb2.GetHostRequest(host=HOST))
    return host_pb2.GetHostResponse.FromString(reply.response).host


def disarm(shard: Shard) -> None:
    """Use up the faults that are still armed: the healthy core that liveness is about."""
    shard.host(HOST).faults = type(shard.host(HOST).faults)(())


def update_goes_through(shard: Shard) -> None:
    ask(shard, host_pb2.ColdRebootRequest(host=HOST, release=OLD))
    for vm in look(shard).vms:
        if vm.state == vm_pb2.VM_STATE_STOPPED:
            reply = ask(shard, host_pb2.RestartVmRequest(host=HOST, vm=vm.spec.name))
            assert reply.refusal is None, reply.refusal
    reply = ask(shard, host_pb2.UpdateHostRequest(host=HOST, release=NEW))
    result = host_pb2.UpdateHostResponse.FromString(reply.response).result
    assert result.outcome == host_pb2.HOST_OUTCOME_UPDATED, result.detail
    assert [vm.outcome for vm in result.vms] == [vm_pb2.VM_OUTCOME_PRESERVED] * len(VMS)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_host_answers_whatever_it_is_asked_and_can_be_replayed(seed: int) -> None:
    rng = stream(seed, "swarm", "host-calls")
    every = kinds(rng)
    used = sorted(rng.sample(sorted(every), rng.randint(5, len(every))))
    print(f"seed {seed} uses {', '.join(used)}")  # shown if the test fails
    shard = Shard(shard_config(HOST))
    history: list[HostCall] = []
    for _ in range(STEPS):
        call = host_call(every[rng.choice(used)](), at_ns=rng.randrange(10**12))
        print(call.method, call.request)
        reply = shard.call_host(call)
        assert reply.now_ns >= reply.start_ns
        if call.method not in READING:
            history.append(call)
    rebuilt = Shard(msgspec.structs.replace(shard_config(HOST), commands=tuple(history)))
    assert look(rebuilt) == look(shard)
    disarm(shard)
    update_goes_through(shard)
