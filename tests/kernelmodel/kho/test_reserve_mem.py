"""`reserve_mem=`: memory with a name that the next kernel finds at the same place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernelmodel.errors import NoEntry
from kernelmodel.kernel import Kernel
from kernelmodel.kho.debugfs import debugfs_files, string_get_size
from kernelmodel.kho.pages import blocks_of
from kernelmodel.kho.reserve_mem import Reservation, ReserveMem
from kernelmodel.memory import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CONFIG, power_on, reboot

BASE = "liveupdate=on kho_scratch=16M,32M,8M"
NO_DEBUG = replace(CONFIG, kexec_handover_debug=False)
#: What a running 7.3.4 wrote for reserve_mem=4M:4M:trace reserve_mem=1M:4096:other.
REAL = bytes.fromhex(
    "d00dfeed0000012600000040000001100000003000000011000000100000000000000016000000d000000000"
    "00000000000000000000000000000000000000000000000100000000000000030000000c0000000b6d656d62"
    "6c6f636b2d763100000000017472616365000000000000030000000f0000000b726573657276652d6d656d2d"
    "763100000000000300000008000000050000003e000000000000000300000008000000000000400000000000"
    "00000002000000016f74686572000000000000030000000f0000000b726573657276652d6d656d2d76310000"
    "00000003000000080000000500a06d3f00000000000000030000000800000000000010000000000000000002"
    "000000020000000973697a6500737461727400636f6d70617469626c6500"
)


def words(*values: str) -> str:
    return " ".join([BASE, *(f"reserve_mem={value}" for value in values)])


def found(kernel: Kernel, name: str) -> Reservation:
    entry = kernel.reserve_mem.find(name)
    assert entry is not None
    return entry


def handed_over(kernel: Kernel) -> bool:
    return "memblock" in kernel.kho.outgoing_subtrees


def test_the_blob_is_a_real_kernels_byte_for_byte() -> None:
    kernel = power_on(BASE, node_bytes=(GIB,), config=NO_DEBUG)
    kernel.reserve_mem.table = [
        Reservation("trace", 0x3E000000, 4 * MIB),
        Reservation("other", 0x3F6DA000, MIB),
    ]
    kernel.reserve_mem.prepare()
    pa, size = kernel.kho.outgoing_subtrees["memblock"]
    page = kernel.memory.read(pa, PAGE_SIZE)
    assert page[:size] == REAL
    assert page[size:] == b"size\0start\0compatible\0".rjust(PAGE_SIZE - size, b"\0")


def test_memory_is_where_it_was_with_what_was_in_it_for_as_long_as_it_is_asked_for() -> None:
    asked = words("4M:4M:trace", "1M:4096:log")
    kernel = power_on(asked)
    trace, log = found(kernel, "trace"), found(kernel, "log")
    assert trace.start % (4 * MIB) == 0
    kernel.memory.write(trace.start, b"first")
    kernel.memory.write(log.start + MIB - 4, b"last")
    for _ in range(3):
        assert kernel.kho.preserved_keys >= len([*blocks_of(*trace.pages), *blocks_of(*log.pages)])
        kernel = reboot(kernel)
        assert (found(kernel, "trace"), found(kernel, "log")) == (trace, log)
        assert kernel.memory.read(trace.start, 5) == b"first"
        assert kernel.memory.read(log.start + MIB - 4, 4) == b"last"
        assert not kernel.page_alloc.any_free(*trace.pages)
        validate_kernel(kernel, [])
    # nobody asks: reserved for this kernel, which hands nothing on, and free in the next
    silent = reboot(kernel, cmdline=BASE)
    assert silent.reserve_mem.table == []
    assert not silent.page_alloc.any_free(*trace.pages)
    assert not handed_over(silent)
    assert reboot(silent).page_alloc.is_free(*trace.pages)


@pytest.mark.parametrize(
    "word",
    [
        *("0:4096:nul", "1M:4096", "1M:4096:", "1M", "", "x:4096:a", "1M:y:a", "1M:-1:a"),
        *("1Mx:4096:a", "1M:4096x:a", "1M:1:abcdefghijklmnop"),
    ],
)
def test_a_word_that_cannot_be_read_reserves_nothing(word: str) -> None:
    kernel = power_on(words(word))
    assert kernel.reserve_mem.table == []
    assert any(line.startswith(f"reserve_mem={word}: should be") for line in kernel.messages)
    assert not handed_over(kernel)
    assert "memblock/reserve_mem_param" not in debugfs_files(kernel)


@pytest.mark.parametrize("name", ["abcdefghijklmno", "9abc", "123", "a,b", "a:b"])
def test_names_may_be_odd(name: str) -> None:
    kernel = power_on(words(f"1M:4096:{name}"))
    assert found(reboot(kernel), name) == found(kernel, name)


def test_a_name_twice_a_ninth_and_too_much_are_messages() -> None:
    huge = "99999999999999999999:1:b"
    kernel = power_on(words("1M:1:a", "2M:1:a", huge, *(f"4K:1:n{n}" for n in range(8))))
    names = [entry.name for entry in kernel.reserve_mem.table]
    assert names == ["a", *(f"n{n}" for n in range(7))]
    assert [line.split(": ", 1)[1] for line in kernel.messages] == [
        "there is a 'a' already",
        "there is no such memory",
        "there are 8 already",
    ]
    assert found(kernel, "a").size == MIB
    assert [entry.name for entry in reboot(kernel).reserve_mem.table] == names


@pytest.mark.parametrize("align", ["", "0", "1", "3", "64"])
def test_alignment_is_a_cache_lines_at_least(align: str) -> None:
    assert found(power_on(words(f"100:{align}:small")), "small").start % 64 == 0


def test_an_alignment_that_is_no_power_of_two_is_taken_bit_by_bit() -> None:
    kernel = power_on(words("1M:100:odd"))
    assert found(kernel, "odd").start & 99 == 0
    assert found(reboot(kernel), "odd") == found(kernel, "odd")


@pytest.mark.parametrize(
    ("before", "after"),
    [("4M:4096:tr", "8M:4096:tr"), ("4M:4096:tr", "4M:4096:ts"), ("4100K:4096:tr", "4100K:16M:tr")],
    ids=["size", "name", "alignment"],
)
def test_other_memory_is_scratch_and_with_debug_checks_nothing_is_handed_on(
    before: str, after: str
) -> None:
    """As seen: the one that was revived is not handed on either, and is gone a kexec later."""
    kernel = power_on(words("64K:4096:keep", before))
    asked = words("64K:4096:keep", after)
    fresh = reboot(kernel, cmdline=asked)
    assert found(fresh, "keep") == found(kernel, "keep")
    (new,) = (entry for entry in fresh.reserve_mem.table if entry.name != "keep")
    assert fresh.kho.scratch_overlap(*new.pages)
    assert not handed_over(fresh)
    assert fresh.messages[-1].startswith("reserve_mem: nothing is handed over: EINVAL")
    assert fresh.tainted
    own = reboot(power_on(BASE), cmdline=BASE)
    assert fresh.kho.preserved_keys == own.kho.preserved_keys  # all of it was undone
    validate_kernel(fresh, [])
    assert found(reboot(fresh), "keep") != found(kernel, "keep")


def test_without_debug_checks_scratch_is_handed_on() -> None:
    kernel = reboot(power_on(BASE, config=NO_DEBUG), cmdline=words("1M:4096:late"))
    late = found(kernel, "late")
    assert kernel.kho.scratch_overlap(*late.pages)
    assert found(reboot(kernel), "late") == late


def test_the_end_of_an_odd_size_is_free_memory_after_a_kexec() -> None:
    """Whole pages are preserved, and none for the rest: 7.3 has it so."""
    kernel = power_on(words("12292:4096:odd"))
    odd = found(kernel, "odd")
    assert odd.pages[1] == 3
    last = odd.start + odd.size - 1 >> PAGE_SHIFT
    assert not kernel.page_alloc.any_free(last)
    fresh = reboot(kernel)
    assert found(fresh, "odd") == odd
    assert not fresh.memblock.is_reserved(last << PAGE_SHIFT, PAGE_SIZE)
    validate_kernel(fresh, [])


def test_without_kho_it_is_revived_once_but_not_handed_on() -> None:
    kernel = power_on(words("1M:4096:a"))
    off = reboot(kernel, cmdline=words("1M:4096:a") + " kho=off")
    assert found(off, "a") == found(kernel, "a")
    assert not off.page_alloc.any_free(*found(off, "a").pages)
    after = reboot(off, cmdline=words("1M:4096:a"))
    assert after.kho.incoming is None
    assert after.messages == []
    assert handed_over(after)


def test_it_counts_as_the_kernels_own_where_scratch_is_a_percentage() -> None:
    """Seen: 64 MiB make the low area 128 MiB larger and the node's no larger."""
    plain = power_on("", node_bytes=(GIB,)).kho.scratch
    more = power_on("reserve_mem=64M:4096:a", node_bytes=(GIB,)).kho.scratch
    assert [b.size - a.size for a, b in zip(plain, more, strict=True)] == [128 * MIB, 0, 0]


