"""What each method of HostService does to a host.

`perform` is a function of the host's state and the call and of nothing else, so that calls can be
journaled and replayed. A call acts at its `at_ns`, or at the host's own time if that is later: an
operation takes the virtual time that it takes.

Only a `ModelBug` gets out; what the kernel or the host's state refuses is in the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.message import Message

from kernelmodel.errors import KernelError
from kernelmodel.sim.trace import Trace, Value
from lufleet.v1 import host_pb2
from node.api import HostCall, UpdateCommand, UpdatePolicy
from node.calls import READING, HostReply, Refusal
from node.host import Host
from node.host_state import HostStateError
from node.live_update import update_host
from node.messages import (
    fault_spec,
    host_message,
    policy_faults,
    reboot_message,
    update_message,
    update_policy,
)

__all__ = ["perform"]

#: `UpdateResult.seq` of an update that no rollout asked for.
_BY_HAND: Final = 0
#: Bytes of an image in one message; gRPC takes 4 MiB.
_IMAGE_CHUNK: Final = 1 << 20


def perform(host: Host, call: HostCall) -> HostReply:
    """Have a host carry out a call.

    Raises:
        ModelBug: no such method, a request that is none, or a bug of the model.
    """
    request_type, operation = _OPERATIONS[call.method]
    start_ns = host.clock.now_ns
    if call.method not in READING and call.at_ns > start_ns:
        host.clock.advance_to(call.at_ns)
        start_ns = call.at_ns
    trace, copy = host.trace, _Copy(host.trace)
    host.trace = copy
    response, refusal = b"", None
    try:
        response = operation(host, request_type.FromString(call.request)).SerializeToString()
    except KernelError as error:
        context = {key: str(value) for key, value in error.context.items()}
        refusal = Refusal(error.message, errno=error.name, context=context)
    except HostStateError as error:
        refusal = Refusal(error.message, reason=error.reason)
    finally:
        host.trace = trace
    return HostReply(start_ns, host.clock.now_ns, response, refusal, copy.taken())


class _Copy(Trace):
    """A host's trace that also keeps what passes through, whether the host records or not."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Trace) -> None:
        super().__init__(inner.stream, record=True)
        self._inner = inner

    def append(self, now_ns: int, event: str, fields: Mapping[str, Value]) -> None:
        self._inner.append(now_ns, event, fields)
        super().append(now_ns, event, fields)

    def hexdigest(self) -> str:
        return self._inner.hexdigest()

    def take_events(self) -> bytes:
        """Nothing: what the host records stays there for the next update of a rollout."""
        return b""

    def taken(self) -> bytes:
        """What has passed through."""
        return super().take_events()


def _get_host(host: Host, _: host_pb2.GetHostRequest) -> Message:
    return host_pb2.GetHostResponse(host=host_message(host))


def _read_debugfs(host: Host, request: host_pb2.ReadDebugfsRequest) -> Message:
    return host_pb2.ReadDebugfsResponse(text=host.debugfs(request.path))


def _dump_image(host: Host, request: host_pb2.DumpImageRequest) -> Message:
    kept = host.kept_image
    if not kept.data:
        raise HostStateError("NO_IMAGE", f"{host.name}: {kept.why}")
    if not 0 <= request.offset <= len(kept.data):
        message = f"{host.name}: offset {request.offset} of {len(kept.data)} bytes"
        raise HostStateError("BAD_OFFSET", message)
    return host_pb2.DumpImageResponse(
        data=kept.data[request.offset : request.offset + _IMAGE_CHUNK],
        total_bytes=len(kept.data),
        has_content=kept.has_content,
    )


def _pause_vm(host: Host, request: host_pb2.PauseVmRequest) -> Message:
    host.pause_vm(request.vm)
    return host_pb2.PauseVmResponse(virtual_time_ns=host.clock.now_ns)


def _resume_vm(host: Host, request: host_pb2.ResumeVmRequest) -> Message:
    host.resume_vm(request.vm)
    return host_pb2.ResumeVmResponse(virtual_time_ns=host.clock.now_ns)


def _restart_vm(host: Host, request: host_pb2.RestartVmRequest) -> Message:
    host.restart_vm(request.vm)
    return host_pb2.RestartVmResponse(virtual_time_ns=host.clock.now_ns)


def _create_session(host: Host, request: host_pb2.CreateSessionRequest) -> Message:
    host.create_session(request.session)
    return host_pb2.CreateSessionResponse(virtual_time_ns=host.clock.now_ns)


def _preserve_fd(host: Host, request: host_pb2.PreserveFdRequest) -> Message:
    host.preserve_fd(request.session, request.token, request.vm)
    return host_pb2.PreserveFdResponse(virtual_time_ns=host.clock.now_ns)


