"""Loading and jumping: where segments go, what refuses, what runs afterwards."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from kernelmodel import kexec
from kernelmodel.abi.kexec_handover import KhoScratch
from kernelmodel.boot import boot
from kernelmodel.errors import (
    AddressNotAvailable,
    InvalidArgument,
    KernelPanic,
    ModelBug,
    NoExec,
)
from kernelmodel.kernel import Kernel
from kernelmodel.kexec import KernelImageContent, KexecFileFlags
from kernelmodel.memory import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE, MemoryRange
from kernelmodel.releases import CATALOGUE, Release
from kernelmodel.sim.cost import CostModel
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, CONFIG, Agent, power_on, reboot


def load(kernel: Kernel, cmdline: str = CMDLINE) -> dict[str, kexec.Segment]:
    kexec.kexec_file_load(kernel, kernel.release, cmdline)
    assert kernel.kexec_image is not None
    return {segment.what: segment for segment in kernel.kexec_image.segments}


def test_a_reboot_without_an_image_freezes_nothing() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.task.preserve_fd(agent.session("s"), agent.memfd(4096), 1)
    with pytest.raises(InvalidArgument):
        kexec.kernel_kexec(kernel)
    assert not kernel.luo.sessions.serialized
    agent.session("still possible")


def test_what_is_no_kernel_is_not_loaded() -> None:
    fixed = Release("6.1-rc9", None, None, None, relocatable=False)
    with pytest.raises(NoExec):
        kexec.kexec_file_load(power_on(), fixed, CMDLINE)


def test_a_command_line_has_2016_bytes() -> None:
    kernel = power_on()
    load(kernel, "x" * 2016)
    with pytest.raises(InvalidArgument):
        load(kernel, "x" * 2017)


def test_every_segment_lies_in_one_scratch_area_and_none_overlaps() -> None:
    kernel = power_on()
    segments = load(kernel)
    areas = [(area.addr, area.addr + area.size) for area in kernel.kho.scratch]
    taken = sorted((s.pa, s.pa + s.size) for s in segments.values())
    assert set(segments) == {"scratch", "purgatory", "boot_params", "kernel", "initrd"}
    for start, end in taken:
        assert sum(low <= start and end <= high for low, high in areas) == 1
    assert all(first[1] <= second[0] for first, second in pairwise(taken))
    assert segments["kernel"].pa % (2 * MIB) == 0
    assert segments["scratch"].pa % (64 * 1024) == 0
    # the first area that fits, from its top
    assert segments["scratch"].pa == areas[0][1] - 64 * 1024


@pytest.mark.parametrize(
    ("kernel_mib", "initrd_mib", "missing"),
    [(33, 2, "kernel"), (30, 33, "initrd"), (30, 15, None), (8, 31, None)],
)
def test_segments_that_fit_no_area(kernel_mib: int, initrd_mib: int, missing: str | None) -> None:
    config = replace(CONFIG, kernel_bytes=kernel_mib * MIB, initrd_bytes=initrd_mib * MIB)
    kernel = power_on("liveupdate=on kho_scratch=16M,32M,8M", config=config)
    if missing is None:
        load(kernel)
        return
    with pytest.raises(AddressNotAvailable) as caught:
        load(kernel)
    assert caught.value.context["segment"] == missing
    assert kernel.kexec_image is None


def test_segments_are_tried_in_the_order_of_the_areas_from_the_top_of_each() -> None:
    """What the low area cannot hold goes into the global one, and the next segment low again."""
    config = replace(CONFIG, kernel_bytes=20 * MIB, initrd_bytes=2 * MIB)
    kernel = power_on("liveupdate=on kho_scratch=16M,32M,8M", config=config)
    low, globl, _ = kernel.kho.scratch
    segments = load(kernel)
    top = low.addr + low.size
    assert segments["scratch"].pa == top - 64 * 1024  # aligned to 64 KiB
    # the smaller ones fill up what is left above it and go on below
    assert segments["purgatory"].pa == top - 5 * PAGE_SIZE
    assert segments["boot_params"].pa == top - 7 * PAGE_SIZE
    assert segments["kernel"].pa == globl.addr + 12 * MIB
    assert segments["initrd"].pa + 2 * MIB == segments["scratch"].pa


def test_segments_lie_where_a_running_7_3_4_put_them() -> None:
    """As KEXEC_FILE_DEBUG showed: scratch as there, a kernel and an initrd of that size."""
    config = replace(CONFIG, kernel_bytes=0xA5E000, initrd_bytes=0xDEBFC)
    kernel = power_on("liveupdate=on kho_scratch=32M,128M,32M", node_bytes=(GIB,), config=config)
    kernel.kho.scratch = [
        KhoScratch(0x3C800000, 32 * MIB),
        KhoScratch(0x34800000, 128 * MIB),
        KhoScratch(0x32800000, 32 * MIB),
    ]
    found = {what: (segment.pa, segment.size) for what, segment in load(kernel).items()}
    assert found == {
        "scratch": (0x3E7F0000, 0x1000),
        "purgatory": (0x3E7FB000, 0x5000),
        "boot_params": (0x3E7F9000, 0x2000),
        "kernel": (0x3DC00000, 0xA5E000),
        "initrd": (0x3E711000, 0xDF000),
    }


def test_without_kho_segments_lie_at_the_top_of_the_last_memory() -> None:
    config = replace(CONFIG, kernel_bytes=0xA5E000, initrd_bytes=0xDEBFC)
    kernel = power_on("kho=off", node_bytes=(GIB,), config=config)
    top = 0x3FFE0000  # less than there is, as firmware keeps some
    low = MemoryRange(0, 640 * KIB, 0)
    memory_map = (low, MemoryRange(MIB, top - MIB, 0))
    kernel.firmware = replace(kernel.firmware, memory_map=memory_map)
    found = {what: segment.pa for what, segment in load(kernel).items()}
    assert found == {
        "purgatory": 0x3FFDB000,
        "boot_params": 0x3FFD9000,
        "kernel": 0x3F400000,
        "initrd": 0x3FEFA000,
    }


def test_unknown_flags_are_refused_before_anything_is_looked_at() -> None:
    kernel = power_on()
    with pytest.raises(InvalidArgument):
        kexec.kexec_file_load(kernel, replace(kernel.release, relocatable=False), "", 0x100)


@pytest.mark.parametrize("flags", [8, 0x10, 0x20, 0x38])
def test_flags_that_change_nothing(flags: int) -> None:
    kernel = power_on()
    kexec.kexec_file_load(kernel, kernel.release, CMDLINE, flags)
    assert kernel.kexec_image is not None


def test_an_image_is_replaced_by_the_next_and_stays_when_that_fails() -> None:
    kernel = power_on()
    load(kernel, "one")
    load(kernel, "two")
    for release, cmdline in (
        (replace(kernel.release, relocatable=False), "three"),
        (kernel.release, "x" * 3000),
    ):
        with pytest.raises((NoExec, InvalidArgument)):
            kexec.kexec_file_load(kernel, release, cmdline)
    assert kexec.kernel_kexec(kernel).cmdline == "two"


def test_no_kernel_is_found_out_before_a_command_line_that_is_too_long() -> None:
    kernel = power_on()
    with pytest.raises(NoExec):
        kexec.kexec_file_load(kernel, replace(kernel.release, relocatable=False), "x" * 3000)


def test_no_room_for_the_scratch_array_is_found_out_before_the_command_line() -> None:
    kernel = power_on("liveupdate=on kho_scratch=0%")
    with pytest.raises(AddressNotAvailable) as caught:
        kexec.kexec_file_load(kernel, kernel.release, "x" * 3000)
    assert caught.value.context["segment"] == "scratch"


def test_an_unloaded_image_is_gone() -> None:
    kernel = power_on()
    load(kernel)
    for _ in range(2):  # there need be none
        kexec.kexec_file_load(kernel, kernel.release, "x" * 3000, KexecFileFlags.UNLOAD)
    with pytest.raises(InvalidArgument):
        kexec.kernel_kexec(kernel)
    Agent(kernel).session("nothing is frozen")


def test_a_kernel_without_an_initrd() -> None:
    kernel = power_on()
    kexec.kexec_file_load(kernel, kernel.release, CMDLINE, KexecFileFlags.NO_INITRAMFS)
    given = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    assert given[1].initrd is None
    fresh = boot(kernel.machine, *given, kernel.clock, config=CONFIG)
    assert fresh.kho.incoming is not None
    validate_kernel(fresh, [])


def test_no_memory_is_kept_for_a_crash_kernel() -> None:
    kernel = power_on()
    load(kernel)
    with pytest.raises(AddressNotAvailable):
        kexec.kexec_file_load(kernel, kernel.release, CMDLINE, KexecFileFlags.ON_CRASH)
    assert kernel.kexec_image is not None


def test_the_scratch_array_is_that_of_the_load() -> None:
    kernel = power_on()
    areas = list(kernel.kho.scratch)
    load(kernel)
    kernel.kho.scratch.reverse()
    _, firmware = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    assert firmware.scratch is not None
    pa, size = firmware.scratch
    assert kernel.memory.read(pa, size) == b"".join(area.pack() for area in areas)


def test_without_kho_segments_go_anywhere_and_nothing_is_handed_over() -> None:
    kernel = power_on("kho=off", config=replace(CONFIG, initrd_bytes=100 * MIB))
    load(kernel)
    _, firmware = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    assert (firmware.fdt, firmware.scratch) == (None, None)
    assert reboot(kernel).luo.liveupdate_num == 0


def test_without_kho_the_purgatory_sums_up_what_was_loaded() -> None:
    took, loaded = [], 0
    for cmdline in (CMDLINE, "kho=off"):
        kernel = power_on(cmdline)
        loaded = sum(segment.size for segment in load(kernel).values())
        image, before = kexec.kernel_kexec(kernel), kernel.clock.now_ns
        kexec.jump(kernel, image)
        took.append(kernel.clock.now_ns - before)
    assert took[1] - took[0] == CostModel.load().cost_ns("purgatory_sha256", loaded // MIB) > 0


@pytest.mark.parametrize("offset", [0x202, 0x600, 0x602, 0x620], ids=hex)
def test_what_lies_at_the_entry_point_is_what_runs(offset: int) -> None:
    kernel = power_on(release="7.3.2")
    kexec.kexec_file_load(kernel, CATALOGUE["7.3.4"], CMDLINE)
    release, firmware = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    assert release == CATALOGUE["7.3.4"]
    assert firmware.kernel is not None
    kernel.memory.write(firmware.kernel[0] + offset, b"XXXX")
    with pytest.raises(KernelPanic, match="no kernel"):
        kexec.release_at(kernel.machine, firmware.kernel[0])


def test_a_release_of_ones_own_runs_by_what_its_image_says() -> None:
    own = replace(CATALOGUE["7.3.4"], name="7.3.4-own", memfd="memfd-v9", based_on="7.3.4")
    kernel = power_on()
    kexec.kexec_file_load(kernel, own, CMDLINE)
    given = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    fresh = boot(kernel.machine, *given, kernel.clock, config=CONFIG)
    assert fresh.release == own
    assert [handler.compatible for handler in fresh.luo.handlers] == ["memfd-v9"]


def test_an_image_names_itself_on_its_first_page() -> None:
    content = KernelImageContent("7.3.4")
    assert content.page(0)[0x202:0x206] == b"HdrS"
    assert len(content.page(0)) == len(content.page(9)) == PAGE_SIZE
    assert content.page(3) != content.page(4)
    assert content.key() != KernelImageContent("7.3.2").key()


def test_preserved_after_the_load_is_handed_over_all_the_same() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    load(kernel)
    agent.task.preserve_fd(agent.session("s"), agent.memfd(4, b"late"), 1)
    given = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    fresh = boot(kernel.machine, *given, kernel.clock, config=CONFIG)
    after = Agent(fresh)
    assert after.task.pread(after.task.retrieve_fd(after.retrieve("s"), 1), 9, 0) == b"late"


def test_nothing_can_be_asked_of_a_kernel_that_has_serialised() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    load(kernel)
    kexec.kernel_kexec(kernel)
    with pytest.raises(ModelBug, match="block"):
        agent.session("late")


def test_scratch_is_all_that_the_next_kernel_overwrites() -> None:
    """Every page outside scratch that is preserved reads the same after three kexecs."""
    kernel = power_on()
    pfn = kernel.page_alloc.alloc_pages(4)
    for n in range(16):
        kernel.memory.write(pfn + n << PAGE_SHIFT, bytes([n + 1]) * PAGE_SIZE)
    before = kernel.memory.content_digest([(pfn, 16)])
    for _ in range(3):
        kernel.kho.preserve_folios(pfn, 4)
        kernel = reboot(kernel)
        assert kernel.memory.content_digest([(pfn, 16)]) == before
        assert kernel.kho.restore_folios(pfn, 4) == 1


def test_booting_is_the_same_every_time() -> None:
    one, two = reboot(power_on()), reboot(power_on())
    assert one.page_alloc.buddyinfo() == two.page_alloc.buddyinfo()
    assert one.clock.now_ns == two.clock.now_ns
    assert one.kho.handover_digest() == two.kho.handover_digest()
    assert one.messages == two.messages


@pytest.mark.parametrize("release", CATALOGUE)
def test_every_release_boots_cold_and_is_consistent(release: str) -> None:
    kernel = power_on(release=release)
    validate_kernel(kernel, [])
    assert kernel.kho.enabled == (CATALOGUE[release].kho is not None)
    assert kernel.live_update.enabled == (CATALOGUE[release].luo is not None)


@pytest.mark.parametrize("node_bytes", [(64 * MIB,), (40 * MIB, 24 * MIB)])
def test_too_little_memory_for_scratch_is_a_boot_without_kho(node_bytes: tuple[int, ...]) -> None:
    kernel = power_on(node_bytes=node_bytes)
    assert not kernel.kho.enabled  # no room for 56 MiB of scratch
    validate_kernel(kernel, [])


def test_a_machine_without_room_for_early_memory_panics() -> None:
    with pytest.raises(KernelPanic, match="out of memory"):
        power_on(node_bytes=(2 * MIB,))


def test_kho_boots_live_on_scratch_alone_until_they_know_better() -> None:
    kernel = power_on("liveupdate=on kho_scratch=4M,8M,0")
    # kernel and initrd leave too little for the memory map, though most of memory is free
    with pytest.raises(KernelPanic, match="out of memory"):
        reboot(kernel)
