"""`lufleet inspect`: what a handover image says, as JSON or for people to read.

A file in which there is no handover is bad input, and so are options that do not fit the image.
What is wrong inside an image is its content: it is printed under `faults`, and the exit code is 0.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from os.path import realpath
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleet.exit_code import ExitCode
from fleet.units import Unfit, parse_size
from kernelmodel.abi.kexec_handover import KhoScratch
from kernelmodel.image.boot import CannotBoot, boot_image, plan_boot
from kernelmodel.image.frames import Image
from kernelmodel.image.load import NotAnImage, load_image
from kernelmodel.image.write import save_image
from kernelmodel.inspect.handover import inspect_image
from kernelmodel.machine import MachineSpec
from kernelmodel.memory import MIB, PAGE_SIZE, MemoryRange

__all__ = ["InspectOptions", "inspect"]

_WIDEST: Final = 10_000  # characters
_ADDRESS_RIGHT: Final = "write an address like 0x40000000, or 1GiB"
_RANGE_RIGHT: Final = "write an address and a size like 0x40000000+64MiB"


class InspectOptions(Struct, frozen=True):
    """The options of `lufleet inspect`, as they were given."""

    image: Path
    boot: bool = False
    scratch: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    release: str = ""
    fdt: str = ""
    hashes: bool = True
    pretty: bool = False
    save: Path | None = None


def inspect(options: InspectOptions, console: Console, errors: Console) -> ExitCode:
    """Read an image, boot from it if asked to, print what came of it."""
    given = _given(options)
    if given.unfit:
        errors.print(Text("\n".join(given.unfit)))
        return ExitCode.BAD_INPUT
    try:
        image = load_image(options.image, given.fdt_pa)
        said = inspect_image(image, hashes=options.hashes)
        if options.boot:
            plan = plan_boot(
                image,
                said,
                release=options.release,
                memory_map=given.memory_map,
                scratch=given.scratch,
            )
    except (NotAnImage, CannotBoot) as error:
        errors.print(Text("\n".join(f"{options.image}: {line}" for line in str(error).split("\n"))))
        return ExitCode.BAD_INPUT
    except OSError as error:
        errors.print(Text(f"{options.image}: cannot be read: {error.strerror or error}"))
        return ExitCode.BAD_INPUT
    _tell_others(image, errors)
    if options.save is not None:
        try:
            pages = save_image(image, options.save)
        except OSError as error:
            errors.print(Text(f"{options.save}: cannot be written: {error.strerror or error}"))
            return ExitCode.BAD_INPUT
        errors.print(Text(f"wrote {options.save}: the {pages} pages that belong to the handover"))
    if options.boot:
        try:
            said["boot"] = boot_image(image, plan)
        except Exception as bug:  # noqa: BLE001 - the outermost frame
            errors.print(Text("".join(traceback.format_exception(bug))))
            errors.print(Text(f"the simulator itself has failed: {type(bug).__name__}: {bug}"))
            return ExitCode.SIMULATOR_FAILED
        said["boot"]["agrees"] = _agree(said, said["boot"])
    if options.pretty:
        console.print(_for_people(said, console), crop=False)
    else:
        console.out(json.dumps(said, indent=1, ensure_ascii=False), highlight=False)
    return ExitCode.DONE


def _tell_others(image: Image, errors: Console) -> None:
    if image.others:
        others = ", ".join(f"{pa:#x}" for pa in image.others)
        errors.print(
            Text(
                f"there are several FDTs of KHO: {image.fdt_pa:#x} is read, the latest by its "
                f"kexec count; --fdt takes another: {others}"
            )
        )


# Options.


class _Given(Struct, frozen=True):
    """What the options say, and what is wrong with them."""

    fdt_pa: int | None
    scratch: tuple[KhoScratch, ...]
    memory_map: tuple[MemoryRange, ...]
    unfit: list[str]


def _given(options: InspectOptions) -> _Given:
    unfit: list[str] = []
    fdt_pa = _read(unfit, _address, options.fdt) if options.fdt else None
    areas = [_read(unfit, _scratch, text) for text in options.scratch]
    memory_map = _read(unfit, _memory_map, options.memory) or ()
    if not options.boot and (options.scratch or options.memory or options.release):
        unfit.append("--scratch, --memory and --release say how to boot; add --boot")
    if options.save is not None and realpath(options.save) == realpath(options.image):
        unfit.append(f"--save {options.save} is the image itself; name another file")
    scratch = tuple(area for area in areas if area is not None)
    return _Given(fdt_pa, scratch, memory_map, unfit)


_I = TypeVar("_I")
_O = TypeVar("_O")


def _read(unfit: list[str], parse: Callable[[_I], _O], given: _I) -> _O | None:
    """What an option says; what is wrong with it goes to `unfit`."""
    try:
        return parse(given)
    except Unfit as error:
        unfit.append(f"{error.what}; {error.right}")
        return None


def _address(text: str) -> int:
    """Raises: Unfit."""
    try:
        return int(text, 16) if text[:2].lower() == "0x" else parse_size(text)
    except (ValueError, Unfit):
        raise Unfit(f"{text!r} is no address", _ADDRESS_RIGHT) from None


def _range(text: str) -> tuple[int, int]:
    """(address, size). Raises: Unfit."""
    at, plus, size = text.partition("+")
    if not plus:
        raise Unfit(f"{text!r} is no range of memory", _RANGE_RIGHT)
    return _address(at), _address(size)


def _scratch(text: str) -> KhoScratch:
    addr, size = _range(text)
    return KhoScratch(addr, size)


def _memory_map(texts: tuple[str, ...]) -> tuple[MemoryRange, ...]:
    """Sizes of NUMA nodes, laid out as a PC does, or exact ranges; not both. Raises: Unfit."""
    exact = ["+" in text for text in texts]
    if any(exact) and not all(exact):
        raise Unfit(
            "--memory has both sizes and ranges",
            "give either sizes of NUMA nodes, or all ranges of memory with their addresses",
        )
    if not any(exact):
        sizes = tuple(parse_size(text) for text in texts)
        for text, size in zip(texts, sizes, strict=True):
            if size == 0 or size % MIB:
                raise Unfit(f"a node of {text} is not whole MiB", "write a size like 4GiB")
        return MachineSpec(sizes, 1).memory_map() if sizes else ()
    ranges = sorted(_range(text) for text in texts)
    end = 0
    for at, size in ranges:
        if at < end or size == 0 or at % PAGE_SIZE or size % PAGE_SIZE:
            wrong = f"memory {at:#x}+{size:#x} overlaps another range or is not whole pages"
            raise Unfit(wrong, _RANGE_RIGHT)
        end = at + size
    return tuple(MemoryRange(at, size, 0) for at, size in ranges)


# What is printed.


def _agree(said: dict[str, Any], boot: dict[str, Any]) -> bool:
    """Whether every file came back as the image has it. Seals may grow by the kernel's rules."""
    read, retrieved = said["sessions"], boot["sessions"]
    if boot["outcome"] != "up":
        return False
    keys = ("compatible", "token", "pos", "size", "fnv1a")
    if [session["name"] for session in read] != [session["name"] for session in retrieved]:
        return False
    for one, other in zip(read, retrieved, strict=True):
        back = other.get("files", [])
        if len(back) != len(one["files"]):
            return False
        for file, again in zip(one["files"], back, strict=True):
            if any(file[key] != again.get(key) for key in keys if key in file):
                return False
    return "error" not in {key for session in retrieved for key in session}


