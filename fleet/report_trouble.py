"""The part of a report that an operator reads first: what did not just go well, and why."""

from __future__ import annotations

from collections import Counter
from typing import Final

from fleet.api import RunRecord
from fleet.charts.svg import clock, seconds
from fleet.html import Markup, badge, paragraph, table, text
from fleet.results import Result
from fleet.units import counted
from node.api import HostOutcome, UpdateResult, VmOutcome, VmResult

__all__ = ["MOST_ROWS", "trouble_notes"]

#: A table stops here; the event store has the rest.
MOST_ROWS: Final = 100

_STYLE: Final = {
    HostOutcome.UPDATED: "good",
    HostOutcome.FAILED: "bad",
    HostOutcome.SKIPPED: "idle",
    HostOutcome.ROLLED_BACK: "warn",
    VmOutcome.PRESERVED: "good",
    VmOutcome.MIGRATED: "idle",
    VmOutcome.RESTARTED: "warn",
    VmOutcome.LOST: "bad",
}


def trouble_notes(record: RunRecord, result: Result) -> Markup:
    """Hosts, VMs and injected faults, worst first."""
    budget_ns = record.scenario.downtime_budget_ns
    troubled = [r for r in record.results if _is_troubled(r, budget_ns)]
    troubled.sort(key=lambda r: (_rank(r), r.end_ns, r.host))
    parts = [_hosts(record, troubled, budget_ns), _vms(record, budget_ns)]
    if not troubled:
        parts = [paragraph("Every host was updated at the first attempt, every VM within budget.")]
    if skipped := result.hosts.skipped:
        parts.append(
            paragraph(
                f"{counted(skipped, 'host')} never touched: still on the old release.", "note"
            )
        )
    parts.append(_faults(record))
    return Markup("".join(parts))


def _is_troubled(result: UpdateResult, budget_ns: int) -> bool:
    return (
        result.outcome is not HostOutcome.UPDATED
        or bool(result.reason)
        or result.freeze_attempts > 1
        or any(_is_vm_troubled(vm, budget_ns) for vm in result.vms)
    )


def _is_vm_troubled(vm: VmResult, budget_ns: int) -> bool:
    return (
        vm.outcome is not VmOutcome.PRESERVED
        or vm.downtime_ns is None
        or vm.downtime_ns > budget_ns
    )


def _rank(result: UpdateResult) -> int:
    if any(vm.outcome is VmOutcome.LOST for vm in result.vms):
        return 0
    return 1 if result.outcome is not HostOutcome.UPDATED else 2


def _hosts(record: RunRecord, troubled: list[UpdateResult], budget_ns: int) -> Markup:
    wave_of = {host: wave.name for wave in record.waves for host in wave.hosts}
    injected: dict[str, list[str]] = {}
    for fault in record.scenario.faults:
        injected.setdefault(fault.host, []).append(fault.kind)
    rows = [
        (
            r.host,
            badge(r.outcome.replace("_", " "), _STYLE[r.outcome]),
            wave_of.get(r.host, ""),
            clock(r.start_ns / 1e9),
            _longest(r),
            _vm_words(r, budget_ns),
            r.reason or "–",
            Markup(
                f'<div class="why">{text(_detail(r, budget_ns, injected.get(r.host, [])))}</div>'
            ),
        )
        for r in troubled[:MOST_ROWS]
    ]
    columns = ("host", "outcome", "wave", "started", "downtime", "VMs", "reason", "what happened")
    return table(_caption("host update", len(troubled)), columns, rows, numeric=(3, 4))


def _caption(what: str, count: int) -> str:
    if count <= MOST_ROWS:
        return f"{counted(count, what)}, worst first"
    return f"{counted(count, what)}, the worst {MOST_ROWS}; run.duckdb has the others"


def _longest(result: UpdateResult) -> str:
    if any(vm.downtime_ns is None for vm in result.vms):
        return "lost"
    longest = max((vm.downtime_ns or 0 for vm in result.vms), default=0)
    return seconds(longest / 1e9) if longest else "–"


def _vm_words(result: UpdateResult, budget_ns: int) -> str:
    counts = Counter(vm.outcome for vm in result.vms)
    words = [
        f"{counts[outcome]} {outcome}"
        for outcome in (VmOutcome.LOST, VmOutcome.RESTARTED, VmOutcome.MIGRATED)
        if counts[outcome]
    ]
    late = sum(
        1
        for vm in result.vms
        if vm.outcome is VmOutcome.PRESERVED and (vm.downtime_ns or 0) > budget_ns
    )
    if late:
        words.append(f"{late} over budget")
    return ", ".join(words) or "all preserved"


def _detail(result: UpdateResult, budget_ns: int, injected: list[str]) -> str:
    """What the host says of it, what took long, and whether the scenario had a hand in it."""
    said = [result.detail] if result.detail else []
    if result.phases_ns and any(
        vm.outcome is VmOutcome.PRESERVED and (vm.downtime_ns or 0) > budget_ns for vm in result.vms
    ):
        phase, longest_ns = max(result.phases_ns.items(), key=lambda item: item[1])
        said.append(f"longest phase {phase}, {seconds(longest_ns / 1e9)}")
    if injected:
        said.append(f"injected fault {', '.join(injected)}")
    return "; ".join(said)


def _vms(record: RunRecord, budget_ns: int) -> Markup:
    """VMs that were not preserved."""
    struck = [
        (vm, result.host)
        for result in record.results
        for vm in result.vms
        if vm.outcome is not VmOutcome.PRESERVED
    ]
    if not struck:
        return Markup()
    struck.sort(key=lambda pair: (pair[0].downtime_ns is not None, -(pair[0].downtime_ns or 0)))
    rows = [
        (
            vm.name,
            badge(vm.outcome, _STYLE[vm.outcome]),
            host,
            "lost" if vm.downtime_ns is None else seconds(vm.downtime_ns / 1e9),
            vm.reason or "–",
        )
        for vm, host in struck[:MOST_ROWS]
    ]
    return table(
        f"{_caption('VM', len(struck))}: those that did not keep their memory"
        f" (budget {seconds(budget_ns / 1e9)})",
        ("VM", "outcome", "host", "downtime", "reason"),
        rows,
        numeric=(3,),
    )


def _faults(record: RunRecord) -> Markup:
    faults = record.scenario.faults
    if not faults:
        return paragraph("The scenario injected no faults.", "note")
    rows = [
        (
            f.host,
            f.kind,
            "always" if f.times == 0 else str(f.times),
            f.vm or "–",
            f"× {f.factor:g}" if f.factor != 1.0 else f.errno or "–",
        )
        for f in faults[:MOST_ROWS]
    ]
    table_of = table(
        f"{counted(len(faults), 'fault')} that the scenario injected"
        + (f", the first {MOST_ROWS}" if len(faults) > MOST_ROWS else ""),
        ("host", "kind", "times", "VM", "how"),
        rows,
    )
    return Markup(f"<details><summary>Injected faults</summary>{table_of}</details>")
