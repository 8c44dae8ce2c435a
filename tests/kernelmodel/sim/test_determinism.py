"""Promise: the same seed gives the same times and the same digest in any process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.sim.rng import stream
from kernelmodel.sim.trace import Trace, run_digest

seed, factor = int(sys.argv[1]), int(sys.argv[2])
digests = {}
for host in ("r1-h01", "r1-h02", "r2-h01"):
    clock = Clock(CostModel.load(), 3, seed, ("host", host))
    trace = Trace(f"host/{host}")
    work = stream(seed, "host", host, "work")
    clock.slow("boot", factor)
    for name in ("init", "retrieve"):
        with clock.phase(name) as phase:
            clock.charge("initcalls")
            for vm in range(8):
                with clock.lane(f"vmm:{vm}"):
                    clock.charge("vmm_start")
                    with clock.lock("luo_register_rwlock"):
                        clock.charge("luo_retrieve_file", work.randrange(10**4))
                    clock.charge("vmm_rebuild", 1 + work.randrange(16))
        trace.emit(clock.now_ns, "phase", name=name, ns=phase.duration_ns)
        for lane in phase.lanes:
            trace.emit(phase.lane_end_ns(lane), "lane", name=lane)
        print(host, name, phase.duration_ns)
    digests[f"host/{host}"] = trace.hexdigest()
print(run_digest(digests))
"""


def run(hash_seed: str, seed: int, factor: int) -> str:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seed), str(factor)],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
        text=True,
    ).stdout


@pytest.mark.parametrize(("seed", "factor"), [(7, 1000), (2**70, 2500)])
def test_two_processes_agree(seed: int, factor: int) -> None:
    assert run("1", seed, factor) == run("2", seed, factor)


def test_another_seed_and_another_fault_show_in_the_digest() -> None:
    digests = {run("1", seed, factor)[-65:] for seed, factor in [(7, 1000), (8, 1000), (7, 1001)]}
    assert len(digests) == 3
