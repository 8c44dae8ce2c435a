"""A scenario: the fleet, the update, how it is rolled out and what goes wrong.

`Scenario` is the value that everything else in `fleet` works on; `load_scenario` makes it from a
TOML file and the tables that this names, and raises `BadInput` with every mistake in them. Once
there is a `Scenario` nobody further down has to check it. Times are integer nanoseconds, sizes
bytes; shares ("25%") are resolved to hosts. `docs/scenarios.md` describes every key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final, SupportsIndex

import msgspec
from msgspec import Struct

from fleet.bad_input import BadInput, Faults, InputFault, did_you_mean
from fleet.classes import read_host_classes, read_vm_classes
from fleet.columns import read_column_map
from fleet.costs import read_costs
from fleet.feasibility import check_crossings, check_memory
from fleet.fields import Fields
from fleet.injected import read_faults
from fleet.inventory import HOST_COLUMNS, VM_COLUMNS, Inventory, read_hosts, read_vms
from fleet.own_releases import read_releases
from fleet.tables import Table, read_table
from fleet.toml_source import TomlSource, plain
from fleet.units import Unfit, parse_count, shown
from kernelmodel.releases import Release, catalogue_with
from node.api import (
    MOST_FREEZE_RETRIES,
    ON_FREEZE_FAILURE,
    ON_PANIC,
    FaultSpec,
    HostSpec,
    UpdatePolicy,
    VmSpec,
)

__all__ = [
    "BadInput",
    "GateSpec",
    "InputFault",
    "Reading",
    "RolloutSpec",
    "Scenario",
    "content_digest",
    "load_scenario",
    "read_scenario",
    "scenario_of",
]

_LARGEST_SEED: Final = (1 << 63) - 1
_MOST: Final = 1_000_000_000
_DEFAULT_BUDGET_NS: Final = 30_000_000_000


class GateSpec(Struct, frozen=True):
    """What a rollout may cost; it halts as soon as one of these is *exceeded*."""

    max_failed_hosts: int = 0
    max_lost_vms: int = 0
    max_downtime_ns: int | None = None  # of any one VM, None for no limit


class RolloutSpec(Struct, frozen=True):
    """How the update goes over the fleet."""

    canary: int = 1  # hosts updated first, on their own; 0 for none
    wave_size: int = 1  # hosts of each later wave
    max_unavailable: dict[str, int] = {}  # domain key -> hosts down at once per value of it
    soak_ns: int = 0  # wait after each wave, before its gate
    canary_soak_ns: int = 0  # the same after the canary
    spread: str = "rack"  # domain key over whose values a wave is dealt out, "" for table order
    gate: GateSpec = GateSpec()


class Scenario(Struct, frozen=True, omit_defaults=True):
    """One checked scenario. `digest` identifies its content, wherever its files lie."""

    name: str
    source: Path | None  # of the file, None for one that was made in code
    seed: int
    hosts: tuple[HostSpec, ...]  # in the order of the inventory
    vms: tuple[VmSpec, ...]
    target_release: str
    rollout: RolloutSpec
    update: UpdatePolicy
    faults: tuple[FaultSpec, ...]
    cost_profile: str  # TOML text of overriding rows, "" for the built-in profile
    downtime_budget_ns: int  # what a VM's downtime is held against in reports
    digest: str  # hex over all of this but `source` and `overrides`, the seed included
    releases: tuple[Release, ...] = ()  # its own, beside those of the catalogue
    overrides: tuple[str, ...] = ()  # `a.b=v`, what was said beside the file

    def __repr__(self) -> str:  # all of a large fleet would be megabytes on a notebook's page
        return (
            f"<Scenario {self.name}: {len(self.hosts)} hosts, {len(self.vms)} VMs, "
            f"to {self.target_release}, seed {self.seed}>"
        )

    @property
    def catalogue(self) -> dict[str, Release]:
        """Every release that may be named."""
        return catalogue_with(self.releases)

    @property
    def update_title(self) -> str:
        """From what to what; of what is no released kernel it is said once what it is."""
        known = self.catalogue
        target = known[self.target_release]
        sources = [known[name] for name in dict.fromkeys(host.release for host in self.hosts)]
        named = [at.name if at.remark == target.remark else at.title for at in sources]
        return f"{', '.join(named)} → {target.title}"


class Reading(Struct, frozen=True):
    """A scenario and what was found out on the way to it."""

    scenario: Scenario
    inventory: Inventory
    asked: tuple[str, ...]  # every key that a scenario file could have had


def load_scenario(
    path: Path | str, overrides: Iterable[str] = (), seed: SupportsIndex | None = None
) -> Scenario:
    """Read a scenario, its tables and its cost rows, and check that it can be run.

    `overrides` are `a.b=v` as `--set` takes them, `seed` replaces that of the file.

    Raises:
        BadInput: with every mistake that was found.
    """
    return read_scenario(Path(path), overrides, seed).scenario


def read_scenario(path: Path, overrides: Iterable[str] = (), seed: object = None) -> Reading:
    """`load_scenario` with what `lufleet check` shows beside the scenario."""
    faults, said = Faults(), _each(overrides)
    source = TomlSource.read(path, said, faults)
    if len(faults) and not source.values:
        faults.raise_if_any()
    reading = _read(source, path, seed, faults)
    # After the digest: what a value is counts there, not where it was said.
    scenario = msgspec.structs.replace(reading.scenario, overrides=said)
    return msgspec.structs.replace(reading, scenario=scenario)


def scenario_of(
    values: Mapping[str, object], overrides: Iterable[str] = (), seed: SupportsIndex | None = None
) -> Scenario:
    """A scenario from the values that its file would hold; files it names are relative to here.

    A scenario never changes: another is made of other values, overrides or another seed.

    Raises:
        BadInput: with every mistake that was found, by its key.
        TypeError: `values` are none.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{type(values).__name__} is no mapping; load_scenario() reads a file")
    faults, said = Faults(), _each(overrides)
    source = TomlSource.of_values("scenario", values, said, faults)
    reading = _read(source, Path("scenario"), seed, faults)
    return msgspec.structs.replace(reading.scenario, source=None, overrides=said)


