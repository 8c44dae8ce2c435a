"""The values that cross a shard's border.

A shard is fed these and answers with these, whether it runs in this process, in a
Ray actor or behind gRPC; nothing else passes between `fleet` and `node`. All are frozen
and picklable, times are integer nanoseconds of virtual time, sizes are bytes.

They hold numbers, text and one another, never what holds them: no cycle can go through one, and
the collector of cycles need not look at them (`gc=False`), of which a run has millions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from msgspec import Struct, field
from msgspec.msgpack import Decoder, Encoder
from msgspec.structs import astuple

from kernelmodel.releases import Release

__all__ = [
    "BLACKOUT_PHASES",
    "LONGEST_WAIT_NS",
    "MIN_UPDATE_NS",
    "MOST_FREEZE_RETRIES",
    "ON_FREEZE_FAILURE",
    "ON_PANIC",
    "Backing",
    "FaultSpec",
    "HostCall",
    "HostGauges",
    "HostOutcome",
    "HostSpec",
    "HugepagePool",
    "ShardConfig",
    "UpdateCommand",
    "UpdatePolicy",
    "UpdateResult",
    "VmOutcome",
    "VmResult",
    "VmSpec",
]

#: The phases of a host's blackout in the order in which they happen. `preserve` comes before
#: the blackout and `finish` after it; both are measured, neither is part of a downtime.
BLACKOUT_PHASES = (
    "freeze",
    "kexec",
    "kho",
    "hugetlb",
    "memmap",
    "init",
    "userspace",
    "retrieve",
)

#: No host update ends sooner than this after its start. A driver may therefore start hosts
#: in batches without missing a completion that would have changed its mind; a shard that
#: breaks the promise raises `ModelBug`.
MIN_UPDATE_NS = 1_000_000_000

#: What an `UpdatePolicy` may hold, whether a scenario or a call brings it.
ON_FREEZE_FAILURE = ("give-up", "cold-reboot")
ON_PANIC = ("cold-reboot-old", "cold-reboot-new")
MOST_FREEZE_RETRIES = 1000
LONGEST_WAIT_NS = 366 * 86400 * 10**9


class Backing(StrEnum):
    """What a VM's memory is made of."""

    MEMFD = "memfd"  # plain memfd, 4 KiB pages
    HUGETLB_2M = "hugetlb-2M"  # memfd_create(MFD_HUGETLB | MFD_HUGE_2MB)
    HUGETLB_1G = "hugetlb-1G"  # memfd_create(MFD_HUGETLB | MFD_HUGE_1GB)

    def __init__(self, value: str) -> None:
        #: Size of one page of this backing.
        self.page_bytes = {"memfd": 4 << 10, "hugetlb-2M": 2 << 20, "hugetlb-1G": 1 << 30}[value]
        #: The `page_size` label of metrics and results.
        self.page_label = {"memfd": "4KiB", "hugetlb-2M": "2MiB", "hugetlb-1G": "1GiB"}[value]


class HostOutcome(StrEnum):
    """How a host left a rollout."""

    UPDATED = "updated"  # runs the target release
    FAILED = "failed"  # does not, and something went wrong on it
    SKIPPED = "skipped"  # was never touched
    ROLLED_BACK = "rolled_back"  # went back to the release that it had


class VmOutcome(StrEnum):
    """What became of a VM's memory."""

    PRESERVED = "preserved"  # memory intact (untouched VMs included)
    MIGRATED = "migrated"  # moved to another host
    RESTARTED = "restarted"  # deliberately restarted, memory given up
    LOST = "lost"  # should have been preserved and was not


class HugepagePool(Struct, frozen=True, gc=False):
    """`hugepagesz=` / `hugepages=` of one page size, evenly over the NUMA nodes."""

    page_bytes: int
    count: int


class HostSpec(Struct, frozen=True, gc=False):
    """One host as the inventory describes it."""

    name: str
    domains: dict[str, str]  # failure domains, at least {"rack": …}
    node_bytes: tuple[int, ...]  # memory of each NUMA node
    cpus: int
    release: str  # running kernel, e.g. "7.3.2+hugetlb"
    hugepages: tuple[HugepagePool, ...] = ()
    cmdline: str = ""  # further kernel parameters, e.g. "kho_scratch=256M,1G,512M"


class VmSpec(Struct, frozen=True, gc=False):
    """One VM as the inventory describes it."""

    name: str
    host: str
    memory_bytes: int
    backing: Backing
    vcpus: int


class FaultSpec(Struct, frozen=True, gc=False):
    """A fault that a scenario injects; `node.faults` lists the kinds and what each does."""

    host: str
    kind: str
    times: int = 1  # how often it strikes, 0 for always
    vm: str = ""  # for kinds that aim at one VM
    factor: float = 1.0  # for kinds that slow something down
    errno: str = ""  # for kinds that make a call fail, e.g. "EIO"


