"""What survives kexec: physical memory, CPUs, the NUMA layout, and what firmware hands over.

`Firmware` is all that one kernel tells the next beside memory (on x86 the e820 map, the command
line and the setup_data entry SETUP_KEXEC_KHO).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from kernelmodel.errors import ModelBug
from kernelmodel.memory import GIB, KIB, MIB, MemoryRange, PhysicalMemory

__all__ = ["Firmware", "Machine", "MachineSpec"]

#: x86 keeps the last gigabyte below 4 GiB for devices; the RAM it displaces reappears above.
_PCI_HOLE = (3 * GIB, 4 * GIB)
#: Legacy video and BIOS area.
_BIOS_HOLE = (640 * KIB, MIB)


@dataclass(frozen=True, slots=True)
class Firmware:
    """All that reaches a booting kernel beside the bytes in memory.

    `fdt` and `scratch` are (physical address, size in bytes) of KHO's root FDT and of its
    scratch array, None on a cold boot (C: struct kho_data, SETUP_KEXEC_KHO); `kernel` and
    `initrd` say where the loader put those two (C: struct boot_params).
    """

    cmdline: str
    memory_map: tuple[MemoryRange, ...]
    fdt: tuple[int, int] | None = None
    scratch: tuple[int, int] | None = None
    kernel: tuple[int, int] | None = None
    initrd: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """The hardware: bytes of RAM on each NUMA node and the number of CPUs.

    Where RAM reaches the PCI hole, firmware keeps the last `firmware_bytes` before it for tables.
    """

    node_bytes: tuple[int, ...]
    cpus: int
    firmware_bytes: int = 0

    @lru_cache(maxsize=64)  # noqa: B019 - a fleet's machines are of few kinds
    def memory_map(self) -> tuple[MemoryRange, ...]:
        """RAM as firmware reports it: nodes one after the other, around the holes."""
        tables = (_PCI_HOLE[0] - self.firmware_bytes, _PCI_HOLE[0])
        holes = (_BIOS_HOLE, tables, _PCI_HOLE)
        ranges: list[MemoryRange] = []
        at = 0
        for nid, size in enumerate(self.node_bytes):
            left = size
            while left:
                for low, high in holes:
                    if low <= at < high:
                        if high <= _PCI_HOLE[0]:  # these two hide RAM, nothing moves up
                            left -= high - at
                        at = high
                stop = min((low for low, high in holes if at < low < high), default=None)
                if take := left if stop is None else min(left, stop - at):
                    ranges.append(MemoryRange(at, take, nid))
                at += take
                left -= take
        return tuple(ranges)


class Machine:
    """One host's hardware. Kernels come and go on it; its memory stays."""

    __slots__ = ("memory", "spec")

    def __init__(self, spec: MachineSpec) -> None:
        if spec.cpus < 1 or not spec.node_bytes or any(b % MIB for b in spec.node_bytes):
            raise ModelBug(f"impossible machine: {spec}")
        self.spec = spec
        self.memory = PhysicalMemory(spec.memory_map())

    def cold_firmware(self, cmdline: str) -> Firmware:
        """What firmware hands over after power-on or reset."""
        return Firmware(cmdline, self.spec.memory_map())

    def reset(self) -> None:
        """Power cycle: memory content is gone."""
        self.memory = PhysicalMemory(self.spec.memory_map())
