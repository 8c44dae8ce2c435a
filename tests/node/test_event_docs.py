"""docs/grpc.md names every event that `WatchEvents` tells, with its fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message

from kernelmodel.sim.trace import Event, decode
from lufleet.v1 import host_pb2
from node.shard import Shard
from tests.node.small_hosts import NEW, ask, shard_config

DOCS = (Path(__file__).parents[2] / "docs" / "grpc.md").read_text("utf-8")
HOST, VM = "h1", "h1-plain"


def documented() -> dict[str, set[str]]:
    """Event -> its fields, from the rows of the table."""
    section = DOCS.partition("**Events.**")[2].partition("\n\n**")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    found: dict[str, set[str]] = {}
    for names, fields in rows:
        for name in re.findall(r"`(\w+)`", names):
            found[name] = set(re.findall(r"`(\w+)`", fields))
    return found


def life() -> Iterator[Message]:
    """An update that loses a VM, one whose freeze fails, sessions by hand, an agent without LUO."""
    yield host_pb2.InjectFaultRequest(
        host=HOST, fault=host_pb2.FaultSpec(kind="drop-preserved-page", vm=VM)
    )
    yield host_pb2.UpdateHostRequest(host=HOST, release=NEW)
    yield host_pb2.InjectFaultRequest(host=HOST, fault=host_pb2.FaultSpec(kind="freeze-fails"))
    yield host_pb2.UpdateHostRequest(host=HOST, release=NEW)
    yield host_pb2.CreateSessionRequest(host=HOST, session="s")
    yield host_pb2.CreateSessionRequest(host=HOST, session="s")
    yield host_pb2.CloseSessionRequest(host=HOST, session="s")
    yield host_pb2.LoadKexecRequest(host=HOST, release=NEW, cmdline="quiet")
    yield host_pb2.RebootRequest(host=HOST)


def test_the_docs_name_every_event_and_its_fields() -> None:
    shard = Shard(shard_config(HOST))
    events: list[Event] = [event for call in life() for event in decode(ask(shard, call).events)]
    told = documented()
    assert {event.name for event in events} == set(told)
    for event in events:
        is_call = "session" in told[event.name] or event.name in ("freeze", "kexec_file_load")
        refused = {"errno", "panic"} if is_call else set()
        assert set(event.fields) <= told[event.name] | refused, event.name
    for name, fields in told.items():
        seen = set[str]().union(*(event.fields for event in events if event.name == name))
        assert fields <= seen, name
