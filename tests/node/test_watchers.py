"""Watchers hear of their own host, from when they came to when they leave, each event once."""

from __future__ import annotations

import msgspec

from kernelmodel.sim.trace import Trace
from lufleet.v1 import host_pb2
from node.api import UpdateCommand, UpdatePolicy
from node.calls import HostReply
from node.shard import Shard
from node.watchers import EventQueue, Watchers
from tests.node.small_hosts import NEW, ask, shard_config


def reply(*names: str) -> HostReply:
    trace = Trace("host/h", record=True)
    for name in names:
        trace.emit(1, name)
    return HostReply(0, 1, events=trace.take_events())


def heard(queue: EventQueue) -> list[str]:
    return [event.name for _ in range(queue.qsize()) for event in queue.get_nowait()]


def test_everyone_who_watches_a_host_hears_of_it() -> None:
    watchers = Watchers()
    with (
        watchers.watch("h1") as first,
        watchers.watch("h1") as second,
        watchers.watch("h2") as other,
    ):
        watchers.answered("h1", reply("a", "b"))
        watchers.answered("h1", reply())
        watchers.answered("h1", reply("c"))
        assert heard(first) == heard(second) == ["a", "b", "c"]
        assert heard(other) == []


def test_who_has_left_hears_nothing() -> None:
    watchers = Watchers()
    with watchers.watch("h1") as queue:
        pass
    watchers.answered("h1", reply("a"))
    assert queue.empty()


def test_an_update_is_told_without_what_calls_did_before_it() -> None:
    shard = Shard(shard_config("h1", record_events=True))
    ask(shard, host_pb2.UpdateHostRequest(host="h1", release=NEW))
    (result,) = shard.update([UpdateCommand("h1", 1, 0, NEW, UpdatePolicy())])
    watchers = Watchers()
    with watchers.watch("h1") as queue:
        watchers.updated(result)
        names = heard(queue)
        assert (names[0], names.count("update")) == ("update", 1)
        assert names.count("vm_done") == len(result.vms)


def test_an_update_whose_host_records_nothing_is_silent() -> None:
    (result,) = Shard(shard_config("h1")).update([UpdateCommand("h1", 1, 0, NEW, UpdatePolicy())])
    watchers = Watchers()
    with watchers.watch("h1") as queue:
        watchers.updated(msgspec.structs.replace(result, events=b""))
        assert queue.empty()
