"""The yardstick: the same rollout in SimPy, with no kernel in it.

Hosts are processes that wait: for their turn, for each phase of a blackout, for each of their VMs.
Whatever a modelled kernel costs beyond this is what it costs to have one.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any

import simpy

__all__ = ["roll_out"]

_PHASES_S = (1.1, 0.01, 0.5, 0.2, 0.01, 2.0, 4.6, 3.0, 0.3)


def roll_out(hosts: int, vms: int, waves: int = 10) -> float:
    """Roll over the hosts in waves; the virtual seconds that it takes."""
    env = simpy.Environment()
    rng = random.Random(7)

    def vm(blackout: simpy.Event) -> Generator[simpy.Event, Any, None]:
        yield env.timeout(0.0002)  # paused
        yield blackout
        yield env.timeout(0.002)  # resumed

    def host() -> Generator[simpy.Event, Any, None]:
        for _ in range(3 * vms):  # create, preserve, seal
            yield env.timeout(0.0001)
        over = env.event()
        guests = [env.process(vm(over)) for _ in range(vms)]
        for phase in _PHASES_S:
            yield env.timeout(phase * rng.lognormvariate(0, 0.1))
        over.succeed()
        yield env.all_of(guests)
        for _ in range(3 * vms):  # retrieve, check, finish
            yield env.timeout(0.0001)

    def rollout() -> Generator[simpy.Event, Any, None]:
        for wave in range(waves):
            size = hosts * (wave + 1) // waves - hosts * wave // waves
            yield env.all_of([env.process(host()) for _ in range(size)])
            yield env.timeout(600)

    env.run(env.process(rollout()))
    return float(env.now)
