"""Calls of HostService on a real modelled host: what they do, refuse, cost and leave behind."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from google.protobuf.message import Message

from kernelmodel.releases import CATALOGUE
from kernelmodel.sim.trace import decode
from lufleet.v1 import host_pb2, vm_pb2
from node.api import HostCall, UpdateCommand, UpdatePolicy
from node.calls import READING
from node.operations import perform
from node.shard import Shard
from tests.node.small_hosts import NEW, OLD, ask, host_call, shard_config

HOST, VMS = "h1", ("h1-huge", "h1-plain")
TOKEN = 1


def look(shard: Shard) -> host_pb2.Host:
    reply = ask(shard, host_pb2.GetHostRequest(host=HOST))
    return host_pb2.GetHostResponse.FromString(reply.response).host


def before_the_jump() -> Iterator[Message]:
    yield host_pb2.LoadKexecRequest(host=HOST, release=NEW)
    for vm in VMS:
        yield host_pb2.CreateSessionRequest(host=HOST, session=vm)
        yield host_pb2.PreserveFdRequest(host=HOST, session=vm, token=TOKEN, vm=vm)
        yield host_pb2.PauseVmRequest(host=HOST, vm=vm)
    yield host_pb2.RebootRequest(host=HOST)


def after_the_jump() -> Iterator[Message]:
    for vm in VMS:
        yield host_pb2.RetrieveSessionRequest(host=HOST, session=vm)
        yield host_pb2.RetrieveFdRequest(host=HOST, session=vm, token=TOKEN, vm=vm)
        yield host_pb2.ResumeVmRequest(host=HOST, vm=vm)
    for vm in VMS:
        yield host_pb2.FinishSessionRequest(host=HOST, session=vm)
        yield host_pb2.CloseSessionRequest(host=HOST, session=vm)


#: given, asked, errno or reason
REFUSALS = [
    ([], host_pb2.ReadDebugfsRequest(path="kho/in"), "NO_SUCH_FILE"),
    ([], host_pb2.PauseVmRequest(vm="other"), "NO_SUCH_VM"),
    ([], host_pb2.ResumeVmRequest(vm=VMS[0]), "VM_NOT_PAUSED"),
    ([], host_pb2.RestartVmRequest(vm=VMS[0]), "VM_NOT_STOPPED"),
    ([], host_pb2.LoadKexecRequest(release="5.10"), "NO_SUCH_RELEASE"),
    ([], host_pb2.ColdRebootRequest(release="1.0"), "NO_SUCH_RELEASE"),
    ([], host_pb2.UpdateHostRequest(release="1.1"), "NO_SUCH_RELEASE"),
    ([], host_pb2.CreateSessionRequest(session=""), "EINVAL"),
    ([], host_pb2.CreateSessionRequest(session="x" * 64), "EINVAL"),
    ([], host_pb2.PreserveFdRequest(session="s", token=1, vm=VMS[0]), "NO_SUCH_SESSION"),
    ([], host_pb2.RetrieveSessionRequest(session="s"), "ENOENT"),
    ([], host_pb2.PreserveVmRequest(vm="x" * 64), "NO_SUCH_VM"),
    ([], host_pb2.InjectFaultRequest(fault=host_pb2.FaultSpec(kind="rust")), "NO_SUCH_FAULT"),
    (
        [host_pb2.PauseVmRequest(host=HOST, vm=VMS[0])],
        host_pb2.PauseVmRequest(vm=VMS[0]),
        "VM_NOT_RUNNING",
    ),
    (
        [host_pb2.CreateSessionRequest(host=HOST, session="s")],
        host_pb2.CreateSessionRequest(session="s"),
        "EEXIST",
    ),
    (
        [host_pb2.PreserveVmRequest(host=HOST, vm=VMS[1])],
        host_pb2.PreserveFdRequest(session=VMS[1], token=TOKEN, vm=VMS[0]),
        "EEXIST",
    ),
    (
        [
            host_pb2.PreserveVmRequest(host=HOST, vm=VMS[1]),
            host_pb2.CreateSessionRequest(host=HOST, session="s"),
        ],
        host_pb2.PreserveFdRequest(session="s", token=TOKEN, vm=VMS[1]),
        "EBUSY",
    ),
    (
        [
            host_pb2.InjectFaultRequest(
                host=HOST, fault=host_pb2.FaultSpec(kind="freeze-fails", errno="EIO")
            ),
            *list(before_the_jump())[:-1],
        ],
        host_pb2.RebootRequest(),
        "EIO",
    ),
]


@pytest.mark.parametrize(("given", "asked", "says"), REFUSALS, ids=lambda value: str(value)[:40])
def test_a_refusal_is_an_answer(given: list[Message], asked: Message, says: str) -> None:
    shard = Shard(shard_config(HOST))
    for request in given:
        assert ask(shard, request).refusal is None
    request = type(asked)()
    request.CopyFrom(asked)
    request.host = HOST  # type: ignore[attr-defined] # every request has it
    refusal = ask(shard, request).refusal
    assert refusal is not None
    assert (refusal.errno or refusal.reason) == says
    assert refusal.message


def test_every_bad_field_of_a_policy_is_named_and_nothing_is_begun() -> None:
    policy = host_pb2.UpdatePolicy(
        freeze_retries=-1,
        boot_timeout_ns=0,
        on_panic="pray",
        on_freeze_failure="",
        freeze_retry_delay_ns=-5,
    )
    shard = Shard(shard_config(HOST))
    before = look(shard).digest
    refusal = ask(shard, host_pb2.UpdateHostRequest(host=HOST, release=NEW, policy=policy)).refusal
    assert refusal is not None
    assert refusal.reason == "BAD_POLICY"
    for said in (
        "policy.freeze_retries is -1, should be 0 to 1000",
        "policy.freeze_retry_delay_ns is -5, should be 0 to",
        "policy.boot_timeout_ns is 0, should be 1 to",
        "policy.on_freeze_failure is '', should be one of give-up, cold-reboot",
        "policy.on_panic is 'pray', should be one of cold-reboot-old, cold-reboot-new",
    ):
        assert said in refusal.message
    assert look(shard).digest == before


def test_a_release_that_is_not_there_is_answered_with_those_that_are() -> None:
    refusal = ask(
        Shard(shard_config(HOST)), host_pb2.UpdateHostRequest(host=HOST, release="1.0")
    ).refusal
    assert refusal is not None
    assert refusal.message == f"no release '1.0' among {', '.join(CATALOGUE)}"


def test_a_kernel_without_the_proposal_refuses_hugetlb_memory() -> None:
    config = shard_config(HOST)
    plain = (msgspec.structs.replace(config.hosts[0], release="7.3.2"),)
    shard = Shard(msgspec.structs.replace(config, hosts=plain))
    refusal = ask(shard, host_pb2.PreserveVmRequest(host=HOST, vm=VMS[0])).refusal
    assert refusal is not None
    assert refusal.errno == "ENOENT"
    assert ask(shard, host_pb2.PreserveVmRequest(host=HOST, vm=VMS[1])).refusal is None


def test_an_update_step_by_step_keeps_every_vm() -> None:
    shard = Shard(shard_config(HOST))
    assert look(shard).release == OLD
    outcome = host_pb2.RebootOutcome()
    for request in before_the_jump():
        reply = ask(shard, request)
        assert reply.refusal is None, reply.refusal
        if isinstance(request, host_pb2.RebootRequest):
            outcome = host_pb2.RebootResponse.FromString(reply.response).outcome
            assert sum(outcome.phases_ns.values()) == reply.now_ns - reply.start_ns
    assert outcome.state == host_pb2.HOST_STATE_UP
    assert {session.name for session in look(shard).sessions} == set(VMS)
    assert all(vm.state == vm_pb2.VM_STATE_STOPPED for vm in look(shard).vms)
    for request in after_the_jump():
        reply = ask(shard, request)
        assert reply.refusal is None, reply.refusal
        if isinstance(request, host_pb2.RetrieveFdRequest):
            assert host_pb2.RetrieveFdResponse.FromString(reply.response).content_intact
    host = look(shard)
    assert (host.release, host.liveupdate_num, list(host.sessions)) == (NEW, 1, [])
    assert all(vm.state == vm_pb2.VM_STATE_RUNNING for vm in host.vms)


def test_a_dropped_page_is_found_when_the_memory_comes_back() -> None:
    shard = Shard(shard_config(HOST))
    fault = host_pb2.FaultSpec(kind="drop-preserved-page", vm=VMS[0])
    ask(shard, host_pb2.InjectFaultRequest(host=HOST, fault=fault))
    for request in before_the_jump():
        assert ask(shard, request).refusal is None
    came_back = {}
    for vm in VMS:
        ask(shard, host_pb2.RetrieveSessionRequest(host=HOST, session=vm))
        reply = ask(shard, host_pb2.RetrieveFdRequest(host=HOST, session=vm, token=TOKEN, vm=vm))
        response = host_pb2.RetrieveFdResponse.FromString(reply.response)
        came_back[vm] = reply.refusal is None and response.content_intact
    assert came_back == {VMS[0]: False, VMS[1]: True}


def test_a_kernel_that_panics_leaves_a_host_that_only_a_reset_brings_back() -> None:
    shard = Shard(shard_config(HOST))
    fault = host_pb2.FaultSpec(kind="next-kernel-panics")
    ask(shard, host_pb2.InjectFaultRequest(host=HOST, fault=fault))
    reply = None
    for request in before_the_jump():
        reply = ask(shard, request)
    assert reply is not None
    outcome = host_pb2.RebootResponse.FromString(reply.response).outcome
    assert (outcome.state, bool(outcome.panic)) == (host_pb2.HOST_STATE_PANICKED, True)
    assert look(shard).release == ""
    down = ask(shard, host_pb2.LoadKexecRequest(host=HOST, release=NEW)).refusal
    assert down is not None
    assert (down.reason, "ColdReboot" in down.message) == ("HOST_DOWN", True)

    reply = ask(shard, host_pb2.ColdRebootRequest(host=HOST))
    cold = host_pb2.ColdRebootResponse.FromString(reply.response).outcome
    assert (cold.state, cold.release) == (host_pb2.HOST_STATE_UP, OLD)
    for vm in VMS:
        assert ask(shard, host_pb2.RestartVmRequest(host=HOST, vm=vm)).refusal is None
    assert all(vm.state == vm_pb2.VM_STATE_RUNNING for vm in look(shard).vms)


def test_a_reset_boots_what_was_up_last_and_says_why_it_was_needed() -> None:
    shard = Shard(shard_config(HOST))
    ask(shard, host_pb2.UpdateHostRequest(host=HOST, release=NEW))
    assert look(shard).release == NEW
    fault = host_pb2.FaultSpec(kind="next-kernel-panics")
    ask(shard, host_pb2.InjectFaultRequest(host=HOST, fault=fault))
    ask(shard, host_pb2.LoadKexecRequest(host=HOST, release=OLD))
    reply = ask(shard, host_pb2.RebootRequest(host=HOST))
    panic = host_pb2.RebootResponse.FromString(reply.response).outcome.panic
    assert look(shard).panic == panic != ""
    refusal = ask(shard, host_pb2.CreateSessionRequest(host=HOST, session="s")).refusal
    assert refusal is not None
    assert "the host is panicked" in refusal.message

    reply = ask(shard, host_pb2.ColdRebootRequest(host=HOST))
    assert host_pb2.ColdRebootResponse.FromString(reply.response).outcome.release == NEW
    assert (look(shard).panic, look(shard).agent_error) == ("", "")


def test_an_agent_that_cannot_open_its_device_says_what_the_kernel_said() -> None:
    shard = Shard(shard_config(HOST))
    ask(shard, host_pb2.PreserveVmRequest(host=HOST, vm=VMS[0]))
    ask(shard, host_pb2.LoadKexecRequest(host=HOST, release="7.3.4"))  # knows no hugetlb
    ask(shard, host_pb2.RebootRequest(host=HOST))
    assert look(shard).agent_error == "cannot open /dev/liveupdate: EIO"
    refusal = ask(shard, host_pb2.RetrieveSessionRequest(host=HOST, session=VMS[0])).refusal
    assert refusal is not None
    assert refusal.reason == "NO_AGENT"
    assert refusal.message.endswith("cannot open /dev/liveupdate: EIO; ColdReboot leads on")


def test_sessions_of_one_name_in_both_directions_are_told_apart() -> None:
    shard = Shard(shard_config(HOST))
    for request in before_the_jump():
        assert ask(shard, request).refusal is None
    vm = VMS[0]
    for method in (host_pb2.RetrieveSessionRequest, host_pb2.CreateSessionRequest):
        assert ask(shard, method(host=HOST, session=vm)).refusal is None
    retrieved = ask(shard, host_pb2.RetrieveFdRequest(host=HOST, session=vm, token=TOKEN, vm=vm))
    assert host_pb2.RetrieveFdResponse.FromString(retrieved.response).content_intact
    preserve = host_pb2.PreserveFdRequest(host=HOST, session=vm, token=TOKEN, vm=vm)
    refusal = ask(shard, preserve).refusal
    assert refusal is not None
    assert refusal.errno == "EBUSY"  # until the other session is finished
    assert ask(shard, host_pb2.FinishSessionRequest(host=HOST, session=vm)).refusal is None
    assert ask(shard, preserve).refusal is None

    def directions() -> list[tuple[int, list[int]]]:
        return [(s.direction, list(s.tokens)) for s in look(shard).sessions if s.name == vm]

    assert directions() == [
        (host_pb2.SESSION_DIRECTION_OUTGOING, [TOKEN]),
        (host_pb2.SESSION_DIRECTION_INCOMING, []),
    ]
    close = host_pb2.CloseSessionRequest(host=HOST, session=vm)
    assert ask(shard, close).refusal is None
    assert directions() == [(host_pb2.SESSION_DIRECTION_INCOMING, [])]
    assert ask(shard, close).refusal is None
    assert directions() == []


def test_a_whole_update_in_one_call_is_that_of_a_rollout() -> None:
    command = UpdateCommand(HOST, 1, 0, NEW, UpdatePolicy())
    (by_rollout,) = Shard(shard_config(HOST)).update([command])
    reply = ask(Shard(shard_config(HOST)), host_pb2.UpdateHostRequest(host=HOST, release=NEW))
    by_hand = host_pb2.UpdateHostResponse.FromString(reply.response).result
    assert by_hand.outcome == host_pb2.HOST_OUTCOME_UPDATED
    assert dict(by_hand.phases_ns) == by_rollout.phases_ns
    assert [vm.downtime_ns for vm in by_hand.vms] == [vm.downtime_ns for vm in by_rollout.vms]


def test_a_call_waits_for_its_time() -> None:
    shard = Shard(shard_config(HOST))
    early = ask(shard, host_pb2.PauseVmRequest(host=HOST, vm=VMS[0]), at_ns=5_000)
    late = ask(shard, host_pb2.PauseVmRequest(host=HOST, vm=VMS[1]), at_ns=5_000)
    assert early.start_ns == 5_000
    assert late.start_ns == early.now_ns > 5_000


def test_looking_changes_nothing() -> None:
    shard = Shard(shard_config(HOST))
    before = look(shard)
    for request in (
        host_pb2.ReadDebugfsRequest(host=HOST, path="proc/buddyinfo"),
        host_pb2.ReadDebugfsRequest(host=HOST, path="no such file"),
        host_pb2.GetHostRequest(host=HOST),
    ):
        reply = ask(shard, request, at_ns=10**12)
        assert reply.events == b""
    assert look(shard) == before


def test_events_of_a_call_come_with_it_whether_the_host_records_or_not() -> None:
    request = host_pb2.PauseVmRequest(host=HOST, vm=VMS[0])
    replies = [
        ask(Shard(shard_config(HOST, record_events=record)), request) for record in (False, True)
    ]
    assert replies[0] == replies[1]
    (event,) = decode(replies[0].events)
    assert (event.name, event.fields["name"], event.fields["state"]) == ("vm", VMS[0], "paused")


def test_recorded_events_wait_for_the_next_update_of_a_rollout() -> None:
    shard = Shard(shard_config(HOST, record_events=True))
    ask(shard, host_pb2.UpdateHostRequest(host=HOST, release=NEW))
    (result,) = shard.update([UpdateCommand(HOST, 1, 0, NEW, UpdatePolicy())])
    names = [event.name for event in decode(result.events)]
    assert names.count("update") == 2


def test_a_shard_that_is_rebuilt_replays_calls_and_commands_in_their_order() -> None:
    config = shard_config(HOST)
    shard = Shard(config)
    command = UpdateCommand(HOST, 1, 60 * 10**9, NEW, UpdatePolicy())
    twice = host_pb2.CreateSessionRequest(host=HOST, session="kept")  # the second is refused
    history: list[UpdateCommand | HostCall] = [host_call(twice), host_call(twice)]
    history += [host_call(host_pb2.CloseSessionRequest(host=HOST, session="kept")), command]
    history += [host_call(host_pb2.PauseVmRequest(host=HOST, vm=VMS[1]))]
    for deed in history:
        if isinstance(deed, UpdateCommand):
            shard.update([deed])
        else:
            shard.call_host(deed)
    rebuilt = Shard(msgspec.structs.replace(config, commands=tuple(history)))
    assert look(rebuilt) == look(shard)


def test_every_method_of_the_service_is_known_and_said_to_change_or_not() -> None:
    service = host_pb2.DESCRIPTOR.services_by_name["HostService"]
    about_one = {m.name for m in service.methods} - {"ListHosts", "WatchEvents"}
    host = Shard(shard_config(HOST)).host(HOST)
    for method in sorted(about_one):
        reply = perform(host, HostCall(HOST, 0, method, b""))
        assert reply.refusal is not None or reply.response
    assert about_one > READING
