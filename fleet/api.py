"""The values that cross the border between a rollout and everything that shows it.

The driver (`fleet.experiment`) produces them; results, report, exporter and server only read
them. Times are integer nanoseconds of virtual time unless a name says `wall`; sizes are bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from node.api import BLACKOUT_PHASES, Backing, HostOutcome, UpdateResult, VmOutcome

if TYPE_CHECKING:
    from fleet.scenario import Scenario

__all__ = [
    "HISTOGRAM_EDGES_NS",
    "HOST_STATES",
    "PAGE_LABELS",
    "POOL_STATES",
    "UPDATE_PHASES",
    "VM_STATES",
    "FleetSnapshot",
    "Histogram",
    "RolloutState",
    "RunRecord",
    "WaveRecord",
]

#: Upper edges of every duration histogram, in nanoseconds (the contract names them in seconds:
#: .01 .02 .05 .1 .2 .3 .5 1 1.7 2.5 5 7.5 10 15 20 30 45 60 120 300 600 1200).
HISTOGRAM_EDGES_NS: tuple[int, ...] = tuple(
    ms * 1_000_000
    for ms in (
        *(10, 20, 50, 100, 200, 300, 500, 1_000, 1_700, 2_500, 5_000, 7_500),
        *(10_000, 15_000, 20_000, 30_000, 45_000, 60_000, 120_000, 300_000, 600_000, 1_200_000),
    )
)

#: The states that a snapshot counts hosts, VMs and the huge pages of pools by.
HOST_STATES: Final = ("pending", "updating", "updated", "failed", "skipped", "rolled_back")
VM_STATES: Final = ("running", "paused", "restarting", "lost")
POOL_STATES: Final = ("free", "used", "reserved", "surplus")

#: The `page_size` labels, smallest first.
PAGE_LABELS: Final = tuple(backing.page_label for backing in Backing)

#: The phases that are measured of a host's update, in the order in which it goes through them.
UPDATE_PHASES: Final = ("kexec_file_load", "preserve", *BLACKOUT_PHASES, "finish")


class RolloutState(StrEnum):
    """Where a rollout stands."""

    PENDING = "pending"  # planned, nothing started
    CANARY = "canary"  # the canary hosts are updating
    WAVE = "wave"  # the hosts of a wave are updating
    SOAKING = "soaking"  # a wave is done, its soak runs
    PAUSED = "paused"  # on request: nothing new starts, hosts in flight finish
    HALTED = "halted"  # a gate closed: nothing new starts any more
    ABORTED = "aborted"  # on request: nothing new starts any more
    COMPLETED = "completed"  # every host of the plan was tried

    @property
    def is_final(self) -> bool:
        """Whether no host will be started from here."""
        return self in (RolloutState.HALTED, RolloutState.ABORTED, RolloutState.COMPLETED)


class WaveRecord(Struct, frozen=True):
    """How one wave of a rollout went. Wave 0 is the canary where there is one."""

    index: int
    name: str  # "canary", "wave 1", "wave 2", …
    hosts: tuple[str, ...]  # in the order of the plan
    start_ns: int | None  # first host started; None: the rollout ended before this wave
    end_ns: int | None  # last host of it done (in flight ones included)
    soak_end_ns: int | None  # end of its soak; None: was not soaked, or not to the end
    verdict: str  # "passed" | "not started" | a sentence: why the rollout ended in it


class RunRecord(Struct, frozen=True):
    """One rollout from beginning to end, as results and report see it."""

    scenario: Scenario
    seed: int
    state: RolloutState  # COMPLETED, HALTED or ABORTED
    why: str  # a sentence for people: why it ended so
    results: tuple[UpdateResult, ...]  # every command's, by (end_ns, host), events left out
    hosts: dict[str, HostOutcome]  # every host of the scenario, in its order
    vms: dict[str, VmOutcome]  # every VM of the scenario, in its order
    waves: tuple[WaveRecord, ...]
    virtual_ns: int  # length of the rollout on the virtual clock
    digest: str  # hex; the same whatever the backend, the actors and what was killed
    cost_digest: str  # hex; of the cost rows in force
    wall_seconds: float  # from here on: not part of the digest
    peak_rss_bytes: int
    backend: str  # "local" | "ray"
    actors: int
    from_journal: int = 0  # updates that an interrupted run had computed already

    def __repr__(self) -> str:
        """Which run it is, not a million VMs: asyncio spells out the result of a task that ends."""
        return f"<RunRecord of {self.scenario.name}, seed {self.seed}: {self.state}>"


class Histogram(Struct, frozen=True):
    """A duration histogram, not cumulative.

    `counts[i]` values were <= HISTOGRAM_EDGES_NS[i] and > the edge before; the last count (one
    more than there are edges) is of those beyond every edge. A lost VM has no finite downtime: it
    is in the last count, not in the sum.
    """

    counts: tuple[int, ...] = (0,) * (len(HISTOGRAM_EDGES_NS) + 1)
    sum_ns: int = 0


class FleetSnapshot(Struct, frozen=True):
    """The whole fleet at one virtual instant; a new one replaces it, it never changes.

    Taken by the driver, read by the Prometheus collector (once a scrape, from any thread) and by
    `FleetService.WatchRollout`. Counters start at 0 when the fleet is built. `hosts` and `vms` have
    all of `HOST_STATES` and `VM_STATES` and sum to the fleet's totals. A skipped host is one that
    the rollout has ended without touching.
    """

    virtual_time_ns: int
    state: RolloutState
    why: str  # of the last change of state
    wave: int  # index of the current wave, -1 before the first
    waves: int  # how many the plan has, the canary included
    wave_name: str  # "" before the first
    hosts: dict[str, int]
    vms: dict[str, int]
    preserved_pages: dict[str, int]  # page_size -> held by KHO right now
    pages_preserved_total: dict[str, int]  # page_size -> carried over so far
    hugetlb_pages: dict[str, dict[str, int]]  # page_size -> free, used, reserved, surplus
    kho_scratch_bytes: int
    host_updates_total: dict[tuple[str, str], int]  # (outcome, reason) -> finished updates
    downtime: Histogram  # per VM and update, as lufleet_vm_downtime_seconds
    phases: dict[str, Histogram]  # phase -> per host update, only phases that happened
    scenario: str
    seed: int
    source_release: str  # comma separated if the fleet runs several
    target_release: str
    proposal: str  # "" where the target is a kernel as released
    downtime_budget_ns: int
    over_budget: int = 0  # of `downtime`: those above the budget, lost VMs' among them
    vm_outcomes: dict[str, int] = field(default_factory=dict)  # outcome -> VMs, untouched: none
    host_states: dict[str, str] = field(default_factory=dict)  # host -> one of the six states
