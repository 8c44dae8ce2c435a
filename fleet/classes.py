"""Hosts and VMs by class and count, for fleets that nobody has a table of.

`[[fleet.host_class]]` makes `count` hosts, NAME-1, NAME-2, …, and deals them in stretches over
`racks` racks and over further failure domains: with 8 hosts, 4 racks and 2 zones the first four
hosts are zone-1 with rack-1 and rack-2. `[[fleet.vm_class]]` puts `per_host` VMs on every host, or
on those of one class; they are called HOST-NAME-1, HOST-NAME-2, ….
"""

from __future__ import annotations

from functools import partial
from typing import Final

from fleet import cells
from fleet.bad_input import Faults, did_you_mean
from fleet.fields import Fields
from fleet.inventory import MOST, Inventory, hugepage_pools
from fleet.kernel_parameters import parse_cmdline
from fleet.units import Unfit, parse_count, shown
from node.api import Backing, HostSpec, VmSpec

__all__ = ["read_host_classes", "read_vm_classes"]

_MOST_HOSTS: Final = 1_000_000
_MOST_VMS: Final = 10_000_000
_MOST_PER_HOST: Final = 10_000
_NO_MEMORY: Final[tuple[int, ...]] = (cells.MOST_MEMORY,)  # stands in for what is unfit
_PAGE_SIZES: Final = {2 << 20: "hugepages_2M", 1 << 30: "hugepages_1G"}


def read_host_classes(fleet: Fields, into: Inventory, faults: Faults) -> dict[str, list[str]]:
    """Add the hosts of every class; which hosts each class has."""
    classes: dict[str, list[str]] = {}
    for fields in fleet.tables("host_class"):
        before = len(faults)
        name = fields.parsed_text("name", cells.parse_label, "what its hosts are called")
        if name in classes:
            fields.complain("name", f'"{name}" is there twice', "every class needs its own")
        counted = len(faults)
        count = fields.integer("count", None, 1, _MOST_HOSTS)
        # With a count that is none, nothing is too many racks.
        most = count if len(faults) == counted else _MOST_HOSTS
        model = _read_host(fields, name, into)
        domains = {"rack": fields.integer("racks", 1, 1, most)}
        further = fields.table("domains")
        if further is not None:
            for domain in further.free_keys():
                domains[domain] = further.integer(domain, None, 1, most)
                if domain == "rack" or not domain or not domain.isprintable():
                    further.complain(domain, "is no name of a further failure domain")
        fields.close()
        classes[name] = names = [f"{name}-{nr + 1}" for nr in range(count)]
        usable, place = len(faults) == before, fields.place()
        for nr, host in enumerate(names):
            into.name_host(host, place, faults)
            if usable and into.host_places[host] == place:
                own = {domain: f"{domain}-{nr * n // count + 1}" for domain, n in domains.items()}
                into.hosts[host] = _renamed(model, host, own)
                if nr:
                    into.alike[host] = None
    return classes


def _read_host(fields: Fields, name: str, into: Inventory) -> HostSpec:
    sizes = fields.parsed("memory", cells.parse_host_memory, _NO_MEMORY, 'a size like "512GiB"')
    numa_nodes = fields.integer("numa_nodes", 0, 1, MOST["numa_nodes"])
    try:
        node_bytes = cells.split_over_nodes(sizes, numa_nodes or None)
    except Unfit as unfit:
        fields.complain("memory", unfit.what, unfit.right)
        node_bytes = sizes
    cmdline = ""
    if fields.given("cmdline"):
        cmdline = fields.parsed_text("cmdline", parse_cmdline, "kernel parameters")
    return HostSpec(
        name=name,
        domains={},
        node_bytes=node_bytes,
        cpus=fields.integer("cpus", None, 1, MOST["cpus"]),
        release=fields.parsed_text("release", into.parse_release, "the kernel that runs"),
        hugepages=hugepage_pools(_read_pools(fields)),
        cmdline=cmdline,
    )


def _read_pools(fields: Fields) -> dict[int, int]:
    """Pages of each size, from `hugepages = { "2MiB" = 1024, "1GiB" = 4 }`."""
    pools: dict[int, int] = {}
    table = fields.table("hugepages")
    if table is not None:
        for name in table.free_keys():
            try:
                backing = cells.parse_page_size(name)
            except Unfit as unfit:
                table.complain(name, unfit.what, "2MiB or 1GiB")
                continue
            if backing is Backing.MEMFD or backing.page_bytes in pools:
                table.complain(name, "no hugepages, or a size that is there already")
                continue
            most = MOST[_PAGE_SIZES[backing.page_bytes]]
            pools[backing.page_bytes] = table.integer(name, None, 0, most)
    return pools


def _renamed(model: HostSpec, name: str, domains: dict[str, str]) -> HostSpec:
    return HostSpec(
        name, domains, model.node_bytes, model.cpus, model.release, model.hugepages, model.cmdline
    )


def read_vm_classes(
    fleet: Fields, classes: dict[str, list[str]], into: Inventory, faults: Faults
) -> None:
    """Add the VMs of every class, on the hosts of the class that it names or on all."""
    seen: set[str] = set()
    for fields in fleet.tables("vm_class"):
        before = len(faults)
        name = fields.parsed_text("name", cells.parse_label, "what its VMs are called")
        if name in seen:
            fields.complain("name", f'"{name}" is there twice', "every class needs its own")
        seen.add(name)
        hosts = list(into.hosts)
        if fields.given("hosts"):
            chosen = fields.text("hosts")
            if chosen not in classes:
                right = did_you_mean(chosen, classes, noun="host classes")
                fields.complain("hosts", f"{shown(chosen)} is no host class", right)
            hosts = [host for host in classes.get(chosen, ()) if host in into.hosts]
        per_host = fields.integer("per_host", None, 1, _MOST_PER_HOST)
        model = _read_vm(fields)
        fields.close()
        if len(into.vms) + per_host * len(hosts) > _MOST_VMS:
            fields.complain("per_host", f"makes more than {_MOST_VMS} VMs", "fewer")
        longest = max(hosts, key=lambda host: len(host.encode()), default="")
        _check_name(fields, f"{longest}-{name}-{per_host}")
        if len(faults) > before:
            continue
        place, memory, backing, vcpus = (
            fields.place(),
            model.memory_bytes,
            model.backing,
            model.vcpus,
        )
        for host in hosts:
            for nr in range(per_host):
                vm = f"{host}-{name}-{nr + 1}"
                into.name_vm(vm, place, faults)
                into.vms[vm] = VmSpec(vm, host, memory, backing, vcpus)


def _check_name(fields: Fields, longest: str) -> None:
    try:
        cells.parse_vm_name(longest)
    except Unfit as unfit:
        fields.complain("name", f"makes VM names like {unfit.what}", unfit.right)


def _read_vm(fields: Fields) -> VmSpec:
    memory = partial(cells.parse_vm_memory, unit=1)
    count = partial(parse_count, at_least=1, at_most=MOST["vcpus"])
    return VmSpec(
        name="",
        host="",
        memory_bytes=fields.parsed("memory", memory, 0, 'a size like "4GiB"'),
        backing=_parse_backing(fields),
        vcpus=fields.parsed("vcpus", count, 1, "a whole number"),
    )


def _parse_backing(fields: Fields) -> Backing:
    known = [backing.value for backing in Backing]
    text = fields.text("backing", None, known, "backings")
    return Backing(text) if text in known else Backing.MEMFD
