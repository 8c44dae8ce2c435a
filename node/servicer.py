"""HostService: gRPC on one side, `HostCall` and `HostReply` on the other.

The servicer translates and nothing else: a request becomes a call, a reply becomes a response or a
status. Whom it asks is a `Hosts`: an actor's own shard, or the whole fleet, which has each call
that changes a host in the journal before it is answered.

Long operations stream what happened on the way, then their outcome. The model computes them in one
go, so their events are all there at once; `Hosts.pace` lets time pass between them.

Unhappy paths: an unknown host is NOT_FOUND, a refusal of the modelled kernel carries its errno
(`node.status`), a name of nothing is NOT_FOUND, a value that cannot be INVALID_ARGUMENT, misuse
FAILED_PRECONDITION, a `ModelBug` INTERNAL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from kernelmodel.errors import ModelBug, kernel_error
from kernelmodel.sim.trace import decode
from lufleet.v1 import host_pb2, host_pb2_grpc
from node.calls import HostReply, Refusal
from node.grpc_server import Context, NotHere, Server, abort, page
from node.messages import event_message
from node.status import kernel_status, reason_code
from node.watchers import EventQueue

__all__ = ["HOST_SERVICE", "HostServicer", "Hosts", "add_to"]

HOST_SERVICE: str = host_pb2.DESCRIPTOR.services_by_name["HostService"].full_name

_M = TypeVar("_M", bound=Message)
_Step = TypeVar(
    "_Step", host_pb2.RebootResponse, host_pb2.ColdRebootResponse, host_pb2.UpdateHostResponse
)


class Hosts(Protocol):
    """Some hosts that can be asked."""

    def names(self) -> Sequence[str]:
        """Their names, in the order of the inventory."""

    async def call(self, host: str, method: str, request: bytes) -> HostReply:
        """Have a host carry out an rpc.

        Raises:
            NotHere: no such host, or not here, or not now.
        """

    async def pace(self, from_ns: int, to_ns: int) -> None:
        """Let virtual time pass."""

    def watch(self, host: str) -> AbstractContextManager[EventQueue]:
        """A queue that gets whatever happens on a host from now on.

        Raises:
            NotHere: no such host.
        """


class _HostRequest(Protocol):
    """What every request about a host has."""

    @property
    def host(self) -> str:
        """Name of the host."""

    def SerializeToString(self) -> bytes:
        """The request as bytes."""


class HostServicer(host_pb2_grpc.HostServiceServicer):
    """Every operation of some hosts."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    async def _call(self, request: _HostRequest, context: Context) -> HostReply:
        """Have the host do it; ends the rpc if the host refuses."""
        method = type(request).__name__.removesuffix("Request")
        try:
            reply = await self._hosts.call(request.host, method, request.SerializeToString())
        except NotHere as why:
            await abort(context, why)
        except ModelBug as bug:
            message = f"{method} on {request.host}: {bug}"
            await abort(context, NotHere(grpc.StatusCode.INTERNAL, "MODEL_BUG", message))
        if reply.refusal is not None:
            await _refuse(context, reply.refusal)
        return reply

    async def _answer(self, request: _HostRequest, context: Context, answer: type[_M]) -> _M:
        return answer.FromString((await self._call(request, context)).response)

    async def _steps(
        self, request: _HostRequest, context: Context, step: type[_Step]
    ) -> AsyncIterator[_Step]:
        reply = await self._call(request, context)
        now_ns = reply.start_ns
        for event in decode(reply.events):
            await self._hosts.pace(now_ns, event.now_ns)
            now_ns = event.now_ns
            yield step(event=event_message(event))
        await self._hosts.pace(now_ns, reply.now_ns)
        yield step.FromString(reply.response)

    async def ListHosts(
        self, request: host_pb2.ListHostsRequest, context: Context
    ) -> host_pb2.ListHostsResponse:
        """Names, page by page."""
        try:
            names, token = page(self._hosts.names(), request.page_size, request.page_token)
        except NotHere as why:
            await abort(context, why)
        return host_pb2.ListHostsResponse(names=names, next_page_token=token)

    async def WatchEvents(
        self, request: host_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[host_pb2.WatchEventsResponse]:
        """Events until the client cancels; the first message is empty and says that we listen."""
        try:
            watching = self._hosts.watch(request.host)
        except NotHere as why:
            await abort(context, why)
        with watching as queue:
            yield host_pb2.WatchEventsResponse()
            while True:
                for event in await queue.get():
                    if not request.names or event.name in request.names:
                        yield host_pb2.WatchEventsResponse(event=event_message(event))

    async def GetHost(
        self, request: host_pb2.GetHostRequest, context: Context
    ) -> host_pb2.GetHostResponse:
        """The host as it stands."""
        return await self._answer(request, context, host_pb2.GetHostResponse)

    async def ReadDebugfs(
        self, request: host_pb2.ReadDebugfsRequest, context: Context
    ) -> host_pb2.ReadDebugfsResponse:
        """A file that the modelled kernel shows."""
        return await self._answer(request, context, host_pb2.ReadDebugfsResponse)

    async def DumpImage(
        self, request: host_pb2.DumpImageRequest, context: Context
    ) -> AsyncIterator[host_pb2.DumpImageResponse]:
        """The image of the last jump, piece by piece."""
        offset = request.offset
        while True:
            part = host_pb2.DumpImageRequest(host=request.host, offset=offset)
            chunk = await self._answer(part, context, host_pb2.DumpImageResponse)
            yield chunk
            offset += len(chunk.data)
            if not chunk.data or offset == chunk.total_bytes:
                return

    async def PauseVm(
        self, request: host_pb2.PauseVmRequest, context: Context
    ) -> host_pb2.PauseVmResponse:
        """Stop a VM's vCPUs."""
        return await self._answer(request, context, host_pb2.PauseVmResponse)

    async def ResumeVm(
        self, request: host_pb2.ResumeVmRequest, context: Context
    ) -> host_pb2.ResumeVmResponse:
        """Let a VM's vCPUs run."""
        return await self._answer(request, context, host_pb2.ResumeVmResponse)

    async def RestartVm(
        self, request: host_pb2.RestartVmRequest, context: Context
    ) -> host_pb2.RestartVmResponse:
        """Start a stopped VM afresh."""
        return await self._answer(request, context, host_pb2.RestartVmResponse)

    async def CreateSession(
        self, request: host_pb2.CreateSessionRequest, context: Context
    ) -> host_pb2.CreateSessionResponse:
        """Make an outgoing session."""
        return await self._answer(request, context, host_pb2.CreateSessionResponse)

    async def PreserveFd(
        self, request: host_pb2.PreserveFdRequest, context: Context
    ) -> host_pb2.PreserveFdResponse:
        """Preserve a VM's memory in a session."""
        return await self._answer(request, context, host_pb2.PreserveFdResponse)

    async def PreserveVm(
        self, request: host_pb2.PreserveVmRequest, context: Context
    ) -> host_pb2.PreserveVmResponse:
        """Preserve a VM in a session of its own."""
        return await self._answer(request, context, host_pb2.PreserveVmResponse)

    async def CloseSession(
        self, request: host_pb2.CloseSessionRequest, context: Context
    ) -> host_pb2.CloseSessionResponse:
        """Close a session."""
        return await self._answer(request, context, host_pb2.CloseSessionResponse)

    async def LoadKexec(
        self, request: host_pb2.LoadKexecRequest, context: Context
    ) -> host_pb2.LoadKexecResponse:
        """Load the next kernel."""
        return await self._answer(request, context, host_pb2.LoadKexecResponse)

    async def RetrieveSession(
        self, request: host_pb2.RetrieveSessionRequest, context: Context
    ) -> host_pb2.RetrieveSessionResponse:
        """Take up a session of the kernel before."""
        return await self._answer(request, context, host_pb2.RetrieveSessionResponse)

    async def RetrieveFd(
        self, request: host_pb2.RetrieveFdRequest, context: Context
    ) -> host_pb2.RetrieveFdResponse:
        """Give a VM its memory back."""
        return await self._answer(request, context, host_pb2.RetrieveFdResponse)

    async def FinishSession(
        self, request: host_pb2.FinishSessionRequest, context: Context
    ) -> host_pb2.FinishSessionResponse:
        """Finish a session."""
        return await self._answer(request, context, host_pb2.FinishSessionResponse)

    async def InjectFault(
        self, request: host_pb2.InjectFaultRequest, context: Context
    ) -> host_pb2.InjectFaultResponse:
        """Arm a fault."""
        return await self._answer(request, context, host_pb2.InjectFaultResponse)

    async def Reboot(
        self, request: host_pb2.RebootRequest, context: Context
    ) -> AsyncIterator[host_pb2.RebootResponse]:
        """Jump into the loaded kernel."""
        async for step in self._steps(request, context, host_pb2.RebootResponse):
            yield step

    async def ColdReboot(
        self, request: host_pb2.ColdRebootRequest, context: Context
    ) -> AsyncIterator[host_pb2.ColdRebootResponse]:
        """Reset the host."""
        async for step in self._steps(request, context, host_pb2.ColdRebootResponse):
            yield step

    async def UpdateHost(
        self, request: host_pb2.UpdateHostRequest, context: Context
    ) -> AsyncIterator[host_pb2.UpdateHostResponse]:
        """A whole update."""
        async for step in self._steps(request, context, host_pb2.UpdateHostResponse):
            yield step


async def _refuse(context: Context, refusal: Refusal) -> None:
    """End the rpc with what the host said to it."""
    if refusal.errno:
        error = kernel_error(refusal.errno, refusal.message, **refusal.context)
        await context.abort_with_status(kernel_status(error))
    code = reason_code(refusal.reason)
    await abort(context, NotHere(code, refusal.reason, refusal.message))


def add_to(server: Server, hosts: Hosts) -> None:
    """Serve HostService for these hosts."""
    host_pb2_grpc.add_HostServiceServicer_to_server(HostServicer(hosts), server)
