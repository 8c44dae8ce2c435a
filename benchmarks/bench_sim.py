"""What stating work costs: a host's update charges some thousand times, a fleet has 100,000."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.sim.trace import Trace

CHARGES = 1_000


def make_clock() -> Clock:
    return Clock(CostModel.load(), 96, 7, ("host", "bench"))


def test_a_thousand_plain_charges(benchmark: BenchmarkFixture) -> None:
    clock = make_clock()

    def run() -> None:
        for _ in range(CHARGES):
            clock.charge("kho_radix_add_key", 3)

    benchmark(run)


def test_a_thousand_charges_with_a_spread(benchmark: BenchmarkFixture) -> None:
    clock = make_clock()

    def run() -> None:
        for _ in range(CHARGES):
            clock.charge("vm_pause", 8)

    benchmark(run)


def test_a_thousand_charges_under_one_lock_on_250_lanes(benchmark: BenchmarkFixture) -> None:
    clock = make_clock()

    def run() -> None:
        with clock.phase("retrieve"):
            for lane in range(250):
                with clock.lane(str(lane)):
                    for _ in range(CHARGES // 250):
                        with clock.lock("luo_register_rwlock"):
                            clock.charge("luo_retrieve_file")
                        clock.charge("kho_restore_page", 512)

    benchmark(run)


def test_a_thousand_events(benchmark: BenchmarkFixture) -> None:
    trace = Trace("host/bench")

    def run() -> None:
        for now_ns in range(CHARGES):
            trace.emit(now_ns, "vm_resumed", vm="vm-17", downtime_ns=8_500_000_000, intact=True)

    benchmark(run)


def test_a_new_clock(benchmark: BenchmarkFixture) -> None:
    benchmark(make_clock)
