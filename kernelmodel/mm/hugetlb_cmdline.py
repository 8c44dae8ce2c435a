"""What the kernel command line asks of hugetlb.

Reproduces Linux 7.3's mm/hugetlb.c on x86: `hugepagesz=` picks a size, `hugepages=` after it says
how many, as a number or as `node:number,node:number`; `default_hugepagesz=` names the size that
those get who name none, and a `hugepages=` before any size speaks about that one.

Unhappy paths are warnings, as in the kernel: a wrong parameter is ignored and the boot goes on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

__all__ = ["GIGANTIC_ORDER", "HPAGE_ORDER", "HugepagesRequest", "HugetlbRequest", "parse_cmdline"]

#: 2 MiB and 1 GiB, the two sizes of x86-64, as orders of 4 KiB pages.
HPAGE_ORDER: Final = 9
GIGANTIC_ORDER: Final = 18
_SUFFIX: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_ORDERS: Final = {1 << (12 + order): order for order in (HPAGE_ORDER, GIGANTIC_ORDER)}


@dataclass(slots=True)
class HugepagesRequest:
    """How many pages of one size: in all, and by node where the command line said so."""

    order: int
    nr: int = 0
    by_node: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HugetlbRequest:
    """The sizes in the order in which the kernel registers them, and what it would warn of."""

    sizes: tuple[HugepagesRequest, ...]
    default_order: int
    warnings: tuple[str, ...]


def _memparse(text: str) -> int:
    match = re.fullmatch(r"(0[xX][0-9a-fA-F]+|[0-9]+)([KMGTPE]?).*", text.upper())
    if not match:
        return 0
    return int(match[1], 0) << _SUFFIX[match[2]] if match[1] != "0" else 0


class _Parser:
    """The state that the parameters share while they are read from left to right."""

    def __init__(self, nids: frozenset[int]) -> None:
        self.nids = nids
        self.sizes: list[HugepagesRequest] = []
        self.warnings: list[str] = []
        #: Pages of the default size asked for before any size was named.
        self.early = HugepagesRequest(-1)
        self.default: HugepagesRequest | None = None
        self.current: HugepagesRequest | None = None
        self.last_filled: HugepagesRequest | None = None
        self.follows_valid_size = True

    def size(self, order: int) -> HugepagesRequest:
        """The request for one size, registered when it is new. C: hugetlb_add_hstate()."""
        for request in self.sizes:
            if request.order == order:
                return request
        self.sizes.append(HugepagesRequest(order))
        return self.sizes[-1]

    def hugepagesz(self, value: str) -> None:
        """C: hugepagesz_setup()."""
        self.follows_valid_size = False
        order = _ORDERS.get(_memparse(value))
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
        order = _ORDERS.get(_memparse(value))
        if order is None:
            self.warnings.append(f"default_hugepagesz={value} is no size of this machine, ignored")
            return
        self.default = self.current = self.size(order)
        self.follows_valid_size = True
        if self.early.nr:
            self.default.nr, self.default.by_node = self.early.nr, self.early.by_node
            self.early = HugepagesRequest(-1)

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
        self.last_filled = target
        if re.fullmatch(r"[0-9]+", value):
            target.nr = int(value)
        elif re.fullmatch(r"[0-9]+:[0-9]+(,[0-9]+:[0-9]+)*", value):
            pairs = (part.split(":") for part in value.split(","))
            by_node = {int(nid): int(n) for nid, n in pairs}
            unknown = sorted(set(by_node) - self.nids)
            if unknown:
                self.warnings.append(f"hugepages={value} names unknown node {unknown[0]}, ignored")
                return
            target.by_node, target.nr = by_node, sum(by_node.values())
        else:
            self.warnings.append(f"hugepages={value} is no number and no list of nodes, ignored")

    def result(self) -> HugetlbRequest:
        """What stands after the last parameter.

        Both sizes exist in the end. C: gigantic_pages_init(), the start of hugetlb_init().
        """
        self.size(GIGANTIC_ORDER)
        self.size(HPAGE_ORDER)
        if self.default is None:
            self.default = self.size(HPAGE_ORDER)
            if self.early.nr and self.default.nr:
                self.warnings.append(f"hugepages={self.early.nr} without a size, ignored")
            elif self.early.nr:
                self.default.nr, self.default.by_node = self.early.nr, self.early.by_node
        return HugetlbRequest(tuple(self.sizes), self.default.order, tuple(self.warnings))


def parse_cmdline(cmdline: str, nids: frozenset[int] = frozenset({0})) -> HugetlbRequest:
    """Read the hugetlb parameters of a kernel command line; others are passed over.

    `nids` are the nodes that the machine has.
    """
    parser = _Parser(nids)
    for word in cmdline.split():
        name, _, value = word.partition("=")
        if name == "hugepagesz":
            parser.hugepagesz(value)
        elif name == "hugepages":
            parser.hugepages(value)
        elif name == "default_hugepagesz":
            parser.default_hugepagesz(value)
    return parser.result()
