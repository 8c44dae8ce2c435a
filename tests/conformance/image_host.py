"""A modelled machine whose memory is that of a handover image of a real kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kernelmodel.abi.kexec_handover import KhoScratch
from kernelmodel.conform import CMDLINE, Host, Script
from kernelmodel.machine import Firmware, Machine, MachineSpec
from kernelmodel.memory import GIB, MIB, PAGE_SHIFT, PAGE_SIZE
from kernelmodel.releases import CATALOGUE
from tests.conformance.kho_reader import Image

IMAGES = Path(__file__).parent / "images"
#: Where a loader could have put scratch, kernel and initrd: away from what is handed over.
AREAS = (
    KhoScratch(512 * MIB, 32 * MIB),
    KhoScratch(640 * MIB, 128 * MIB),
    KhoScratch(800 * MIB, 32 * MIB),
)
ARRAY_PA = AREAS[0].addr + 64 * 1024
KERNEL = (AREAS[1].addr + 32 * MIB, 32 * MIB)
INITRD = (AREAS[1].addr + 64 * MIB, 8 * MIB)


def image_named(name: str) -> tuple[Image, dict[str, Any]]:
    description: dict[str, Any] = json.loads((IMAGES / f"{name}.json").read_text())
    return Image.load(IMAGES / f"{name}.kho.gz"), description


def machine_with(image: Image, flips: dict[int, int] | None = None) -> Machine:
    """`flips` are bits to turn, by physical address."""
    machine = Machine(MachineSpec((GIB,), 2))
    for pfn, page in image.pages.items():
        machine.memory.write(pfn << PAGE_SHIFT, page)
    machine.memory.write(ARRAY_PA, b"".join(area.pack() for area in AREAS))
    for pa, bits in (flips or {}).items():
        machine.memory.write(pa, bytes([machine.memory.read(pa, 1)[0] ^ bits]))
    return machine


def firmware_of(image: Image, machine: Machine) -> Firmware:
    return Firmware(
        CMDLINE,
        machine.spec.memory_map(),
        fdt=(image.fdt_pa, PAGE_SIZE),
        scratch=(ARRAY_PA, KhoScratch.SIZE * len(AREAS)),
        kernel=KERNEL,
        initrd=INITRD,
    )


def script_for(description: dict[str, Any]) -> tuple[Script, list[str]]:
    """Operations that take everything out of a handover, and what they answer."""
    lines = ["open d"]
    answers = ["open ok"]

    def step(line: str, answer: str) -> None:
        lines.append(line)
        answers.append(f"{line.split(maxsplit=1)[0]} {answer}")

    for n, session in enumerate(description["sessions"]):
        step(f"retrieve d s{n} {session['name']}", "ok")
        step(f"name s{n}", f"ok name={session['name']}")
        for file in session["files"]:
            variable = f"f{n}_{file['token']}"
            step(f"fetch s{n} {variable} {file['token']}", "ok")
            step(
                f"stat {variable}",
                f"ok size={file['size']} pos={file['pos']} seals={file['seals']} "
                f"hash={file['fnv1a']}",
            )
        step(f"fetch s{n} none 777", "ENOENT")
        step(f"finish s{n}", "ok")
    numbered = [f"T {line} {answer}" for line, answer in enumerate(answers, 1)]
    return Script.parse("\n".join(lines)), [*numbered, "T end 1"]


def host_with(image: Image, script: Script, flips: dict[int, int] | None = None) -> Host:
    return Host(script, CATALOGUE["7.3.4"], machine_with(image, flips))
