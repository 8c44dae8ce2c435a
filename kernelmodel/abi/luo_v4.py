"""What the LUO proposed in September 2025 (v4) leaves in memory, and its ioctls. Never merged.

One page, KHO's subtree `LUO`, holds a device tree: `compatible` = `luo-v1`, the node `subsystems`
(`subsystems-v1`) with one u64 property for each subsystem, and the node `luo-session`
(`luo-session-v1`) with `count`, `data` (physical address of the sessions' array) and `pgcnt`
(its pages). A session's files are one contiguous array in the same way. All integers are u64 in
the CPU's byte order.

Ours, because no source that we have gives them: the members of `LuoSessionSer` behind the name,
and what the ioctls' arguments hold beside what their names say.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from kernelmodel.abi.layout import Ser

__all__ = [
    "LIVEUPDATE_HNDL_COMPAT_LENGTH",
    "LIVEUPDATE_IOCTL_CREATE_SESSION",
    "LIVEUPDATE_IOCTL_GET_STATE",
    "LIVEUPDATE_IOCTL_RETRIEVE_SESSION",
    "LIVEUPDATE_IOCTL_SET_EVENT",
    "LIVEUPDATE_SESSION_GET_STATE",
    "LIVEUPDATE_SESSION_NAME_LENGTH",
    "LIVEUPDATE_SESSION_PRESERVE_FD",
    "LIVEUPDATE_SESSION_RESTORE_FD",
    "LIVEUPDATE_SESSION_SET_EVENT",
    "LIVEUPDATE_SESSION_UNPRESERVE_FD",
    "LUO_SESSION_COMPATIBLE",
    "LUO_SESSION_NODE",
    "LUO_SUBSYSTEMS_COMPATIBLE",
    "LUO_SUBSYSTEMS_NODE",
    "LUO_SUBTREE",
    "LiveupdateEvent",
    "LiveupdateState",
    "LuoFhStateSer",
    "LuoFileSer",
    "LuoSessionSer",
]

LUO_SUBTREE = "LUO"
LUO_SUBSYSTEMS_NODE = "subsystems"
LUO_SUBSYSTEMS_COMPATIBLE = "subsystems-v1"
LUO_SESSION_NODE = "luo-session"
LUO_SESSION_COMPATIBLE = "luo-session-v1"
#: With its NUL.
LIVEUPDATE_SESSION_NAME_LENGTH = 56
LIVEUPDATE_HNDL_COMPAT_LENGTH = 48

#: `_IO(0xBA, nr)`: the argument's size travels in its own first field.
_IOC = 0xBA00
LIVEUPDATE_IOCTL_GET_STATE = _IOC | 0x00
LIVEUPDATE_IOCTL_SET_EVENT = _IOC | 0x01
LIVEUPDATE_IOCTL_CREATE_SESSION = _IOC | 0x02
LIVEUPDATE_IOCTL_RETRIEVE_SESSION = _IOC | 0x03
LIVEUPDATE_SESSION_PRESERVE_FD = _IOC | 0x40
LIVEUPDATE_SESSION_UNPRESERVE_FD = _IOC | 0x41
LIVEUPDATE_SESSION_RESTORE_FD = _IOC | 0x42
LIVEUPDATE_SESSION_GET_STATE = _IOC | 0x43
LIVEUPDATE_SESSION_SET_EVENT = _IOC | 0x44


class LiveupdateState(IntEnum):
    """C: enum liveupdate_state. Of the system, of each session, and of each file in it."""

    UNDEFINED = 0
    NORMAL = 1
    PREPARED = 2
    FROZEN = 3
    UPDATED = 4


class LiveupdateEvent(IntEnum):
    """C: enum liveupdate_event."""

    PREPARE = 0
    FREEZE = 1
    FINISH = 2
    CANCEL = 3


@dataclass(frozen=True, slots=True)
class LuoSessionSer(Ser):
    """C: struct luo_session_ser; `files` is the address of its files' array of `pgcnt` pages."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<56sQQQ")
    SIZE: ClassVar[int] = 80
    name: bytes
    files: int
    pgcnt: int
    count: int


@dataclass(frozen=True, slots=True)
class LuoFileSer(Ser):
    """C: struct luo_file_ser; `data` belongs to the handler named by `compatible`."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<48sQQ")
    SIZE: ClassVar[int] = 64
    compatible: bytes
    data: int
    token: int


@dataclass(frozen=True, slots=True)
class LuoFhStateSer(Ser):
    """A file handler's global state: entry of the array that `luo-fh-states-v1-struct` points to.

    The array starts with a u64 count. Layout ours.
    """

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<48sQ")
    SIZE: ClassVar[int] = 56
    compatible: bytes
    data: int
