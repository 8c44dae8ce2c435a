"""Whole updates of hosts that docs/cost-model.md speaks of, and which rows their downtime is of.

Every spread is at its median here, so that a figure follows from rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kernelmodel.sim.cost import CostModel
from node.api import Backing, FaultSpec, HugepagePool, UpdateResult, VmSpec
from tests.node.update_hosts import COST, GIB, HOST, fault, make_host, update

SECOND = 1_000_000_000
MEDIAN = CostModel.load(
    "".join(f'[{op}]\nspread = ""\n' for op, row in COST.rows.items() if row.spread)
)


@dataclass(frozen=True, slots=True)
class Ordinary:
    """A host with equal VMs, and `spare_gib` of huge pages beside theirs."""

    backing: Backing = Backing.HUGETLB_1G
    vms: int = 8
    vm_gib: int = 32
    host_gib: int = 512
    nodes: int = 2
    cpus: int = 96
    spare_gib: int = 128
    cmdline: str = ""
    faults: tuple[FaultSpec, ...] = ()

    def updated(self, cost: CostModel = MEDIAN, seed: int = 7) -> UpdateResult:
        """What an update of it comes to."""
        vms = [
            VmSpec(f"vm{nr}", HOST, self.vm_gib * GIB, self.backing, 8) for nr in range(self.vms)
        ]
        page = self.backing.page_bytes
        pool = HugepagePool(page, (self.vms * self.vm_gib + self.spare_gib) * GIB // page)
        return update(
            make_host(
                *self.faults,
                vms=vms,
                node_bytes=(self.host_gib // self.nodes * GIB,) * self.nodes,
                pools=(pool,) if page > 4096 else (),
                cmdline=f"kho_scratch=256M,512M,512M {self.cmdline}",
                cpus=self.cpus,
                seed=seed,
                cost=cost,
            )
        )


ORDINARY = Ordinary()
LARGE = Ordinary(vms=96, vm_gib=112, host_gib=12 << 10, nodes=8, cpus=384)

#: Columns of the table: what the downtime of the slowest VM consists of.
COLUMNS = {
    "1 GiB pages": ORDINARY,
    "2 MiB pages": replace(ORDINARY, backing=Backing.HUGETLB_2M),
    "4 KiB pages": replace(ORDINARY, backing=Backing.MEMFD),
    "12 TiB": LARGE,
    "cold reboot": replace(ORDINARY, faults=(fault("next-kernel-panics"),)),
}
ROWS = (
    "initcalls",
    "userspace_init",
    "kho_init_preserved_page",
    "kho_reserve_preserved",
    "kho_extend_scratch",
    "shmem_add_to_page_cache",
    "vmm_rebuild",
    "vmm_start",
    "memmap_init_page",
    "kernel_restart_prepare",
    "smp_bringup",
    "agent_start",
    "start_kernel_early",
    "firmware_post",
    "vm_boot",
    "cold_boot_memory_init",
    "hugetlb_fault",
)


def slowest_vm_ns(result: UpdateResult) -> int:
    """The longest downtime."""
    return max(vm.downtime_ns or 0 for vm in result.vms)


def twice(op: str) -> CostModel:
    """The rows of `MEDIAN`, but that `op` costs twice as much."""
    row = MEDIAN.row(op)
    dearer = replace(row, base_ns=2 * row.base_ns, per_unit_ps=2 * row.per_unit_ps)
    return CostModel({**MEDIAN.rows, op: dearer}, MEDIAN.spreads)


def made_of() -> dict[str, list[int]]:
    """By column, by what each of `ROWS` lengthens the downtime if it doubles, and the downtime."""
    columns = {}
    for name, host in COLUMNS.items():
        ns = slowest_vm_ns(host.updated())
        columns[name] = [*(slowest_vm_ns(host.updated(twice(op))) - ns for op in ROWS), ns]
    return columns


def made_of_markdown(columns: dict[str, list[int]]) -> str:
    """The table in docs/cost-model.md."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in _cells(columns))


def _cells(columns: dict[str, list[int]]) -> Iterator[list[str]]:
    yield ["row", *columns]
    yield ["---", *("---:" for _ in columns)]
    for at, op in enumerate(ROWS):
        yield [f"`{op}`", *(_shown(figures[at]) for figures in columns.values())]
    yield ["all others", *(_shown(all_ - sum(of)) for *of, all_ in columns.values())]
    yield ["downtime of the slowest VM", *(_shown(figures[-1]) for figures in columns.values())]


def _shown(ns: int) -> str:
    return f"{ns / SECOND:.2f} s" if ns >= SECOND // 200 else "–"
