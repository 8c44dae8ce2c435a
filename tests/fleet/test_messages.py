"""A snapshot of the fleet as a message, and enum members that one side lacks."""

from __future__ import annotations

from msgspec.structs import asdict

from fleet.api import FleetSnapshot, Histogram, RolloutState
from fleet.messages import ROLLOUT_STATES, status_message
from lufleet.v1 import fleet_pb2

SNAPSHOT = FleetSnapshot(
    virtual_time_ns=5,
    state=RolloutState.SOAKING,
    why="wave 1 is done",
    wave=1,
    waves=3,
    wave_name="wave 1",
    hosts={"updated": 3, "pending": 1},
    vms={"running": 7, "lost": 0},
    preserved_pages={"2MiB": 0},
    pages_preserved_total={"2MiB": 512},
    hugetlb_pages={},
    kho_scratch_bytes=0,
    host_updates_total={},
    downtime=Histogram(),
    phases={},
    scenario="s",
    seed=1,
    source_release="7.3.2",
    target_release="7.3.4",
    proposal="",
    downtime_budget_ns=1,
)


def test_both_sides_know_the_same_states() -> None:
    names = {f"ROLLOUT_STATE_{state.name}" for state in RolloutState}
    assert {*fleet_pb2.RolloutState.keys()} == names | {"ROLLOUT_STATE_UNSPECIFIED"}
    assert len({*ROLLOUT_STATES.values()}) == len(RolloutState)


def test_the_status_says_what_the_snapshot_does() -> None:
    message = status_message(SNAPSHOT)
    ours = asdict(SNAPSHOT)
    for field in message.DESCRIPTOR.fields:
        if field.name == "state":
            assert message.state == fleet_pb2.ROLLOUT_STATE_SOAKING
        else:
            theirs = getattr(message, field.name)
            assert (dict(theirs) if isinstance(ours[field.name], dict) else theirs) == ours[
                field.name
            ]
