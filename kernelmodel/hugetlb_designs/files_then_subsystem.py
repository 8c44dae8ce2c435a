"""`files-then-subsystem`: all files prepare first, then hugetlb, which knows by then what to mark.

Proposal: P. Yadav, 14 Oct 2025, the mail that started the thread: freezing the pool with the first
preserved file by-passes the state machine, since the limited phase then begins and ends without
an event; the sweep before kexec would be a callback for which a subsystem is the natural place.
So: PREPARE lets the files prepare, and then hugetlb as a subsystem, which marks the folios that
files have taken in the list of its pool. The restoring half of J. Gunthorpe's proposal he agreed
to: the next kernel frees the others at once. Never merged; needs LUO v4.

Happy path: PRESERVE_FD takes a reference to the file and nothing more. PREPARE, in which sessions
come before any other subsystem, lets each file fill its holes, write its table and preserve its
folios, one file after the other; then hugetlb freezes its pools, writes the whole list with its
marks, and preserves the folios that no file has. The next kernel reads the list's length before it
allocates, and takes the unmarked folios as free ones.

Unhappy paths: see `v4`. A file that fails makes PREPARE fail as a whole: every file of every
session is cancelled, where a preserve of one VM's file would have failed alone. J. Gunthorpe,
20 Oct: slower and more complex; the work of all files is done by the one thread that raised
PREPARE, under `luo_state_rwsem`.

Our reading: the early read of the list's length is an addition to LUO v4, without which its
restoring half would not work for gigantic pages.
"""

from __future__ import annotations

from typing import ClassVar

from kernelmodel.hugetlb_designs.v4 import MarkingSubsystem

__all__ = ["FilesThenSubsystem"]


class FilesThenSubsystem(MarkingSubsystem):
    """Files at PREPARE, the subsystem behind them."""

    name: ClassVar[str] = "files-then-subsystem"
    source: ClassVar[str] = "P. Yadav, 14 Oct 2025"
    callbacks: ClassVar[tuple[str, ...]] = ("early read of a subsystem's data",)
    at_preserve_fd: ClassVar[bool] = False
