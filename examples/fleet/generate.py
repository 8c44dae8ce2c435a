"""Write hosts.csv and vms.csv, the inventory of the rolling-update example.

24 hosts in three racks and eight VMs on each. Sizes are spread as they are in public clouds, many
small and few huge; the proportions below are ours, made up to that shape and measured nowhere.
The draw is seeded: the tables change only when this file does.

    python examples/fleet/generate.py
"""

from __future__ import annotations

import random
from pathlib import Path

SEED = 2026
RACKS, HOSTS_PER_RACK, VMS_PER_HOST = 3, 8, 8
RELEASE = "7.3.2+hugetlb"

#: Pages of each pool on every host: 96 GiB of 2 MiB pages, 256 GiB of 1 GiB pages.
POOL_2M, POOL_1G = 49152, 256

#: GiB of a VM -> how many in a thousand are of that size.
SIZES = {1: 180, 2: 220, 4: 220, 8: 160, 16: 100, 32: 60, 64: 35, 128: 20, 192: 5}

#: What backs VMs up to that many GiB, in permille of memfd, 2 MiB and 1 GiB pages.
BACKINGS = {8: (450, 550, 0), 32: (0, 700, 300), 192: (0, 100, 900)}
NAMES = ("memfd", "hugetlb-2M", "hugetlb-1G")

NOTE = """\
# Written by examples/fleet/generate.py, which see. The shape, many small VMs and few huge ones,
# is that of public clouds; the proportions are ours and were measured nowhere.
"""


def draw_vm(chance: random.Random) -> tuple[int, str, int]:
    """Size in GiB, backing, vCPUs of one VM."""
    (size,) = chance.choices(list(SIZES), list(SIZES.values()))
    weights = next(weights for limit, weights in BACKINGS.items() if size <= limit)
    (backing,) = chance.choices(NAMES, weights)
    return size, backing, max(1, size // 4)


def draw_host(chance: random.Random) -> list[tuple[int, str, int]]:
    """The VMs of one host: drawn again until the pools hold them and each backing is there."""
    while True:
        vms = [draw_vm(chance) for _ in range(VMS_PER_HOST)]
        used = {name: sum(vm[0] for vm in vms if vm[1] == name) for name in NAMES}
        if (
            all(used.values())
            and used["hugetlb-2M"] <= POOL_2M / 512
            and used["hugetlb-1G"] <= POOL_1G
        ):
            return vms


def tables() -> dict[str, str]:
    """File name -> text."""
    chance = random.Random(SEED)
    hosts = [
        "host,rack,zone,numa_nodes,memory,cpus,release,hugepages_2M,hugepages_1G",
        *(
            f"r{rack}-h{nr:02},r{rack},z{1 + rack // 3},2,512GiB,128,{RELEASE},{POOL_2M},{POOL_1G}"
            for rack in range(1, RACKS + 1)
            for nr in range(1, HOSTS_PER_RACK + 1)
        ),
    ]
    vms = ["vm,host,memory,backing,vcpus"]
    for line in hosts[1:]:
        host = line.partition(",")[0]
        for size, backing, vcpus in draw_host(chance):
            vms.append(f"vm-{len(vms):03},{host},{size}GiB,{backing},{vcpus}")
    return {
        "hosts.csv": NOTE + "\n".join(hosts) + "\n",
        "vms.csv": NOTE + "\n".join(vms) + "\n",
    }


def main() -> None:
    """Write the tables beside this file."""
    for name, text in tables().items():
        Path(__file__).with_name(name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
