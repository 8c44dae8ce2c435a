"""Whether what a scenario asks for can be done at all, before anything starts.

Memory: a VM's size is whole pages, hugetlb VMs fit their pool and plain ones
what the booted kernel leaves beside pools, scratch areas and its own (`fleet.host_memory`).
Crossings: what `fleet.upgrade_path` says of the step from each host's release to the target. A
scenario may ask for one that is not live all the same, to see what becomes of the VMs. What goes
wrong by chance or by an injected fault is not looked for here; that is what the simulation is for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from fleet.bad_input import Faults, Place, place_text
from fleet.host_memory import HostMemory, memfd_need, try_boot
from fleet.inventory import Inventory
from fleet.units import plural, show_size
from fleet.upgrade_path import Step, Verdict, judge
from kernelmodel.handlers.memfd import MOST_FOLIOS
from kernelmodel.releases import Release
from node.api import Backing, HostSpec, VmSpec

__all__ = ["Crossing", "check_crossings", "check_memory", "crossings"]


def check_memory(inventory: Inventory, faults: Faults) -> None:
    """Find VMs that no pool can hold, and hosts that cannot hold their VMs."""
    on_host: dict[str, list[VmSpec]] = {name: [] for name in inventory.hosts}
    for vm in inventory.vms.values():
        if vm.host in on_host:  # else the host's own row cannot be used, and said so
            if vm.host not in inventory.alike:
                _check_vm(vm, inventory, faults)
            on_host[vm.host].append(vm)
    for name, vms in on_host.items():
        if name not in inventory.alike:
            _check_host(inventory, inventory.hosts[name], vms, faults)


def _check_vm(vm: VmSpec, inventory: Inventory, faults: Faults) -> None:
    """Find what is wrong with one VM whatever else is on its host."""
    place = inventory.vm_places[vm.name]
    host = inventory.hosts[vm.host]
    page = vm.backing.page_bytes
    pages = -(-vm.memory_bytes // page)
    if vm.memory_bytes % page:
        label = vm.backing.page_label
        what = f"VM {vm.name}: {show_size(vm.memory_bytes)} is not a multiple of its {label} pages"
        faults.add(place, what, f"{show_size(pages * page)}, say", alike="VMs of broken pages")
    if vm.backing is Backing.MEMFD:
        if pages > MOST_FOLIOS:
            what = f"VM {vm.name}: LUO preserves no memfd of {show_size(vm.memory_bytes)}: ENOMEM"
            faults.add(place, what, "larger pages, or less than 1TiB")
        return
    pool = _pool(host, page)
    if pages > pool:
        what = f"VM {vm.name} needs {pages} {plural(pages, 'page')} of {vm.backing.page_label}"
        has = f"the pool of host {host.name} has {pool}" if pool else f"host {host.name} has none"
        right = "a larger pool, a smaller VM, or another host"
        faults.add(place, f"{what}, {has}", right, alike="VMs larger than their pool")


def _pool(host: HostSpec, page_bytes: int) -> int:
    return sum(pool.count for pool in host.hugepages if pool.page_bytes == page_bytes)


def _check_host(inventory: Inventory, host: HostSpec, vms: list[VmSpec], faults: Faults) -> None:
    """Find whether the VMs of a host fit it together."""
    memory, place = try_boot(host, inventory.releases), inventory.host_places[host.name]
    who = f"host {host.name}"
    if memory.trouble:
        right = "smaller pools, more memory, or another kho_scratch="
        if "command line" in memory.trouble:
            right = "a shorter cmdline"
        faults.add(place, f"{who}: {memory.trouble}", right, alike="hosts that cannot be updated")
    for pool in memory.missing:
        size = show_size(pool.page_bytes)
        wanted = _pool(host, pool.page_bytes)
        what = f"{who}: its kernel gets {wanted - pool.count} of {wanted} pages of {size}"
        right = f"at most {wanted - pool.count}, or smaller pools of another size"
        faults.add(place, f"{what} beside {_taken(memory)}", right, alike="pools too large")
    for backing in (Backing.HUGETLB_2M, Backing.HUGETLB_1G):
        needs = [-(-vm.memory_bytes // backing.page_bytes) for vm in vms if vm.backing is backing]
        there = _pool(host, backing.page_bytes)
        # One VM larger than the pool has been named already.
        if sum(needs) > there and all(need <= there for need in needs):
            pages = f"{sum(needs)} {plural(sum(needs), 'page')} of {backing.page_label}"
            what = f"{who}: its VMs need {pages}"
            right = f"a pool of {sum(needs)}, or fewer VMs"
            faults.add(place, f"{what}, the pool has {there}", right, alike="pools too small")
    plain = [vm.memory_bytes for vm in vms if vm.backing is Backing.MEMFD]
    need = sum(map(memfd_need, plain))
    if plain and need > memory.left and not memory.trouble and not memory.missing:
        what = (
            f"{who}: its {len(plain)} plain memfd VMs need {show_size(need)} with their tables, "
            f"{show_size(memory.left)} are left beside {_taken(memory)}"
        )
        right = "fewer or smaller VMs, or smaller pools"
        faults.add(place, what, right, alike="hosts too full")


def _taken(memory: HostMemory) -> str:
    parts = {
        "hugepage pools": memory.pools,
        "KHO scratch": memory.scratch,
        "struct pages": memory.struct_pages,
        "the kernel": memory.kernel,
    }
    listed = ", ".join(f"{show_size(size)} for {what}" for what, size in parts.items() if size)
    return f"{listed} of {show_size(memory.total)}"


class Crossing(Struct, frozen=True):
    """Hosts of one release that the target does not take over from live."""

    step: Step
    hosts: tuple[str, ...]
    vms: tuple[str, ...]  # those that it concerns


def crossings(
    hosts: Iterable[HostSpec],
    vms: Iterable[VmSpec],
    target: str,
    releases: Mapping[str, Release],
) -> list[Crossing]:
    """What an update of these hosts to the target would not do live, by the release they run."""
    runs = {host.name: host.release for host in hosts if host.release != target}
    on: dict[str, list[VmSpec]] = {release: [] for release in runs.values()}
    for vm in vms:
        if vm.host in runs:
            on[runs[vm.host]].append(vm)
    found = []
    for release, theirs in on.items():
        step = judge(releases[release], releases[target], {vm.backing: None for vm in theirs})
        if not step.live:
            blamed = (
                (step.backing,) if step.backing and step.verdict is not Verdict.EIO else Backing
            )
            found.append(
                Crossing(
                    step,
                    tuple(name for name, runs_it in runs.items() if runs_it == release),
                    tuple(vm.name for vm in theirs if vm.backing in blamed),
                )
            )
    return found


def check_crossings(inventory: Inventory, target: str, target_place: Place, faults: Faults) -> None:
    """Find hosts whose kernel cannot hand over to the target, or not all that they hold."""
    if target not in inventory.releases:
        return
    hosts, vms, releases = inventory.hosts, inventory.vms, inventory.releases
    for found in crossings(hosts.values(), vms.values(), target, releases):
        step, first = found.step, found.hosts[0]
        where = place_text(inventory.host_places[first])
        who = f"{len(found.hosts)} hosts run" if len(found.hosts) > 1 else f"host {first} runs"
        what = f"{target} cannot take over from {step.at}, which {who} ({where})"
        place = target_place
        if step.backing is not None:
            lead = found.vms[0]
            some = f"{len(found.vms)} VMs, {lead} first" if len(found.vms) > 1 else lead
            what = f"{what}, with {some}"
            if step.verdict is Verdict.COLD:
                place = inventory.vm_places[lead]
        backings = {vm.backing: None for vm in vms.values() if vm.host in found.hosts}
        right = f"{_targets(step.at, backings, releases)}; or say update.allow_incompatible = true"
        faults.add(place, f"{what}: {step.verdict}, {step.reason}", right)


def _targets(at: str, backings: Collection[Backing], releases: Mapping[str, Release]) -> str:
    """The releases that could take over from this one."""
    reached = [judge(releases[at], to, backings) for to in releases.values() if to.name != at]
    live = [step.to for step in reached if step.live]
    return f"possible: {', '.join(live)}" if live else f"{at} cannot be updated live"
