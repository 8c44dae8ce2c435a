"""What KHO shows in debugfs, as a running 7.3.4 was seen to."""

from __future__ import annotations

import pytest

from kernelmodel.abi.kexec_handover import KhoKexecMetadata
from kernelmodel.kernel import Kernel
from kernelmodel.kho.debugfs import debugfs_files
from kernelmodel.kho.fdt import Fdt
from kernelmodel.memory import GIB, MIB
from tests.kernelmodel.kernels import CMDLINE, power_on, reboot

OUT = {"fdt", "scratch_len", "scratch_phys", "sub_fdts/LUO", "sub_fdts/kexec-metadata"}
IN = {"fdt", "sub_fdts/LUO", "sub_fdts/kexec-metadata"}


def names(kernel: Kernel, folder: str) -> set[str]:
    return {path.removeprefix(folder) for path in debugfs_files(kernel) if path.startswith(folder)}


def read(kernel: Kernel, path: str) -> bytes:
    return debugfs_files(kernel)[path]()


def test_the_files_of_a_cold_boot_and_of_a_kho_boot() -> None:
    kernel = power_on()
    assert names(kernel, "kho/out/") == OUT
    assert names(kernel, "kho/in/") == set()
    fresh = reboot(kernel)
    assert names(fresh, "kho/out/") == OUT - {"fdt"}
    assert names(fresh, "kho/in/") == IN


def test_scratch_is_a_line_for_each_area_in_the_arrays_order() -> None:
    kernel = power_on("kho_scratch=32M,128M,32M", node_bytes=(GIB,))
    assert read(kernel, "kho/out/scratch_len") == b"0x2000000\n0x8000000\n0x2000000\n"
    lines = [f"{area.addr:#x}" for area in kernel.kho.scratch]
    assert read(kernel, "kho/out/scratch_phys").decode().split() == lines
    fresh = reboot(kernel)
    assert read(fresh, "kho/out/scratch_phys") == read(kernel, "kho/out/scratch_phys")


def test_an_area_of_no_size_is_shown_too() -> None:
    kernel = power_on("kho_scratch=0%")
    assert read(kernel, "kho/out/scratch_len") == b"0x0\n0x0\n0x0\n"


def test_the_outgoing_fdt_is_cut_to_what_it_was_when_kho_came_up() -> None:
    kernel = power_on()
    shown = read(kernel, "kho/out/fdt")
    assert len(shown) == 233
    assert int.from_bytes(shown[4:8], "big") == 285  # its own header knows better


def test_the_incoming_fdt_is_whole() -> None:
    kernel = power_on()
    fdt = Fdt.parse(read(reboot(kernel), "kho/in/fdt"))
    assert [node.name for node in fdt.root.subnodes] == ["LUO", "kexec-metadata"]


def test_blobs_are_shown_byte_by_byte() -> None:
    kernel = power_on()
    metadata = KhoKexecMetadata.unpack(read(kernel, "kho/out/sub_fdts/kexec-metadata"))
    assert (metadata.version, metadata.kexec_count) == (1, 1)
    assert metadata.previous_release.startswith(b"7.3.4\0")
    assert read(kernel, "kho/out/sub_fdts/LUO")[:16] == b"luo-v5\0\0" + (1).to_bytes(8, "little")
    fresh = reboot(kernel)
    assert read(fresh, "kho/in/sub_fdts/kexec-metadata") == metadata.pack()
    assert read(fresh, "kho/out/sub_fdts/LUO")[8] == 2


def test_a_blob_that_was_given_back_shows_what_is_there_now() -> None:
    """LUO frees its header as soon as it has read it."""
    kernel = reboot(power_on())
    pa, _ = kernel.kho.retrieve_subtree("LUO")
    kernel.memory.write(pa, b"somebody else's")
    assert read(kernel, "kho/in/sub_fdts/LUO").startswith(b"somebody else's")


@pytest.mark.parametrize("cmdline", ["kho=off", "kho_scratch=8G,1M,1M", "elfcorehdr=0x2000000"])
def test_a_kernel_without_kho_shows_nothing(cmdline: str) -> None:
    assert debugfs_files(power_on(cmdline)) == {}
    off = reboot(power_on(), cmdline=f"{CMDLINE} kho=off")
    assert off.kho.incoming is not None
    assert debugfs_files(off) == {}


def test_an_absurd_size_is_shown_in_part() -> None:
    kernel = power_on()
    kernel.kho.add_subtree("huge", 16 * MIB, 1 << 60)
    kernel.kho.add_subtree("nowhere", 1 << 60, 8)
    fresh = reboot(kernel)
    assert len(read(fresh, "kho/in/sub_fdts/huge")) == MIB
    assert "kho/in/sub_fdts/nowhere" not in debugfs_files(fresh)
