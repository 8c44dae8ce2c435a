"""What crosses kexec, byte by byte, and what a kernel does with bytes that it does not know."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmodel.abi.layout import Ser
from kernelmodel.abi.luo_v4 import LuoFhStateSer, LuoFileSer, LuoSessionSer
from kernelmodel.errors import KernelPanic
from kernelmodel.kernel import Kernel
from kernelmodel.kho.fdt import Fdt, FdtNode
from kernelmodel.luo_v4.client import LiveupdateClient
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.syscalls import Task
from tests.kernelmodel import kernels
from tests.kernelmodel.luo_v4.hosts import (
    CANCEL,
    FINISH,
    NORMAL,
    PREPARE,
    UPDATED,
    Agent,
    freeze,
    jump,
    jump_on,
    luo_of,
    power_on,
    with_subsystems,
    with_toy,
)

STRUCTS: dict[type[Ser], tuple[int, str]] = {
    LuoSessionSer: (80, "name files pgcnt count"),
    LuoFileSer: (64, "compatible data token"),
    LuoFhStateSer: (56, "compatible data"),
}


@pytest.mark.parametrize("of", STRUCTS, ids=lambda of: of.__name__)
def test_structures_have_their_sizes(of: type[Ser]) -> None:
    size, members = STRUCTS[of]
    assert of.SIZE == of.FORMAT.size == size
    assert " ".join(of.field_names()) == members
    data = bytes(range(size))
    assert of.unpack(data).pack() == data


def frozen_host() -> tuple[Kernel, Agent]:
    """Two sessions with three files of the toy, and a subsystem `s`; frozen."""
    kernel = power_on()
    with_subsystems(kernel, "s")
    with_toy(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("one"), 5, 1 << 63)
    agent.create_session("empty")
    agent.preserved(agent.create_session("two"), 7)
    agent.set_event(PREPARE)
    freeze(kernel)
    return kernel, agent


def luo_tree(kernel: Kernel) -> tuple[int, Fdt]:
    """LUO's page as KHO's tree names it: nothing is taken from the objects of the kernel."""
    root = Fdt.parse(kernel.memory.read(kernel.kho.fdt_pa, PAGE_SIZE)).root
    node = root.subnode("LUO")
    assert node is not None
    pa = node.u64("preserved-data")
    assert pa is not None
    return pa, Fdt.parse(kernel.memory.read(pa, PAGE_SIZE))


def node_of(tree: Fdt, name: str) -> FdtNode:
    node = tree.root.subnode(name)
    assert node is not None
    return node


def test_the_whole_of_a_handover() -> None:
    kernel, _ = frozen_host()
    _, tree = luo_tree(kernel)
    assert tree.root.props == {"compatible": b"luo-v1\0"}
    assert {node.name for node in tree.root.subnodes} == {"subsystems", "luo-session"}
    sessions = node_of(tree, "luo-session")
    array_pa, pgcnt, count = (sessions.u64(name) for name in ("data", "pgcnt", "count"))
    assert sessions.props["compatible"] == b"luo-session-v1\0"
    assert set(sessions.props) == {"compatible", "data", "pgcnt", "count"}
    assert (pgcnt, count) == (1, 3)
    assert array_pa is not None
    subsystems = node_of(tree, "subsystems")
    assert subsystems.props == {
        "compatible": b"subsystems-v1\0",
        "s": struct.pack("<Q", 100 + ord("s") + 1000),
        "luo-session": struct.pack("<Q", array_pa),
    }
    raw = kernel.memory.read(array_pa, PAGE_SIZE)
    one, empty, two = struct.iter_unpack("<56sQQQ", raw[:240])
    assert raw[240:] == bytes(PAGE_SIZE - 240)
    assert one[0] == b"one".ljust(56, b"\0")
    assert one[2:] == (1, 2)
    assert empty == (b"empty".ljust(56, b"\0"), 0, 0, 0)
    assert two[0] == b"two".ljust(56, b"\0")
    assert two[2:] == (1, 1)
    files = kernel.memory.read(one[1], PAGE_SIZE)
    compatible = b"toy-v1".ljust(48, b"\0")
    expected = struct.pack("<48sQQ48sQQ", compatible, 7105, 5, compatible, 7100 + 2**63, 2**63)
    assert files == expected.ljust(PAGE_SIZE, b"\0")
    for pa in (luo_tree(kernel)[0], array_pa, one[1], two[1]):
        assert any(run.pfn <= pa // PAGE_SIZE < run.end_pfn for run in kernel.kho.outgoing_runs())


def test_prepare_writes_it_and_freeze_writes_it_again() -> None:
    """Every u64 that freeze may change is there after PREPARE already, with the older value."""
    kernel = power_on()
    with_subsystems(kernel, "s")
    Agent(kernel).set_event(PREPARE)
    node = node_of(luo_tree(kernel)[1], "subsystems")
    assert node.u64("s") == 100 + ord("s")
    freeze(kernel)
    assert node_of(luo_tree(kernel)[1], "subsystems").u64("s") == 1100 + ord("s")


def test_normal_hands_over_a_page_of_zeroes() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.preserve_fd(agent.create_session("s"), agent.memfd(10), 1)

    def handed_over() -> bytes:
        return kernel.memory.read(kernel.kho.fdt_pa, 40)

    assert handed_over() == bytes(40)
    agent.set_event(PREPARE)
    assert handed_over()[:4] == b"\xd0\x0d\xfe\xed"
    agent.set_event(CANCEL)
    assert handed_over() == bytes(40)


def test_nothing_is_stored_before_prepare() -> None:
    """PRESERVE_FD takes a reference and no memory."""
    kernel = power_on()
    agent = Agent(kernel)
    fd = agent.memfd(1 << 20, b"x")
    before = (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys)
    agent.preserve_fd(agent.create_session("s"), fd, 1)
    assert (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys) == before


def test_a_layout_belongs_to_its_compatible_strings() -> None:
    text = ";".join(f"{of.FORMAT.format} {' '.join(of.field_names())}" for of in STRUCTS)
    assert hashlib.blake2b(text.encode(), digest_size=6).hexdigest() == PINNED


#: Another layout needs other strings than luo-v1, luo-session-v1, luo-fh-states-v1-struct.
PINNED = "8a1afc2d204c"


# What the next kernel makes of other bytes.


Tamper = Callable[[Fdt, FdtNode, FdtNode], object]

#: Changes of LUO's tree, of its nodes `subsystems` and `luo-session`.
EARLY: dict[str, Tamper] = {
    "another version": lambda tree, _, __: tree.root.props.update(compatible=b"luo-v2\0"),
    "no compatible": lambda tree, _, __: tree.root.props.pop("compatible"),
    "subsystems of another version": lambda _, s, __: s.props.update(compatible=b"subsystems-v2\0"),
    "sessions of another version": lambda _, __, s: s.props.update(compatible=b"luo-session-v2\0"),
    "no subsystems": lambda tree, node, _: tree.root.subnodes.remove(node),
    "no sessions": lambda tree, _, node: tree.root.subnodes.remove(node),
}
AT_OPEN: dict[str, Tamper] = {
    "no count": lambda _, __, node: node.props.pop("count"),
    "no data": lambda _, __, node: node.props.pop("data"),
    "no pgcnt": lambda _, __, node: node.props.pop("pgcnt"),
    "short count": lambda _, __, node: node.props.update(count=bytes(4)),
    "count beyond the array": lambda _, __, node: node.props.update(count=struct.pack("<Q", 52)),
    "no array": lambda _, __, node: node.props.update(pgcnt=bytes(8)),
    "array outside memory": lambda _, __, node: node.props.update(data=struct.pack("<Q", 1 << 40)),
}


def tampered(kernel: Kernel, change: Tamper) -> None:
    pa, tree = luo_tree(kernel)
    change(tree, node_of(tree, "subsystems"), node_of(tree, "luo-session"))
    kernel.memory.write(pa, tree.pack())


def test_a_page_that_is_no_tree_panics() -> None:
    kernel, _ = frozen_host()
    kernel.memory.write(luo_tree(kernel)[0], bytes(4))
    with pytest.raises(KernelPanic, match="no device tree"):
        jump_on(kernel)


@pytest.mark.parametrize("what", list(EARLY))
def test_a_page_that_is_not_understood_panics_at_boot(what: str) -> None:
    kernel, _ = frozen_host()
    tampered(kernel, EARLY[what])
    with pytest.raises(KernelPanic, match="luo"):
        jump_on(kernel)


@pytest.mark.parametrize("what", list(AT_OPEN))
def test_sessions_that_cannot_be_read_panic_at_the_first_open(what: str) -> None:
    kernel, _ = frozen_host()
    tampered(kernel, AT_OPEN[what])
    kernel = jump_on(kernel)
    with_toy(kernel)
    with pytest.raises(KernelPanic, match="luo"):
        Agent(kernel)


def test_a_subtree_whose_address_cannot_be_read_panics() -> None:
    kernel, _ = frozen_host()
    fdt = Fdt.parse(kernel.memory.read(kernel.kho.fdt_pa, PAGE_SIZE))
    del node_of(fdt, "LUO").props["preserved-data"]
    kernel.memory.write(kernel.kho.fdt_pa, fdt.pack())
    with pytest.raises(KernelPanic, match="cannot read the handover"):
        jump_on(kernel)


def test_a_kho_of_another_version_makes_an_ordinary_boot() -> None:
    kernel, _ = frozen_host()
    page = kernel.memory.read(kernel.kho.fdt_pa, PAGE_SIZE).replace(b"kho-v1", b"kho-v9")
    kernel.memory.write(kernel.kho.fdt_pa, page)
    assert Agent(jump_on(kernel)).state() is NORMAL


def test_live_update_switched_off_ignores_what_came_over() -> None:
    kernel = power_on()
    Agent(kernel).set_event(PREPARE)
    kernel = jump(kernel, cmdline="kho_scratch=16M,32M,8M")
    assert luo_of(kernel).fdt_in is None
    assert luo_of(kernel).state == 0


@pytest.mark.parametrize(("old", "new"), [("6.18+luo-v4", "6.19"), ("6.19", "6.18+luo-v4")])
def test_the_two_luos_do_not_read_each_other(old: str, new: str) -> None:
    """Their KHO says the same string, and so does LUO; what stands there is another thing."""
    kernel = kernels.power_on(release=old)
    if old == "6.18+luo-v4":
        agent = LiveupdateClient(Task(kernel, "agent"))
        agent.set_event(PREPARE)
    with pytest.raises(KernelPanic, match="luo"):
        jump(kernel, new)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 520), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_end_in_a_kernel_that_runs_or_panics(flips: list[tuple[int, int]]) -> None:
    kernel, _ = frozen_host()
    pa, _ = luo_tree(kernel)
    for at, value in flips:
        kernel.memory.write(pa + at, bytes([value]))
    try:
        kernel = jump_on(kernel)
        with_subsystems(kernel, "s")
        with_toy(kernel)
        agent = Agent(kernel)
        if agent.state() is UPDATED:
            agent.set_event(FINISH)
    except KernelPanic:
        return
    assert agent.state() is NORMAL
    agent.set_event(PREPARE)
