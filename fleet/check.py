"""`lufleet check`: what a scenario says, in tables that a person can read.

`read_scenario` has refused whatever cannot be run; this shows what it understood, so that one sees
before a run that the memory column was taken for bytes, that a rack is nearly full, or in which
wave a host comes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleet.feasibility import Crossing, crossings
from fleet.host_memory import HostMemory, memfd_need, try_boot
from fleet.plan import PlannedWave, make_plan
from fleet.scenario import GateSpec, Reading, Scenario
from fleet.terminal_tables import titled_table
from fleet.units import counted, show_duration, show_size
from kernelmodel.releases import Release
from kernelmodel.sim.cost import CostModel, CostRow
from node.api import Backing, FaultSpec, HostSpec, VmSpec

__all__ = ["summary"]

_MOST_WAVES_SHOWN = 12
_MOST_RACKS_SHOWN = 24
_MOST_MAKES_SHOWN = 4
_MOST_FAULTS_SHOWN = 20
_HUGE = (Backing.HUGETLB_2M, Backing.HUGETLB_1G)
#: Of scratch, beside struct pages: the image, its initrd, what early boot allocates. Full hosts of
#: 16 to 64 GiB on one to four nodes came up with 168 to 192 MiB and not with 8 MiB less.
_BOOT_TAKES = 192 << 20


def summary(reading: Reading) -> RenderableType:
    """The whole of it, for a rich console."""
    scenario = reading.scenario
    parts: list[RenderableType] = [_head(scenario), _makes(scenario), _racks(scenario)]
    if scenario.vms:
        parts.append(_backings(scenario.vms))
    parts.append(_waves(scenario))
    if scenario.cost_profile:
        parts.append(_costs(scenario))
    if scenario.faults:
        parts.append(_faults(scenario.faults))
    parts += [Text(note) for note in _notes(reading)]
    return Group(*parts)


def _head(scenario: Scenario) -> Text:
    rows = {
        "scenario": f"{scenario.name}, seed {scenario.seed}, scenario digest {scenario.digest}",
        "fleet": f"{counted(len(scenario.hosts), 'host')}, {counted(len(scenario.vms), 'VM')}",
        "update": scenario.update_title,
        "budget": f"{show_duration(scenario.downtime_budget_ns)} of downtime per VM",
        "gate": _gate(scenario.rollout.gate),
    }
    return Text("\n".join(f"{name:9} {value}" for name, value in rows.items()) + "\n")


def _costs(scenario: Scenario) -> Table:
    """The scenario's own cost rows beside the built-in ones: a mistaken unit stands out."""
    built_in, here = CostModel.load(), CostModel.load(scenario.cost_profile)
    table = titled_table("Costs of the scenario's own", ("row", "built in", "here", "kind"), ())
    for op, row in here.rows.items():
        if row != (known := built_in.rows[op]):
            table.add_row(op, *map(_cost, (known, row)), row.kind)
    for name, spread in here.spreads.items():
        if spread != (had := built_in.spreads.get(name)):
            table.add_row(f"spread {name}", had.told() if had else "–", spread.told(), spread.kind)
    return table


def _cost(row: CostRow) -> str:
    return f"{row.told()}, {row.spread}" if row.spread else row.told()


def _gate(gate: GateSpec) -> str:
    """What the rollout may cost, shares as the counts that they come to."""
    limits = [
        f"{counted(gate.max_failed_hosts, 'host')} failed or rolled back",
        f"{counted(gate.max_lost_vms, 'VM')} lost",
    ]
    if gate.max_downtime_ns is not None:
        limits.append(f"a VM down for {show_duration(gate.max_downtime_ns)}")
    return f"halts beyond {', '.join(limits)}"


def _makes(scenario: Scenario) -> Table:
    """A column for each make of host: its hardware, its pools, where its memory goes."""
    makes: dict[tuple[object, ...], list[HostSpec]] = {}
    for host in scenario.hosts:
        key = (host.node_bytes, host.cpus, host.release, host.hugepages, host.cmdline)
        makes.setdefault(key, []).append(host)
    shown = list(makes.values())[:_MOST_MAKES_SHOWN]
    title = "Makes of hosts"
    if len(makes) > len(shown):
        title += f" (the first {len(shown)} of {len(makes)})"
    table = titled_table(title, ("",), [alike[0].name for alike in shown])
    columns = [_make(alike, try_boot(alike[0], scenario.catalogue)) for alike in shown]
    for label in columns[0] if columns else ():
        table.add_row(label, *(column[label] for column in columns))
    return table


