"""What one kernel hands to the next, in two files: all that a boot in a fresh process is given.

The memory file is physical memory: the byte at an offset of the file is the byte at that physical
address. It is as long as memory is and sparse, so that it takes no more room on a disk than what
was written; what is not there reads as zero. The record beside it, JSON, is what firmware says::

    {"boot": 2, "memory": "script.boot2.memory", "firmware": {
        "cmdline": "…", "memory_map": [{"base": 0, "size": 655360, "nid": 0}, …],
        "fdt": [address, size], "scratch": …, "kernel": …, "initrd": …}}

`boot` says which boot of a script it is that gets this, `memory` names the file beside the record,
and of the places all but the kernel's may be null: it is read from there which release boots.

Happy path: `save` in one process, `Handover.load` and `memory_of` in another.

Unhappy paths: a record that cannot be read is a `HandoverError` with every fault in it. What the
memory holds is never judged here: that is the booting kernel's business.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from kernelmodel.machine import Firmware
from kernelmodel.memory import PAGE_SIZE, MemoryRange, PhysicalMemory

__all__ = ["Handover", "HandoverError", "save"]

_PLACES: Final = ("fdt", "scratch", "kernel", "initrd")
_U64: Final = 1 << 64
#: Physical addresses have 52 bits, and a kernel has at most 64 nodes. C: MAX_NUMNODES
_PA_END: Final = 1 << 52
_NODES: Final = 64


class HandoverError(ValueError):
    """A record or its memory file that cannot be used; `faults` are all the reasons."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Handover:
    """What boot `boot` of a script (the first is 1) is given."""

    boot: int
    memory_path: Path
    firmware: Firmware

    @classmethod
    def load(cls, record: Path) -> Handover:
        """Read a record.

        Raises:
            HandoverError: with everything that is wrong with it.
        """
        try:
            fields = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HandoverError([f"cannot be read: {error}"]) from None
        faults: list[str] = []
        if not isinstance(fields, dict):
            raise HandoverError(["the record is no object; {'boot': 2, 'memory': …} is"])
        boot, name, firmware = (fields.get(key) for key in ("boot", "memory", "firmware"))
        if type(boot) is not int or boot < 2:  # the first boot is given nothing
            faults.append(f"'boot' is {boot!r}; the number of a boot from 2 on is right")
        memory = record.parent / name if isinstance(name, str) and name else None
        if memory is None:
            faults.append(f"'memory' is {name!r}; the name of the memory file is right")
        elif not memory.is_file() or not os.access(memory, os.R_OK):
            faults.append(f"the memory file {memory} cannot be read")
        given = _firmware(firmware if isinstance(firmware, dict) else {}, faults)
        if faults or memory is None:
            raise HandoverError(faults)
        return cls(int(boot or 0), memory, given)

    def memory_of(self) -> PhysicalMemory:
        """The memory, as far as the memory map goes."""
        return PhysicalMemory.load(self.memory_path, self.firmware.memory_map)


def save(record: Path, boot: int, memory: PhysicalMemory, firmware: Firmware) -> None:
    """Write the memory file and the record that names it. Raises: OSError."""
    path = record.with_suffix(".memory")
    memory.save(path)
    fields = {"boot": boot, "memory": path.name, "firmware": asdict(firmware)}
    record.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _firmware(fields: dict[str, Any], faults: list[str]) -> Firmware:
    cmdline = fields.get("cmdline")
    if not isinstance(cmdline, str):
        faults.append(f"'firmware.cmdline' is {cmdline!r}; a text is right")
    memory_map: list[MemoryRange] = []
    for entry in _list(fields.get("memory_map")):
        ram = _memory(entry, memory_map[-1].end if memory_map else 0)
        if ram is not None:
            memory_map.append(ram)
        else:
            faults.append(f"'firmware.memory_map' has {entry!r}; whole pages, ascending, are right")
    if not any(ram.nid == 0 for ram in memory_map):
        faults.append(
            "'firmware.memory_map' has no memory on node 0; [{base, size, nid}, …] is right"
        )
    places: dict[str, tuple[int, int] | None] = {}
    for what in _PLACES:
        place = fields.get(what)
        places[what] = None
        if isinstance(place, list) and len(place) == len(("address", "size")):
            address, size = place
            if _is_u64(address) and _is_u64(size):
                places[what] = (address, size)
                continue
        if place is not None or what == "kernel":
            right = "[address, size]" + (" or null" if what != "kernel" else "")
            faults.append(f"'firmware.{what}' is {place!r}; {right} is right")
    return Firmware(str(cmdline), tuple(memory_map), **places)


def _list(value: object) -> list[dict[str, Any]]:
    entries = value if isinstance(value, list) else []
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def _memory(entry: dict[str, Any], floor: int) -> MemoryRange | None:
    """The range that an entry says if it is one, at or above `floor`."""
    base, size, nid = (entry.get(key) for key in ("base", "size", "nid"))
    if not (_is_u64(base) and _is_u64(size) and _is_u64(nid)):
        return None
    if base % PAGE_SIZE or size % PAGE_SIZE or not floor <= base < base + size <= _PA_END:
        return None
    return MemoryRange(base, size, nid) if nid < _NODES else None


def _is_u64(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _U64
