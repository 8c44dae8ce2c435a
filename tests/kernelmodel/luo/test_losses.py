"""What stays lost in memory after each failure, to the page, and what is given back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kernelmodel.errors import IoError, KernelError, NoEntry, NoMemory, NoSpace
from kernelmodel.kernel import Kernel
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task
from kernelmodel.validate import validate_kernel, validate_nothing_leaked
from tests.kernelmodel.kernels import CMDLINE, Agent, power_on, reboot, with_toy

PAGES = 5
#: Of a memfd: its entry, the table, the chunk that lists the table's page; then its folios.
ENTRY, TABLE, CHUNK = 1, 1, 1
ALL = ENTRY + TABLE + CHUNK + PAGES


def preserved() -> Kernel:
    """A kernel with one memfd of five pages in the session `s`."""
    agent = Agent(power_on())
    fd = agent.memfd(PAGES * PAGE_SIZE, bytes(range(1, 200)))
    agent.task.preserve_fd(agent.session("s"), fd, 1)
    return agent.kernel


def entry(kernel: Kernel) -> int:
    return kernel.luo.sessions.outgoing[0].file_set.files[0].data


def chunk(kernel: Kernel) -> int:
    return kernel.memory.u64(entry(kernel) + 32)


def table(kernel: Kernel) -> int:
    return kernel.memory.u64(chunk(kernel) + 8)


def forget(kernel: Kernel, pa: int) -> None:
    kernel.kho.unpreserve_folios(pa >> PAGE_SHIFT, 0)


def seals(kernel: Kernel) -> None:
    kernel.memory.write(entry(kernel) + 16, b"\x40")


def no_table(kernel: Kernel) -> None:
    forget(kernel, table(kernel))


def no_chunk(kernel: Kernel) -> None:
    forget(kernel, chunk(kernel))


def longer_table(kernel: Kernel) -> None:
    kernel.memory.write(entry(kernel) + 40, b"\2")


def lose_folio(kernel: Kernel, page: int) -> None:
    pfn = kernel.memory.u64(table(kernel) + 16 * page) & (1 << 52) - 1
    forget(kernel, pfn << PAGE_SHIFT)


def first_folio(kernel: Kernel) -> None:
    lose_folio(kernel, 0)


def last_folio(kernel: Kernel) -> None:
    lose_folio(kernel, PAGES - 1)


def same_index(kernel: Kernel) -> None:
    kernel.memory.write_u64(table(kernel) + 16 * 3 + 8, 1)


@pytest.mark.parametrize(
    ("damage", "errno", "retrieved", "finished"),
    [
        # pages lost when the file is retrieved, and when it is only finished
        (seals, "EOPNOTSUPP", TABLE + CHUNK + PAGES, 0),
        (no_table, "EINVAL", CHUNK + PAGES, CHUNK + PAGES),
        (no_chunk, "EINVAL", TABLE + PAGES, TABLE + PAGES),
        # the table's page was restored, and an area that is not whole is not given back
        (longer_table, "EINVAL", TABLE + PAGES, TABLE + PAGES),
        (first_folio, "EIO", 0, 0),
        (last_folio, "EIO", 0, 0),
        (same_index, "EEXIST", 0, 0),
    ],
)
def test_a_file_that_was_damaged_on_the_way(
    damage: Callable[[Kernel], None], errno: str, retrieved: int, finished: int
) -> None:
    kernel = preserved()
    damage(kernel)
    fresh = reboot(kernel)
    agent = Agent(fresh)
    session = agent.retrieve("s")
    for _ in range(2):
        with pytest.raises(KernelError, match=errno):
            agent.task.retrieve_fd(session, 1)
    agent.task.close(session)
    validate_nothing_leaked(fresh, [agent.task], lost_pages=retrieved)

    kernel = preserved()
    damage(kernel)
    fresh = reboot(kernel)
    agent = Agent(fresh)
    agent.task.close(agent.retrieve("s"))
    validate_nothing_leaked(fresh, [agent.task], lost_pages=finished)
    # the kernel after this one knows nothing of them any more: they are free memory there
    assert lost(reboot(fresh)) == 0


def lost(kernel: Kernel) -> int:
    """Pages that are still handed over, but for FDT, metadata and the table of FLBs."""
    return sum(high - low for low, high, _ in kernel.kho.tags) - 3


def test_a_missing_handler_costs_all_files_and_no_block() -> None:
    kernel = preserved()
    kernel.luo.handlers[0].compatible = "memfd-v9"
    fresh = reboot(kernel)
    for _ in range(3):
        with pytest.raises(IoError):
            Task(fresh, "agent").open(DEV_LIVEUPDATE)
    validate_nothing_leaked(fresh, [], lost_pages=ALL)


def test_a_session_that_nobody_retrieves_costs_all_its_pages_until_the_next_kexec() -> None:
    fresh = reboot(preserved())
    agent = Agent(fresh)
    # its block of files is kept as well; the block of sessions is not
    validate_nothing_leaked(fresh, [agent.task], lost_pages=ALL + 1)
    after = reboot(fresh)
    validate_nothing_leaked(after, [])


def test_without_an_open_of_the_device_the_block_of_sessions_is_kept_too() -> None:
    fresh = reboot(preserved())
    validate_nothing_leaked(fresh, [], lost_pages=ALL + 2)


@pytest.mark.parametrize("parameter", ["liveupdate=off", "kho=off"])
def test_a_kernel_that_is_told_to_leave_live_update_alone_keeps_everything(parameter: str) -> None:
    kernel = preserved()
    fresh = reboot(kernel, cmdline=f"{CMDLINE} {parameter}")
    with pytest.raises(NoEntry):
        Agent(fresh)
    validate_kernel(fresh, [])
    # with liveupdate=off the incoming side is read all the same, and its header given back
    assert lost(fresh) == ALL + 2 + (parameter == "kho=off")
    assert fresh.luo.liveupdate_num == (parameter == "liveupdate=off")


def test_a_session_whose_finish_fails_as_it_is_closed_keeps_its_files() -> None:
    agent = Agent(power_on())
    with_toy(agent.kernel)
    session = agent.session("s")
    agent.task.preserve_fd(session, agent.null(), 1)
    agent.task.preserve_fd(session, agent.memfd(PAGES * PAGE_SIZE), 2)
    fresh = reboot(agent.kernel)
    toy = with_toy(fresh)
    agent = Agent(fresh)
    session = agent.retrieve("s")
    memfd = agent.task.retrieve_fd(session, 2)
    toy.busy = True
    agent.task.close(session)
    (stuck,) = fresh.luo.sessions.incoming
    assert stuck.retrieved
    assert len(stuck.file_set.files) == 2
    validate_kernel(fresh, [agent.task])
    toy.busy = False  # too late: nobody can reach it
    with pytest.raises(KernelError, match="EINVAL"):
        agent.retrieve("s")
    # the retrieved memfd is still LUO's: it cannot be preserved again, nor does closing free it
    new = agent.session("new")
    with pytest.raises(KernelError, match="EBUSY"):
        agent.task.preserve_fd(new, memfd, 1)
    agent.task.close(new)
    agent.task.close(memfd)
    validate_kernel(fresh, [agent.task])
    validate_nothing_leaked(fresh, [agent.task], lost_pages=1)  # its block of files


@pytest.mark.parametrize("page", [0, 3])
@pytest.mark.parametrize("error", [NoSpace, NoMemory])
def test_a_folio_that_finds_no_room_takes_the_later_ones_with_it(
    page: int, error: type[KernelError]
) -> None:
    """As where memory must not be promised beyond what there is (vm.overcommit_memory=2)."""
    agent = Agent(power_on())
    fd = agent.memfd(0)
    # one page at a time, with another file's between, so that every folio is a run of its own
    other = agent.memfd(0)
    for n in range(PAGES):
        agent.task.pwrite(fd, b"x", n * PAGE_SIZE)
        agent.task.pwrite(other, b"y", n * PAGE_SIZE)
    agent.task.preserve_fd(agent.session("s"), fd, 1)
    fresh = reboot(agent.kernel)
    calls: list[object] = []

    def fail(function: str, **context: object) -> None:
        if function == "shmem_inode_acct_blocks":
            calls.append(context["index"])
            if context["index"] == page:
                raise error("injected")

    fresh.fail_function = fail
    agent = Agent(fresh)
    session = agent.retrieve("s")
    for _ in range(2):
        with pytest.raises(error):
            agent.task.retrieve_fd(session, 1)
    assert calls == list(range(page + 1))
    agent.task.close(session)
    validate_nothing_leaked(fresh, [agent.task])


def test_two_names_that_are_one_string_spoil_the_device_though_their_bytes_differ() -> None:
    agent = Agent(power_on())
    agent.session("one")
    agent.session("two")
    one, two = agent.kernel.luo.sessions.outgoing
    one.name = b"same\0".ljust(64, b"a")
    two.name = b"same\0".ljust(64, b"b")
    fresh = reboot(agent.kernel)
    with pytest.raises(IoError):
        Agent(fresh)
    validate_nothing_leaked(fresh, [])


def test_a_name_without_an_end_is_cut_to_63_bytes() -> None:
    agent = Agent(power_on())
    agent.session("long")
    agent.kernel.luo.sessions.outgoing[0].name = b"A" * 64
    agent = Agent(reboot(agent.kernel))
    with pytest.raises(NoEntry):
        agent.retrieve("A" * 64)
    assert agent.task.session_name(agent.retrieve("A" * 63)) == "A" * 63
