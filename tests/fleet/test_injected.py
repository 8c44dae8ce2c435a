"""Faults by chance: whom they strike, and that another rate is no other luck."""

from __future__ import annotations

from fleet.scenario import scenario_of
from node.api import FaultSpec

NODE = {"memory": "64GiB", "cpus": 16, "release": "7.3.2"}
VM = {"memory": "1GiB", "backing": "memfd", "vcpus": 1, "per_host": 1}


def drawn(kind: str, rate: float, seed: int = 3) -> tuple[FaultSpec, ...]:
    """Faults of a fleet of 400 hosts, every other one of which has three VMs."""
    values = {
        "fleet": {
            "host_class": [
                {**NODE, "name": "a", "count": 200},
                {**NODE, "name": "b", "count": 200},
            ],
            "vm_class": [{**VM, "name": name, "hosts": "a"} for name in ("u", "v", "w")],
        },
        "update": {"target": "7.3.4"},
        "rollout": {},
        "faults": [{"kind": kind, "rate": rate}],
    }
    return scenario_of(values, seed=seed).faults


def struck(rate: float, seed: int = 3) -> set[str]:
    return {fault.host for fault in drawn("boot-hangs", rate, seed)}


def test_a_higher_rate_strikes_the_same_hosts_and_more() -> None:
    assert not struck(0)
    few, more = struck(0.1), struck(0.3)
    assert 20 <= len(few) <= 60
    assert few < more
    assert len(struck(1)) == 400
    assert struck(0.3, seed=4) != more, "another seed, other luck"
    assert struck(0.3) == more


def test_a_fault_that_needs_a_vm_strikes_one_of_the_hosts_own() -> None:
    faults = drawn("drop-preserved-page", 1)
    assert [fault.host for fault in faults] == [f"a-{nr}" for nr in range(1, 201)], "b has no VMs"
    assert all(fault.vm.startswith(f"{fault.host}-") for fault in faults)
    chosen = [fault.vm.split("-")[2] for fault in faults]
    assert all(40 <= chosen.count(name) <= 100 for name in "uvw")