def _preserve_vm(host: Host, request: host_pb2.PreserveVmRequest) -> Message:
    host.vm(request.vm)  # before a session is made for it
    host.preserve_vm(request.vm)
    return host_pb2.PreserveVmResponse(virtual_time_ns=host.clock.now_ns)


def _close_session(host: Host, request: host_pb2.CloseSessionRequest) -> Message:
    host.close_session(request.session)
    return host_pb2.CloseSessionResponse(virtual_time_ns=host.clock.now_ns)


def _load_kexec(host: Host, request: host_pb2.LoadKexecRequest) -> Message:
    host.kexec_load(request.release, request.cmdline)
    return host_pb2.LoadKexecResponse(virtual_time_ns=host.clock.now_ns)


def _retrieve_session(host: Host, request: host_pb2.RetrieveSessionRequest) -> Message:
    host.retrieve_session(request.session)
    return host_pb2.RetrieveSessionResponse(virtual_time_ns=host.clock.now_ns)


def _retrieve_fd(host: Host, request: host_pb2.RetrieveFdRequest) -> Message:
    intact = host.retrieve_fd(request.session, request.token, request.vm)
    return host_pb2.RetrieveFdResponse(virtual_time_ns=host.clock.now_ns, content_intact=intact)


def _finish_session(host: Host, request: host_pb2.FinishSessionRequest) -> Message:
    host.finish_session(request.session)
    return host_pb2.FinishSessionResponse(virtual_time_ns=host.clock.now_ns)


def _reboot(host: Host, request: host_pb2.RebootRequest) -> Message:
    host.take_phases()
    image = host.freeze()
    with host.kept_image.asked_for(wanted=request.keep_image):
        host.jump(image, UpdatePolicy().boot_timeout_ns)
    return host_pb2.RebootResponse(outcome=reboot_message(host, host.take_phases()))


def _cold_reboot(host: Host, request: host_pb2.ColdRebootRequest) -> Message:
    host.take_phases()
    host.cold_reboot(request.release or host.last_release)
    return host_pb2.ColdRebootResponse(outcome=reboot_message(host, host.take_phases()))


def _update_host(host: Host, request: host_pb2.UpdateHostRequest) -> Message:
    policy = update_policy(request.policy)
    if wrong := policy_faults(policy):
        raise HostStateError("BAD_POLICY", "; ".join(wrong))
    command = UpdateCommand(
        host=host.name,
        seq=_BY_HAND,
        start_ns=host.clock.now_ns,
        release=host.known_release(request.release).name,
        policy=policy,
    )
    with host.kept_image.asked_for(wanted=request.keep_image):
        result = update_host(host, command)
    return host_pb2.UpdateHostResponse(result=update_message(result))


def _inject_fault(host: Host, request: host_pb2.InjectFaultRequest) -> Message:
    host.inject(fault_spec(host.name, request.fault))
    return host_pb2.InjectFaultResponse(virtual_time_ns=host.clock.now_ns)


_OPERATIONS: Final[dict[str, tuple[type[Message], Callable[[Host, Any], Message]]]] = {
    "GetHost": (host_pb2.GetHostRequest, _get_host),
    "ReadDebugfs": (host_pb2.ReadDebugfsRequest, _read_debugfs),
    "DumpImage": (host_pb2.DumpImageRequest, _dump_image),
    "PauseVm": (host_pb2.PauseVmRequest, _pause_vm),
    "ResumeVm": (host_pb2.ResumeVmRequest, _resume_vm),
    "RestartVm": (host_pb2.RestartVmRequest, _restart_vm),
    "CreateSession": (host_pb2.CreateSessionRequest, _create_session),
    "PreserveFd": (host_pb2.PreserveFdRequest, _preserve_fd),
    "PreserveVm": (host_pb2.PreserveVmRequest, _preserve_vm),
    "CloseSession": (host_pb2.CloseSessionRequest, _close_session),
    "LoadKexec": (host_pb2.LoadKexecRequest, _load_kexec),
    "Reboot": (host_pb2.RebootRequest, _reboot),
    "ColdReboot": (host_pb2.ColdRebootRequest, _cold_reboot),
    "RetrieveSession": (host_pb2.RetrieveSessionRequest, _retrieve_session),
    "RetrieveFd": (host_pb2.RetrieveFdRequest, _retrieve_fd),
    "FinishSession": (host_pb2.FinishSessionRequest, _finish_session),
    "UpdateHost": (host_pb2.UpdateHostRequest, _update_host),
    "InjectFault": (host_pb2.InjectFaultRequest, _inject_fault),
}
