"""What a person sees of a rollout on a terminal: how it goes, and what it came to.

While it runs, every wave that ends and every host that does not go well gets a line, above a bar
that shows how far the rollout is, how fast, and when it will be over. On a terminal that is none (a
log, a pipe) a line says so every ten seconds instead. At the end, tables.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from statistics import mean, median_low
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from fleet.api import RolloutState, RunRecord, WaveRecord
from fleet.bad_input import BadInput
from fleet.results import Result
from fleet.terminal_tables import SideBySide, titled_table
from fleet.units import counted, show_size
from node.api import Backing, HostOutcome, UpdateResult

if TYPE_CHECKING:
    from fleet.experiment import Experiment

__all__ = ["Progression", "clock_text", "closing_tables", "duration_text", "mistakes", "trouble_of"]

#: A blackout this many times the median one is pointed out.
_SLOW_FACTOR: Final = 2

#: Wall seconds between two lines that say how far a rollout is, where there is no bar.
_SAY_SECONDS: Final = 10.0

#: Rows of the table of hosts that did not go well.
_MOST_TROUBLES: Final = 20

_STATE_STYLES: Final = {
    RolloutState.COMPLETED: "green",
    RolloutState.HALTED: "red",
    RolloutState.ABORTED: "yellow",
}


def clock_text(ns: int) -> str:
    """An instant of virtual time as h:mm:ss."""
    seconds = ns // 1_000_000_000
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def duration_text(seconds: float | None) -> str:
    """A duration with about three figures; a lost VM's has none."""
    if seconds is None:
        return "∞"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"


def trouble_of(result: UpdateResult, usual_blackout_ns: int | None = None) -> str:
    """What did not go well in one host's update, "" if all did."""
    parts = []
    if result.outcome is not HostOutcome.UPDATED or result.reason:
        parts.append(": ".join(text for text in (result.reason, result.detail) if text))
    elif result.freeze_attempts > 1:
        parts.append(f"freeze took {result.freeze_attempts} attempts")
    blackout_ns = sum(result.phases_ns.values())
    if usual_blackout_ns and blackout_ns > _SLOW_FACTOR * usual_blackout_ns:
        times = blackout_ns / usual_blackout_ns
        parts.append(f"blackout of {duration_text(blackout_ns / 1e9)}, {times:.1f} × the median")
    return "; ".join(parts)


def mistakes(bad: BadInput) -> Text:
    """What is wrong with somebody's input, a line each."""
    count = len(bad.faults)
    lines = [*map(str, bad.faults), f"{counted(count, 'mistake')}; nothing was started"]
    return Text("\n".join(lines))


class _Rate(ProgressColumn):
    """Hosts a wall second."""

    def render(self, task: Task) -> Text:
        return Text(
            "" if task.speed is None else f"{task.speed:.1f} hosts/s", "progress.data.speed"
        )


