"""`subsystem-prepare`: hugetlb is a subsystem of LUO v4 and serialises once, at PREPARE.

Proposal: P. Yadav, 9 Oct 2025, in the thread on hugetlb's shared state. Each descriptor that is
preserved marks its folios in an xarray, at run time; hugetlb writes them down once, when the
system prepares; without a descriptor of huge pages nothing is stored; `finish` frees the pages
that nobody claimed. Simpler than a get and a put of global state for each folio, and PREPARE is a
clear moment after which no file can come. Never merged; needs LUO v4.

Happy path and unhappy ones: see `v4`. memfd and guest_memfd both mark, since a subsystem can be
reached from everywhere: that anybody may is what J. Gunthorpe held against it.

What it does not do, as it was proposed: nothing tells early boot how many pages come back. LUO v4
hands out a subsystem's data from the early initcalls on, gigantic pages are allocated before. A
host with a pool of 1 GiB pages allocates all that its command line asks for, beside those that
come back: too many by what was preserved, after every update, or as many as there is memory for.
2 MiB pages are allocated after the early initcalls, and their number is right.

Our reading: marked folios alone are written, so that pools need not be frozen. The mail, about work
in progress, has whole pools in the state, free pages too, to be rebuilt from it; a week later
PREPARE was where they freeze. Without an early read that adds up: each kernel allocates gigantic
pages beside the whole pool of the last one. With it, an update costs what `handler-subsystem`
costs. Once a kernel has registered the subsystem, the kernels before and after must have it too:
LUO v4 panics at FINISH when a subsystem has no data.
"""

from __future__ import annotations

from typing import ClassVar

from kernelmodel.hugetlb_designs.v4 import MarkingSubsystem

__all__ = ["SubsystemPrepare"]


class SubsystemPrepare(MarkingSubsystem):
    """Marks at PRESERVE_FD, one serialisation at PREPARE."""

    name: ClassVar[str] = "subsystem-prepare"
    source: ClassVar[str] = "P. Yadav, 9 Oct 2025"
    callbacks: ClassVar[tuple[str, ...]] = ("a file's callback at PRESERVE_FD",)
    whole_pool: ClassVar[bool] = False
    reads_early: ClassVar[bool] = False
