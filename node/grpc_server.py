"""What every gRPC server of lufleet has: health, reflection, one way to refuse, one to page.

Servers are `grpc.aio` and live in the event loop of whoever starts them. The port is chosen by the
system where the address ends in ":0".
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from node.status import simulator_status

__all__ = [
    "AddressInUse",
    "Context",
    "NotHere",
    "Server",
    "abort",
    "check_free",
    "page",
    "start_server",
]

Context = grpc.aio.ServicerContext[Any, Any]
Server = grpc.aio.Server

#: Digits of a page token, at most.
_TOKEN_DIGITS = 18

#: Items on one page of a list if the client does not say.
PAGE_SIZE = 1000


class AddressInUse(Exception):
    """A server cannot listen where it should."""


class NotHere(Exception):
    """A call cannot be carried out here or now, whatever the modelled kernel thinks of it.

    `code` is the gRPC status, `reason` a word in upper snake case for `ErrorInfo.reason`, `message`
    a sentence for people.
    """

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(code, reason, message)
        self.code = code
        self.reason = reason
        self.message = message


async def abort(context: Context, why: NotHere) -> NoReturn:
    """End a call with what was wrong with it."""
    await context.abort_with_status(simulator_status(why.code, why.reason, why.message))
    raise AssertionError("abort_with_status does not return")


def page(names: Sequence[str], page_size: int, page_token: str) -> tuple[Sequence[str], str]:
    """One page of a list and the token of the next one, "" after the last.

    Raises:
        NotHere: that is no page of ours.
    """
    is_token = not page_token or (page_token.isdecimal() and len(page_token) <= _TOKEN_DIGITS)
    if page_size < 0 or not is_token:
        raise NotHere(
            grpc.StatusCode.INVALID_ARGUMENT,
            "NO_SUCH_PAGE",
            "page_size must not be negative, and page_token one that was handed out",
        )
    begin = int(page_token or 0)
    end = begin + (page_size or PAGE_SIZE)
    return names[begin:end], str(end) if end < len(names) else ""


def check_free(address: str, host: str, port: int) -> None:
    """Look whether somebody listens at an address already, before anything is done for it.

    gRPC finds it too, and says neither what it is nor why.

    Raises:
        AddressInUse: somebody does.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:  # whatever else it is, gRPC may do better
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"cannot listen on {address}: {error}") from None


async def start_server(
    address: str, services: dict[str, Callable[[Server], None]]
) -> tuple[Server, int]:
    """Serve, with health and reflection. Returns the server and its port.

    Args:
        address: "HOST:PORT".
        services: Full name of each service, and what adds it to a server.

    Raises:
        AddressInUse: nothing can listen there.
    """
    # Without this a second server would quietly share the port of the first.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name, add in services.items():
        add(server)
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    names = [*services, "grpc.health.v1.Health", reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        why = str(error).partition(";")[0]  # what follows is about gRPC's own log
        raise AddressInUse(f"cannot listen on {address}: {why}") from None
    await server.start()
    return server, port
