"""Nothing crosses a kexec but bytes in memory and the firmware's record.

Each boot of a recorded script runs in a process of its own and prints what was recorded; and what
a boot makes of a handover depends on the handover's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fleet.fresh import KernelEnded, play_fresh
from kernelmodel import kexec
from kernelmodel.conform import Script
from kernelmodel.errors import KernelError, KernelPanic
from kernelmodel.releases import CATALOGUE
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task
from tests.conformance.image_host import firmware_of, host_with, image_named, script_for
from tests.conformance.kho_reader import PAGE, files_of, preserved, subtree, u64

#: Those about huge pages alone have one boot each.
RECORDINGS = [
    path
    for path in sorted((Path(__file__).parent / "traces").glob("*.scn"))
    if len(Script.parse(path.read_text()).boots) > 1
]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_each_boot_in_a_fresh_process_answers_as_recorded(path: Path) -> None:
    trace: list[str] = []
    with (
        TemporaryDirectory() as folder,  # pytest would keep files as long as memory for days
        suppress(KernelEnded),
    ):
        trace.extend(play_fresh(path.read_text(), path.stem, Path(folder)))
    assert trace == path.with_suffix(".trace").read_text().splitlines()


IMAGE, DESCRIPTION = image_named("img1")
SCRIPT, ANSWERS = script_for(DESCRIPTION)


def outcome(flips: dict[int, int]) -> list[str]:
    """The trace of a boot from the real image with some bits turned, up to a panic."""
    host = host_with(IMAGE, SCRIPT, flips)
    trace: list[str] = []
    try:
        kernel = host.boot(CATALOGUE["7.3.4"], firmware_of(IMAGE, host.machine))
        trace.extend(host.run_boot(kernel, 0))
        assert host.task is not None
        host.task.exit()
        kexec.kexec_file_load(kernel, kernel.release, kernel.params.cmdline)
        following = host.boot(*host.kexec(kernel))
        Task(following, "agent").open(DEV_LIVEUPDATE)
    except KernelPanic as panic:
        trace.append(f"panic: {panic}")
    except KernelError as refused:
        trace.append(f"refused: {refused}")
    return trace


def fields() -> Iterator[tuple[str, int]]:
    """Bytes of the handover that a process can tell, each with what it belongs to."""
    read = IMAGE.read
    yield "compatible of the root", IMAGE.fdt_pa + 56 + 8 + 12
    yield "address of the radix tree", IMAGE.fdt_pa + 56 + 8 + 20 + 12 + 1
    luo = subtree(read, IMAGE.fdt_pa, "LUO")
    yield "LUO's compatible", luo
    yield "address of the sessions", luo + 17
    sessions = u64(read, luo + 16)
    yield "address of the next block", sessions + 1
    yield "number of sessions", sessions + 8
    yield "name of a session", sessions + 16
    yield "address of its files", sessions + 16 + 65
    yield "number of its files", sessions + 16 + 72
    files = u64(read, sessions + 16 + 64)
    yield "compatible of a file", files + 16
    yield "address of its entry", files + 16 + 49
    yield "token", files + 16 + 56
    for kind, token, data in files_of(read, IMAGE.fdt_pa):
        assert kind == "memfd-v2"
        yield f"position of file {token}", data
        yield f"size of file {token}", data + 8
        yield f"seals of file {token}", data + 16
        if not u64(read, data + 24):
            continue
        yield f"number of folios of file {token}", data + 24
        yield f"first chunk of file {token}", data + 33
        yield f"pages of the table of file {token}", data + 40
        chunk = u64(read, data + 32)
        yield f"table page of file {token}", chunk + 9
        table = u64(read, chunk + 8)
        yield f"folio of file {token}", table + 1
        yield f"index of a folio of file {token}", table + 8
        yield f"content of file {token}", (u64(read, table) & 2**52 - 1) * PAGE + 99


FIELDS = dict(fields())


@pytest.mark.parametrize("what", FIELDS)
def test_a_changed_byte_of_the_handover_changes_what_happens(what: str) -> None:
    # more folios than there are would be zero entries, which are passed over: make them fewer
    bits = IMAGE.read(FIELDS[what], 1)[0] if what.startswith("number of folios") else 0x10
    assert outcome({FIELDS[what]: bits}) != ANSWERS


def test_the_handover_unchanged_gives_the_trace_and_nothing_more() -> None:
    assert outcome({}) == ANSWERS


def test_no_flipped_bit_breaks_the_model_itself() -> None:
    """Every other byte of everything but content, and the first of each page of content."""
    pages = {pfn for pfn, _ in preserved(IMAGE.read, IMAGE.fdt_pa)}
    changed = 0
    tried = 0
    for pfn in sorted(IMAGE.pages):
        page = IMAGE.pages[pfn]
        used = [at for at in range(PAGE) if page[at]]
        dense = len(used) > 1024  # content
        step = 2048 if dense and pfn in pages else 2
        for at in used[::step]:
            tried += 1
            bits = 1 << (pfn + at) % 8
            changed += outcome({pfn * PAGE + at: bits}) != ANSWERS
    assert tried > 100
    assert changed > tried // 2
