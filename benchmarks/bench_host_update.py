"""What one host costs: to build and boot it, to update it, to update it again."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from node.api import (
    Backing,
    HostOutcome,
    HostSpec,
    HugepagePool,
    ShardConfig,
    UpdateCommand,
    UpdatePolicy,
    VmSpec,
)
from node.shard import Shard

MIB, GIB = 1 << 20, 1 << 30
OLD, NEW = "7.3.2+hugetlb", "7.3.4+hugetlb"

#: A host of the default example: 512 GiB on two nodes, eight VMs on all three page sizes.
HOST = HostSpec(
    name="h",
    domains={"rack": "r"},
    node_bytes=(256 * GIB, 256 * GIB),
    cpus=96,
    release=OLD,
    hugepages=(HugepagePool(2 * MIB, 32_768), HugepagePool(GIB, 192)),
    cmdline="kho_scratch=256M,1G,512M",
)
VMS = (
    *(VmSpec(f"plain-{nr}", "h", 4 * GIB, Backing.MEMFD, 2) for nr in range(3)),
    *(VmSpec(f"huge-{nr}", "h", 8 * GIB, Backing.HUGETLB_2M, 8) for nr in range(3)),
    *(VmSpec(f"giant-{nr}", "h", 64 * GIB, Backing.HUGETLB_1G, 32) for nr in range(2)),
)
#: 2 TiB of small VMs on 2 MiB pages: a million folios, 600 sessions.
BIG = HostSpec(
    name="h",
    domains={"rack": "r"},
    node_bytes=(1200 * GIB, 1200 * GIB),
    cpus=192,
    release=OLD,
    hugepages=(HugepagePool(2 * MIB, 1_048_576),),
    cmdline="kho_scratch=256M,4G,2G",
)
MANY_VMS = tuple(VmSpec(f"vm-{nr}", "h", 3 * GIB, Backing.HUGETLB_2M, 4) for nr in range(600))


#: Eight VMs of 32 GiB on huge pages, and 64 GiB of 4 KiB pages that lie side by side.
ROOMY = msgspec.structs.replace(HOST, node_bytes=(320 * GIB, 320 * GIB))
ON_2M = (HugepagePool(2 * MIB, 8 * 32 * 512),)
ON_1G = (HugepagePool(GIB, 8 * 32),)
SIZES = {
    "8 x 32 GiB on 2 MiB": (ON_2M, Backing.HUGETLB_2M, 8, 32 * GIB),
    "8 x 32 GiB on 1 GiB": (ON_1G, Backing.HUGETLB_1G, 8, 32 * GIB),
    "64 GiB on 4 KiB": ((), Backing.MEMFD, 1, 64 * GIB),
}


def built(spec: HostSpec, vms: tuple[VmSpec, ...]) -> Shard:
    shard = Shard(ShardConfig(seed=7, hosts=(spec,), vms=vms))
    shard.host("h")
    return shard


def update(shard: Shard, seq: int = 1) -> None:
    (result,) = shard.update([UpdateCommand("h", seq, 0, NEW, UpdatePolicy())])
    assert result.outcome is HostOutcome.UPDATED, result.detail
    assert not result.reason, result.detail


@pytest.fixture
def copied() -> Callable[[], None]:
    """A gigabyte copied in pieces of 64 MiB: what the figures of a machine are divided by."""
    source, target = bytearray(64 * MIB), bytearray(64 * MIB)

    def copy() -> None:
        for _ in range(16):
            target[:] = source

    return copy


def test_copy_a_gigabyte(benchmark: BenchmarkFixture, copied: Callable[[], None]) -> None:
    benchmark.pedantic(copied, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("size", SIZES)
def test_update_a_host_of(size: str, benchmark: BenchmarkFixture) -> None:
    pools, backing, number, each = SIZES[size]
    spec = msgspec.structs.replace(ROOMY, hugepages=pools)
    vms = tuple(VmSpec(f"vm-{nr}", "h", each, backing, 8) for nr in range(number))
    benchmark.pedantic(update, setup=lambda: ((built(spec, vms),), {}), rounds=10)


def test_build_and_boot_a_host(benchmark: BenchmarkFixture) -> None:
    benchmark(built, HOST, VMS)


def test_update_a_host(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(update, setup=lambda: ((built(HOST, VMS),), {}), rounds=20)


def test_update_a_host_for_the_second_time(benchmark: BenchmarkFixture) -> None:
    def updated_once() -> tuple[tuple[Shard, int], dict[str, object]]:
        shard = built(HOST, VMS)
        update(shard)
        return (shard, 2), {}

    benchmark.pedantic(update, setup=updated_once, rounds=20)


def test_update_a_host_with_600_vms(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(update, setup=lambda: ((built(BIG, MANY_VMS),), {}), rounds=3)
