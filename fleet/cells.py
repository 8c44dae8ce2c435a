"""What stands in a cell of an inventory: names, counts, memory, backing, kernel parameters.

Each parser takes a cell as it comes, a string from CSV, any JSON or Parquet value, and raises
`Unfit` with what is wrong and what would be right. The classes of a scenario go through the same
parsers.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from fleet.bad_input import did_you_mean
from fleet.units import Unfit, parse_count, parse_size, show_size, shown
from node.api import Backing

__all__ = [
    "MOST_MEMORY",
    "parse_backing",
    "parse_cell_count",
    "parse_host_memory",
    "parse_label",
    "parse_name",
    "parse_page_size",
    "parse_vm_memory",
    "parse_vm_name",
    "split_over_nodes",
]

MIB: Final = 1 << 20
#: The largest host: what x86-64 addresses with four-level page tables.
MOST_MEMORY: Final = 64 << 40
#: The smallest node: a kernel and its initrd take more than half of it.
LEAST_NODE: Final = 256 << 20
#: LUO keeps a session's name in 64 bytes with its NUL; a VM's session is called like the VM.
SESSION_NAME_BYTES: Final = 63
_NAME: Final = re.compile(r"[^\s/]+")
#: A number without a unit. Libraries write whole ones as 64.0 where a column has gaps.
_NUMBER: Final = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,9})?", re.ASCII)
_NODE_SIZES: Final = re.compile(r"[+;]")


def parse_label(value: object) -> str:
    """A name of something, printable and without spaces or slashes; numbers pass as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = shown(value)
    if not isinstance(value, str):
        raise Unfit(f"{shown(value)} is no name")
    text = value.strip()
    if not _NAME.fullmatch(text) or not text.isprintable():
        raise Unfit(f"{shown(value)} is no name", "no spaces, no slashes, not empty")
    return text


def parse_name(value: object) -> str:
    """A host's name."""
    name = parse_label(value)
    if len(name) > 253:
        raise Unfit(f"{shown(name)} is too long", "at most 253 characters, as host names are")
    return name


def parse_vm_name(value: object) -> str:
    """A VM's name, which is its session's too."""
    name = parse_label(value)
    size = len(name.encode())
    if size > SESSION_NAME_BYTES:
        what = f"{shown(name)} has {size} bytes, the VM's session is called like it"
        raise Unfit(what, f"at most {SESSION_NAME_BYTES}, what LUO keeps of a session's name")
    return name


def parse_cell_count(value: object, at_least: int, at_most: int) -> int:
    """A whole number: 64, "64", or 64.0 as Parquet and CSV may have it."""
    value = _number(value)
    if isinstance(value, float | Decimal) and value == value // 1:
        value = int(value)
    return parse_count(value, at_least, at_most)


def _number(value: object) -> object:
    """A text that is a number as that number, anything else as it is."""
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return value
    number = Decimal(match[0])
    return int(number) if number == number // 1 else number


def parse_memory(value: object, unit: int) -> int:
    """Bytes; a number without a unit counts `unit` bytes."""
    value = _number(value)
    if isinstance(value, float | Decimal) and 0 <= value <= MOST_MEMORY:
        whole = value * unit
        if whole != whole // 1:
            raise Unfit(f"{shown(value)} is not a whole number of bytes")
        return int(whole)
    if isinstance(value, int) and not isinstance(value, bool):
        return parse_size(value) * unit
    return parse_size(value)


def parse_host_memory(value: object, unit: int = 1) -> tuple[int, ...]:
    """Bytes of the host, or of each node: "512GiB", "256GiB+256GiB", a list."""
    parts = value if isinstance(value, list) else [value]
    if isinstance(value, str):
        parts = _NODE_SIZES.split(value)
    sizes = tuple(parse_memory(part, unit) for part in parts)
    if not 0 < sum(sizes) <= MOST_MEMORY:
        right = f"above zero, up to {show_size(MOST_MEMORY)}"
        raise Unfit(f"{shown(value)} is no memory of a host", right)
    return sizes


def parse_vm_memory(value: object, unit: int = 1) -> int:
    """Bytes of a VM."""
    size = parse_memory(value, unit)
    if not 0 < size <= MOST_MEMORY:
        right = f"above zero, up to {show_size(MOST_MEMORY)}"
        raise Unfit(f"{shown(value)} is no memory of a VM", right)
    return size


def split_over_nodes(sizes: tuple[int, ...], numa_nodes: int | None) -> tuple[int, ...]:
    """Bytes of each node from what the memory and numa_nodes cells say.

    Memory that a running system reports lacks what firmware keeps; nodes are rounded down to
    whole MiB, the grain of the machine model.
    """
    if numa_nodes is not None and len(sizes) > 1 and len(sizes) != numa_nodes:
        what = f"memory names {len(sizes)} nodes, numa_nodes {numa_nodes}"
        raise Unfit(what, "one size, or one for each node")
    if len(sizes) == 1 and numa_nodes is not None:
        sizes = (sizes[0] // numa_nodes,) * numa_nodes
    nodes = tuple(size // MIB * MIB for size in sizes)
    if min(nodes) < LEAST_NODE:
        raise Unfit("a NUMA node has next to nothing", f"at least {show_size(LEAST_NODE)} on each")
    return nodes


def parse_backing(value: object) -> Backing | None:
    """A backing by its name; None for "hugetlb", whose page size another cell must say."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if text == "hugetlb":
        return None
    for backing in Backing:
        if text == backing.value.lower():
            return backing
    known = [backing.value for backing in Backing]
    raise Unfit(f"{shown(value)} is no backing", did_you_mean(text, known, noun="backings"))


def parse_page_size(value: object) -> Backing:
    """The backing that has pages of this size."""
    size = parse_memory(value, 1)
    for backing in Backing:
        if size == backing.page_bytes:
            return backing
    raise Unfit(f"{shown(value)} is no page size of x86-64", "4KiB, 2MiB or 1GiB")
