"""The parts of a report that say what its figures rest on: memory, releases, costs, input."""

from __future__ import annotations

import shlex
import tomllib
from collections import Counter
from typing import Final

from fleet.api import RunRecord
from fleet.html import Markup, code, facts, paragraph, table
from fleet.results import Result
from fleet.units import counted
from kernelmodel.releases import Release
from kernelmodel.sim.cost import CostModel, CostRow
from node.api import Backing

__all__ = ["again", "cost_notes", "memory_notes", "model_notes"]

_GIB: Final = 1 << 30
_UNITS: Final = (("s", 10**12), ("ms", 10**9), ("µs", 10**6), ("ns", 10**3), ("ps", 1))


def memory_notes(result: Result) -> Markup:
    """Pages that crossed a kexec, by size."""
    known = {backing.page_label: (backing.page_bytes, backing.value) for backing in Backing}
    rows = [
        (label, f"{pages:,}", f"{pages * size / _GIB:,.1f} GiB", backing)
        for label, pages in result.preserved_pages.items()
        for size, backing in (known.get(label, (0, "")),)
    ]
    return table(
        "Pages that crossed the jump in memory, summed over all host updates",
        ("page size", "pages", "memory", "backing"),
        rows,
        numeric=(1, 2),
    )


def model_notes(record: RunRecord) -> Markup:
    """What of the target release is Linux as released, what a proposal, what ours."""
    known = record.scenario.catalogue
    target = known[record.scenario.target_release]
    backings = Counter(vm.backing for vm in record.scenario.vms)
    memfd = counted(backings[Backing.MEMFD], "VM")
    huge = counted(sum(backings.values()) - backings[Backing.MEMFD], "VM")
    whose = f"from {target.based_on}, by the user" if target.based_on else "Linux as released"
    rows = [
        ("KHO", target.kho or "absent", whose, "preserves pages over kexec"),
        ("LUO", target.luo or "absent", whose, "sessions, files, FLBs"),
        ("memfd", target.memfd or "absent", whose, f"plain memfds; {memfd}"),
        _hugetlb_row(target, huge),
        ("VMs, VMM, agent", "–", "ours", "who calls /dev/liveupdate, and when"),
        ("rollout, gates, faults", "–", "ours", "no host was touched: all of it is simulated"),
    ]
    sources = sorted({host.release for host in record.scenario.hosts})
    named = [known[name].title for name in sources]
    return Markup(
        paragraph(
            "Linux 7.3 preserves plain memfds and nothing else; what carries hugetlb memfds over a "
            "kexec exists as proposals. The kernels here are models of both."
        )
        + facts({"from": ", ".join(named), "to": target.title})
        + table("The target release", ("part", "ABI", "status", "what for"), rows)
    )


def _hugetlb_row(target: Release, vms: str) -> tuple[str, str, str, str]:
    if target.proposal is None:
        return ("hugetlb memfd", "absent", "Linux as released", f"refused; {vms} back theirs so")
    abi = ", ".join(filter(None, (target.hugemfd, target.hugetlb)))
    status = f"proposal: {target.proposal.removeprefix('with the proposal ')}"
    return ("hugetlb memfd", abi, status, f"in no released kernel; {vms}")


def cost_notes(record: RunRecord) -> Markup:
    """How many rows of the cost model are published figures and how many estimates, and all."""
    costs = CostModel.load(record.scenario.cost_profile)
    kinds = Counter(row.kind for row in costs.rows.values())
    own = tomllib.loads(record.scenario.cost_profile)
    overridden = [op for op in costs.rows if op in own]
    tails = sorted(own.get("spread", {}))
    says = (
        "Every time in this report was computed: the model counts what the kernel does (folios, "
        "struct pages, radix keys, system calls) and a cost model turns that into nanoseconds. "
        f"Of its {len(costs.rows)} rows {kinds['published']} rest on published figures, "
        f"{kinds['measured']} on measurements and {kinds['estimate']} are estimates."
    )
    if overridden:
        says += f" The scenario overrides {len(overridden)} of them: {', '.join(overridden)}."
    if tails:
        says += f" Its own spreads are {', '.join(tails)}."
    rows = [
        (code(row.op), _time(row.base_ns * 1000), _per_unit(row), row.spread, row.kind, row.source)
        for row in costs.rows.values()
    ]
    rows_table = table(
        "Costs in force",
        ("operation", "each", "per unit", "spread", "kind", "source"),
        rows,
        numeric=(1,),
    )
    spreads_table = table(
        "Spreads: what a draw multiplies a cost by",
        ("spread", "quantile and multiplier", "kind", "source"),
        [(code(s.name), s.told(), s.kind, s.source) for s in costs.spreads.values()],
    )
    return Markup(
        paragraph(says)
        + facts({"cost model": code(record.cost_digest)})
        + f"<details><summary>All {len(rows)} rows with their sources</summary>"
        f"{rows_table}{spreads_table}</details>"
    )


def _per_unit(row: CostRow) -> str:
    return f"{_time(row.per_unit_ps)} / {row.unit}" if row.per_unit_ps else "–"


def _time(ps: int) -> str:
    for unit, size in _UNITS:
        if ps >= size:
            return f"{ps / size:.4g} {unit}"
    return "–"


def again(record: RunRecord) -> str:
    """What makes the run once more, as a shell takes it, or Python where it was made there."""
    source, overrides = record.scenario.source, record.scenario.overrides
    if source is None:
        given = f", {list(overrides)}" if overrides else ""
        return f"roll_out(scenario_of(values{given}, seed={record.seed}))"
    words = ["lufleet", "run", str(source), "--seed", str(record.seed)]
    return shlex.join(words + [word for one in overrides for word in ("--set", one)])