def _make(alike: Sequence[HostSpec], memory: HostMemory) -> dict[str, str]:
    host = alike[0]
    return {
        "hosts alike": str(len(alike)),
        "NUMA nodes": _nodes(host.node_bytes),
        "CPUs": str(host.cpus),
        "release": host.release,
        "2MiB pages": _pool(host, Backing.HUGETLB_2M),
        "1GiB pages": _pool(host, Backing.HUGETLB_1G),
        "KHO scratch": show_size(memory.scratch),
        "struct pages": show_size(memory.struct_pages),
        "kernel": show_size(memory.kernel),
        "left for memfds": show_size(memory.left),
    }


def _nodes(sizes: Sequence[int]) -> str:
    """(256 GiB, 256 GiB) as 2 × 256GiB."""
    return " + ".join(
        f"{len(list(same))} × {show_size(size)}" for size, same in itertools.groupby(sizes)
    )


def _pool(host: HostSpec, backing: Backing) -> str:
    count = sum(pool.count for pool in host.hugepages if pool.page_bytes == backing.page_bytes)
    return str(count) if count else "–"


def _racks(scenario: Scenario) -> Table:
    """Hosts by rack, and how full pools and hosts are."""
    racks: dict[str, list[HostSpec]] = {}
    for host in scenario.hosts:
        racks.setdefault(host.domains["rack"], []).append(host)
    vms: dict[str, list[VmSpec]] = {}
    for vm in scenario.vms:
        vms.setdefault(vm.host, []).append(vm)
    known = scenario.catalogue
    table = titled_table(
        "Hosts by rack; use of all, and of the fullest host",
        ("rack",),
        ("hosts", "memory", "VMs", "2MiB pool", "1GiB pool", "room for memfds"),
    )
    for rack, hosts in list(racks.items())[:_MOST_RACKS_SHOWN]:
        on_rack = [vms.get(host.name, []) for host in hosts]
        table.add_row(
            rack,
            str(len(hosts)),
            show_size(sum(sum(host.node_bytes) for host in hosts)),
            str(sum(map(len, on_rack))),
            *(_use(_pool_use(hosts, on_rack, backing)) for backing in _HUGE),
            _use(_memfd_use(hosts, on_rack, known)),
        )
    if len(racks) > _MOST_RACKS_SHOWN:
        table.add_row("…", f"{len(racks) - _MOST_RACKS_SHOWN} more racks")
    return table


