"""The values of `fleet.api` as messages of `lufleet.v1`."""

from __future__ import annotations

from typing import Final

from fleet.api import FleetSnapshot, RolloutState
from lufleet.v1 import fleet_pb2

__all__ = ["ROLLOUT_STATES", "status_message"]

ROLLOUT_STATES: Final = {
    state: fleet_pb2.RolloutState.Value(f"ROLLOUT_STATE_{state.name}") for state in RolloutState
}


def status_message(snapshot: FleetSnapshot) -> fleet_pb2.RolloutStatus:
    """Where a rollout stands."""
    return fleet_pb2.RolloutStatus(
        virtual_time_ns=snapshot.virtual_time_ns,
        state=ROLLOUT_STATES[snapshot.state],
        why=snapshot.why,
        wave=snapshot.wave,
        waves=snapshot.waves,
        wave_name=snapshot.wave_name,
        hosts=snapshot.hosts,
        vms=snapshot.vms,
        preserved_pages=snapshot.preserved_pages,
        pages_preserved_total=snapshot.pages_preserved_total,
    )
