"""A row of the table in a process of its own: `python -m benchmarks.rows NAME` prints a figure."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import msgspec

from benchmarks import simpy_rollout
from fleet.api import RunRecord
from fleet.experiment import Experiment
from fleet.exporter import MetricsServer
from fleet.journal import Journal, journal_header
from fleet.launcher import Backend, LocalBackend, RayBackend
from fleet.outputs import write_outputs
from fleet.scenario import Scenario, load_scenario
from node.actor import collecting_seldom
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

__all__ = ["ROWS"]

MIB, GIB = 1 << 20, 1 << 30
SCALE = Path(__file__).parents[1] / "examples" / "scale.toml"
#: Enough for the interpreter to have fitted its bytecode to what it sees, as in any long run.
_ROUNDS = 60
_SCRAPE_SECONDS = 1.0
HOST = HostSpec("h", {"rack": "r"}, (320 * GIB, 320 * GIB), 96, "7.3.2+hugetlb")


def _copy() -> float:
    """Seconds of CPU in which a gigabyte is copied: the physical limit."""
    source, target = bytearray(64 * MIB), bytearray(64 * MIB)

    def copy() -> None:
        for _ in range(16):
            target[:] = source

    copy()
    return _least(copy)


def _least(work: Callable[[], object], rounds: int = 5) -> float:
    """The least CPU time of several rounds, in seconds."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def _simpy() -> float:
    """Seconds of CPU a host of a rollout without kernels."""
    return _least(lambda: simpy_rollout.roll_out(1000, 10), 9) / 1000