def _each(overrides: Iterable[str]) -> tuple[str, ...]:
    """The overrides; a text is one of them, and not its letters."""
    return (overrides,) if isinstance(overrides, str) else tuple(map(str, overrides))


def _seed(given: object, own: int, faults: Faults) -> int:
    """The seed that counts: a plain integer, since streams and the digest are hashed from it."""
    try:
        return own if given is None else parse_count(plain(given), 0, _LARGEST_SEED)
    except Unfit:
        faults.add(("--seed", 0), f"{shown(given)} is no seed", f"0 to {_LARGEST_SEED}")
        return own


def _read(source: TomlSource, path: Path, given_seed: object, faults: Faults) -> Reading:
    root = Fields(source, source.values, faults)
    name = root.text("name", path.stem)
    seed = _seed(given_seed, root.integer("seed", 1, 0, _LARGEST_SEED), faults)
    releases = read_releases(root, path.parent)
    inventory = _read_fleet(root, path.parent, catalogue_with(releases), faults)
    check_memory(inventory, faults)
    target, update = _read_update(root, inventory, faults)
    rollout, budget_ns = _read_rollout(root, inventory)
    injected = read_faults(root, inventory, seed, faults)
    costs = read_costs(root.table("costs"), path.parent, faults)
    root.close()
    faults.raise_if_any()
    scenario = Scenario(
        name=name,
        source=path,
        seed=seed,
        hosts=tuple(inventory.hosts.values()),
        vms=tuple(inventory.vms.values()),
        target_release=target,
        rollout=rollout,
        update=update,
        faults=injected,
        cost_profile=costs,
        downtime_budget_ns=budget_ns,
        digest="",
        releases=releases,
    )
    scenario = msgspec.structs.replace(scenario, digest=content_digest(scenario))
    return Reading(scenario, inventory, tuple(root.asked))


def content_digest(scenario: Scenario) -> str:
    """Hex over the content, wherever its files lie and however they are written."""
    content = msgspec.structs.replace(scenario, source=Path(), overrides=(), digest="")
    encoder = msgspec.json.Encoder(enc_hook=str, order="deterministic")
    return blake2b(encoder.encode(content), digest_size=16).hexdigest()


def _read_fleet(
    root: Fields, folder: Path, releases: dict[str, Release], faults: Faults
) -> Inventory:
    """Hosts and VMs, from tables or from classes."""
    inventory = Inventory(releases=releases)
    right = 'hosts = "hosts.csv" and vms = "vms.csv", or [[fleet.host_class]]'
    fleet = root.needed_table("fleet", right)
    if fleet is None:
        return inventory
    columns = fleet.table("columns")
    host_columns = read_column_map(columns and columns.table("hosts"), HOST_COLUMNS)
    vm_columns = read_column_map(columns and columns.table("vms"), VM_COLUMNS)
    if columns is not None:
        columns.close()
    before = len(faults)
    if fleet.given("hosts"):
        table = _read_named("hosts", fleet, folder, faults)
        if table is not None:
            read_hosts(table, host_columns, inventory, faults)
            if not table.rows and not table.damaged:
                faults.add((table.file, table.header), "has no rows", "one for each host")
    classes = read_host_classes(fleet, inventory, faults)
    if not inventory.host_places and len(faults) == before:
        fleet.missing(
            "hosts", 'a table with hosts, as hosts = "hosts.csv", or [[fleet.host_class]]'
        )
    if fleet.given("vms"):
        inventory.alike.clear()
        table = _read_named("vms", fleet, folder, faults)
        if table is not None:
            read_vms(table, vm_columns, inventory, faults)
    read_vm_classes(fleet, classes, inventory, faults)
    fleet.close()
    return inventory