def _for_people(said: dict[str, Any], console: Console) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    metadata = said["kexec_metadata"]
    for name, value in (
        ("FDT", f"{said['fdt_pa']:#x}, {said['compatible'] or 'unreadable'}"),
        ("subtrees", ", ".join(f"{name} ({size})" for name, size in said["subtrees"].items())),
        ("left by", f"{metadata[1]}, kexec {metadata[2]}" if metadata else "-"),
        ("LUO", f"{said['luo']}, live update {said['liveupdate_num']}" if said["luo"] else "-"),
        (
            "preserved",
            f"{said['preserved_pages']:,} pages in {said['preserved_entries']:,} entries",
        ),
        ("by order", ", ".join(f"{order}: {n:,}" for order, n in said["orders"].items()) or "-"),
        ("FLBs", ", ".join(f"{name} ({count})" for name, count in said["flbs"]) or "-"),
    ):
        facts.add_row(Text(name, "dim"), Text(value))
    parts: list[RenderableType] = [facts, _files_table(said, console)]
    if "boot" in said:
        boot = said["boot"]
        verdict = "every file came back as it is" if boot["agrees"] else "not all files came back"
        parts.append(Text(f"booted {boot['release']}: {boot['outcome']}; {verdict}"))
        if not boot["agrees"]:
            parts.append(_files_table(boot, console))
    if "faults" in said:
        parts.append(Text("\n".join(f"fault: {fault}" for fault in said["faults"]), "red"))
    if "notes" in said:
        parts.append(Text("\n".join(f"note: {note}" for note in said["notes"]), "dim"))
    return Group(*parts)


def _files_table(said: dict[str, Any], console: Console) -> Table:
    """A line a file, wider than the console if it must be: who splits a hash cannot search it."""
    table = Table(box=None, pad_edge=False)
    for name in ("session", "token", "file", "size", "position", "folios", "seals", "hash"):
        table.add_column(name, no_wrap=True)
    for session in said["sessions"]:
        name = session["name"]
        files = session.get("files", ())
        if not files:
            table.add_row(Text(name), *[""] * 6, session.get("error", ""))
        for file in files:
            cells = (file.get(key) for key in ("size", "pos", "nr_folios", "seals"))
            end = file.get("fnv1a") or file.get("error", "")
            texts = [str(file["token"]), file["compatible"], *map(_cell, cells), end]
            table.add_row(Text(name), *map(Text, texts))
            name = ""
    table.width = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    return table


def _cell(value: int | None) -> str:
    return "" if value is None else str(value)
