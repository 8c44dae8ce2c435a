"""All corruptions by label."""

from __future__ import annotations

from typing import Final

from kernelmodel.corruptions import files, kho, luo, memfd, tree
from kernelmodel.corruptions.corruption import Corruption
from kernelmodel.corruptions.handed_over import HandedOver, NotThere
from kernelmodel.machine import Firmware
from kernelmodel.memory import PhysicalMemory

__all__ = ["CORRUPTIONS", "corrupt"]

CORRUPTIONS: Final[dict[str, Corruption]] = {
    corruption.label: corruption
    for module in (kho, tree, luo, files, memfd)
    for corruption in module.CORRUPTIONS
}


def corrupt(corruption: Corruption, memory: PhysicalMemory, firmware: Firmware) -> Firmware:
    """Do it to a handover in `memory`; firmware data as they are then.

    Raises:
        NotThere: nothing was handed over, or not what is to be corrupted.
    """
    if firmware.fdt is None or firmware.scratch is None:
        raise NotThere("nothing was handed over")
    handed = HandedOver(memory, firmware.fdt[0], firmware.scratch, firmware.memory_map)
    for pa, data in corruption.writes(handed):
        memory.write(pa, data)
    return firmware if corruption.firmware is None else corruption.firmware(firmware)
