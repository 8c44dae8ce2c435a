"""Hosts and VMs from the tables of an inventory, checked cell by cell.

A table of hosts has the columns host, rack, memory, cpus, release and may have numa_nodes,
hugepages_2M, hugepages_1G, cmdline and further failure domains; a table of VMs has vm, host,
memory, vcpus and backing or page_size (`fleet.columns` says how they are found under other
names). A row with a mistake is noted and left out; that there *is* a host of that name is
remembered, so that its VMs are not blamed as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar, cast

from fleet import cells
from fleet.bad_input import Faults, Place, did_you_mean, place_text
from fleet.columns import ColumnMap, ColumnNames, Columns, resolve_columns
from fleet.kernel_parameters import parse_cmdline
from fleet.own_releases import parse_release
from fleet.tables import Table
from fleet.units import Unfit
from kernelmodel.releases import CATALOGUE, Release
from node.api import Backing, HostSpec, HugepagePool, VmSpec

__all__ = [
    "HOST_COLUMNS",
    "MOST",
    "VM_COLUMNS",
    "Inventory",
    "hugepage_pools",
    "read_hosts",
    "read_vms",
]

_T = TypeVar("_T")

#: Column -> the most that it can sensibly hold.
MOST: Final = {
    "cpus": 8192,  # NR_CPUS with MAXSMP
    "numa_nodes": 64,
    "vcpus": 4096,  # KVM_MAX_VCPUS
    "hugepages_2M": 1 << 25,  # 64 TiB of them, the largest host that we take
    "hugepages_1G": 1 << 16,
}

HOST_COLUMNS: Final = ColumnNames(
    section="fleet.columns.hosts",
    noun="hosts",
    required=("host", "rack", "memory", "cpus", "release"),
    optional=("numa_nodes", "hugepages_2M", "hugepages_1G", "cmdline"),
    has_domains=True,
)
VM_COLUMNS: Final = ColumnNames(
    section="fleet.columns.vms",
    noun="VMs",
    required=("vm", "host", "memory", "vcpus"),
    optional=("backing", "page_size"),
)
_NO_MEMORY: Final[tuple[int, ...]] = (cells.MOST_MEMORY,)  # stands in for what is unfit
_HINTS_UP_TO: Final = 5_000  # a spelling hint compares with every name
_DOMAIN: Final = "failure domain"  # keeps a domain apart from a column of the same name


@dataclass(slots=True)
class Inventory:
    """Hosts and VMs by name, and where each was read.

    The places hold every name that was read, those of rows that cannot be used too.
    """

    hosts: dict[str, HostSpec] = field(default_factory=dict)
    vms: dict[str, VmSpec] = field(default_factory=dict)
    host_places: dict[str, Place] = field(default_factory=dict)
    vm_places: dict[str, Place] = field(default_factory=dict)
    #: Whether the places hold every host and VM; if not, a name that is not there proves nothing.
    all_named: bool = True
    #: Hosts that are like an earlier one, their VMs included: one check does for all.
    alike: dict[str, None] = field(default_factory=dict)
    #: Table file -> its columns that were not used.
    unused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: What hosts may run.
    releases: Mapping[str, Release] = field(default_factory=lambda: CATALOGUE)

    def name_host(self, name: str, place: Place, faults: Faults) -> None:
        """Note that there is a host of this name."""
        _claim("host", name, self.host_places, place, faults)

    def name_vm(self, name: str, place: Place, faults: Faults) -> None:
        """Note that there is a VM of this name."""
        _claim("VM", name, self.vm_places, place, faults)

    def parse_release(self, value: object) -> str:
        """A kernel release that is known."""
        return parse_release(value, self.releases)

    def domain_sizes(self) -> dict[str, int]:
        """Failure domain -> hosts in the smallest of its values."""
        counts: dict[str, Counter[str]] = {}
        for host in self.hosts.values():
            for domain, value in host.domains.items():
                counts.setdefault(domain, Counter())[value] += 1
        return {domain: min(values.values()) for domain, values in counts.items()}


def _claim(noun: str, name: str, places: dict[str, Place], place: Place, faults: Faults) -> None:
    if name in places:
        what = f'{noun} "{name}" is there twice, first at {place_text(places[name])}'
        faults.add(place, what, f"every {noun} needs a name of its own", alike=f"{noun}s twice")
    else:
        places[name] = place


def hugepage_pools(counts: Mapping[int, int]) -> tuple[HugepagePool, ...]:
    """Pools of the page sizes of which there are any, the larger pages first."""
    sizes = sorted((size for size, count in counts.items() if count), reverse=True)
    return tuple(HugepagePool(size, counts[size]) for size in sizes)


class _Row:
    """The row that is being read: its cells parsed by column, mistakes noted with its line."""

    def __init__(
        self, table: Table, columns: Columns, at: Mapping[str, int], faults: Faults
    ) -> None:
        self._table = table
        self._at = at
        self._faults = faults
        self._cells: Sequence[object] = ()
        # Tables repeat themselves: most cells have been parsed before.
        self._parsed: dict[tuple[str, str], object] = {}
        self.place: Place = (table.file, 0)
        self.usable = columns.complete
        self.fine = self.usable

    def over(self, cells: Sequence[object], line: int) -> _Row:
        """Go on to the next row."""
        self._cells, self.place, self.fine = cells, (self._table.file, line), self.usable
        return self

    def __contains__(self, column: str) -> bool:
        at = self._at.get(column)
        return at is not None and self._cells[at] is not None

    def get(
        self, column: str, parse: Callable[[object], _T], stand_in: _T, *, needed: bool = True
    ) -> _T:
        """The parsed cell; `stand_in` for one that is unfit or empty."""
        if column not in self:
            if needed and column in self._at:  # else it is missing in every row, and said so
                self.complain(column, "empty", "every row needs one")
            return stand_in
        value = self._cells[self._at[column]]
        known = (column, value) if isinstance(value, str) else None
        if known is not None and known in self._parsed:
            return cast("_T", self._parsed[known])
        try:
            parsed = parse(value)
        except Unfit as unfit:
            self.complain(column, unfit.what, unfit.right)
            return stand_in
        if known is not None:
            self._parsed[known] = parsed
        return parsed

    def complain(self, column: str, what: str, right: str = "") -> None:
        """Note a mistake in this row."""
        self.fine = False
        alike = f"{column} in {self._table.file}"
        self._faults.add(self.place, f"{column}: {what}", right, alike=alike)


def _count(column: str, at_least: int) -> Callable[[object], int]:
    return partial(cells.parse_cell_count, at_least=at_least, at_most=MOST[column])


def read_hosts(table: Table, mapping: ColumnMap, into: Inventory, faults: Faults) -> None:
    """Add the hosts of a table to the inventory."""
    columns = resolve_columns(table, mapping, HOST_COLUMNS, VM_COLUMNS, faults)
    if columns is None:
        into.all_named = False
        return
    into.all_named &= not table.damaged and "host" in columns.at
    into.unused[table.file] = columns.unused
    domains = {name: f"{_DOMAIN} {name}" for name in columns.domains}
    at = columns.at | {domains[name]: nr for name, nr in columns.domains.items()}
    row = _Row(table, columns, at, faults)
    memory = partial(cells.parse_host_memory, unit=columns.memory_unit)
    counts = {name: _count(name, 1 if name in ("cpus", "numa_nodes") else 0) for name in MOST}
    for line, values in table.rows:
        row.over(values, line)
        name = row.get("host", cells.parse_name, "")
        if name:
            into.name_host(name, row.place, faults)
        sizes = row.get("memory", memory, _NO_MEMORY)
        nodes = row.get("numa_nodes", counts["numa_nodes"], 0, needed=False)
        host = HostSpec(
            name=name,
            domains={
                "rack": row.get("rack", cells.parse_label, ""),
                **{
                    domain: row.get(column, cells.parse_label, "")
                    for domain, column in domains.items()
                },
            },
            node_bytes=_nodes(row, sizes, nodes),
            cpus=row.get("cpus", counts["cpus"], 1),
            release=row.get("release", into.parse_release, ""),
            hugepages=hugepage_pools(
                {
                    2 << 20: row.get("hugepages_2M", counts["hugepages_2M"], 0, needed=False),
                    1 << 30: row.get("hugepages_1G", counts["hugepages_1G"], 0, needed=False),
                }
            ),
            cmdline=row.get("cmdline", parse_cmdline, "", needed=False),
        )
        if row.fine and into.host_places[name] == row.place:
            into.hosts[name] = host


def _nodes(row: _Row, sizes: tuple[int, ...], numa_nodes: int) -> tuple[int, ...]:
    """Bytes of each node; a host whose table does not say has one node."""
    try:
        return cells.split_over_nodes(sizes, numa_nodes or None)
    except Unfit as unfit:
        row.complain("memory", unfit.what, unfit.right)
        return sizes


def read_vms(table: Table, mapping: ColumnMap, into: Inventory, faults: Faults) -> None:
    """Add the VMs of a table to the inventory."""
    columns = resolve_columns(table, mapping, VM_COLUMNS, HOST_COLUMNS, faults)
    if columns is None:
        into.all_named = False
        return
    hosts_named = into.all_named
    into.all_named &= not table.damaged and "vm" in columns.at
    row = _Row(table, columns, columns.at, faults)
    if not {"backing", "page_size"} & set(columns.at):
        right = f'add one, or map it: page_size = "their name" in [{VM_COLUMNS.section}]'
        faults.add((table.file, table.header), 'no column "backing" or "page_size"', right)
        row.usable = False
    into.unused[table.file] = columns.unused
    memory = partial(cells.parse_vm_memory, unit=columns.memory_unit)
    vcpus = _count("vcpus", 1)
    names = list(into.host_places) if len(into.host_places) <= _HINTS_UP_TO else []
    for line, values in table.rows:
        row.over(values, line)
        name = row.get("vm", cells.parse_vm_name, "")
        if name:
            into.name_vm(name, row.place, faults)
        host = row.get("host", cells.parse_name, "")
        if host and hosts_named and into.host_places and host not in into.host_places:
            right = did_you_mean(host, names, noun="hosts") if names else "a host of the fleet"
            row.complain("host", f'there is no host "{host}"', right)
        vm = VmSpec(
            name=name,
            host=host,
            memory_bytes=row.get("memory", memory, 0),
            backing=_backing(row),
            vcpus=row.get("vcpus", vcpus, 1),
        )
        if row.fine and into.vm_places[name] == row.place:
            into.vms[name] = vm


def _backing(row: _Row) -> Backing:
    """What backs a VM, from its `backing`, its `page_size` or both."""
    if row.usable and "backing" not in row and "page_size" not in row:
        row.complain("backing", "neither a backing nor a page size is given", "one of them")
    named = row.get("backing", cells.parse_backing, None, needed=False)
    sized = row.get("page_size", cells.parse_page_size, None, needed=False)
    if named is not None and sized is not None and named is not sized:
        what = f"{named} has pages of {named.page_label}, page_size says {sized.page_label}"
        row.complain("backing", what, "leave one of the two empty")
    if row.fine and "backing" in row and named is None and sized in (None, Backing.MEMFD):
        row.complain(
            "backing", "hugetlb does not say how large its pages are", "page_size 2MiB or 1GiB"
        )
    return named or sized or Backing.MEMFD
