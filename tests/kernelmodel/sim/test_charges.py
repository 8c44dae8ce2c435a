"""Promise: charges that are stated together take what single ones take."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernelmodel.sim.clocks import make_clock


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=5)))
def test_a_locked_charge_is_a_charge_in_a_block_under_the_lock(
    lanes: list[list[tuple[str, int]]],
) -> None:
    ends: list[list[int]] = []
    for at_once in (False, True):
        clock = make_clock()
        with clock.phase("p") as phase:
            for number, charges in enumerate(lanes):
                with clock.lane(str(number)):
                    for lock, ns in charges:
                        if at_once:
                            clock.charge_locked(lock, "ns", ns)
                            continue
                        with clock.lock(lock):
                            clock.charge("ns", ns)
            clock.charge_locked("a", "ns", 3)
        ends.append([phase.duration_ns, *map(phase.lane_end_ns, phase.lanes)])
    assert ends[0] == ends[1]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**62), min_size=1), st.sampled_from(["call", "third", "lucky"]))
def test_many_charges_at_once_are_as_many_single_ones(units: list[int], op: str) -> None:
    times: list[int] = []
    for way in range(3):
        clock = make_clock()
        if way < 2:
            clock.charge_each(op, np.array(units) if way else units)
        else:
            for each in units:
                clock.charge(op, each)
        times.append(clock.now_ns)
    assert times[0] == times[1] == times[2]
