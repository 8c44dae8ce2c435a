"""One boot in a process of its own: `one_boot.py SCRIPT BOOT MEMORY FIRMWARE [MEMORY FIRMWARE]`.

Boots from a file with the bytes of physical memory and the firmware's record, runs the script's
operations of that boot, prints the trace; with two more arguments it jumps and leaves memory and
firmware for the next process. `-` stands for no memory: power-on.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernelmodel.conform import Host, Script
from kernelmodel.machine import Firmware, Machine
from kernelmodel.memory import MemoryRange, PhysicalMemory
from kernelmodel.releases import CATALOGUE


def firmware_from(record: dict[str, Any]) -> Firmware:
    pairs = {
        name: tuple(record[name]) if record[name] else None
        for name in ("fdt", "scratch", "kernel", "initrd")
    }
    memory_map = tuple(MemoryRange(**ram) for ram in record["memory_map"])
    return Firmware(record["cmdline"], memory_map, **pairs)


def main(script_path: str, boot: int, memory: str, firmware: str, *leave: str) -> None:
    script = Script.parse(Path(script_path).read_text())
    host = Host(script, CATALOGUE["7.3.4"])
    if memory == "-":
        kernel = host.power_on()
    else:
        given = firmware_from(json.loads(Path(firmware).read_text()))
        machine = Machine(host.machine.spec)
        machine.memory = PhysicalMemory.load(Path(memory), given.memory_map)
        host = Host(script, CATALOGUE["7.3.4"], machine)
        kernel = host.boot(CATALOGUE["7.3.4"], given)
    for line in host.run_boot(kernel, boot):
        print(line)
    if leave:
        _, handed_over = host.kexec(kernel)
        host.machine.memory.save(Path(leave[0]))
        Path(leave[1]).write_text(json.dumps(asdict(handed_over)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