def _shard(vms: int, each: int, backing: Backing) -> Shard:
    pools: tuple[HugepagePool, ...] = ()
    if backing is not Backing.MEMFD:
        pools = (HugepagePool(backing.page_bytes, vms * each // backing.page_bytes),)
    spec = msgspec.structs.replace(HOST, hugepages=pools)
    specs = tuple(VmSpec(f"vm-{nr}", "h", each, backing, 8) for nr in range(vms))
    shard = Shard(ShardConfig(seed=7, hosts=(spec,), vms=specs))
    shard.host("h")
    return shard


def _update(shard: Shard) -> None:
    command = UpdateCommand("h", 1, 0, "7.3.4+hugetlb", UpdatePolicy())
    (result,) = shard.update([command])
    assert result.outcome is HostOutcome.UPDATED, result.detail
    assert not result.reason, result.detail


def _host_update(vms: int, each: int, backing: Backing) -> float:
    """Milliseconds of CPU for one update of a host that is up, in a process like an actor's."""
    with collecting_seldom():
        return min(_cpu_of_update(_shard(vms, each, backing)) for _ in range(_ROUNDS)) * 1e3


def _scattered_shard() -> Shard:
    """A host up with 64 GiB of a VM on 4 KiB pages, a tenth of them with no neighbour of the file.

    Somebody has taken memory and given every other page back, in no order, before the VM started.
    """
    shard = _shard(1, 64 * GIB, Backing.MEMFD)
    host = shard.host("h")
    vm, allocator, nr_pages = host.vm("vm-0"), host.kernel.page_alloc, 64 * GIB // 4096 // 10
    vm.stop()
    runs = allocator.alloc_bulk(0, 2 * nr_pages, movable=True)
    crumbs = [pfn for first, nr in runs for pfn in range(first + first % 2, first + nr, 2)]
    random.Random(7).shuffle(crumbs)
    for pfn in crumbs:
        allocator.free_pages(pfn, 0)
    vm.start(host.kernel)
    return shard


def _scattered_update() -> float:
    """Seconds of CPU for one update of such a host."""
    return min(_cpu_of_update(_scattered_shard()) for _ in range(3))


def _cpu_of_update(shard: Shard) -> float:
    gc.collect()
    began = time.process_time()
    _update(shard)
    return time.process_time() - began


def _small_pages_mib(shard: Callable[[], Shard]) -> float:
    """MiB that an update of 64 GiB on 4 KiB pages takes above the idle host."""
    host = shard()
    gc.collect()
    before = _rss_now()
    Path("/proc/self/clear_refs").write_text("5")  # what building the host took is no matter
    _update(host)
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) / 1024 - before


def _rss_now() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def _overrides(hosts: int) -> list[str]:
    racks = max(1, hosts // 40)
    return [f"fleet.host_class.0.count={hosts}", f"fleet.host_class.0.racks={racks}"]


def _scenario(hosts: int) -> Scenario:
    return load_scenario(SCALE, _overrides(hosts))


def _command(hosts: int) -> float:
    """Wall seconds of `lufleet run` on two actors, Ray started, stopped and results written."""
    command = [sys.executable, "-m", "fleet.cli", "run", str(SCALE), "--actors", "2"]
    for override in _overrides(hosts):
        command += ["--set", override]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        subprocess.run([*command, "--out", folder], check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began


def _run_in_process(hosts: int, *, outputs: bool) -> float:
    """Wall seconds of a run without Ray; with outputs, metrics are scraped every second as well."""
    began = time.monotonic()
    scenario = _scenario(hosts)
    with tempfile.TemporaryDirectory() as folder:
        header = journal_header(scenario, records_events=False)
        path = Path(folder) / "journal.sqlite" if outputs else None
        with Journal.create(path, header) as journal:
            backend = LocalBackend()
            experiment = Experiment(scenario, backend, journal, actors=1)
            if outputs:
                with MetricsServer(lambda: experiment.snapshot, "127.0.0.1", 0) as metrics:
                    record = asyncio.run(_scraped(experiment, backend, metrics.port))
                write_outputs(record, Path(folder))
            else:
                asyncio.run(_to_its_end(experiment, backend))
    return time.monotonic() - began


async def _to_its_end(experiment: Experiment, backend: Backend) -> RunRecord:
    try:
        await experiment.open()
        return await experiment.run()
    finally:
        await backend.close()


async def _scraped(experiment: Experiment, backend: Backend, port: int) -> RunRecord:
    running = asyncio.ensure_future(_to_its_end(experiment, backend))
    while not running.done():
        for page in ("metrics", "metrics/hosts"):
            await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/{page}")
        await asyncio.wait({running}, timeout=_SCRAPE_SECONDS)
    return await running


def _get(url: str) -> bytes:
    with urlopen(url) as reply:
        return bytes(reply.read())


def _idle_kib() -> float:
    """KiB of memory for each host with 10 VMs that nobody is updating."""
    tracemalloc.start()
    scenario = _scenario(2000)
    shard = Shard(ShardConfig(seed=7, hosts=scenario.hosts, vms=scenario.vms))
    commands = [
        UpdateCommand(host.name, 1, 0, "7.3.4+hugetlb", UpdatePolicy())
        for host in scenario.hosts[:200]
    ]
    shard.update(commands)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    return size / 1024 / len(scenario.hosts)


def _flatness() -> float:
    """CPU a host update late in a shard's life, over that of the first ones."""
    scenario = _scenario(1000)
    shard = Shard(ShardConfig(seed=7, hosts=scenario.hosts, vms=scenario.vms))
    times = []
    with collecting_seldom():
        for at in range(0, 1000, 100):
            commands = [
                UpdateCommand(host.name, 1, 0, "7.3.4+hugetlb", UpdatePolicy())
                for host in scenario.hosts[at : at + 100]
            ]
            began = time.process_time()
            shard.update(commands)
            times.append(time.process_time() - began)
    return min(times[-3:]) / min(times[:3])


def _two_actors() -> float:
    """Throughput of two actors over that of one, started and warm; each the better of two runs."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for actors in (1, 2, 2, 1):
        rates[actors].append(_warm_rate(1000, actors))
    return max(rates[2]) / max(rates[1])


def _warm_rate(hosts: int, actors: int) -> float:
    """Host updates a wall second of a run, the canary and the first full wave left out."""
    warm: list[tuple[float, int]] = []  # when, and how many hosts had been computed

    def look(experiment: Experiment) -> None:
        if experiment.coordinator.wave == 2 and not warm:
            warm.append((time.monotonic(), experiment.answered))

    async def go() -> float:
        scenario, backend = _scenario(hosts), RayBackend()
        header = journal_header(scenario, records_events=False)
        with Journal.create(None, header) as journal:
            experiment = Experiment(scenario, backend, journal, actors=actors, on_change=look)
            try:
                await experiment.open()
                await experiment.run()
                began, done = warm[0]
                return (experiment.answered - done) / (time.monotonic() - began)
            finally:
                await backend.close()

    return asyncio.run(go())


def _store_cost() -> float:
    """Per cent that journal, event store, report and metrics add to a run of 1,000 hosts."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for outputs in (False, True) * 3:
        times[outputs].append(_run_in_process(1_000, outputs=outputs))
    return (min(times[True]) / min(times[False]) - 1) * 100


ROWS: dict[str, Callable[[], float]] = {
    "copy": _copy,
    "simpy": _simpy,
    "update-2MiB": lambda: _host_update(8, 32 * GIB, Backing.HUGETLB_2M),
    "update-1GiB": lambda: _host_update(8, 32 * GIB, Backing.HUGETLB_1G),
    "update-4KiB": lambda: _host_update(1, 64 * GIB, Backing.MEMFD),
    "memory-4KiB": lambda: _small_pages_mib(lambda: _shard(1, 64 * GIB, Backing.MEMFD)),
    "update-4KiB-scattered": _scattered_update,
    "memory-4KiB-scattered": lambda: _small_pages_mib(_scattered_shard),
    "run-1000": lambda: _command(1_000),
    "run-20000": lambda: _command(20_000),
    "run-100000": lambda: _command(100_000),
    "idle-host": _idle_kib,
    "flatness": _flatness,
    "two-actors": _two_actors,
    "store": _store_cost,
}

if __name__ == "__main__":
    print(json.dumps(ROWS[sys.argv[1]]()))
