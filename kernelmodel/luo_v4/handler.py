"""What a file handler is to LUO v4: one kind of file, and what to do with it at each event.

| when | operation | if it raises |
|---|---|---|
| PRESERVE_FD | `can_preserve`, then `preserve` (extension) | the file is not preserved |
| UNPRESERVE_FD, session closed | `unpreserve` (extension) | must not |
| PREPARE of system or session | `prepare`: the heavy work | the session's files are cancelled |
| FREEZE | `freeze`: last look, may change the data | the session's files are cancelled |
| CANCEL, something else failed | `cancel`: undo prepare and freeze | must not |
| RESTORE_FD, next kernel | `retrieve`: the only one that must be there | may be tried again |
| FINISH, session closed | `finish`, told whether the file was reclaimed | must not |

The two extensions are what P. Tatashin's summary of 7 Oct 2025 asks for: heavy work at PRESERVE_FD,
long before PREPARE. `global_state` and `subsystem` are what was proposed that month for state
that files share: `kernelmodel.luo_v4.global_state`, `kernelmodel.luo_v4.handler_subsystem`.

C: struct liveupdate_file_handler and struct liveupdate_file_ops, proposal v4 of Sep 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelmodel.abi.luo_v4 import LiveupdateState
from kernelmodel.fs import File

if TYPE_CHECKING:
    from kernelmodel.luo_v4.global_state import GlobalStateOps
    from kernelmodel.luo_v4.subsystems import Subsystem

__all__ = ["FileHandler", "LuoFile"]


@dataclass(slots=True, eq=False)
class LuoFile:
    """One file in a session. C: struct luo_file.

    `data` is the u64 that crosses kexec, `private` what the handler keeps to itself. `state` is
    NORMAL, PREPARED or FROZEN going out and UPDATED coming in. `file` is None as long as nobody
    has retrieved an incoming one.
    """

    handler: FileHandler
    token: int
    file: File | None
    state: LiveupdateState = LiveupdateState.NORMAL
    data: int = 0
    private: object = None


@dataclass(slots=True, eq=False)
class FileHandler:
    """Base of all handlers; callbacks may raise any KernelError where the table above says so.

    `module_gone` is a module on its way out, of which no reference can be had.
    """

    compatible: str
    global_state: GlobalStateOps | None = None
    subsystem: Subsystem | None = None
    module_gone: bool = False
    #: Files in all sessions that this handler takes care of.
    nr_files: int = 0

    def can_preserve(self, file: File) -> bool:
        """Whether this handler takes the file."""
        raise NotImplementedError

    def preserve(self, luo_file: LuoFile) -> None:
        """Heavy work that can be done long before PREPARE. Not in v4, asked for on 7 Oct 2025."""

    def unpreserve(self, luo_file: LuoFile) -> None:
        """Undo `preserve`; the file is not prepared."""

    def prepare(self, luo_file: LuoFile) -> int:
        """Preserve the file; returns its `data`."""
        return 0

    def freeze(self, luo_file: LuoFile) -> int:
        """Last look before the jump; returns `data`."""
        return luo_file.data

    def cancel(self, luo_file: LuoFile) -> None:
        """Undo `prepare`, and `freeze` if the file is frozen."""

    def retrieve(self, luo_file: LuoFile) -> File:
        """Make the file again from `data`."""
        raise NotImplementedError

    def finish(self, luo_file: LuoFile, *, reclaimed: bool) -> None:
        """LUO lets go of the file; `reclaimed` if somebody retrieved it."""
