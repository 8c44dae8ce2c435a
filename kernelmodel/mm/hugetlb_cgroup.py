"""The hugetlb controller: how many huge pages a group of tasks may use, and be promised.

Reproduces Linux 7.3's mm/hugetlb_cgroup.c with the files of cgroup v2. Each group counts, for each
page size, bytes in use (`hugetlb.2MB.current`, limit `.max`) and bytes promised (`.rsvd.*`), its
descendants' included; a charge must fit the limits of the group and of all above it.

Happy path: a promise is charged when it is made and belongs to the file's page indices; a page is
charged when it is taken; both are uncharged when indices or pages go, to whoever was charged.

Unhappy paths: a limit that refuses a promise is ENOMEM at mmap, one that refuses a page makes the
fault a SIGBUS and `fallocate` ENOSPC; `.events` counts both.

Simplifications: written from what is known of the interface, not compared with a running kernel;
groups cannot be removed, so charges never move to a parent; memory.max is another controller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from kernelmodel.errors import InvalidArgument, NoEntry, NoMemory
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.ranges import RangeMap

__all__ = ["Charges", "HugetlbCgroup", "size_name"]


def size_name(order: int) -> str:
    """How the controller's files call a page size: 64KB, 2MB, 1GB. C: mem_fmt()."""
    size = 1 << order + PAGE_SHIFT
    for suffix, unit in (("GB", 30), ("MB", 20)):
        if size >= 1 << unit:
            return f"{size >> unit}{suffix}"
    return f"{size >> 10}KB"


class _Counter:
    """C: struct page_counter, in huge pages."""

    __slots__ = ("failures", "limit", "usage")

    def __init__(self) -> None:
        self.usage = 0
        #: In huge pages; None is "max".
        self.limit: int | None = None
        self.failures = 0


class HugetlbCgroup:
    """One group. C: struct hugetlb_cgroup."""

    __slots__ = ("_counters", "name", "parent")

    def __init__(self, name: str, parent: HugetlbCgroup | None = None) -> None:
        self.name = name
        self.parent = parent
        self._counters: dict[tuple[int, bool], _Counter] = {}

    def counter(self, order: int, rsvd: bool) -> _Counter:
        """What is charged and allowed of one size, pages or promises."""
        return self._counters.setdefault((order, rsvd), _Counter())

    def _above(self) -> Iterator[HugetlbCgroup]:
        group: HugetlbCgroup | None = self
        while group is not None:
            yield group
            group = group.parent

    def usage(self, order: int, *, rsvd: bool = False) -> int:
        """Huge pages charged here and below."""
        return self.counter(order, rsvd).usage

    def room(self, order: int, *, rsvd: bool = False) -> int | None:
        """Huge pages that could still be charged; None if nothing limits them."""
        rooms = [
            counter.limit - counter.usage
            for counter in (group.counter(order, rsvd) for group in self._above())
            if counter.limit is not None
        ]
        return max(0, min(rooms)) if rooms else None

    def charge(self, order: int, n: int, *, rsvd: bool = False) -> None:
        """Charge all or nothing. C: hugetlb_cgroup_charge_cgroup().

        Raises:
            NoMemory: a limit, of this group or one above it.
        """
        for group in self._above():
            counter = group.counter(order, rsvd)
            if counter.limit is not None and counter.usage + n > counter.limit:
                counter.failures += 1
                raise NoMemory("hugetlb limit of a cgroup", cgroup=group.name, order=order)
        for group in self._above():
            group.counter(order, rsvd).usage += n

    def charge_upto(self, order: int, n: int, *, rsvd: bool = False) -> int:
        """Charge as many of `n`, one by one, as the limits allow; how many."""
        room = self.room(order, rsvd=rsvd)
        got = n if room is None else min(n, room)
        self.charge(order, got, rsvd=rsvd)
        if got < n:
            with suppress(NoMemory):  # the next one, which is refused and counted
                self.charge(order, 1, rsvd=rsvd)
        return got

    def uncharge(self, order: int, n: int, *, rsvd: bool = False) -> None:
        """C: hugetlb_cgroup_uncharge_cgroup()."""
        for group in self._above():
            group.counter(order, rsvd).usage -= n

    # Files.

    def read(self, name: str, order: int) -> str:
        """The text of `hugetlb.<size>.<name>`: current, max, rsvd.current, rsvd.max, events.

        Raises:
            NoEntry: no such file.
        """
        rsvd, _, what = name.rpartition(".")
        counter = self.counter(order, rsvd == "rsvd")
        if rsvd not in {"", "rsvd"}:
            raise NoEntry("no such file", file=name)
        if what == "current":
            return f"{counter.usage << order + PAGE_SHIFT}\n"
        if what == "max":
            limit = counter.limit
            return "max\n" if limit is None else f"{limit << order + PAGE_SHIFT}\n"
        if name == "events":
            both = (self.counter(order, rsvd) for rsvd in (False, True))
            return f"max {sum(counter.failures for counter in both)}\n"
        raise NoEntry("no such file", file=name)

    def write(self, name: str, order: int, text: str) -> None:
        """Write `max` or `rsvd.max`: bytes, rounded down to huge pages, or "max".

        Raises:
            NoEntry: no such file to write to. InvalidArgument: no number.
        """
        if name not in {"max", "rsvd.max"}:
            raise NoEntry("no such file to write to", file=name)
        counter = self.counter(order, name != "max")
        text = text.strip()
        if text == "max":
            counter.limit = None
        elif text.isdecimal():
            counter.limit = int(text) >> order + PAGE_SHIFT
        else:
            raise InvalidArgument("neither a number nor max", text=text)


class Charges:
    """Who was charged for which page indices of a file."""

    __slots__ = ("_map", "order", "rsvd")

    def __init__(self, order: int, *, rsvd: bool) -> None:
        self.order = order
        self.rsvd = rsvd
        self._map: RangeMap[HugetlbCgroup] = RangeMap()

    def note(self, start: int, end: int, cgroup: HugetlbCgroup) -> None:
        """Indices whose charge a group has paid."""
        self._map.put(start, end, cgroup)

    def uncharge(self, start: int, end: int) -> None:
        """The indices [start, end) are gone."""
        for low, high, cgroup in self._map.within(start, end):
            cgroup.uncharge(self.order, high - low, rsvd=self.rsvd)
        self._map.clear(start, end)
