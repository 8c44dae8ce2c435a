"""The hugetlb controller: how many huge pages a group of tasks may use, and be promised.

Reproduces Linux 7.3's mm/hugetlb_cgroup.c with the files of cgroup v2. Each group counts, for each
page size, bytes in use (`hugetlb.2MB.current`, limit `.max`) and bytes promised (`.rsvd.*`), its
descendants' included; a charge must fit the limits of the group and of all above it.

Happy path: a promise is charged when it is made and belongs to the file's page indices; a page is
charged when it is taken; both are uncharged when indices or pages go, to whoever was charged.

Unhappy paths: a limit that refuses a promise is ENOMEM at mmap, one that refuses a page makes the
fault a SIGBUS and `fallocate` ENOSPC. Whoever's limit it was, `.events.local` counts both for the
task's own group, `.events` for that and all above it. A limit below what is charged is EBUSY, and
the old one stays.

Simplifications: groups cannot be removed, so charges never move to a parent; `.numa_stat` is not
there; memory.max is another controller's. All else was compared with a running 7.3.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kernelmodel.errors import Busy, InvalidArgument, NoEntry, NoMemory
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.ranges import RangeMap
from kernelmodel.params import memparse

__all__ = ["Charges", "HugetlbCgroup", "size_name"]

#: Pages of a limit that is none. C: PAGE_COUNTER_MAX.
_COUNTER_MAX: Final = (1 << 63) - 1 >> PAGE_SHIFT
_READ_ONLY: Final = ("current", "rsvd.current", "events", "events.local")


def size_name(order: int) -> str:
    """How the controller's files call a page size: 64KB, 2MB, 1GB. C: mem_fmt()."""
    size = 1 << order + PAGE_SHIFT
    for suffix, unit in (("GB", 30), ("MB", 20)):
        if size >= 1 << unit:
            return f"{size >> unit}{suffix}"
    return f"{size >> 10}KB"


class _Counter:
    """C: struct page_counter, in huge pages."""

    __slots__ = ("limit", "usage")

    def __init__(self) -> None:
        self.usage = 0
        #: In huge pages, never less than are charged; None is "max".
        self.limit: int | None = None


class _Events:
    """Charges of one size that were refused, to the group's own tasks and to those below too."""

    __slots__ = ("all", "local")

    def __init__(self) -> None:
        self.all = self.local = 0


class HugetlbCgroup:
    """One group. C: struct hugetlb_cgroup."""

    __slots__ = ("_counters", "_events", "name", "parent")

    def __init__(self, name: str, parent: HugetlbCgroup | None = None) -> None:
        self.name = name
        self.parent = parent
        self._counters: dict[tuple[int, bool], _Counter] = {}
        self._events: dict[int, _Events] = {}

    def events(self, order: int) -> _Events:
        """What was refused of one size."""
        return self._events.setdefault(order, _Events())

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
                self.refused(order)
                raise NoMemory("hugetlb limit of a cgroup", cgroup=group.name, order=order)
        for group in self._above():
            group.counter(order, rsvd).usage += n

    def refused(self, order: int) -> None:
        """A charge by a task of this group did not fit. C: hugetlb_event()."""
        self.events(order).local += 1
        for group in self._above():
            group.events(order).all += 1

    def charge_upto(self, order: int, n: int, *, rsvd: bool = False) -> int:
        """Charge as many of `n` as the limits allow; how many. Says nothing of the next one."""
        room = self.room(order, rsvd=rsvd)
        got = n if room is None else min(n, room)
        self.charge(order, got, rsvd=rsvd)
        return got

    def uncharge(self, order: int, n: int, *, rsvd: bool = False) -> None:
        """C: hugetlb_cgroup_uncharge_cgroup()."""
        for group in self._above():
            group.counter(order, rsvd).usage -= n

    # Files.

    def read(self, name: str, order: int) -> str:
        """The text of `hugetlb.<size>.<name>`: current, max, rsvd.…, events, events.local.

        Raises:
            NoEntry: no such file.
        """
        if name in {"events", "events.local"}:
            events = self.events(order)
            return f"max {events.all if name == 'events' else events.local}\n"
        counter = self.counter(order, name.startswith("rsvd."))
        if name in {"current", "rsvd.current"}:
            return f"{counter.usage << order + PAGE_SHIFT}\n"
        if name in {"max", "rsvd.max"}:
            limit = counter.limit
            return "max\n" if limit is None else f"{limit << order + PAGE_SHIFT}\n"
        raise NoEntry("no such file", file=name)

    def write(self, name: str, order: int, text: str) -> None:
        """Write `max` or `rsvd.max`: bytes, rounded down to huge pages, or "max".

        Raises:
            NoEntry: no such file. InvalidArgument: no size, or a file that is only read.
            Busy: more is charged than that.
        """
        if name in _READ_ONLY:
            raise InvalidArgument("only read", file=name)
        if name not in {"max", "rsvd.max"}:
            raise NoEntry("no such file", file=name)
        if not text:  # nothing was written
            return
        counter = self.counter(order, name != "max")
        limit = _limit(text, order)
        if limit is not None and limit < counter.usage:
            raise Busy("more is charged than that", usage=counter.usage, limit=limit)
        counter.limit = limit


def _limit(text: str, order: int) -> int | None:
    """Huge pages that were written as bytes, None for "max". C: page_counter_memparse()."""
    text = text.strip()
    if text == "max":
        return None
    size, behind = memparse(text)
    if behind:
        raise InvalidArgument("neither a size nor max", text=text)
    limit = min(size >> PAGE_SHIFT, _COUNTER_MAX) >> order
    return None if limit == _COUNTER_MAX >> order else limit


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