def _pool_use(
    hosts: list[HostSpec], vms: list[list[VmSpec]], backing: Backing
) -> list[tuple[int, int]]:
    """Pages used and pages there, host by host."""
    page = backing.page_bytes
    return [
        (
            sum(-(-vm.memory_bytes // page) for vm in held if vm.backing is backing),
            sum(pool.count for pool in host.hugepages if pool.page_bytes == page),
        )
        for host, held in zip(hosts, vms, strict=True)
    ]


def _memfd_use(
    hosts: list[HostSpec], vms: list[list[VmSpec]], known: Mapping[str, Release]
) -> list[tuple[int, int]]:
    """Bytes that plain memfd VMs need and bytes that are left for them, host by host."""
    return [
        (
            sum(memfd_need(vm.memory_bytes) for vm in held if vm.backing is Backing.MEMFD),
            try_boot(host, known).left,
        )
        for host, held in zip(hosts, vms, strict=True)
    ]


def _use(pairs: list[tuple[int, int]]) -> str:
    """23%, 62%: of everything, and of the host that has least left."""
    used, there = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    if not there:
        return "–"
    fullest = max(used * 100 // there for used, there in pairs if there)
    return f"{used * 100 // there}%, {fullest}%"


def _backings(vms: Sequence[VmSpec]) -> Table:
    table = titled_table(
        "VMs by backing",
        ("backing",),
        ("VMs", "memory", "min", "median", "90%", "max", "vCPUs"),
    )
    for backing in Backing:
        sizes = sorted(vm.memory_bytes for vm in vms if vm.backing is backing)
        if sizes:
            table.add_row(
                backing.value,
                str(len(sizes)),
                show_size(sum(sizes)),
                *(show_size(_quantile(sizes, percent)) for percent in (0, 50, 90, 100)),
                str(sum(vm.vcpus for vm in vms if vm.backing is backing)),
            )
    return table


def _quantile(values: Sequence[int], percent: int) -> int:
    """Nearest rank, as in results."""
    return values[max(-(-len(values) * percent // 100), 1) - 1]


def _waves(scenario: Scenario) -> Table:
    plan = make_plan(scenario)
    limits = ", ".join(f"{most} per {key}" for key, most in plan.max_unavailable.items())
    racks = {host.name: host.domains["rack"] for host in scenario.hosts}
    title = f"Waves (at once at most: {limits})" if limits else "Waves"
    table = titled_table(title, ("wave", "first hosts", "by rack"), ("hosts", "soak"))
    shown: list[PlannedWave | None] = list(plan.waves)
    if len(shown) > _MOST_WAVES_SHOWN:
        shown[_MOST_WAVES_SHOWN - 2 : -1] = [None]
    for wave in shown:
        if wave is None:
            table.add_row("…", f"{len(plan.waves) - _MOST_WAVES_SHOWN + 1} more")
            continue
        by_rack = Counter(racks[host] for host in wave.hosts)
        table.add_row(
            wave.name,
            _some(wave.hosts, 3),
            _some([f"{rack} {n}" for rack, n in sorted(by_rack.items())], 6),
            str(len(wave.hosts)),
            show_duration(wave.soak_ns),
        )
    return table


def _some(names: Iterable[str], most: int) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


def _faults(faults: Sequence[FaultSpec]) -> Table:
    table = titled_table("Injected faults", ("host", "kind", "details"), ("times",))
    for fault in faults[:_MOST_FAULTS_SHOWN]:
        details = {
            "VM": fault.vm,
            "factor": f"{fault.factor:g}" if fault.factor != 1.0 else "",
            "errno": fault.errno,
        }
        table.add_row(
            fault.host,
            fault.kind,
            ", ".join(f"{name} {value}" for name, value in details.items() if value),
            str(fault.times) if fault.times else "always",
        )
    if len(faults) > _MOST_FAULTS_SHOWN:
        table.add_row("…", f"{len(faults) - _MOST_FAULTS_SHOWN} more")
    return table


def _notes(reading: Reading) -> list[str]:
    """What is allowed, and worth knowing."""
    scenario = reading.scenario
    notes = [
        f"{file}: columns not used: {', '.join(columns)}"
        for file, columns in reading.inventory.unused.items()
        if columns
    ]
    plan = make_plan(scenario)
    if plan.up_to_date:
        count = len(plan.up_to_date)
        runs, are = ("runs", "is") if count == 1 else ("run", "are")
        release = scenario.target_release
        notes.append(f"{counted(count, 'host')} {runs} {release} already and {are} left alone")
    empty = len(scenario.hosts) - len({vm.host for vm in scenario.vms})
    if empty:
        notes.append(f"{counted(empty, 'host')} {'has' if empty == 1 else 'have'} no VMs")
    for key in plan.max_unavailable:
        outside = sum(1 for values in plan.domains.values() if not dict(values)[key])
        if outside:
            which = f"{counted(outside, 'host')} {'has' if outside == 1 else 'have'} no {key}"
            notes.append(f"{which}: max_unavailable takes them for one {key} of their own")
    known = scenario.catalogue
    tight = [host.name for host in scenario.hosts if _scratch_is_tight(try_boot(host, known))]
    if tight:
        notes.append(
            f"{_some(tight, 3)}: KHO scratch is smaller than the struct pages and the "
            f"{show_size(_BOOT_TAKES)} that a boot takes beside them; if what is preserved touches "
            "most gigabytes of memory, the next kernel finds no room and panics"
        )
    found = crossings(scenario.hosts, scenario.vms, scenario.target_release, known)
    notes += [_crossing(one) for one in found]
    if known[scenario.target_release].proposal:
        name = scenario.target_release
        notes.append(f"{name} is a proposal: Linux 7.3 as released preserves plain memfds only")
    return notes


def _crossing(found: Crossing) -> str:
    """A step that the scenario takes though it is not live."""
    step = found.step
    whose = f", {counted(len(found.vms), 'VM')} of theirs" if found.vms else ""
    return (
        f"not live from {step.at} ({counted(len(found.hosts), 'host')}{whose}): "
        f"{step.verdict}, {step.reason}"
    )


def _scratch_is_tight(memory: HostMemory) -> bool:
    """Whether the next kernel boots only if scratch can be extended by gigabytes left alone."""
    return memory.scratch < memory.struct_pages + _BOOT_TAKES