@pytest.mark.parametrize("spoilt", ["size", "no tree", "root", "node"])
def test_a_blob_that_makes_no_sense_revives_nothing(spoilt: str) -> None:
    kernel = power_on(words("1M:4096:a"))
    pa, _ = kernel.kho.outgoing_subtrees["memblock"]
    page = kernel.memory.read(pa, PAGE_SIZE)
    if spoilt == "size":
        kernel.memory.write(
            pa + page.index(MIB.to_bytes(8, "little")), (2 * MIB).to_bytes(8, "little")
        )
    elif spoilt == "no tree":
        kernel.memory.write(pa, b"\0\0\0\0")
    else:
        text = b"memblock-v1" if spoilt == "root" else b"reserve-mem-v1"
        kernel.memory.write(pa + page.index(text) + len(text) - 1, b"9")
    fresh = reboot(kernel)
    assert found(fresh, "a") != found(kernel, "a")
    assert not any("is revived" in line for line in fresh.messages)


def test_debugfs_lists_names_and_sizes() -> None:
    kernel = power_on(words("4M:4M:trace", "4097:4096:odd"))
    listed = debugfs_files(kernel)["memblock/reserve_mem_param"]()
    assert listed == b"trace\t\t(4.00 MiB)\nodd\t\t(4.00 KiB)\n"
    pa, size = kernel.kho.outgoing_subtrees["memblock"]
    assert debugfs_files(kernel)["kho/out/sub_fdts/memblock"]() == kernel.memory.read(pa, size)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (100, "100 B"),
        (5000, "4.88 KiB"),
        (12292, "12.0 KiB"),
        (300 * KIB, "300 KiB"),
        (MIB, "1.00 MiB"),
        (3 * GIB // 2, "1.50 GiB"),
    ],
)
def test_sizes_have_three_digits(size: int, text: str) -> None:
    assert string_get_size(size) == text


def test_nothing_is_done_for_nobody() -> None:
    kernel = power_on(BASE)
    assert not handed_over(kernel)
    assert ReserveMem(kernel).find("x") is None
    with pytest.raises(NoEntry):
        reboot(kernel).kho.retrieve_subtree("memblock")
