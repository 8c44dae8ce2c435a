"""Random rollouts that a scenario may describe: small fleets, every policy, whatever goes wrong."""

from __future__ import annotations

import random

Values = dict[str, object]

#: Releases that hosts run, and the target: live steps, and some that are not.
_STEPS = (
    (("7.3.2+hugetlb",), "7.3.4+hugetlb"),
    (("7.3.2+hugetlb", "7.3.4+hugetlb"), "7.3.4+hugetlb"),
    (("7.3.2", "7.2.13"), "7.3.4"),
    (("7.3.2+guest-memfd",), "own"),
    (("6.16", "7.3.4"), "7.3.4+hugetlb"),
    (("7.3.4+ours", "7.2.13"), "6.19"),
)
_KINDS = (
    *("slow-boot", "freeze-fails", "kexec-load-fails", "next-kernel-panics", "boot-hangs"),
    *("drop-preserved-page", "corrupt-folio-entry"),
)
_WAITS = ("0s", "1ns", "250ms", "90s", "2d")


def random_values(seed: int) -> Values:
    """What the file of a scenario would hold that `lufleet check` accepts."""
    rng = random.Random(f"rollout {seed}")
    releases, target = rng.choice(_STEPS)
    classes = [_host_class(rng, f"h{nr}", rng.choice(releases)) for nr in range(rng.randint(1, 3))]
    hosts = sum(int(str(one["count"])) for one in classes)
    domains = ["rack", *(["zone"] if any("domains" in one for one in classes) else [])]
    vms = [
        {"name": f"{one['name']}-{vm['backing']}", "hosts": one["name"], "vcpus": 2, **vm}
        for one in classes
        for vm in _vms(rng, huge="hugepages" in one)
    ]
    limits = {key: rng.randint(1, 3) for key in domains if rng.random() < 0.6}
    rollout: Values = {
        "canary": rng.choice([0, 1, 2, "30%"]),
        "wave_size": rng.choice([1, 2, 5, "100%"]),
        "canary_soak": rng.choice(_WAITS),
        "soak": rng.choice(_WAITS),
        "spread": rng.choice(["", *domains]),
        "max_unavailable": limits,
        "gate": _gate(rng, hosts),
    }
    return {
        "seed": seed,
        "fleet": {"host_class": classes, "vm_class": vms},
        "update": _update(rng, target),
        "rollout": rollout,
        "release": [{"name": "own", "based_on": "7.3.2+guest-memfd"}],
        "faults": [_fault(rng) for _ in range(rng.randrange(5))],
    }


def _host_class(rng: random.Random, name: str, release: str) -> Values:
    count = rng.randint(1, 5)
    made: Values = {"name": name, "count": count, "racks": rng.randint(1, count)}
    made |= {"memory": "4GiB", "cpus": rng.choice([1, 8]), "release": release}
    made |= {"numa_nodes": rng.choice([1, 2]), "cmdline": "kho_scratch=64M,192M,64M"}
    if rng.random() < 0.4:
        made["domains"] = {"zone": rng.randint(1, count)}
    if "+" in release:
        made["hugepages"] = {"2MiB": 128, "1GiB": 1}
    return made


def _vms(rng: random.Random, *, huge: bool) -> list[Values]:
    made: list[Values] = [{"per_host": rng.randint(1, 3), "memory": "8MiB", "backing": "memfd"}]
    if huge:
        made.append({"per_host": rng.randint(1, 2), "memory": "64MiB", "backing": "hugetlb-2M"})
        made.append({"per_host": 1, "memory": "1GiB", "backing": "hugetlb-1G"})
    return rng.sample(made, rng.randint(0, len(made)))


def _update(rng: random.Random, target: str) -> Values:
    return {
        "target": target,
        "allow_incompatible": True,
        "freeze_retries": rng.choice([0, 2]),
        "freeze_retry_delay": rng.choice(_WAITS),
        "boot_timeout": rng.choice(["1ns", "5s", "2min", "2min", "2min"]),
        "on_freeze_failure": rng.choice(["give-up", "cold-reboot"]),
        "on_panic": rng.choice(["cold-reboot-old", "cold-reboot-new"]),
        "restart_lost_vms": rng.random() < 0.5,
    }


def _gate(rng: random.Random, hosts: int) -> Values:
    if rng.random() < 0.4:  # else few rollouts would get far
        return {"max_failed_hosts": hosts, "max_lost_vms": "100%"}
    gate: Values = {"max_failed_hosts": rng.choice([0, 1, hosts])}
    gate["max_lost_vms"] = rng.choice([0, 1, 2, "100%"])
    return gate | rng.choice([{}, {}, {"max_downtime": "9s"}])


def _fault(rng: random.Random) -> Values:
    kind = rng.choice(_KINDS)
    made: Values = {"kind": kind, "rate": rng.choice([0.1, 0.5, 1]), "times": rng.randrange(4)}
    return made | ({"factor": rng.choice([0.5, 4, 100])} if kind == "slow-boot" else {})
