"""What LUO leaves in memory, and its ioctls.

C: include/linux/kho/abi/luo.h, include/uapi/linux/liveupdate.h, 7.3.

`LuoSer` is the blob of the FDT's subtree `LUO`; sessions and files are chains of one-page
blocks, FLBs one page.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from kernelmodel.abi.layout import Ser

__all__ = [
    "LIVEUPDATE_CREATE_SESSION",
    "LIVEUPDATE_HNDL_COMPAT_LENGTH",
    "LIVEUPDATE_RETRIEVE_SESSION",
    "LIVEUPDATE_SESSION_FINISH",
    "LIVEUPDATE_SESSION_GET_NAME",
    "LIVEUPDATE_SESSION_NAME_LENGTH",
    "LIVEUPDATE_SESSION_PRESERVE_FD",
    "LIVEUPDATE_SESSION_RETRIEVE_FD",
    "LUO_FLB_PGCNT",
    "LUO_SUBTREE",
    "LuoFileSer",
    "LuoFileSetSer",
    "LuoFlbHeaderSer",
    "LuoFlbSer",
    "LuoSer",
    "LuoSessionSer",
]

LUO_SUBTREE = "LUO"
LUO_FLB_PGCNT = 1
LIVEUPDATE_SESSION_NAME_LENGTH = 64
LIVEUPDATE_HNDL_COMPAT_LENGTH = 48

#: `_IO(0xBA, nr)`: the argument's size travels in its own first field.
_IOC = 0xBA00
LIVEUPDATE_CREATE_SESSION = _IOC | 0x00
LIVEUPDATE_RETRIEVE_SESSION = _IOC | 0x01
LIVEUPDATE_SESSION_PRESERVE_FD = _IOC | 0x40
LIVEUPDATE_SESSION_RETRIEVE_FD = _IOC | 0x41
LIVEUPDATE_SESSION_FINISH = _IOC | 0x42
LIVEUPDATE_SESSION_GET_NAME = _IOC | 0x43


@dataclass(frozen=True, slots=True)
class LuoSer(Ser):
    """C: struct luo_ser."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<8sQQQ")
    SIZE: ClassVar[int] = 32
    compatible: bytes
    liveupdate_num: int
    sessions_pa: int
    flbs_pa: int


@dataclass(frozen=True, slots=True)
class LuoFileSetSer(Ser):
    """A session's files: first block of their chain and how many. C: struct luo_file_set_ser."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QQ")
    SIZE: ClassVar[int] = 16
    files: int
    count: int


@dataclass(frozen=True, slots=True)
class LuoSessionSer(Ser):
    """C: struct luo_session_ser; `files` and `count` are its file set."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<64sQQ")
    SIZE: ClassVar[int] = 80
    name: bytes
    files: int
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
class LuoFlbHeaderSer(Ser):
    """C: struct luo_flb_header_ser."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QQ")
    SIZE: ClassVar[int] = 16
    pgcnt: int
    count: int


@dataclass(frozen=True, slots=True)
class LuoFlbSer(Ser):
    """C: struct luo_flb_ser; `count` is the number of files that hold the FLB."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<48sQQ")
    SIZE: ClassVar[int] = 64
    name: bytes
    data: int
    count: int
