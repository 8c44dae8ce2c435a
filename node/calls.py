"""What HostService asks of a host, and what the host answers, as values.

A refusal is an answer like any other, not an exception: it may have cost time, it may have left
something behind (a refused CREATE_SESSION can grow the session blocks), so it is replayed as well.
`node.operations` carries calls out.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

__all__ = ["READING", "HostReply", "Refusal"]

#: Methods that leave a host as it was: not journaled, not replayed.
READING: Final = frozenset({"GetHost", "ReadDebugfs", "DumpImage"})


class Refusal(Struct, frozen=True):
    """Why a host did not do it."""

    message: str
    errno: str = ""  # symbol, if it was the modelled kernel that refused
    reason: str = ""  # in upper snake case, if it was not
    context: dict[str, str] = {}  # what the kernel's refusal was about


class HostReply(Struct, frozen=True):
    """What came of a call. The host's clock went from `start_ns` to `now_ns`."""

    start_ns: int
    now_ns: int
    response: bytes = b""  # the response message, serialised; of a stream the last one
    refusal: Refusal | None = None
    events: bytes = b""  # records of what happened, as `Trace.take_events` gives them
