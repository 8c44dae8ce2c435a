"""A host's digest depends on the host, the seed and its commands, and on nothing else."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest

from kernelmodel.errors import ModelBug
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.releases import CATALOGUE
from kernelmodel.sim.trace import TraceFile, decode, run_digest
from lufleet.v1 import host_pb2
from node import shard as shard_module
from node.api import (
    FaultSpec,
    HostOutcome,
    ShardConfig,
    UpdateCommand,
    UpdatePolicy,
    UpdateResult,
    VmOutcome,
)
from node.host import Host
from node.shard import Shard
from node.vm import memory_extents
from tests.node.small_hosts import NEW, OLD, host_call, shard_config
from tests.node.update_hosts import SECOND, update_10_vms

ROOT = Path(__file__).parents[2]
DIGESTS = """
from tests.node.test_shard import BUSY, commands, updated
print(*[result.digest for result in updated(BUSY, commands("h1", "h2", "h3"))])
"""


def commands(*hosts: str, seq: int = 1, release: str = NEW) -> list[UpdateCommand]:
    return [
        UpdateCommand(host, seq, seq * 3600 * SECOND, release, UpdatePolicy()) for host in hosts
    ]


def updated(config: ShardConfig, commands: list[UpdateCommand]) -> list[UpdateResult]:
    return Shard(config).update(commands)


BUSY = msgspec.structs.replace(
    shard_config("h1", "h2", "h3"),
    faults=(
        FaultSpec("h2", "freeze-fails"),
        FaultSpec("h2", "drop-preserved-page", vm="h2-huge"),
        FaultSpec("h3", "next-kernel-panics"),
    ),
)


def test_a_digest_is_the_same_whatever_order_sets_have() -> None:
    answers = []
    for hash_seed in ("1", "4711"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
        python = [sys.executable, "-c", DIGESTS]
        done = subprocess.run(
            python, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True
        )
        answers.append(done.stdout.split())
    assert answers[0] == answers[1]
    assert answers[0] == [result.digest for result in updated(BUSY, commands("h1", "h2", "h3"))]
    assert len(set(answers[0])) == 3


def digest(config: ShardConfig, disturb: Callable[[Host], None] = lambda _host: None) -> str:
    shard = Shard(config)
    disturb(shard.host("h1"))
    (result,) = shard.update(commands("h1"))
    return result.digest


def guest_page(host: Host) -> None:
    (pfn, _), *_ = memory_extents(host.vm("h1-huge").file) or []
    host.machine.memory.write((pfn << PAGE_SHIFT) + 77, b"\1")


def preserved_page(host: Host) -> None:
    """A page of LUO's own, in memory before the jump and read by nobody."""
    host.machine.memory.write(host.kernel.luo.flbs.outgoing_pa + 4000, b"\1")


def a_vm_that_stands_still(host: Host) -> None:
    host.pause_vm("h1-plain")