def _read_named(key: str, fleet: Fields, folder: Path, faults: Faults) -> Table | None:
    """The table that a key names, None if it cannot be read."""
    before, name = len(faults), fleet.text(key)
    if len(faults) > before:
        return None
    return read_table(folder / name, fleet.place(key), faults)


def _read_update(root: Fields, inventory: Inventory, faults: Faults) -> tuple[str, UpdatePolicy]:
    """The target release, and what a host does about trouble."""
    fields = root.needed_table("update", '[update] with target = "7.3.4+hugetlb"')
    if fields is None:
        return "", UpdatePolicy()
    given = UpdatePolicy()
    target = fields.parsed_text("target", inventory.parse_release, "the release to update to")
    if not fields.boolean("allow_incompatible", default=False):
        check_crossings(inventory, target, fields.place("target"), faults)
    policy = UpdatePolicy(
        freeze_retries=fields.integer(
            "freeze_retries", given.freeze_retries, 0, MOST_FREEZE_RETRIES
        ),
        freeze_retry_delay_ns=fields.duration_ns("freeze_retry_delay", given.freeze_retry_delay_ns),
        boot_timeout_ns=fields.duration_ns("boot_timeout", given.boot_timeout_ns, zero=False),
        on_freeze_failure=fields.text(
            "on_freeze_failure", given.on_freeze_failure, ON_FREEZE_FAILURE
        ),
        on_panic=fields.text("on_panic", given.on_panic, ON_PANIC),
        restart_lost_vms=fields.boolean("restart_lost_vms", given.restart_lost_vms),
    )
    fields.close()
    return target, policy


def _read_rollout(root: Fields, inventory: Inventory) -> tuple[RolloutSpec, int]:
    """How the update goes over the fleet, and the downtime budget."""
    right = "[rollout] with canary, wave_size and [rollout.gate]"
    fields = root.needed_table("rollout", right)
    if fields is None:
        return RolloutSpec(), _DEFAULT_BUDGET_NS
    # Hosts that could not be read leave shares of nothing, which is not the share's fault.
    hosts = len(inventory.host_places) or _MOST
    budget_ns = fields.duration_ns("downtime_budget", _DEFAULT_BUDGET_NS, zero=False)
    domains = inventory.domain_sizes()
    spread = fields.text("spread", "rack")
    if spread and domains and spread not in domains:
        right = did_you_mean(spread, domains, noun="failure domains")
        fields.complain("spread", f"{shown(spread)} is no failure domain of the hosts", right)
    rollout = RolloutSpec(
        canary=fields.share("canary", 1, hosts, 0),
        wave_size=fields.share("wave_size", max(1, hosts // 10), hosts, 1),
        max_unavailable=_read_limits(fields.table("max_unavailable"), domains),
        soak_ns=fields.duration_ns("soak", 0),
        canary_soak_ns=fields.duration_ns("canary_soak", 0),
        spread=spread,
        gate=_read_gate(fields.table("gate"), hosts, len(inventory.vm_places) or _MOST),
    )
    fields.close()
    return rollout, budget_ns


def _read_limits(fields: Fields | None, domains: dict[str, int]) -> dict[str, int]:
    if fields is None:
        return {}
    limits: dict[str, int] = {}
    for domain in fields.free_keys():
        if domains and domain not in domains:
            right = did_you_mean(domain, domains, noun="failure domains")
            fields.complain(domain, "no failure domain of the hosts", right)
        # With a limit of 0 no host could ever be taken down.
        limits[domain] = fields.share(domain, None, domains.get(domain, _MOST), 1)
    return limits


def _read_gate(fields: Fields | None, hosts: int, vms: int) -> GateSpec:
    if fields is None:
        return GateSpec()
    longest = None
    if fields.given("max_downtime"):
        longest = fields.duration_ns("max_downtime", None, zero=False)
    gate = GateSpec(
        max_failed_hosts=fields.share("max_failed_hosts", 0, hosts, 0),
        max_lost_vms=fields.share("max_lost_vms", 0, vms, 0),
        max_downtime_ns=longest,
    )
    fields.close()
    return gate
