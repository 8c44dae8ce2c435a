"""What can be seen of a host: sessions, gauges, the kernel's files."""

from __future__ import annotations

import pytest

from kernelmodel.abi.kexec_handover import KhoScratch
from kernelmodel.kho.fdt import Fdt
from kernelmodel.memory import PAGE_SIZE
from node import views
from node.host_state import HostStateError
from node.vm import MEMORY_TOKEN
from tests.node.update_hosts import GIB, MIB, NEW, OLD, PLAIN, fault, make_host, update


def test_gauges_of_a_host_that_runs() -> None:
    gauges = make_host().gauges()
    assert gauges.release == OLD
    assert gauges.vms == {"running": 3, "paused": 0, "stopped": 0}
    assert gauges.hugetlb_pages == {
        "2MiB": {"free": 128, "used": 128, "reserved": 0, "surplus": 0},
        "1GiB": {"free": 2, "used": 2, "reserved": 0, "surplus": 0},
    }
    assert gauges.kho_scratch_bytes == 4 * 256 * MIB  # low, global, and one for each node


def test_gauges_of_a_host_without_huge_pages() -> None:
    pools = make_host(vms=[PLAIN], pools=()).gauges().hugetlb_pages
    assert list(pools) == ["2MiB", "1GiB"]
    assert {count for pool in pools.values() for count in pool.values()} == {0}


def test_gauges_after_an_update_are_those_before_it_but_for_the_release() -> None:
    host = make_host()
    before = host.gauges()
    result = update(host)
    assert result.gauges == host.gauges()
    assert result.gauges.release == NEW
    assert (result.gauges.vms, result.gauges.hugetlb_pages) == (before.vms, before.hugetlb_pages)
    assert result.gauges.kho_scratch_bytes == before.kho_scratch_bytes


def test_gauges_of_a_dead_host() -> None:
    host = make_host(fault("next-kernel-panics"))
    host.kexec_load(NEW)
    host.jump(host.freeze(), 1)
    gauges = host.gauges()
    assert gauges.release == ""
    assert gauges.vms == {"running": 0, "paused": 0, "stopped": 3}
    assert (gauges.hugetlb_pages, gauges.kho_scratch_bytes) == ({}, 0)


def test_sessions_of_both_directions() -> None:
    host = make_host()
    host.preserve_vm("huge")
    host.create_session("empty")
    host.kexec_load(NEW)
    host.jump(host.freeze(), 10**12)
    host.create_session("huge")
    host.retrieve_session("huge")  # of the incoming side
    assert host.sessions() == [
        views.SessionView("huge", outgoing=True, tokens=(), retrieved=False),
        views.SessionView("huge", outgoing=False, tokens=(MEMORY_TOKEN,), retrieved=True),
        views.SessionView("empty", outgoing=False, tokens=(), retrieved=False),
    ]


def test_a_session_that_is_not_open_is_told_from_one_that_is_not_there() -> None:
    known = [
        views.SessionView("out", outgoing=True, tokens=(), retrieved=False),
        views.SessionView("in", outgoing=False, tokens=(), retrieved=True),
        views.SessionView("out", outgoing=False, tokens=(), retrieved=False),
        views.SessionView("late", outgoing=False, tokens=(), retrieved=False),
    ]
    assert views.instead(known, "gone") == "open are: out, in"
    assert views.instead(known, "late\0what follows is not kept").endswith(
        "RetrieveSession opens it"
    )
    assert views.instead([], "gone") == "open are: none"


def test_the_name_of_a_session_need_not_be_ascii() -> None:
    host = make_host(vms=())
    host.create_session("größe")
    assert [session.name for session in host.sessions()] == ["größe"]


def test_the_files_of_debugfs() -> None:
    host = make_host()
    fdt = Fdt.parse(host.kernel.memory.read(host.kernel.kho.fdt_pa, PAGE_SIZE))
    names = {node.name for node in fdt.root.subnodes}
    assert names == {"kexec-metadata", "LUO"}
    # as long as the FDT was when KHO came up, without LUO's blob
    shown = bytes.fromhex(host.debugfs("kho/out/fdt"))
    assert shown == host.kernel.memory.read(host.kernel.kho.fdt_pa, len(shown))
    assert len(shown) == 233
    assert bytes.fromhex(host.debugfs("kho/out/sub_fdts/LUO")).startswith(b"luo-v5\0\0\1")
    assert len(host.debugfs("kho/out/sub_fdts/kexec-metadata")) == 2 * 73
    addresses = [int(line, 16) for line in host.debugfs("kho/out/scratch_phys").splitlines()]
    sizes = [int(line, 16) for line in host.debugfs("kho/out/scratch_len").splitlines()]
    areas = [KhoScratch(*area) for area in zip(addresses, sizes, strict=True)]
    assert areas == host.kernel.kho.scratch
    assert "HugePages_Total:     256\n" in host.debugfs("proc/meminfo")
    assert host.debugfs("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") == "256\n"
    assert host.debugfs("proc/sys/vm/nr_overcommit_hugepages") == "0\n"
    by_node = [host.debugfs(path) for path in views.debugfs(host.kernel) if "/meminfo" in path[5:]]
    assert sum(int(text.split()[3]) for text in by_node) == 256
    assert "Node 0, zone   Normal" in host.debugfs("proc/buddyinfo")
    assert host.debugfs("proc/cmdline").startswith("kho=on liveupdate=on hugepagesz=2M ")
    assert host.debugfs("dmesg") == ""


def test_an_updated_host_shows_what_it_was_handed_as_well() -> None:
    host = make_host(vms=())
    before = host.debugfs("kho/out/scratch_phys")
    handed = host.debugfs("kho/out/sub_fdts/kexec-metadata")
    assert not any(path.startswith("kho/in") for path in views.debugfs(host.kernel))
    update(host, NEW)
    assert host.debugfs("kho/out/scratch_phys") == before
    assert host.debugfs("kho/in/sub_fdts/kexec-metadata") == handed
    assert "kho/out/fdt" not in views.debugfs(host.kernel)
    fdt = Fdt.parse(bytes.fromhex(host.debugfs("kho/in/fdt")))
    assert [node.name for node in fdt.root.subnodes] == ["LUO", "kexec-metadata"]


def test_the_kernels_log_tells_why_a_handover_was_ignored() -> None:
    host = make_host(vms=())
    update(host, "6.16")
    assert "KHO: disabling KHO revival" in host.debugfs("dmesg")
    assert "luod: cannot open /dev/liveupdate" in host.debugfs("dmesg")


def test_every_file_can_be_read_at_any_time() -> None:
    host = make_host()
    for release in (OLD, NEW, "6.19", "6.16"):
        if release != OLD:
            update(host, release)
        for path in views.debugfs(host.kernel):
            assert isinstance(host.debugfs(path), str)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(HostStateError, match="no file 'proc/cpuinfo'; there are: kho/out/fdt"):
        make_host(vms=(), node_bytes=(8 * GIB,)).debugfs("proc/cpuinfo")