COSTS = '[kernel_restart_prepare]\nbase_ns = 1\nkind = "measured"\nsource = "here"\n'
FAULT = FaultSpec("h1", "slow-boot", factor=1.001)
OTHERS: dict[str, tuple[dict[str, object], Callable[[Host], None]]] = {
    "seed": ({"seed": 8}, lambda _: None),
    "cost row": ({"cost_profile": COSTS}, lambda _: None),
    "fault": ({"faults": (FAULT,)}, lambda _: None),
    "guest page": ({}, guest_page),
    "preserved page": ({}, preserved_page),
    "state of a VM": ({}, a_vm_that_stands_still),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_digest_changes_with(what: str) -> None:
    config = shard_config("h1")
    changes, disturb = OTHERS[what]
    assert digest(config) == digest(config)
    assert digest(msgspec.structs.replace(config, **changes), disturb) != digest(config)


def test_a_digest_changes_with_the_command() -> None:
    config = shard_config("h1")
    policy = UpdatePolicy(freeze_retry_delay_ns=1)
    command = UpdateCommand("h1", 1, 3600 * SECOND, NEW, UpdatePolicy())
    faulty = msgspec.structs.replace(config, faults=(FaultSpec("h1", "freeze-fails"),))

    def one(config: ShardConfig, **changes: object) -> str:
        return updated(config, [msgspec.structs.replace(command, **changes)])[0].digest

    found = [one(config), one(config, release=OLD), one(config, seq=2), one(config, start_ns=1)]
    found += [one(faulty), one(faulty, policy=policy)]
    assert len(set(found)) == len(found)


def test_a_host_does_not_depend_on_its_shard() -> None:
    together = updated(BUSY, commands("h3", "h1", "h2"))
    for result in together:
        alone = msgspec.structs.replace(
            shard_config(result.host),
            faults=tuple(fault for fault in BUSY.faults if fault.host == result.host),
        )
        assert updated(alone, commands(result.host)) == [result]


def test_a_host_that_is_rebuilt_from_its_commands_is_the_same() -> None:
    call = host_call(host_pb2.PauseVmRequest(host="h1", vm="h1-plain"), at_ns=5000 * SECOND)
    first, second = commands("h1"), commands("h1", seq=2, release=OLD)
    shard = Shard(BUSY)
    shard.update(commands("h1", "h2"))
    reply = shard.call_host(call)
    expected = shard.update(second)

    history = (*commands("h2"), *first, call)
    rebuilt = Shard(msgspec.structs.replace(BUSY, commands=history))
    assert rebuilt.update(second) == expected
    assert rebuilt.host("h2").trace.hexdigest() == shard.host("h2").trace.hexdigest()
    assert rebuilt.gauges(["h1", "h2"]) == shard.gauges(["h1", "h2"])

    again = Shard(msgspec.structs.replace(BUSY, commands=tuple(first)))
    assert again.call_host(call) == reply


def test_recording_changes_no_digest_and_the_record_recomputes_it(tmp_path: Path) -> None:
    plain = Shard(BUSY)
    recording = Shard(msgspec.structs.replace(BUSY, record_events=True))
    trace = tmp_path / "run.trace"
    streams: dict[str, str] = {}
    with TraceFile(trace) as file:
        for seq in (1, 2):
            these = commands("h1", "h2", "h3", seq=seq)
            results = recording.update(these)
            quiet = [msgspec.structs.replace(result, events=b"") for result in results]
            assert quiet == plain.update(these)
            for result in results:
                file.write(f"host/{result.host}", result.events)
                streams[f"host/{result.host}"] = result.digest
    script = [sys.executable, str(ROOT / "examples" / "trace_digest.py"), str(trace)]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert said.strip() == run_digest(streams)


def test_events_never_go_back_in_time() -> None:
    recording = Shard(msgspec.structs.replace(BUSY, record_events=True))
    for result in recording.update(commands("h1", "h2", "h3")):
        times = [event.now_ns for event in decode(result.events)]
        assert times == sorted(times)
        assert len(times) > 10


def test_gauges_of_every_host() -> None:
    shard = Shard(shard_config("h1", "h2"))
    gauges = shard.gauges(["h1", "h2"])
    assert list(gauges) == ["h1", "h2"]
    assert gauges["h1"].vms == {"running": 2, "paused": 0, "stopped": 0}


def test_hosts_are_built_when_they_are_needed() -> None:
    shard = Shard(BUSY)
    shard.update(commands("h2"))
    assert list(shard._hosts) == ["h2"]
    assert shard.host("h2") is shard.host("h2")


def test_a_host_that_was_dropped_comes_back_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def lives(shard: Shard) -> list[object]:
        pause = host_call(host_pb2.PauseVmRequest(host="h1", vm="h1-plain"), at_ns=5000 * SECOND)
        look = host_call(host_pb2.GetHostRequest(host="h1"), at_ns=0)
        return [
            shard.update(commands("h1", "h2", "h3")),
            shard.call_host(pause),
            shard.call_host(look),
            shard.update(commands("h3", "h2", "h1", seq=2, release=OLD)),
            shard.call_host(look),
            shard.gauges(["h1", "h2", "h3"]),
        ]

    config = msgspec.structs.replace(BUSY, record_events=True)
    expected = lives(Shard(config))
    monkeypatch.setattr(shard_module, "LIVE_HOSTS", 1)
    forgetful = Shard(config)
    assert lives(forgetful) == expected
    assert list(forgetful._hosts) == ["h3"]


def test_kernels_that_are_gone_leave_the_garbage_collector_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_module, "LIVE_HOSTS", 1)
    shard = Shard(shard_config("h1", "h2", "h3"))
    shard.update(commands("h1", "h2", "h3"))
    gc.collect()
    gc.disable()
    try:
        shard.update(commands("h1", "h2", "h3", "h1", seq=2))
        assert gc.collect() < 4 * 50  # of the thousands that two kernels a host consist of
    finally:
        gc.enable()


def test_a_host_of_another_shard_is_our_mistake() -> None:
    with pytest.raises(ModelBug, match="no host 'h9' in this shard"):
        Shard(BUSY).update(commands("h9"))


def test_an_update_that_is_too_quick_to_be_true_is_our_mistake() -> None:
    shard = Shard(shard_config("h1"))
    (result,) = shard.update(commands("h1"))
    hasty = msgspec.structs.replace(result, end_ns=result.start_ns + SECOND - 1)
    with (
        patch.object(shard_module, "update_host", return_value=hasty),
        pytest.raises(ModelBug, match="update of 999999999 ns"),
    ):
        shard.update(commands("h1", seq=2))


def test_an_idle_host_with_ten_vms_stays_small() -> None:
    update_10_vms()  # what is loaded and cached once
    tracemalloc.start()
    try:
        hosts = [update_10_vms() for _ in range(4)]
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size // len(hosts) < 600_000


def test_a_release_of_a_users_own_is_known_to_every_host() -> None:
    own = replace(CATALOGUE[NEW], name="7.3.4-own", based_on=NEW)
    config = msgspec.structs.replace(shard_config("h1", "h2"), releases=(own,))
    config = pickle.loads(pickle.dumps(config))  # as it comes to an actor
    for result in updated(config, commands("h1", "h2", release=own.name)):
        assert (result.outcome, result.release) == (HostOutcome.UPDATED, own.name)
        assert {vm.outcome for vm in result.vms} == {VmOutcome.PRESERVED}