class Progression:
    """Follows an experiment on a console; a context manager. Call it whenever something changed.

    A host counts as soon as it has been computed, although in virtual time its update may have yet
    to end. `clock` gives wall seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            get_time=clock,
        )
        self._task = self._bar.add_task("starting shards", total=None)
        self._total = 0  # hosts
        self._last = (0.0, 0)  # when it was last said how many hosts are done, or the first were
        self._waves_told = 0
        self._hosts_of_waves_told = 0
        self._results_told = 0
        self._state = RolloutState.PENDING

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, experiment: Experiment) -> None:
        """Show how the experiment stands."""
        results, coordinator = experiment.results, experiment.coordinator
        lines: list[tuple[int, str, str]] = []  # when, what, how; a resumed run skips over waves
        for at in range(self._results_told, len(results)):
            if trouble := trouble_of(results[at]):
                what = f"{results[at].host} {_words(results[at].outcome)}"
                lines.append((results[at].end_ns, what, trouble))
        self._results_told = len(results)
        while self._waves_told <= coordinator.wave:
            wave = coordinator.wave_record(self._waves_told)
            if wave.end_ns is None or not (wave.verdict == "passed" or coordinator.is_finished):
                break
            # A wave starts when the one before it has ended: its results lie together.
            end = self._hosts_of_waves_told + len(wave.hosts)
            outcomes = (result.outcome for result in results[self._hosts_of_waves_told : end])
            lines.append((wave.end_ns, wave.name, _wave_text(wave, Counter(outcomes))))
            self._waves_told, self._hosts_of_waves_told = self._waves_told + 1, end
        for line in sorted(lines, key=lambda line: line[0]):
            self._say(*line)
        if coordinator.state is not self._state and coordinator.state is RolloutState.PAUSED:
            self._say(coordinator.now_ns, "paused", coordinator.why)
        self._state = coordinator.state
        self._total = self._total or len(experiment.plan.hosts)
        if self._console.is_terminal:
            self._bar.update(
                self._task,
                description=_where(experiment),
                total=self._total,
                completed=experiment.answered,
            )
        else:
            self._say_how_far(experiment)

    def _say_how_far(self, experiment: Experiment) -> None:
        """What the bar would show, if it is time for that."""
        now, done = self._clock(), experiment.answered
        before, done_before = self._last
        if done_before and now - before < _SAY_SECONDS:
            return
        self._last = now, done
        if not done_before:  # until there is an answer it is Ray that starts: that is no rate
            return
        rate = (done - done_before) / (now - before)
        how = f"{done} of {self._total} hosts"
        if rate and done < self._total:
            left = clock_text(round((self._total - done) / rate) * 1_000_000_000)
            how += f", {rate:.1f} hosts/s, ETA {left}"
        self._say(experiment.coordinator.now_ns, "under way", how)

    def _say(self, now_ns: int, what: str, how: str) -> None:
        line = Text.assemble((f"{clock_text(now_ns):>9}", "dim"), "  ", (f"{what:20}", "bold"), how)
        self._console.print(line, soft_wrap=True)


def _where(experiment: Experiment) -> str:
    coordinator = experiment.coordinator
    parts = [clock_text(coordinator.now_ns), coordinator.wave_name or "starting"]
    if coordinator.wave >= 0:
        parts.append(f"({coordinator.wave + 1} of {len(experiment.plan.waves)})")
    if coordinator.state is RolloutState.PAUSED:
        parts.append("paused")
    elif coordinator.soak_until_ns is not None:
        parts.append(f"soaks until {clock_text(coordinator.soak_until_ns)}")
    return " ".join(parts)


def _wave_text(wave: WaveRecord, outcomes: Counter[HostOutcome]) -> str:
    counts = ", ".join(
        f"{outcomes[outcome]} {_words(outcome)}" for outcome in HostOutcome if outcomes[outcome]
    )
    soaked_ns = (wave.soak_end_ns or 0) - (wave.end_ns or 0)
    if soaked_ns > 0:
        return f"{counts}; soaked {duration_text(soaked_ns / 1e9)}, {wave.verdict}"
    return f"{counts}; {wave.verdict}"


def closing_tables(record: RunRecord, result: Result) -> RenderableType:
    """What a rollout came to."""
    parts: list[RenderableType] = [_headline(record, result), _outcomes(result)]
    if result.blackout_phases_seconds:
        parts.append(_phases(record, result))
    parts.append(_pages(result))
    parts.extend(_troubles(record))
    return Group(*parts)


def _headline(record: RunRecord, result: Result) -> Table:
    scenario = record.scenario
    grid = Table.grid(Column(), Column(overflow="fold"), padding=(0, 2))
    grid.add_row("", "")
    state = Text(record.state, style=f"bold {_STATE_STYLES[record.state]}")
    grid.add_row("rollout", Text.assemble(state, f": {record.why}"))
    grid.add_row("scenario", f"{scenario.name}, seed {record.seed}")
    grid.add_row("update", scenario.update_title)
    grid.add_row("virtual time", clock_text(record.virtual_ns))
    rate = f"{result.host_updates_per_second:.1f} host updates/s"
    here = f"{record.backend} backend, {counted(record.actors, 'shard')}, {rate}"
    if record.from_journal:
        here += f"; {counted(record.from_journal, 'update')} from before the interruption"
    grid.add_row("real time", f"{duration_text(record.wall_seconds)}, {here}")
    grid.add_row("digest", Text(record.digest, overflow="fold"))
    grid.add_row("", "")
    return grid


def _outcomes(result: Result) -> SideBySide:
    """Hosts and VMs by outcome, and downtimes."""
    tables = []
    for title, counts in (("Hosts", result.hosts), ("VMs", result.vms)):
        table = titled_table(title, ("outcome",), ("count",))
        for name in counts.__struct_fields__[1:5]:
            count = getattr(counts, name)
            bad = count and name in ("failed", "rolled_back", "restarted", "lost")
            table.add_row(_words(name), str(count), style="yellow" if bad else None)
        table.add_section()
        table.add_row("total", str(counts.total))
        if counts is result.vms and result.vms.untouched:
            table.add_row("untouched", str(result.vms.untouched), style="dim")
        tables.append(table)
    return SideBySide(*tables, _downtimes(result))


def _downtimes(result: Result) -> Table:
    down = result.downtime_seconds
    table = titled_table("Downtime of a VM", ("",), ("",))
    table.show_header = False
    for name in ("mean", "p50", "p90", "p99", "max"):
        table.add_row(name, duration_text(getattr(down, name)) if down.count else "–")
    table.add_section()
    table.add_row(f"within {down.budget:g} s", f"{down.within_budget} of {down.count}")
    return table


def _phases(record: RunRecord, result: Result) -> RenderableType:
    """The phases of every blackout; the whole of those that ended with the agent back."""
    phases = result.blackout_phases_seconds
    blackouts = [update for update in record.results if update.phases_ns]
    whole = [sum(u.phases_ns.values()) for u in blackouts if u.blackout_end_ns is not None]
    total = sum(phase.mean * phase.count for phase in phases.values())
    table = titled_table(
        "Blackout of a host by phase", ("phase",), ("hosts", "mean", "p99", "share")
    )
    for column in table.columns:
        column.no_wrap = True  # on a narrow console it is the bars that give way
    table.add_column(overflow="crop")
    for name, phase in phases.items():
        share = phase.mean * phase.count / total
        table.add_row(
            name,
            str(phase.count),
            duration_text(phase.mean),
            duration_text(phase.p99),
            f"{share:.0%}",
            "█" * round(share * 30),
        )
    table.add_section()
    table.add_row("all", str(len(whole)), duration_text(mean(whole) / 1e9) if whole else "–")
    if not (broken := len(blackouts) - len(whole)):
        return table
    fell = f'{counted(broken, "host")} fell back in the midst of a blackout: not in "all"'
    return Group(table, Text(fell, style="dim"))


def _pages(result: Result) -> Table:
    table = titled_table("Pages preserved in memory", ("size",), ("pages", "memory"))
    for backing in Backing:
        pages = result.preserved_pages.get(backing.page_label, 0)
        memory = show_size(pages * backing.page_bytes)
        table.add_row(backing.page_label, f"{pages:,}", memory)
    return table


def _troubles(record: RunRecord) -> Iterator[RenderableType]:
    """Hosts that did not go well, and waves that did not pass."""
    blackouts = [sum(result.phases_ns.values()) for result in record.results if result.phases_ns]
    usual_ns = median_low(blackouts) if blackouts else None
    rows = [
        (result, trouble) for result in record.results if (trouble := trouble_of(result, usual_ns))
    ]
    if rows:
        table = titled_table("Hosts that did not go well", ("host", "outcome", "runs", "why"), ())
        for result, trouble in rows[:_MOST_TROUBLES]:
            release = result.release or "nothing, it is down"
            table.add_row(result.host, _words(result.outcome), release, trouble)
        yield table
        if len(rows) > _MOST_TROUBLES:
            yield Text(f"and {len(rows) - _MOST_TROUBLES} more; run.duckdb has them all")


def _words(name: str) -> str:
    return name.replace("_", " ")
