"""A rollout made up by hand, for tests of what shows rollouts: no kernel is modelled here.

Phases of a host sum to its blackout and those of a VM to its downtime, as they do in real
results. The fourth host's next kernel panics, the sixth's freeze is retried, the ninth boots
slowly; `lose_a_vm` makes the second host lose one.
"""

from __future__ import annotations

from heapq import heapreplace
from pathlib import Path
from random import Random

import msgspec

from fleet.api import (
    HISTOGRAM_EDGES_NS,
    FleetSnapshot,
    Histogram,
    RolloutState,
    RunRecord,
    WaveRecord,
)
from fleet.scenario import RolloutSpec, Scenario
from node.api import (
    Backing,
    FaultSpec,
    HostGauges,
    HostOutcome,
    HostSpec,
    UpdatePolicy,
    UpdateResult,
    VmOutcome,
    VmResult,
    VmSpec,
)

SEC = 1_000_000_000
SOURCE, TARGET = "7.3.2+hugetlb", "7.3.4+hugetlb"
PANICS, RETRIES, SLOW, LOSES = 3, 5, 8, 1  # indices of the hosts that something happens to
_BACKINGS = (Backing.HUGETLB_2M, Backing.HUGETLB_1G, Backing.MEMFD)


def make_scenario(hosts: int = 24, racks: int = 3, vms_per_host: int = 8) -> Scenario:
    specs = tuple(
        HostSpec(
            name=f"r{i % racks + 1}-h{i // racks + 1:02d}",
            domains={"rack": f"r{i % racks + 1}"},
            node_bytes=(256 << 30, 256 << 30),
            cpus=64,
            release=SOURCE,
        )
        for i in range(hosts)
    )
    vms = tuple(
        VmSpec(
            name=f"{host.name}-vm{n}",
            host=host.name,
            memory_bytes=(2, 4, 4, 8, 16, 32, 64, 128)[n % 8] << 30,
            backing=_BACKINGS[n % 3],
            vcpus=4,
        )
        for host in specs
        for n in range(vms_per_host)
    )
    faults = tuple(
        FaultSpec(host=specs[index].name, kind=kind)
        for index, kind in (
            (PANICS, "next-kernel-panics"),
            (RETRIES, "freeze-fails"),
            (SLOW, "slow-boot"),
        )
        if index < hosts
    )
    return Scenario(
        name="rolling-update",
        source=Path("examples/rolling-update.toml"),
        seed=7,
        hosts=specs,
        vms=vms,
        target_release=TARGET,
        rollout=RolloutSpec(
            canary=1,
            wave_size=max(1, hosts // 3),
            max_unavailable={"rack": max(2, hosts // racks // 4)},
            soak_ns=300 * SEC,
            canary_soak_ns=600 * SEC,
        ),
        update=UpdatePolicy(),
        faults=faults,
        cost_profile="",
        downtime_budget_ns=30 * SEC,
        digest="5ce0" * 16,
    )


def _phases(rng: Random, index: int) -> dict[str, int]:
    scale = 4 if index == SLOW else 1
    return {
        "freeze": rng.randrange(20, 60) * 1_000_000,
        "kexec": rng.randrange(900, 1400) * 1_000_000,
        "kho": rng.randrange(10, 90) * 1_000_000,
        "hugetlb": rng.randrange(100, 900) * 1_000_000,
        "memmap": rng.randrange(300, 1500) * 1_000_000,
        "init": scale * rng.randrange(4000, 9000) * 1_000_000,
        "userspace": scale * rng.randrange(2000, 3500) * 1_000_000,
        "retrieve": rng.randrange(300, 2500) * 1_000_000,
    }


def make_update(
    scenario: Scenario, index: int, start_ns: int, *, lose_a_vm: bool = False
) -> UpdateResult:
    host, rng = scenario.hosts[index], Random(index)
    per_host = len(scenario.vms) // len(scenario.hosts)
    specs = scenario.vms[index * per_host : (index + 1) * per_host]
    phases, outcome, reason, attempts = _phases(rng, index), HostOutcome.UPDATED, "", 1
    restart_ns, detail = 0, ""
    if index == PANICS:
        phases = {name: phases[name] for name in ("freeze", "kexec", "kho")}
        outcome, reason = HostOutcome.ROLLED_BACK, "panic"
        detail = "the next kernel panicked in kho_memory_init; cold reboot into 7.3.2+hugetlb"
        restart_ns = 420 * SEC
    if index == RETRIES:
        attempts, reason, detail = 2, "freeze-retried", "after 2 freezes"
    blackout_start = start_ns + 3 * SEC + rng.randrange(SEC)
    blackout_ns = sum(phases.values())
    waits = [rng.randrange(5, 80) * 1_000_000 for _ in range(2 * per_host)]
    vms = []
    for n, spec in enumerate(specs):
        own = {"pause_wait": waits[2 * n], **phases, "resume_wait": waits[2 * n + 1]}
        vm_outcome, vm_reason, downtime = VmOutcome.PRESERVED, "", sum(own.values())
        if index == PANICS:
            own = {
                "pause_wait": waits[2 * n],
                **{name: phases[name] for name in ("freeze", "kexec", "kho")},
                "restart": restart_ns + waits[2 * n + 1],
            }
            vm_outcome, vm_reason, downtime = VmOutcome.RESTARTED, "panic", sum(own.values())
        if lose_a_vm and index == LOSES and n == 0:
            vm_outcome, vm_reason = VmOutcome.LOST, "content-mismatch"
        lost = vm_outcome is VmOutcome.LOST
        vms.append(VmResult(spec.name, vm_outcome, vm_reason, None if lost else downtime, own))
    if lose_a_vm and index == LOSES:
        reason, detail = "vm-lost", f"{specs[0].name}: 1 of 1024 pages does not read back"
    crossed = {"4KiB": 0, "2MiB": 0, "1GiB": 0}
    if index != PANICS:
        for spec in specs:
            crossed[spec.backing.page_label] += spec.memory_bytes // spec.backing.page_bytes
    end_ns = blackout_start + blackout_ns + restart_ns + 800_000_000
    return UpdateResult(
        host=host.name,
        seq=0,
        outcome=outcome,
        reason=reason,
        detail=detail,
        release=SOURCE if outcome is HostOutcome.ROLLED_BACK else TARGET,
        start_ns=start_ns,
        end_ns=end_ns,
        blackout_start_ns=blackout_start,
        blackout_end_ns=None if index == PANICS else blackout_start + blackout_ns,
        preserved_from_ns=start_ns + SEC,
        preserved_until_ns=end_ns,
        preserved_pages=crossed,
        phases_ns=phases,
        outside_ns={"kexec_file_load": 400_000_000, "preserve": 1_700_000_000}
        | ({} if index == PANICS else {"finish": 300_000_000}),
        freeze_attempts=attempts,
        vms=tuple(vms),
        gauges=HostGauges(
            release=TARGET, vms={"running": per_host}, hugetlb_pages={}, kho_scratch_bytes=512 << 20
        ),
        digest=f"{index:064x}",
    )


def make_run(
    hosts: int = 24,
    racks: int = 3,
    vms_per_host: int = 8,
    *,
    lose_a_vm: bool = False,
    halt_after: int | None = None,
) -> RunRecord:
    """A finished rollout; with `halt_after`, one that its gate halted after that many waves."""
    scenario = make_scenario(hosts, racks, vms_per_host)
    rollout = scenario.rollout
    order = list(range(hosts))
    cuts = [order[: rollout.canary]] + [
        order[at : at + rollout.wave_size] for at in range(rollout.canary, hosts, rollout.wave_size)
    ]
    results: list[UpdateResult] = []
    waves: list[WaveRecord] = []
    now = 0
    at_once = max(1, racks * rollout.max_unavailable["rack"])
    for index, cut in enumerate(cuts):
        name = "canary" if index == 0 else f"wave {index}"
        names = tuple(scenario.hosts[i].name for i in cut)
        if halt_after is not None and index >= halt_after:
            waves.append(WaveRecord(index, name, names, None, None, None, "not started"))
            continue
        lanes, wave_start = [now] * at_once, now
        for i in cut:
            result = make_update(scenario, i, lanes[0], lose_a_vm=lose_a_vm)
            results.append(result)
            heapreplace(lanes, result.end_ns)
        end = max(result.end_ns for result in results)
        halts = halt_after is not None and index == halt_after - 1
        soak = rollout.canary_soak_ns if index == 0 else rollout.soak_ns
        verdict = "1 VM was lost, the gate allows 0" if halts else "passed"
        waves.append(
            WaveRecord(index, name, names, wave_start, end, None if halts else end + soak, verdict)
        )
        now = end if halts else end + soak
    results.sort(key=lambda result: (result.end_ns, result.host))
    outcomes = {host.name: HostOutcome.SKIPPED for host in scenario.hosts}
    vms = {vm.name: VmOutcome.PRESERVED for vm in scenario.vms}
    for result in results:
        outcomes[result.host] = result.outcome
        vms.update({vm.name: vm.outcome for vm in result.vms})
    return RunRecord(
        scenario=scenario,
        seed=7,
        state=RolloutState.COMPLETED if halt_after is None else RolloutState.HALTED,
        why="every host of the plan was tried"
        if halt_after is None
        else "wave 1: 1 VM was lost, the gate allows 0",
        results=tuple(results),
        hosts=outcomes,
        vms=vms,
        waves=tuple(waves),
        virtual_ns=now,
        digest="d19e57" * 10 + "abcd",
        cost_digest="c057" * 16,
        wall_seconds=4.2,
        peak_rss_bytes=180 << 20,
        backend="local",
        actors=1,
    )


def fresh_snapshot() -> FleetSnapshot:
    """A fleet of 24 hosts before its rollout has begun."""
    return FleetSnapshot(
        virtual_time_ns=0,
        state=RolloutState.PENDING,
        why="not started",
        wave=-1,
        waves=4,
        wave_name="",
        hosts={"pending": 24},
        vms={"running": 192},
        preserved_pages={},
        pages_preserved_total={},
        hugetlb_pages={},
        kho_scratch_bytes=0,
        host_updates_total={},
        downtime=Histogram(),
        phases={},
        scenario="rolling-update",
        seed=7,
        source_release=SOURCE,
        target_release=TARGET,
        proposal="with the proposal flb-counts, RFC of Dec 2025",
        downtime_budget_ns=30 * SEC,
    )


def busy_snapshot() -> FleetSnapshot:
    """The same fleet in its first wave: two downtimes of 12 s and 14 s, one VM lost."""
    downtimes = [0] * (len(HISTOGRAM_EDGES_NS) + 1)
    downtimes[HISTOGRAM_EDGES_NS.index(15 * SEC)] = 2
    downtimes[-1] = 1
    freezes = [0] * (len(HISTOGRAM_EDGES_NS) + 1)
    freezes[HISTOGRAM_EDGES_NS.index(50_000_000)] = 1
    return msgspec.structs.replace(
        fresh_snapshot(),
        virtual_time_ns=754_500_000_000,
        state=RolloutState.WAVE,
        wave=1,
        wave_name="wave 1",
        hosts={"pending": 15, "updating": 6, "updated": 2, "rolled_back": 1},
        vms={"running": 180, "paused": 11, "lost": 1},
        preserved_pages={"2MiB": 4096, "1GiB": 64},
        pages_preserved_total={"4KiB": 1_000_000, "2MiB": 40_960, "1GiB": 640},
        hugetlb_pages={"2MiB": {"free": 100, "used": 4096, "reserved": 3, "surplus": 0}},
        kho_scratch_bytes=512 << 20,
        host_updates_total={("updated", ""): 2, ("rolled_back", "panic"): 1},
        downtime=Histogram(tuple(downtimes), 26 * SEC),
        phases={"freeze": Histogram(tuple(freezes), 40_000_000)},
        over_budget=1,
        vm_outcomes={"preserved": 15, "restarted": 8, "lost": 1},
        host_states={"r1-h01": "updated", "r2-h01": "updating"},
    )
