"""The arithmetic between published figures and cost rows, and what the rows then predict.

Calibrating and validating on one figure would be circular, so the two are kept apart here:
`CALIBRATED` are the figures that rows were made from, `held_out()` those that they never saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel, CostRow

GIB_PAGES = 1 << 18
PAGES_48_GIB = 48 * GIB_PAGES

#: Published rows: (base_ns, per_unit_ps), recomputed from the figures as they were published.
CALIBRATED: dict[str, tuple[Fraction, Fraction]] = {
    # 469 ms for 48 GiB in order-0 pages.
    "kho_radix_add_key": (Fraction(0), Fraction(469 * 10**9, PAGES_48_GIB)),
    # More than 2 s for the same.
    "kho_reserve_preserved": (Fraction(0), Fraction(2 * 10**12, PAGES_48_GIB)),
    # 557 keys in 88 us, 526,386 keys in 21.8 ms: the line through both.
    "kho_extend_scratch": (
        88_000 - 557 * Fraction(21_800_000 - 88_000, 526_386 - 557),
        1000 * Fraction(21_800_000 - 88_000, 526_386 - 557),
    ),
    # HVO off 2.15 s, on 1.32 s, with 500 pages.
    "hugetlb_gather_bootmem": (Fraction(0), Fraction((2_150 - 1_320) * 10**9, 500)),
    # 64 GiB in 0.2 s.
    "memmap_init_page": (Fraction(0), Fraction(2 * 10**11, 64 * GIB_PAGES)),
    # 96 CPUs in 100 ms.
    "smp_bringup": (Fraction(0), Fraction(100 * 10**9, 96)),
    # 33 ioctls of 1.5 ms for each vCPU; 1,609 ms less 1,591 ms for everything else.
    "vmm_rebuild": (Fraction((1_609 - 1_591) * 10**6), Fraction(33 * 15 * 10**8)),
}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A published figure that no row was made from, and what the rows say to it."""

    what: str
    published_ms: int
    predicted_ns: int

    @property
    def error_percent(self) -> int:
        """Predicted against published, to the nearest percent."""
        return round(Fraction(self.predicted_ns, self.published_ms * 10**4)) - 100


def held_out(cost: CostModel) -> list[HeldOut]:
    """Every held-out figure."""
    ns = cost.cost_ns
    gather = ns("hugetlb_alloc_gigantic") + ns("hugetlb_gather_bootmem")
    node_256_gib = ns("memmap_init_page", 256 * GIB_PAGES)
    return [
        HeldOut(
            "kexec boot, 512 GB, 500 pages of 1 GiB, unpatched, HVO off (Arif)",
            3_580,
            2_150_000_000 + ns("memmap_init_page", 500 * (GIB_PAGES - 63)),
        ),
        HeldOut("memory map of 1 TB, 4 nodes in parallel (2015)", 1_150, node_256_gib),
        HeldOut(
            "2 MiB pool of 1 TiB, serial (Li, 128 CPUs)",
            1_943,
            ns("hugetlb_alloc_pool", 1 << 19),
        ),
        HeldOut("1,800 pages of 1 GiB, serial, at most 2 s", 2_000, 1_800 * gather),
        HeldOut("11,776 pages of 1 GiB, serial, 12 TiB host", 65_200, 11_776 * gather),
        HeldOut("CPU bring-up, 32 VPs (OpenHCL)", 22, ns("smp_bringup", 32)),
        HeldOut("CPU bring-up, 28-thread Haswell", 80, ns("smp_bringup", 28)),
        HeldOut("CPU bring-up, 16 sockets, 1,920 CPUs", 14_000, ns("smp_bringup", 1_920)),
        HeldOut("device restore, 32 VPs, preload (OpenHCL)", 1_672, ns("vmm_rebuild", 32)),
        HeldOut("restore and start, 1 VP (OpenHCL, second table)", 88, ns("vmm_rebuild", 1)),
        *openhcl_variants(),
    ]


# OpenHCL's kexec at 10.26 s, milliseconds: the one column that the variants are predicted from.
_COLUMN = {"stop": 876, "save": 346, "nvme": 100, "transfer": 14, "boot": 5_580}
_RESTART = {"initramfs": 2_000, "kexec_l": 1_000, "kexec_e": 500}
_ROWS = {"cpu_serial": 130, "cpus_parallel": 22} | _COLUMN | _RESTART
OPENHCL = CostModel(
    {op: CostRow(op, ms * 10**6, 0, "run", "published", "Table A") for op, ms in _ROWS.items()}, {}
)


def openhcl_ns(*, serial_cpus: int = 0, preload: bool = False) -> int:
    """The blackout of a variant, added up by a clock of 32 CPUs."""
    clock = Clock(OPENHCL, 32, 0)
    for name in ("stop", "save", "nvme", "transfer"):
        clock.charge(name)
    with clock.phase("restart"):
        for name in _RESTART:
            if not preload or name == "kexec_e":
                clock.charge(name)
    with clock.phase("boot"):
        clock.charge("boot")
        for _ in range(serial_cpus):
            clock.charge("cpu_serial")
    if serial_cpus:
        # The column's boot already holds the parallel bring-up.
        return clock.now_ns - OPENHCL.cost_ns("cpus_parallel")
    return clock.now_ns


def openhcl_variants() -> list[HeldOut]:
    """Variants of Table A that the column does not contain."""
    return [
        HeldOut("OpenHCL blackout, 31 CPUs one by one", 14_500, openhcl_ns(serial_cpus=31)),
        HeldOut("OpenHCL blackout, preload, fallback path", 7_330, openhcl_ns(preload=True)),
        HeldOut("OpenHCL blackout, preload, fast path", 7_220, openhcl_ns(preload=True)),
    ]


def held_out_markdown(cost: CostModel) -> str:
    """The held-out figures as the table in docs/cost-model.md."""
    lines = ["| held out | published | predicted | error |", "|---|---|---|---|"]
    for row in held_out(cost):
        published, predicted = row.published_ms / 1000, row.predicted_ns / 10**9
        lines.append(
            f"| {row.what} | {published:.4g} s | {predicted:.3g} s | {row.error_percent:+d} % |"
        )
    return "\n".join(lines) + "\n"
