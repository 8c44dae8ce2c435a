"""One corruption of a handover: what it changes, and what Linux 7.3 makes of it.

The outcome is not what the model happens to do but what the named kernel function does, and the
model is held to it. `writes` yields the bytes to put into physical memory between the jump and
the next kernel's first look at it; `firmware` changes what firmware data says, for the few
corruptions that are not in memory that was handed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from kernelmodel.corruptions.handed_over import HandedOver
from kernelmodel.corruptions.reader import Write
from kernelmodel.machine import Firmware

__all__ = ["Corruption", "Outcome"]


class Outcome(Enum):
    """How it ends, as somebody at the system-call border or at the console sees it."""

    #: Everything is retrieved as it was: the kernel does not look there, or takes any value.
    ACCEPTED = "accepted"
    #: Everything is retrieved, and a file's content, size, position or seals are others.
    CONTENT_CHANGED = "content changed"
    #: One file cannot be retrieved, its session and all other files can.
    FILE_REFUSED = "file refused"
    #: Sessions or files are gone, and nothing says so.
    LOST = "lost silently"
    #: Everything is retrieved; memory stays reserved for nobody, or is not what it is taken for.
    WRONG_MEMORY = "wrong memory reserved"
    #: The kernel comes up, and every open of /dev/liveupdate is EIO.
    EIO_AT_OPEN = "EIO at open"
    #: An ordinary boot: nothing is revived, what was preserved is free memory.
    NOT_REVIVED = "KHO revival disabled"
    #: The kernel stops itself at boot, because it may not go on.
    PANIC = "panic in early boot"
    #: The kernel reads or writes where there is no memory.
    FAULT = "page fault"
    #: The kernel never comes back.
    HANG = "hang"


@dataclass(frozen=True, slots=True)
class Corruption:
    """A labelled corruption.

    `what` says in one sentence what is changed, `source` which kernel function decides the
    outcome (C name and file), `because` how it comes to it, `errno` the symbol that the retrieve
    of a refused file answers. `writes` raises `NotThere` for a handover without such a thing.
    """

    label: str
    what: str
    source: str
    outcome: Outcome
    because: str
    writes: Callable[[HandedOver], list[Write]]
    errno: str = ""
    firmware: Callable[[Firmware], Firmware] | None = None
