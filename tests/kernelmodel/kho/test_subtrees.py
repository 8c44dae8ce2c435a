"""Blobs in KHO's FDT: added, taken out, found again, and the bytes that editing leaves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.errors import InvalidArgument, NoEntry, NoMemory
from kernelmodel.kernel import Kernel
from kernelmodel.kho.debugfs import debugfs_files
from kernelmodel.kho.fdt import Fdt, FdtNode
from kernelmodel.kho.root_fdt import RootFdt
from kernelmodel.memory import PAGE_SIZE
from tests.kernelmodel.kernels import CMDLINE, CONFIG, power_on, reboot


def page(kernel: Kernel) -> bytes:
    return kernel.memory.read(kernel.kho.fdt_pa, PAGE_SIZE)


def total(fdt: bytes) -> int:
    return int.from_bytes(fdt[4:8], "big")


def test_a_new_blob_stands_before_the_older_ones() -> None:
    kernel = power_on()
    kernel.kho.add_subtree("mine", 0x5000, 12)
    assert [*kernel.kho.outgoing_subtrees] == ["mine", "LUO", "kexec-metadata"]
    assert kernel.kho.outgoing_subtrees["mine"] == (0x5000, 12)
    assert reboot(kernel).kho.retrieve_subtree("mine") == (0x5000, 12)


def test_a_blob_that_is_taken_out_is_not_handed_over_and_its_name_is_free() -> None:
    kernel = power_on()
    kernel.kho.add_subtree("mine", 0x5000, 12)
    kernel.kho.remove_subtree("mine")
    kernel.kho.remove_subtree("mine")  # one that is not there is none
    assert "kho/out/sub_fdts/mine" not in debugfs_files(kernel)
    kernel.kho.add_subtree("mine", 0x6000, 1)
    assert reboot(kernel).kho.retrieve_subtree("mine") == (0x6000, 1)
    kernel.kho.remove_subtree("mine")


def test_taking_out_moves_what_is_behind_and_leaves_the_end_as_it_was() -> None:
    kernel = power_on()
    plain = page(kernel)
    kernel.kho.add_subtree("mine", 0x5000, 12)
    longer = page(kernel)
    kernel.kho.remove_subtree("mine")
    after = page(kernel)
    end = total(plain)
    assert total(longer) > total(after) == end
    assert after[:end] == plain[:end]
    assert after[end:] == longer[end:]
    assert any(after[end : total(longer)])


def test_an_add_that_half_fits_leaves_the_fdt_as_it_was_and_bytes_behind_it() -> None:
    kernel = power_on()
    number = 0
    while total(page(kernel)) + 200 < PAGE_SIZE:
        kernel.kho.add_subtree(f"filler-{number:02}", number, 8)
        number += 1
    before = page(kernel)
    room = PAGE_SIZE - total(before)
    # the node fits, its properties do not: 20 bytes each, and 8 for the node's tokens
    name = "n" * (room - 8 - 24)
    with pytest.raises(NoMemory):
        kernel.kho.add_subtree(name, 1, 1)
    after = page(kernel)
    assert after[: total(before)] == before[: total(before)]
    assert total(after) == total(before)
    assert after != before
    assert b"blob-size\0" in after[total(before) :]  # the strings had moved up
    assert name not in kernel.kho.outgoing_subtrees
    assert reboot(kernel).kho.retrieve_subtree("filler-00") == (0, 8)


def add_stepwise(fdt: RootFdt, name: str, pa: int, size: int) -> None:
    """As `add`, and each edit is written, as in the kernel."""
    node = fdt.add_subnode(fdt.root, name)
    try:
        fdt.step()
        fdt.set_prop(node, "preserved-data", pa.to_bytes(8, "little"))
        fdt.step()
        fdt.set_prop(node, "blob-size", size.to_bytes(8, "little"))
        fdt.step()
    except NoMemory:
        fdt.remove(name)


def test_adding_at_once_leaves_the_bytes_that_one_edit_after_the_other_leaves() -> None:
    for room in range(0, 300, 4):  # in the page, from none at all to enough for two blobs
        pages = bytearray(PAGE_SIZE), bytearray(PAGE_SIZE)
        at_once, stepwise = (RootFdt(partial(_write, page)) for page in pages)
        for fdt, add in ((at_once, at_once.add), (stepwise, partial(add_stepwise, stepwise))):
            fdt.start("kho-v4", 0x4AE000)
            fdt.add("first", 0x1000, 1)
            fdt.add("n" * (PAGE_SIZE - fdt.packed_size - 52 - room), 0x2000, 2)
            assert PAGE_SIZE - fdt.packed_size in range(room, room + 4)
            for number in range(3):
                with suppress(NoMemory):
                    add(f"blob {number}", 0x1000 * number, number)
        assert pages[0] == pages[1]


def _write(page: bytearray, packed: bytes) -> None:
    page[: len(packed)] = packed


def tampered(change: Callable[[Fdt], None]) -> Kernel:
    """A kernel that was handed an FDT after `change`."""
    kernel = power_on()
    kexec.kexec_file_load(kernel, kernel.release, CMDLINE)
    release, firmware = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    fdt = Fdt.parse(page(kernel))
    change(fdt)
    kernel.memory.write(kernel.kho.fdt_pa, fdt.pack())
    return boot(kernel.machine, release, firmware, kernel.clock, config=CONFIG)


def node(props: dict[str, bytes]) -> Callable[[Fdt], None]:
    def add(fdt: Fdt) -> None:
        fdt.root.subnodes.insert(0, FdtNode("mine", props))
        fdt.strings = list(dict.fromkeys([*fdt.strings, *props]))

    return add


ADDRESS, SIZE = (0x5000).to_bytes(8, "little"), (12).to_bytes(8, "little")


@pytest.mark.parametrize(
    "props",
    [
        {},
        {"blob-size": SIZE},
        {"preserved-data": ADDRESS},
        {"blob-size": SIZE, "preserved-data": ADDRESS[:4]},
        {"blob-size": SIZE + b"\0", "preserved-data": ADDRESS},
        {"blob-size": b"", "preserved-data": ADDRESS},
    ],
)
def test_a_blob_without_a_whole_address_or_size_is_invalid(props: dict[str, bytes]) -> None:
    kernel = tampered(node(props))
    with pytest.raises(InvalidArgument):
        kernel.kho.retrieve_subtree("mine")
    assert kernel.luo.liveupdate_num == 1  # others are as good as before


def test_order_and_other_properties_of_a_blob_do_not_matter() -> None:
    kernel = tampered(node({"preserved-data": ADDRESS, "note": b"x", "blob-size": SIZE}))
    assert kernel.kho.retrieve_subtree("mine") == (0x5000, 12)
    with pytest.raises(NoEntry):
        kernel.kho.retrieve_subtree("yours")


def compatible(value: bytes) -> Callable[[Fdt], None]:
    def change(fdt: Fdt) -> None:
        fdt.root.props["compatible"] = value

    return change


@pytest.mark.parametrize(
    ("value", "revived"),
    [
        (b"kho-v4\0", True),
        (b"kho-v5\0kho-v4\0", True),  # a list of strings, of which one will do
        (b"kho-v4\0kho-v5\0", True),
        (b"kho-v4", False),  # no string without its end
        (b"kho-v44\0", False),
        (b"kho-v3\0", False),
        (b"", False),
    ],
)
def test_one_of_the_fdts_compatible_strings_is_this_kernels(value: bytes, revived: bool) -> None:
    kernel = tampered(compatible(value))
    assert (kernel.kho.incoming is not None) == revived
    if not revived:
        # an ordinary cold boot in all respects
        assert kernel.luo.liveupdate_num == 0
        assert not list(kernel.kho.tags)
        assert kernel.kho.enabled
        assert kernel.kho.scratch


@pytest.mark.parametrize(
    ("size", "version", "counts"), [(73, 1, True), (80, 1, True), (72, 1, False), (73, 2, False)]
)
def test_metadata_counts_on_if_it_is_long_enough_and_of_this_version(
    size: int, version: int, counts: bool
) -> None:
    def change(fdt: Fdt) -> None:
        metadata = fdt.root.subnode("kexec-metadata")
        assert metadata is not None
        metadata.props["blob-size"] = size.to_bytes(8, "little")

    kernel = reboot(power_on())
    pa, _ = kernel.kho.outgoing_subtrees["kexec-metadata"]
    kernel.memory.write(pa, version.to_bytes(4, "little"))
    kexec.kexec_file_load(kernel, kernel.release, CMDLINE)
    release, firmware = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    fdt = Fdt.parse(page(kernel))
    change(fdt)
    kernel.memory.write(kernel.kho.fdt_pa, fdt.pack())
    fresh = boot(kernel.machine, release, firmware, kernel.clock, config=CONFIG)
    again = reboot(fresh).kho.kexec_metadata()
    assert again is not None
    assert again.kexec_count == (3 if counts else 1)


def test_without_metadata_counting_begins_anew() -> None:
    def change(fdt: Fdt) -> None:
        fdt.root.subnodes = [sub for sub in fdt.root.subnodes if sub.name == "LUO"]

    kernel = tampered(change)
    assert kernel.kho.kexec_metadata() is None
    metadata = reboot(kernel).kho.kexec_metadata()
    assert metadata is not None
    assert metadata.kexec_count == 1
