"""Clocks with a few rows of costs, for tests of what is charged."""

from __future__ import annotations

from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel, CostRow, Spread

ROWS = {
    "ns": CostRow("ns", 0, 1000, "ns", "estimate", "a nanosecond each", "", "boot"),
    "call": CostRow("call", 100, 41_291, "key", "estimate", "test", "", "boot"),
    "third": CostRow("third", 0, 333, "page", "estimate", "test"),
    "lucky": CostRow("lucky", 1000, 0, "go", "estimate", "test", "wide", "vmm"),
}
SPREADS = {"wide": Spread("wide", ((0, 500), (500, 1000), (1000, 9000)), "estimate", "test")}
COST = CostModel(ROWS, SPREADS)


def make_clock(cpus: int = 4, seed: int = 7, path: tuple[str | int, ...] = ("host", "a")) -> Clock:
    return Clock(COST, cpus, seed, path)
