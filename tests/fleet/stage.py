"""A coordinator that is played by hand."""

from __future__ import annotations

from fleet.api import RolloutState
from fleet.coordinator import Coordinator
from fleet.plan import make_plan
from fleet.scenario import RolloutSpec
from fleet.steps import Finished, HostDone, Refused, Request, RequestKind, StartHosts, Tick, WakeAt
from node.api import HostOutcome, UpdateCommand
from tests.fleet.rollouts import SECOND, Log, racks, result_of, scenario_of

SOAKED = RolloutSpec(canary=1, wave_size=2, soak_ns=300 * SECOND, canary_soak_ns=600 * SECOND)


class Stage:
    """A coordinator and the hosts that it has started, played by hand."""

    def __init__(self, rollout: RolloutSpec = SOAKED, *sizes: int) -> None:
        self.log = Log()
        scenario = scenario_of(racks(*(sizes or (3, 2))), rollout)
        self.coordinator = Coordinator(make_plan(scenario), rollout.gate, self.log)
        self.flying: dict[str, UpdateCommand] = {}
        self.wake_ns: int | None = None
        self.ended: Finished | None = None
        self.refused: list[str] = []

    @property
    def state(self) -> RolloutState:
        return self.coordinator.state

    @property
    def is_over(self) -> bool:
        return self.ended is not None

    def feed(self, observation: Tick | HostDone | Request) -> Stage:
        for action in self.coordinator.step(observation):
            if isinstance(action, StartHosts):
                self.flying |= {command.host: command for command in action.commands}
            elif isinstance(action, WakeAt):
                self.wake_ns = action.at_ns
            elif isinstance(action, Refused):
                self.refused.append(action.why)
            else:
                assert self.ended is None
                self.ended = action
        return self

    def start(self) -> Stage:
        return self.feed(Tick(0))

    def ask(self, kind: RequestKind) -> Stage:
        return self.feed(Request(self.coordinator.now_ns, kind, "a person"))

    def land(self, outcome: HostOutcome = HostOutcome.UPDATED, release: str | None = None) -> Stage:
        """The first host in flight ends its update, 20 s after its start or right now."""
        command = self.flying.pop(next(iter(self.flying)))
        took_ns = max(20 * SECOND, self.coordinator.now_ns - command.start_ns)
        return self.feed(
            HostDone(result_of(command, outcome=outcome, took_ns=took_ns, release=release))
        )

    def soak(self) -> Stage:
        assert self.wake_ns is not None
        return self.feed(Tick(self.wake_ns))
