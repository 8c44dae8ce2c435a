"""Memory that a real kernel left, read by the model; memory that the model leaves, read by others.

The reader in `kho_reader` shares no code with the model and agrees with the real image.
"""

from __future__ import annotations

from typing import Any

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.conform import CMDLINE, CONFIG, Host, Script
from kernelmodel.kernel import Kernel
from kernelmodel.machine import Machine, MachineSpec
from kernelmodel.memory import GIB, MIB, PAGE_SIZE, GuestContent
from kernelmodel.mm.memfd import MFD_ALLOW_SEALING, MFD_HUGE_SHIFT, MFD_HUGETLB, HugetlbMemfdInode
from kernelmodel.releases import CATALOGUE
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task
from kernelmodel.validate import validate_kernel
from tests.conformance.image_host import firmware_of, host_with, image_named, script_for
from tests.conformance.kho_reader import files_of, handover, memfd_content


def power_on(release: str, cmdline: str) -> Kernel:
    machine = Machine(MachineSpec((2 * GIB,), 2))
    clock = Clock(CostModel.load(), 2, 0)
    firmware = machine.cold_firmware(cmdline)
    return boot(machine, CATALOGUE[release], firmware, clock, config=CONFIG)


def jump(kernel: Kernel) -> dict[str, Any]:
    """Load and jump; what the reader finds in memory then."""
    kexec.kexec_file_load(kernel, kernel.release, kernel.params.cmdline)
    _, firmware = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    assert firmware.fdt is not None
    return handover(kernel.memory.read, firmware.fdt[0])


def preserve_as(description: dict[str, Any], contents: dict[int, bytes], task: Task) -> None:
    """Do what the program did that left the image; contents by token."""
    device = task.open(DEV_LIVEUPDATE)
    for session in description["sessions"]:
        fd = task.create_session(device, session["name"])
        for file in session["files"]:
            memory = task.memfd_create(0 if file["seals"] & 1 else MFD_ALLOW_SEALING)
            task.ftruncate(memory, file["size"])
            if file["size"]:
                task.pwrite(memory, contents[file["token"]], 0)
            if file["seals"] & ~1:
                task.add_seals(memory, file["seals"])
            task.preserve_fd(fd, memory, file["token"])
            task.lseek(memory, file["pos"])


def test_the_reader_agrees_with_what_is_known_of_the_real_image() -> None:
    image, description = image_named("img1")
    assert handover(image.read, image.fdt_pa) == description


def test_the_model_boots_from_a_real_kernels_memory_and_gives_everything_back() -> None:
    image, description = image_named("img1")
    script, answers = script_for(description)
    host = host_with(image, script)
    kernel = host.boot(CATALOGUE["7.3.4"], firmware_of(image, host.machine))
    assert kernel.luo.liveupdate_num == description["liveupdate_num"]
    metadata = kernel.kho.kexec_metadata()
    assert metadata is not None
    assert metadata.kexec_count == 1
    assert not kernel.tainted
    assert list(host.run_boot(kernel, 0)) == answers
    assert not kernel.tainted
    assert host.task is not None
    validate_kernel(kernel, [host.task])
    # only the pages that nobody restores are left: the old FDT, its metadata, LUO's FLB page
    assert sum(high - low for low, high, _ in kernel.kho.tags) == 3
    assert all(flb.incoming_finished for flb in kernel.luo.flbs.registered)


def test_a_session_that_is_not_retrieved_costs_its_pages_until_the_next_kexec() -> None:
    image, _ = image_named("img1")
    host = host_with(image, Script.parse("open d"))
    kernel = host.boot(CATALOGUE["7.3.4"], firmware_of(image, host.machine))
    assert sum(high - low for low, high, _ in kernel.kho.tags) == 39 - 1  # LuoSer is read already
    list(host.run_boot(kernel, 0))
    assert sum(high - low for low, high, _ in kernel.kho.tags) == 39 - 2  # the sessions' block
    kexec.kexec_file_load(kernel, kernel.release, CMDLINE)
    fresh = host.boot(*host.kexec(kernel))
    assert sum(high - low for low, high, _ in fresh.kho.tags) == 3


def test_the_model_leaves_what_the_real_kernel_left_but_for_addresses() -> None:
    image, description = image_named("img1")
    contents = {
        token: memfd_content(image.read, data)
        for _, token, data in files_of(image.read, image.fdt_pa)
    }
    kernel = power_on("7.3.4", CMDLINE)
    preserve_as(description, contents, Task(kernel, "agent"))
    found = jump(kernel)
    assert found == {**description, "fdt_pa": found["fdt_pa"]}


def test_the_reader_reads_a_host_with_huge_pages() -> None:
    cmdline = "liveupdate=on kho_scratch=32M,128M,32M hugepagesz=2M hugepages=8"
    kernel = power_on("7.3.4+hugetlb", cmdline)
    task = Task(kernel, "agent")
    session = task.create_session(task.open(DEV_LIVEUPDATE), "vm")
    huge = task.memfd_create(MFD_HUGETLB | 21 << MFD_HUGE_SHIFT)
    task.ftruncate(huge, 6 * MIB)
    inode = task.files.fget(huge).inode
    assert isinstance(inode, HugetlbMemfdInode)
    inode.hugetlb.populate(1, 2)  # the others are holes until the file is preserved
    inode.guest_write(1, 1, GuestContent("vm", 3), 512)
    task.preserve_fd(session, huge, 7)
    task.lseek(huge, 12345)
    plain = task.memfd_create()
    task.ftruncate(plain, 3 * PAGE_SIZE)
    task.preserve_fd(session, plain, 8)
    found = jump(kernel)
    (read_back,) = found["sessions"]
    first, second = read_back["files"]
    pages = first.pop("pages")
    assert first == {
        "compatible": "huge-memfd-v1",
        "token": 7,
        "pos": 12345,
        "size": 6 * MIB,
        "order": 9,
    }
    assert (second["compatible"], second["nr_folios"]) == ("memfd-v2", 3)
    for page in (0, 511):
        expected = GuestContent("vm", 3).page(512 + page)
        assert kernel.memory.read(pages[1] + page * PAGE_SIZE, PAGE_SIZE) == expected
    assert kernel.memory.read(pages[0], 2 * MIB) == bytes(2 * MIB)
    assert found["orders"]["9"] == 3
    assert ["hugetlb-v1", 1] in found["flbs"]


def test_a_host_that_preserves_nothing_still_hands_over_its_number() -> None:
    host = Host(Script.parse("open d\nkexec\nopen d\n"), CATALOGUE["7.3.4"])
    kernel = host.power_on()
    list(host.run_boot(kernel, 0))
    found = jump(kernel)
    assert (found["sessions"], found["flbs"], found["liveupdate_num"]) == ([], [], 1)
    assert found["preserved_entries"] == 4  # FDT, metadata, LuoSer, FLBs
