"""What a file handler is to LUO. C: struct liveupdate_file_handler, struct liveupdate_flb, 7.3.

A handler knows one kind of file: whether it can preserve it, how it writes it down, how it gives
it back. An FLB (file-lifecycle-bound data) is state that such files share: created with the
first, gone with the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from kernelmodel.fs import File

__all__ = ["FileHandler", "Flb", "FlbOps", "LuoFile"]


@dataclass(slots=True)
class LuoFile:
    """One file in a session. C: struct luo_file.

    `data` is the u64 that crosses kexec, `private` what the handler keeps to itself on the
    outgoing side. `retrieve_status` is 0, 1 once retrieved, or the error of a failed retrieve,
    which is returned for ever. `identity` is the object's in the kernel's list of preserved ones
    while there is a `file`.
    """

    handler: FileHandler
    token: int
    file: File | None = None
    data: int = 0
    private: Any = None
    retrieve_status: int = 0
    identity: tuple[FileHandler | None, int] = (None, 0)


class FlbOps(Protocol):
    """C: struct liveupdate_flb_ops."""

    def preserve(self) -> tuple[int, object]:
        """First user: returns (data, object)."""
        ...

    def unpreserve(self, data: int, obj: object) -> None:
        """Last user gone before kexec."""
        ...

    def retrieve(self, data: int) -> object:
        """First look at it in the next kernel."""
        ...

    def finish(self, data: int, obj: object) -> None:
        """Last user gone in the next kernel."""
        ...


@dataclass(slots=True, eq=False)
class Flb:
    """State shared by files. C: struct liveupdate_flb with its luo_flb_private.

    `outgoing_*` and `incoming_*` are two lives of the same thing and never mix. LUO of 7.3 has no
    `freeze`: designs that want a last look just before kexec add it. It cannot fail.
    """

    name: str
    ops: FlbOps
    freeze: Callable[[], None] | None = None
    users: int = 0  # handlers that it is linked to
    outgoing_gets: int = 0  # of the outgoing count, those that are no file's
    outgoing_count: int = 0
    outgoing_data: int = 0
    outgoing_obj: object = None
    incoming_count: int = 0
    incoming_data: int = 0
    incoming_obj: object = None
    incoming_retrieved: bool = False
    incoming_error: int = 0
    incoming_finished: bool = False


@dataclass(slots=True, eq=False)
class FileHandler:
    """Base of all handlers; callbacks may raise any KernelError.

    C: struct liveupdate_file_handler and its ops. `freeze` and `unfreeze` may be absent in C;
    here they do nothing.
    """

    compatible: str
    flbs: list[Flb] = field(default_factory=list)

    def can_preserve(self, file: File) -> bool:
        """Whether this handler takes the file."""
        raise NotImplementedError

    def get_id(self, file: File) -> int:
        """What makes two descriptors the same object. Default: the open file description."""
        return id(file)

    def preserve(self, luo_file: LuoFile) -> None:
        """Do the heavy work; sets `data` and `private`."""
        raise NotImplementedError

    def unpreserve(self, luo_file: LuoFile) -> None:
        """Undo `preserve`."""
        raise NotImplementedError

    def freeze(self, luo_file: LuoFile) -> None:
        """Last look before the jump; may replace `data`."""

    def unfreeze(self, luo_file: LuoFile) -> None:
        """Undo `freeze`."""

    def retrieve(self, luo_file: LuoFile) -> File:
        """Make the file again from `data`."""
        raise NotImplementedError

    def can_finish(self, luo_file: LuoFile) -> bool:
        """Whether the session may finish now."""
        return True

    def finish(self, luo_file: LuoFile) -> None:
        """The session lets go of the file, retrieved or not. Cannot fail."""
        raise NotImplementedError
