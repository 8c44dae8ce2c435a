"""Errno and gRPC status, in both directions.

A refusal of the modelled kernel travels as the nearest gRPC status *and*, in the status
details, as a `google.rpc.ErrorInfo` with the errno itself: the sixteen codes of gRPC cannot tell
EBUSY from ENODEV, and whoever drives a host has to. What the simulator refuses on its own
account (no such host, a VM that is already paused) carries another domain and no errno.

The table is total over errno(3): what has no row of its own is UNKNOWN. UNAVAILABLE is never
used for an errno, so that a client may take it for a broken connection and nothing else.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from kernelmodel.errors import ERRNO_CLASSES, KernelError

__all__ = [
    "KERNEL_DOMAIN",
    "SIMULATOR_DOMAIN",
    "errno_of",
    "error_info_of",
    "kernel_status",
    "reason_code",
    "simulator_status",
    "status_code",
]

#: `ErrorInfo.domain` of a refusal by the modelled kernel; `reason` is the errno's symbol.
KERNEL_DOMAIN: Final = "kernel.lufleet"

#: `ErrorInfo.domain` of a refusal by the simulator itself; `reason` says which.
SIMULATOR_DOMAIN: Final = "lufleet"

_CODES: Final[Mapping[int, grpc.StatusCode]] = {
    errno.EPERM: grpc.StatusCode.PERMISSION_DENIED,
    errno.ENOENT: grpc.StatusCode.NOT_FOUND,
    errno.EIO: grpc.StatusCode.DATA_LOSS,
    errno.E2BIG: grpc.StatusCode.INVALID_ARGUMENT,
    errno.ENOEXEC: grpc.StatusCode.INVALID_ARGUMENT,
    errno.EBADF: grpc.StatusCode.INVALID_ARGUMENT,
    errno.EAGAIN: grpc.StatusCode.ABORTED,  # gRPC's word for "try again, from further up"
    errno.ENOMEM: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.EACCES: grpc.StatusCode.PERMISSION_DENIED,
    errno.EFAULT: grpc.StatusCode.INVALID_ARGUMENT,
    errno.EBUSY: grpc.StatusCode.FAILED_PRECONDITION,
    errno.EEXIST: grpc.StatusCode.ALREADY_EXISTS,
    errno.ENODEV: grpc.StatusCode.FAILED_PRECONDITION,
    errno.EINVAL: grpc.StatusCode.INVALID_ARGUMENT,
    errno.EMFILE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.ENOTTY: grpc.StatusCode.UNIMPLEMENTED,
    errno.ERANGE: grpc.StatusCode.OUT_OF_RANGE,
    errno.EFBIG: grpc.StatusCode.OUT_OF_RANGE,
    errno.EOVERFLOW: grpc.StatusCode.OUT_OF_RANGE,
    errno.ENOSPC: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.ESPIPE: grpc.StatusCode.INVALID_ARGUMENT,
    errno.ENODATA: grpc.StatusCode.NOT_FOUND,
    errno.EOPNOTSUPP: grpc.StatusCode.UNIMPLEMENTED,
    errno.ENOSYS: grpc.StatusCode.UNIMPLEMENTED,
    errno.EADDRINUSE: grpc.StatusCode.ALREADY_EXISTS,
    errno.EADDRNOTAVAIL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.ETIMEDOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}

#: Refusals of the simulator that are not about the state that a host or a VM is in.
_REASONS: Final[Mapping[str, grpc.StatusCode]] = {
    "NO_SUCH_VM": grpc.StatusCode.NOT_FOUND,
    "NO_SUCH_RELEASE": grpc.StatusCode.NOT_FOUND,
    "NO_SUCH_FILE": grpc.StatusCode.NOT_FOUND,
    "NO_SUCH_SESSION": grpc.StatusCode.NOT_FOUND,
    "NO_SUCH_FAULT": grpc.StatusCode.INVALID_ARGUMENT,
    "BAD_FAULT": grpc.StatusCode.INVALID_ARGUMENT,
    "BAD_POLICY": grpc.StatusCode.INVALID_ARGUMENT,
    "BAD_OFFSET": grpc.StatusCode.OUT_OF_RANGE,
}


#: Longest message of a refusal.
_MESSAGE_BYTES: Final = 3000


def reason_code(reason: str) -> grpc.StatusCode:
    """The gRPC status for what a host refused without asking its kernel."""
    return _REASONS.get(reason, grpc.StatusCode.FAILED_PRECONDITION)


def status_code(number: int) -> grpc.StatusCode:
    """The gRPC status for a positive errno; UNKNOWN for one without a row."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def kernel_status(error: KernelError) -> grpc.Status:
    """What a call ends with that the modelled kernel refused."""
    metadata = {key: str(value) for key, value in error.context.items()}
    metadata["errno"] = str(error.errno)
    return _status(status_code(error.errno), str(error), KERNEL_DOMAIN, error.name, metadata)


def simulator_status(code: grpc.StatusCode, reason: str, message: str) -> grpc.Status:
    """What a call ends with that made no sense to the simulator.

    Args:
        code: The gRPC status.
        reason: `ErrorInfo.reason`, upper snake case, e.g. "NO_SUCH_HOST".
        message: A sentence for people.
    """
    return _status(code, message, SIMULATOR_DOMAIN, reason, {})


def _status(
    code: grpc.StatusCode, message: str, domain: str, reason: str, metadata: Mapping[str, str]
) -> grpc.Status:
    message = _that_fits(message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    number: int = code.value[0]
    return rpc_status.to_status(
        status_pb2.Status(code=number, message=message, details=[detail]),
    )


def _that_fits(message: str) -> str:
    """The message, cut if it would not get through.

    It travels twice in trailing metadata, of which a peer takes 8 KiB unless it says otherwise;
    beyond that a client sees neither status nor errno. What is not ASCII takes three times as much.
    """
    most = _MESSAGE_BYTES if message.isascii() else _MESSAGE_BYTES // 2
    raw = message.encode()
    return message if len(raw) <= most else raw[:most].decode(errors="ignore") + " …"


def error_info_of(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    """The `ErrorInfo` that a failed call carries, None if it has none (a broken connection)."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return None
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        status = status_pb2.Status.FromString(value)
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return info
    return None


def errno_of(error: grpc.RpcError) -> str | None:
    """The symbol of the errno that a failed call carries, e.g. "EBUSY"; None without one."""
    info = error_info_of(error)
    if info is None or info.domain != KERNEL_DOMAIN or info.reason not in ERRNO_CLASSES:
        return None
    symbol: str = info.reason
    return symbol