class UpdatePolicy(Struct, frozen=True, gc=False):
    """What a host does about trouble during its own update."""

    freeze_retries: int = 2  # further attempts after a freeze that failed
    freeze_retry_delay_ns: int = 5_000_000_000
    boot_timeout_ns: int = 120_000_000_000  # watchdog: jump to agent; then a reset
    on_freeze_failure: str = "give-up"  # one of ON_FREEZE_FAILURE
    on_panic: str = "cold-reboot-old"  # one of ON_PANIC
    restart_lost_vms: bool = True  # a VM whose memory was lost is started afresh


class UpdateCommand(Struct, frozen=True, gc=False):
    """Update one host, starting at `start_ns`. `seq` counts the commands of that host."""

    host: str
    seq: int
    start_ns: int
    release: str
    policy: UpdatePolicy


class HostCall(Struct, frozen=True, gc=False):
    """One call of `HostService` that changes a host, as it is journaled and replayed.

    The host acts on it at `at_ns`, or at its own time if that is later. With the commands of that
    host, in the order in which both were acted on, it determines the host.
    """

    host: str
    at_ns: int
    method: str  # name of the rpc, e.g. "PauseVm"
    request: bytes  # the request message, serialised


class VmResult(Struct, frozen=True, gc=False):
    """One VM's share of one host update.

    `phases_ns` sums exactly to `downtime_ns`; its keys are `pause_wait`, the host's
    blackout phases that happened, `resume_wait`, and for a VM that was started again
    `restart` (everything from the end of the last kernel's life to the restart). `failed_freeze`
    is the downtime of attempts whose freeze failed.
    `downtime_ns` is None for a VM whose memory was lost (it ranks above every finite
    value) and 0 for one that was never paused, which has no phases either.
    """

    name: str
    outcome: VmOutcome
    reason: str
    downtime_ns: int | None
    phases_ns: dict[str, int]


class HostGauges(Struct, frozen=True, gc=False):
    """What a host's own counters say at one moment."""

    release: str
    vms: dict[str, int]  # state (running, paused, stopped) -> count
    hugetlb_pages: dict[str, dict[str, int]]  # page_size -> free, used, reserved, surplus
    kho_scratch_bytes: int


class UpdateResult(Struct, frozen=True, gc=False):
    """How one `UpdateCommand` ended. All instants are absolute virtual time."""

    host: str
    seq: int
    outcome: HostOutcome
    reason: str  # "" | freeze-failed | panic | boot-timeout | kexec-load-failed | vm-lost | …
    detail: str  # a sentence for people
    release: str  # what the host runs now
    start_ns: int
    end_ns: int
    blackout_start_ns: int | None
    blackout_end_ns: int | None
    preserved_from_ns: int | None  # pages are held by KHO from here …
    preserved_until_ns: int | None  # … to here
    preserved_pages: dict[str, int]  # page_size -> pages that crossed the jump in memory
    phases_ns: dict[str, int]  # blackout phases that happened, sum == blackout length
    outside_ns: dict[str, int]  # "preserve", "finish", "kexec_file_load", outside the blackout
    freeze_attempts: int
    vms: tuple[VmResult, ...]
    gauges: HostGauges
    digest: str  # hex of the host's rolling event hash after this command
    events: bytes = b""  # its events, if the shard records them (see kernelmodel.sim.trace)


class ShardConfig(Struct, frozen=True):
    """Everything a shard is built from; together with the commands it determines it."""

    seed: int
    hosts: tuple[HostSpec, ...]
    vms: tuple[VmSpec, ...]  # only those of its hosts
    faults: tuple[FaultSpec, ...] = ()  # only those of its hosts
    cost_profile: str = ""  # TOML text of overriding rows, "" for the built-in profile
    record_events: bool = False
    releases: tuple[Release, ...] = ()  # a user's own, beside the catalogue
    keep_images: frozenset[str] = frozenset()  # of its hosts: those whose last jump's image is kept
    #: Already done, of each host in its order: replay lazily.
    commands: tuple[UpdateCommand | HostCall, ...] = field(default=())
    incarnation: int = 0  # how many actors had this shard before; changes nothing about its hosts
    of_shards: int = 1  # into how many the fleet is split; decides where this one is put, at most

    def __reduce__(self) -> tuple[Callable[..., ShardConfig], tuple[object, ...]]:
        """Its inventory as one blob: Ray's pickler calls into Python for each object it meets."""
        seed, hosts, vms, *rest = astuple(self)
        inventory = zlib.compress(Encoder().encode((hosts, vms)), level=1)
        return _unpickled, (seed, inventory, *rest)


_INVENTORY: Final = Decoder(tuple[tuple[HostSpec, ...], tuple[VmSpec, ...]])


def _unpickled(seed: int, inventory: bytes, *rest: object) -> ShardConfig:
    return ShardConfig(seed, *_INVENTORY.decode(zlib.decompress(inventory)), *rest)  # type: ignore[arg-type]  # as they were
