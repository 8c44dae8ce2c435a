"""The fleet's hosts behind one address: `HostService` calls on their way to a shard.

A call that changes a host gets the fleet's virtual time and goes into the journal before the shard
sees it; it is acknowledged after that, so what a client was told has happened survives the
coordinator and every actor. The shard's handle remembers it as well and replays it, in its place
among the rollout's commands, when the actor has to be rebuilt.

Simplification: the fleet's metrics tell of rollouts; what is done to a host by hand shows in
GetHost and in its events.

Unhappy paths: a host that the rollout is updating right now takes no changes, for its model is
already where the update will have ended. A shard that cannot be kept alive is UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager

import grpc

from fleet.experiment import Experiment
from fleet.journal import Journal
from fleet.launcher import HostUnreachable
from fleet.unwritable import CannotWrite
from node.api import HostCall
from node.calls import READING, HostReply
from node.grpc_server import NotHere
from node.watchers import EventQueue, Watchers

__all__ = ["FleetHosts"]


class FleetHosts:
    """Every host of an experiment. Implements `node.servicer.Hosts`.

    `speed` is virtual seconds a wall second for whoever follows a long operation; None: at once.
    """

    def __init__(
        self, experiment: Experiment, journal: Journal, watchers: Watchers, speed: float | None
    ) -> None:
        self._experiment = experiment
        self._journal = journal
        self._speed = speed
        self._names = [host.name for host in experiment.scenario.hosts]
        self._known = frozenset(self._names)
        self._watchers = watchers

    def names(self) -> Sequence[str]:
        """In the order of the inventory."""
        return self._names

    async def call(self, host: str, method: str, request: bytes) -> HostReply:
        """Have a host carry out an rpc; whoever gives up waiting does not stop it.

        Raises:
            NotHere: no such host, or it is being updated, or its shard is gone.
        """
        self._check(host)
        call = HostCall(host, self._experiment.snapshot.virtual_time_ns, method, request)
        if method in READING:
            return await self._send(call, journaled=False)
        if host in self._experiment.coordinator.in_flight:
            raise NotHere(
                grpc.StatusCode.FAILED_PRECONDITION,
                "HOST_IS_UPDATING",
                f"the rollout is updating {host}",
            )
        try:
            self._journal.called(call)
        except CannotWrite as why:
            code = grpc.StatusCode.UNAVAILABLE
            raise NotHere(code, "JOURNAL_UNWRITABLE", f"nothing was done: {why}") from why
        return await asyncio.shield(asyncio.ensure_future(self._send(call, journaled=True)))

    async def pace(self, from_ns: int, to_ns: int) -> None:
        """Let virtual time pass as fast as it does here."""
        if self._speed is not None and to_ns > from_ns:
            await asyncio.sleep((to_ns - from_ns) / 1e9 / self._speed)

    def watch(self, host: str) -> AbstractContextManager[EventQueue]:
        """A queue of what happens on a host."""
        self._check(host)
        return self._watchers.watch(host)

    async def _send(self, call: HostCall, *, journaled: bool) -> HostReply:
        shard = self._experiment.shard_of(call.host)
        try:
            reply: HostReply = await shard.call(
                "call_host", call, history=(call,) if journaled else ()
            )
        except HostUnreachable as gone:
            raise NotHere(grpc.StatusCode.UNAVAILABLE, "HOST_UNREACHABLE", str(gone)) from gone
        self._watchers.answered(call.host, reply)
        return reply

    def _check(self, host: str) -> None:
        if host not in self._known:
            code = grpc.StatusCode.NOT_FOUND
            raise NotHere(code, "NO_SUCH_HOST", f"no host {host!r} in this fleet")
