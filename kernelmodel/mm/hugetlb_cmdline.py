"""What the kernel command line asks of hugetlb.

Reproduces Linux 7.3's mm/hugetlb.c on x86: `hugepagesz=` picks a size, `hugepages=` after it says
how many, as a number or as `node:number,node:number`; `default_hugepagesz=` names the size that
those get who name none, and a `hugepages=` before any size speaks about that one.

Unhappy paths are warnings, as in the kernel: a wrong parameter is ignored and the boot goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from kernelmodel import params

__all__ = [
    "GIGANTIC_ORDER",
    "HPAGE_ORDER",
    "HugepagesRequest",
    "HugetlbRequest",
    "memparse",
    "parse_cmdline",
]

#: 2 MiB and 1 GiB, the two sizes of x86-64, as orders of 4 KiB pages.
HPAGE_ORDER: Final = 9
GIGANTIC_ORDER: Final = 18
_NUMBER: Final = re.compile("[0-9]+")
_ULONG_MAX: Final = (1 << 64) - 1
_UINT_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class HugepagesRequest:
    """How many pages of one size: in all, and by node where the command line said so."""

    order: int
    nr: int
    by_node: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class HugetlbRequest:
    """The sizes in the order in which the kernel registers them, and what it would warn of."""

    sizes: tuple[HugepagesRequest, ...]
    default_order: int
    warnings: tuple[str, ...]
    #: `hugetlb_free_vmemmap=`, and the parameters of `hugetlb_cma` by name and value.
    free_vmemmap: bool
    cma: tuple[tuple[str, str], ...]


def memparse(text: str) -> int:
    """A number with a suffix, whatever stands behind it; 0 if there is none. C: memparse()."""
    return params.memparse(text)[0]


@dataclass(slots=True)
class _Size:
    """As `HugepagesRequest`, as far as it is read."""

    order: int
    nr: int = 0
    by_node: dict[int, int] = field(default_factory=dict)


class _Parser:
    """The state that the parameters share while they are read from left to right."""

    def __init__(self, nids: frozenset[int], orders: tuple[int, ...]) -> None:
        self.nids = nids
        self.free_vmemmap = False
        self.cma: list[tuple[str, str]] = []
        self.default_order = orders[0]
        self.orders = {1 << (12 + order): order for order in orders}
        self.sizes: list[_Size] = []
        self.warnings: list[str] = []
        #: Pages of the default size asked for before any size was named.
        self.early = _Size(-1)
        self.default: _Size | None = None
        self.current: _Size | None = None
        self.last_filled: _Size | None = None
        self.follows_valid_size = True

    def size(self, order: int) -> _Size:
        """The request for one size, registered when it is new. C: hugetlb_add_hstate()."""
        for request in self.sizes:
            if request.order == order:
                return request
        self.sizes.append(_Size(order))
        return self.sizes[-1]

    def hugepagesz(self, value: str) -> None:
        """C: hugepagesz_setup()."""
        self.follows_valid_size = False
        order = self.orders.get(memparse(value))
        if order is None:
            self.warnings.append(f"hugepagesz={value} is no size of this machine, ignored")
            return
        known = next((request for request in self.sizes if request.order == order), None)
        if known is not None and (known is not self.default or known.nr):
            self.warnings.append(f"hugepagesz={value} given twice, ignored")
            return
        self.current = self.size(order)
        self.follows_valid_size = True

    def default_hugepagesz(self, value: str) -> None:
        """C: default_hugepagesz_setup()."""
        self.follows_valid_size = False
        if self.default is not None:
            self.warnings.append(f"default_hugepagesz={value} given twice, ignored")
            return
        order = self.orders.get(memparse(value))
        if order is None:
            self.warnings.append(f"default_hugepagesz={value} is no size of this machine, ignored")
            return
        self.default = self.current = self.size(order)
        self.follows_valid_size = True
        if self.early.nr:
            self.default.nr, self.default.by_node = self.early.nr, self.early.by_node
            self.early = _Size(-1)

    def hugepages(self, value: str) -> None:
        """C: hugepages_setup()."""
        if not self.follows_valid_size:
            self.warnings.append(f"hugepages={value} does not follow a valid size, ignored")
            self.follows_valid_size = True
            return
        target = self.early if self.current is None else self.current
        if target is self.last_filled:
            self.warnings.append(f"hugepages={value} given twice for one size, ignored")
            return
        counts = self.counts(value)
        if counts is None:
            self.warnings.append(f"hugepages={value} is no number and no list of nodes, ignored")
            return
        self.last_filled = target
        target.nr, target.by_node = counts.nr, counts.by_node

    def counts(self, value: str) -> _Size | None:
        """How many pages a value says; what follows the last number is passed over.

        A node's count is an unsigned int: of more only the low 32 bits are left.
        """
        at = 0
        by_node: dict[int, int] = {}
        while at < len(value):
            number = _NUMBER.match(value, at)
            if number is None:
                return None
            at = number.end()
            if not value.startswith(":", at):
                return None if by_node else _Size(-1, min(int(number[0]), _ULONG_MAX))
            count = _NUMBER.match(value, at + 1)
            if int(number[0]) not in self.nids or count is None:
                return None
            by_node[int(number[0])] = min(int(count[0]), _ULONG_MAX) & _UINT_MAX
            at = count.end()
            if not value.startswith(",", at):
                break
            at += 1
        return _Size(-1, sum(by_node.values()), by_node)

    def result(self) -> HugetlbRequest:
        """What stands after the last parameter.

        All sizes exist in the end. C: gigantic_pages_init(), the start of hugetlb_init().
        """
        for order in sorted(self.orders.values(), reverse=True):
            self.size(order)
        if self.default is None:
            self.default = self.size(self.default_order)
            if self.early.nr and self.default.nr:
                self.warnings.append(f"hugepages={self.default.nr} of the default size, ignored")
            if self.early.nr:
                self.default.nr, self.default.by_node = self.early.nr, self.early.by_node
        return HugetlbRequest(
            tuple(HugepagesRequest(one.order, one.nr, one.by_node) for one in self.sizes),
            self.default.order,
            tuple(self.warnings),
            self.free_vmemmap,
            tuple(self.cma),
        )


@lru_cache(maxsize=256)  # a host boots with one and the same, and so do its likes
def parse_cmdline(
    cmdline: str,
    nids: frozenset[int] = frozenset({0}),
    orders: tuple[int, ...] = (HPAGE_ORDER, GIGANTIC_ORDER),
) -> HugetlbRequest:
    """Read the hugetlb parameters of a kernel command line; others are passed over.

    `nids` are the nodes that the machine has, `orders` its sizes, the default one first.
    """
    parser = _Parser(nids, orders)
    for name, value in params.KernelParams(cmdline).words():
        if name == "hugepagesz":
            parser.hugepagesz(value)
        elif name == "hugepages":
            parser.hugepages(value)
        elif name == "default_hugepagesz":
            parser.default_hugepagesz(value)
        elif name == "hugetlb_free_vmemmap":
            said = params.kstrtobool(value)
            parser.free_vmemmap = parser.free_vmemmap if said is None else said
        elif name in {"hugetlb_cma", "hugetlb_cma_only"}:
            parser.cma.append((name, value))
    return parser.result()
