"""Files of memory: what kind a file is, where its FDT lies, what a host writes, booting."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from kernelmodel.abi.kexec_handover import KhoScratch
from kernelmodel.image.boot import CannotBoot, boot_image, plan_boot
from kernelmodel.image.fnv import FNV_BASIS, fnv1a_zeroes
from kernelmodel.image.frames import Image
from kernelmodel.image.load import NotAnImage, load_image
from kernelmodel.image.write import gzipped_image, handover_of
from kernelmodel.inspect.handover import inspect_image
from kernelmodel.kexec import kernel_kexec, kexec_file_load
from kernelmodel.memory import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE, MemoryRange
from kernelmodel.mm.guest_memfd import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
)
from tests.kernelmodel.handovers import (
    CHAINS,
    REAL,
    image_of,
    modelled_host,
    pages_of,
    real_description,
    real_pages,
)
from tests.kernelmodel.kernels import CMDLINE, Agent, power_on

SHARED = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED


def raw_file(path: Path, pages: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        for pfn, page in pages.items():
            file.seek(pfn << PAGE_SHIFT)
            file.write(page)
    return path


def elf_file(path: Path, pages: dict[int, bytes]) -> Path:
    """A core as QEMU dumps it: a segment for each page here, in no particular order."""
    numbers = sorted(pages, key=lambda pfn: pages[pfn])
    data = 64 + 56 * len(numbers)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1",
        *(4, 62, 1, 0, 64, 0, 0, 64, 56, len(numbers), 0, 0, 0),
    )
    segments = b"".join(
        struct.pack(
            "<IIQQQQQQ",
            *(1, 0, data + PAGE_SIZE * at, 0, pfn << PAGE_SHIFT, PAGE_SIZE, PAGE_SIZE, 0),
        )
        for at, pfn in enumerate(numbers)
    )
    path.write_bytes(header + segments + b"".join(pages[pfn] for pfn in numbers))
    return path


def test_gzipped_or_not_it_is_the_same_image(tmp_path: Path) -> None:
    plain = tmp_path / "image"
    plain.write_bytes(gzip.decompress(REAL.read_bytes()))
    assert inspect_image(load_image(plain)) == inspect_image(load_image(REAL))


def test_in_raw_memory_the_fdt_is_found(tmp_path: Path) -> None:
    pages, fdt_pa = real_pages()
    image = load_image(raw_file(tmp_path / "ram", pages))
    assert (image.fdt_pa, image.others) == (fdt_pa, ())
    assert inspect_image(image) == real_description()


def test_in_an_elf_core_as_well(tmp_path: Path) -> None:
    pages, fdt_pa = real_pages()
    image = load_image(elf_file(tmp_path / "core", pages))
    assert image.fdt_pa == fdt_pa
    assert inspect_image(image) == real_description()


def test_of_several_fdts_the_one_with_most_kexecs_counts(tmp_path: Path) -> None:
    pages, fdt_pa = real_pages()
    (metadata,) = [pfn for pfn, page in pages.items() if page.startswith(b"\1\0\0\0007.3.4\0")]
    older = bytearray(pages[metadata])
    older[69] = 0
    copy, older_metadata = 0x3000, 0x3001  # behind the real ones
    pages[older_metadata] = bytes(older)
    addresses = struct.pack("<Q", metadata << PAGE_SHIFT), struct.pack("<Q", older_metadata << 12)
    pages[copy] = pages[fdt_pa >> PAGE_SHIFT].replace(*addresses)
    path = raw_file(tmp_path / "ram", pages)
    image = load_image(path)
    assert (image.fdt_pa, image.others) == (fdt_pa, (copy << PAGE_SHIFT,))
    assert load_image(path, copy << PAGE_SHIFT).fdt_pa == copy << PAGE_SHIFT


def test_a_page_that_only_begins_like_an_fdt_is_none(tmp_path: Path) -> None:
    pages, fdt_pa = real_pages()
    pages[0x2000] = b"\xd0\x0d\xfe\xed" + bytes(PAGE_SIZE - 4)
    pages[0x2001] = b"\xd0\x0d\xfe\xed" * (PAGE_SIZE // 4)
    assert load_image(raw_file(tmp_path / "ram", pages)).fdt_pa == fdt_pa


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"KHOIMG1\0", "the .kho file has no header"),
        (gzip.compress(b"something else", mtime=0), "in the gzip there is no .kho file"),
        (b"\x1f\x8bno gzip at all", "in the gzip there is no .kho file"),
        (b"\x7fELF", "the ELF file is cut off"),
        (b"\x7fELF\1\1" + bytes(64), "not a 64-bit little-endian core"),
        (bytes(3 * PAGE_SIZE), "there is no FDT of KHO"),
        (b"a letter to nobody\n", "there is no FDT of KHO"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(NotAnImage, match=why) as caught:
        load_image(path)
    assert "what would be right is a .kho file" in str(caught.value)


def test_a_file_that_is_cut_short_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "cut.kho.gz"
    path.write_bytes(REAL.read_bytes()[:40_000])
    said = inspect_image(load_image(path))
    assert "of the 45 pages that its header says" in said["faults"][0]
    path = tmp_path / "long.kho"
    path.write_bytes(gzip.decompress(REAL.read_bytes()) + b"?")
    assert "there is more in the file" in inspect_image(load_image(path))["faults"][0]


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_host_writes_is_what_lies_in_its_memory(tmp_path: Path, packed: bool) -> None:
    host = modelled_host()
    handover = handover_of(host.kernel)
    data = gzipped_image(handover)
    plain = gzip.decompress(data)
    (tmp_path / "host").write_bytes(data if packed else plain)
    image = load_image(tmp_path / "host")
    assert inspect_image(image) == inspect_image(host.image())
    assert pages_of(image) == pages_of(host.image())
    size = 24 + image.frames.total * (8 + PAGE_SIZE)
    assert handover.image_bytes() == len(plain) == size


def test_the_same_memory_is_the_same_file() -> None:
    one, other = (gzipped_image(handover_of(modelled_host("7.3.4").kernel)) for _ in range(2))
    assert one == other


def test_guests_can_be_left_out(tmp_path: Path) -> None:
    handover = handover_of(modelled_host().kernel)
    data = gzipped_image(handover, guests=False)
    assert len(gzip.decompress(data)) == handover.image_bytes(guests=False) < MIB
    (tmp_path / "host.kho").write_bytes(data)
    said = inspect_image(load_image(tmp_path / "host.kho"))
    assert "faults" not in said
    (note,) = said["notes"]
    assert note.startswith("1029 of ")  # two huge pages and five small ones
    whole = inspect_image(modelled_host().image())
    assert said["preserved_pages"] == whole["preserved_pages"]
    files = [file for session in said["sessions"] for file in session["files"]]
    assert [file["size"] for file in files] == [17_920, 0, 4 * MIB]


def test_a_dump_of_a_hosts_whole_memory_says_the_same(tmp_path: Path) -> None:
    host = modelled_host()
    host.kernel.memory.save(tmp_path / "ram")
    assert inspect_image(load_image(tmp_path / "ram")) == inspect_image(host.image())


# Booting.


def files_of(said: dict[str, object]) -> list[tuple[object, ...]]:
    sessions = said["sessions"]
    assert isinstance(sessions, list)
    return [
        (session["name"], *(file[key] for key in ("compatible", "token", "pos", "size", "fnv1a")))
        for session in sessions
        for file in session["files"]
    ]


def dumped(tmp_path: Path) -> Image:
    host = modelled_host()
    host.kernel.memory.save(tmp_path / "ram")
    return load_image(tmp_path / "ram")


@pytest.mark.parametrize("source", ["real", "chains", "modelled", "raw"])
def test_a_modelled_host_boots_from_an_image_and_retrieves_everything(
    tmp_path: Path, source: str
) -> None:
    image = {
        "real": lambda: load_image(REAL),
        "chains": lambda: load_image(CHAINS),
        "modelled": lambda: modelled_host().image(),
        "raw": lambda: dumped(tmp_path),
    }[source]()
    said = inspect_image(image)
    booted = boot_image(image, plan_boot(image, said))
    assert booted["outcome"] == "up"
    assert booted["release"] == ("7.3.4" if source in ("real", "chains") else "7.3.4+hugetlb")
    assert booted["liveupdate_num"] == said["liveupdate_num"]
    assert files_of(booted) == files_of(said)
    assert booted["messages"] == []


def test_a_release_without_the_proposal_cannot_read_its_files() -> None:
    image = modelled_host().image()
    booted = boot_image(image, plan_boot(image, inspect_image(image), release="7.3.4"))
    assert booted["outcome"] == "up, but /dev/liveupdate says EIO"


@pytest.mark.parametrize("flags", [SHARED, SHARED | GUEST_MEMFD_FLAG_HUGETLB | 21 << 26])
def test_guest_memory_comes_back_with_its_vm(tmp_path: Path, flags: int) -> None:
    agent = Agent(power_on(f"{CMDLINE} hugepages=2", "7.3.4+guest-memfd"))
    vm = agent.task.kvm_create_vm()
    memory = agent.task.kvm_create_guest_memfd(vm, 2 * MIB, flags)
    session = agent.session("s")
    for token, fd in enumerate((vm, memory)):
        agent.task.preserve_fd(session, fd, token)
    kexec_file_load(agent.kernel, agent.kernel.release, CMDLINE)
    kernel_kexec(agent.kernel)
    (tmp_path / "image").write_bytes(gzipped_image(handover_of(agent.kernel)))
    image = load_image(tmp_path / "image")
    plan = plan_boot(image, inspect_image(image), release="7.3.4+guest-memfd")
    (session_back,) = boot_image(image, plan)["sessions"]
    vm_back, memory_back = session_back["files"]
    assert vm_back == {"compatible": "kvm-vm-v1", "token": 0}
    assert (memory_back["size"], memory_back["pos"]) == (2 * MIB, 0)
    assert memory_back["fnv1a"] == f"{fnv1a_zeroes(FNV_BASIS, 2 * MIB):016x}"


def test_a_handover_that_the_kernel_dies_of_is_told() -> None:
    pages, fdt_pa = real_pages()
    (luo,) = [pfn for pfn, page in pages.items() if page.startswith(b"luo-v5\0")]
    pages[luo] = b"luo-v4" + pages[luo][6:]
    image = image_of(pages, fdt_pa)
    booted = boot_image(image, plan_boot(image, inspect_image(image)))
    assert booted["outcome"].startswith("panic: ")


def test_scratch_and_memory_can_be_said() -> None:
    image = load_image(REAL)
    said = inspect_image(image)
    memory = (MemoryRange(0, 640 * KIB, 0), MemoryRange(MIB, GIB - MIB, 0))
    areas = (KhoScratch(512 * MIB, 32 * MIB), KhoScratch(640 * MIB, 128 * MIB))
    booted = boot_image(image, plan_boot(image, said, memory_map=memory, scratch=areas))
    assert files_of(booted) == files_of(said)
    assert booted["scratch"] == [[area.addr, area.size] for area in areas]
    assert booted["memory"][1] == [MIB, GIB - MIB]


def test_every_area_of_scratch_that_makes_no_sense_is_told() -> None:
    image = load_image(REAL)
    areas = tuple(
        KhoScratch(addr, size)
        for addr, size in ((0x4AF000, 4 * MIB), (1 << 50, 4 * MIB), (512 * MIB + 1, 4 * MIB))
    )
    memory = (MemoryRange(0, GIB, 0),)
    with pytest.raises(CannotBoot) as caught:
        plan_boot(image, inspect_image(image), memory_map=memory, scratch=areas)
    assert str(caught.value).splitlines() == [
        "scratch 0x4af000+0x400000 is not clear of the image, which has 0x4af000–0x4b4fff",
        "scratch 0x4000000000000+0x400000 is not in memory",
        "scratch 0x20000001+0x400000 is not made of whole pages",
    ]


def test_memory_without_room_for_scratch_or_scratch_without_room_for_a_kernel() -> None:
    image = load_image(REAL)
    said = inspect_image(image)
    with pytest.raises(CannotBoot, match=r"memory has no 2\d\d MiB for scratch"):
        plan_boot(image, said, memory_map=(MemoryRange(0, 64 * MIB, 0),))
    with pytest.raises(CannotBoot, match="scratch has no room for a kernel of 32768 KiB"):
        plan_boot(image, said, scratch=(KhoScratch(512 * MIB, 4 * MIB),))
    with pytest.raises(CannotBoot, match=r"there is no release '9\.9'; known are 6\.16"):
        plan_boot(image, said, release="9.9")


def test_a_page_in_the_bios_hole_or_far_away_does_not_stop_it() -> None:
    pages, fdt_pa = real_pages()
    pages[0xA0] = pages[1 << 60] = bytes(PAGE_SIZE)
    image = image_of(pages, fdt_pa)
    said = inspect_image(image)
    assert files_of(boot_image(image, plan_boot(image, said))) == files_of(said)
