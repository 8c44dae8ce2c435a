"""Errno and gRPC status: nothing is lost on the way, and no errno is left out."""

from __future__ import annotations

import errno
from concurrent import futures
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.rpc import status_pb2

from kernelmodel.errors import ERRNO_CLASSES, Busy, KernelError
from node.status import (
    KERNEL_DOMAIN,
    SIMULATOR_DOMAIN,
    errno_of,
    error_info_of,
    kernel_status,
    reason_code,
    simulator_status,
    status_code,
)


@pytest.mark.parametrize("symbol", sorted(ERRNO_CLASSES))
def test_every_errno_of_the_model_has_a_status_of_its_own(symbol: str) -> None:
    code = status_code(ERRNO_CLASSES[symbol].errno)
    assert code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)


def test_every_errno_there_is_has_a_status_that_is_not_ok() -> None:
    codes = {number: status_code(number) for number in errno.errorcode}
    assert grpc.StatusCode.OK not in codes.values()
    assert codes[errno.EXDEV] is grpc.StatusCode.UNKNOWN


REASONS = [
    ("NO_SUCH_VM", grpc.StatusCode.NOT_FOUND),
    ("NO_SUCH_RELEASE", grpc.StatusCode.NOT_FOUND),
    ("NO_SUCH_FILE", grpc.StatusCode.NOT_FOUND),
    ("NO_SUCH_SESSION", grpc.StatusCode.NOT_FOUND),
    ("NO_SUCH_FAULT", grpc.StatusCode.INVALID_ARGUMENT),
    ("BAD_FAULT", grpc.StatusCode.INVALID_ARGUMENT),
    ("BAD_POLICY", grpc.StatusCode.INVALID_ARGUMENT),
    ("VM_NOT_PAUSED", grpc.StatusCode.FAILED_PRECONDITION),
    ("HOST_DOWN", grpc.StatusCode.FAILED_PRECONDITION),
]


@pytest.mark.parametrize(("reason", "code"), REASONS)
def test_only_misuse_of_a_state_is_a_failed_precondition(
    reason: str, code: grpc.StatusCode
) -> None:
    assert reason_code(reason) is code


def test_the_errno_and_its_context_are_in_the_details() -> None:
    status = kernel_status(Busy("already preserved", token=7))
    assert status.code is grpc.StatusCode.FAILED_PRECONDITION
    ((_, value),) = status.trailing_metadata
    (detail,) = status_pb2.Status.FromString(value).details
    assert detail.type_url.endswith("google.rpc.ErrorInfo")
    assert b"EBUSY" in detail.value
    assert str(errno.EBUSY).encode() in detail.value
    assert b"token" in detail.value


class Refuse(grpc.GenericRpcHandler):
    """A server that refuses every call in one way."""

    def __init__(self, status: grpc.Status) -> None:
        self.status = status

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        del handler_call_details
        return grpc.unary_unary_rpc_method_handler(
            lambda _, context: context.abort_with_status(self.status)
        )


def call(channel: grpc.Channel) -> None:
    anything: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/any/Call")
    anything(b"", timeout=10)


def refusal(status: grpc.Status) -> grpc.RpcError:
    """What a client sees of a server that refuses so."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Refuse(status),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            call(channel)
    finally:
        server.stop(None).wait()
    return caught.value


@pytest.mark.parametrize("cls", ERRNO_CLASSES.values(), ids=list(ERRNO_CLASSES))
def test_a_client_reads_the_errno_back(cls: type[KernelError]) -> None:
    error = refusal(kernel_status(cls("no", session="s")))
    assert errno_of(error) == cls().name
    info = error_info_of(error)
    assert info is not None
    assert (info.domain, info.metadata["session"]) == (KERNEL_DOMAIN, "s")


def test_a_refusal_by_the_simulator_has_no_errno() -> None:
    error = refusal(simulator_status(grpc.StatusCode.NOT_FOUND, "NO_SUCH_HOST", "no host x"))
    info = error_info_of(error)
    assert info is not None
    assert (info.domain, info.reason) == (SIMULATOR_DOMAIN, "NO_SUCH_HOST")
    assert errno_of(error) is None


@pytest.mark.parametrize("letter", ["x", "é", "\N{CHECK MARK}"])
def test_a_message_is_cut_to_what_a_client_takes(letter: str) -> None:
    status = simulator_status(grpc.StatusCode.NOT_FOUND, "NO_SUCH_FILE", letter * 100_000)
    (_, packed), *_ = status.trailing_metadata
    assert len(quote(status.details)) + len(packed) < 8192
    assert status.details.startswith(letter * 400)
    info = error_info_of(refusal(status))
    assert info is not None
    assert info.reason == "NO_SUCH_FILE"


def test_a_broken_connection_has_neither() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel)
    assert error_info_of(caught.value) is None
    assert errno_of(caught.value) is None
