"""What `lufleet record` and `lufleet conform --against` do.

Exit codes: 0 recorded, or no difference; 2 a script, a kernel or a program is not what it should
be; 4 model and kernel differ, or the model failed by itself.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console

from fleet.bad_input import BadInput, InputFault
from fleet.conform import read_script
from fleet.console import mistakes
from fleet.exit_code import ExitCode
from fleet.recorder.compare import Comparison, modelled, shrink
from fleet.recorder.failing_scripts import random_failing_script
from fleet.recorder.huge_scripts import random_huge_script
from fleet.recorder.record import Recorder, RecorderError
from fleet.recorder.scripts import random_script
from fleet.unwritable import CannotWrite, writing
from kernelmodel.script import ScriptError

__all__ = ["ConformOptions", "RecordOptions", "conform_many", "record"]

_TERMINATED: Final = 143


@dataclass(frozen=True, slots=True)
class ConformOptions:
    """The options of `lufleet conform` beyond one script on the model."""

    scripts: tuple[Path, ...]
    #: How many random scripts besides, and from which seed.
    random: int
    seed: int
    #: Random scripts are about huge pages.
    huge: bool
    #: In random scripts functions of the kernel fail.
    failing: bool
    #: The kernel image to compare with; None: the model alone.
    against: Path | None
    #: Where scripts go that differ (without a kernel: all) and their traces; None: nowhere.
    keep: Path | None
    #: How often a script that differs is tried in parts, to find the least one.
    shrink: int
    #: As for a recording.
    system_map: Path | None
    others: dict[str, Path]
    boot_timeout_s: float


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """The options of `lufleet record`."""

    script: Path
    kernel: Path
    #: Images of other kernels, by the names that scripts have for them.
    others: dict[str, Path]
    #: None: the one that belongs to the kernel.
    system_map: Path | None
    #: Files for what is handed over at the end of a boot, by boot.
    dump: dict[int, Path]
    console_log: Path | None
    boot_timeout_s: float


def record(options: RecordOptions, out: Console, err: Console) -> ExitCode:
    """Print what a real kernel answers; the exit code."""
    script = options.script
    try:
        last = len(read_script(script).boots)
        for boot in sorted(options.dump):
            if boot >= last:
                why = f"boot {boot} does not end with a kexec, it hands nothing over"
                raise BadInput([InputFault(str(script), 0, why)])
        recorder = Recorder(
            options.kernel,
            options.boot_timeout_s,
            system_map=options.system_map,
            others=options.others,
        )
        with _ended_by_sigterm(), recorder:
            recording = recorder.record(script.read_text(encoding="utf-8"), dump=options.dump)
    except BadInput as bad:
        err.print(mistakes(bad))
        return ExitCode.BAD_INPUT
    except (RecorderError, OSError) as error:
        err.print(f"{script}: {error}", markup=False, highlight=False)
        return ExitCode.BAD_INPUT
    for line in recording.trace:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if recording.ended_by:
        err.print(f"{script}: ended by: {recording.ended_by}", markup=False, highlight=False)
    if options.console_log is not None:
        try:
            with writing(options.console_log):
                options.console_log.write_text(recording.console, encoding="utf-8")
        except CannotWrite as error:
            err.print(str(error), markup=False, highlight=False)
            return ExitCode.BAD_INPUT
    return ExitCode.DONE


def conform_many(options: ConformOptions, out: Console, err: Console) -> ExitCode:
    """Play scripts on the model, and on a kernel if there is one; the exit code."""
    try:
        for path in options.scripts:
            read_script(path)
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
        if options.against is None:
            return _model_alone(options, out)
        recorder = Recorder(
            options.against,
            options.boot_timeout_s,
            system_map=options.system_map,
            others=options.others,
        )
        with _ended_by_sigterm(), recorder:
            return _compare_all(options, recorder, out)
    except BadInput as bad:
        err.print(mistakes(bad))
    except (RecorderError, ScriptError, OSError) as error:
        err.print(str(error), markup=False, highlight=False)
    return ExitCode.BAD_INPUT


def _texts(options: ConformOptions) -> Iterator[tuple[str, str]]:
    for path in options.scripts:
        yield path.stem, path.read_text(encoding="utf-8")
    for index in range(options.random):
        if options.huge:
            yield f"h{options.seed}-{index}", random_huge_script(options.seed, index)
        elif options.failing:
            yield f"f{options.seed}-{index}", random_failing_script(options.seed, index)
        else:
            yield f"{options.seed}-{index}", random_script(options.seed, index)


def _model_alone(options: ConformOptions, out: Console) -> ExitCode:
    failed = 0
    for name, text in _texts(options):
        trace = modelled(text)
        bug = trace[-1] if trace and trace[-1].startswith("ModelBug") else ""
        failed += bool(bug)
        _say(out, f"{name}: {bug or f'{len(trace)} lines'}")
        _keep(options.keep, name, text, trace)
    return ExitCode.SIMULATOR_FAILED if failed else ExitCode.DONE


def _compare_all(options: ConformOptions, recorder: Recorder, out: Console) -> ExitCode:
    played = different = 0
    for name, text in _texts(options):
        comparison = Comparison.of(text, recorder.record(text).trace)
        played += 1
        if comparison.difference is None:
            _say(out, f"{name}: the same {len(comparison.kernel)} lines")
            continue
        different += 1
        _say(out, f"{name}: {comparison.difference}")
        if options.shrink:
            text = _least(recorder, text, options.shrink)  # noqa: PLW2901 # the one that is kept
            comparison = Comparison.of(text, recorder.record(text).trace)
            _say(out, f"{name}: the least script that differs:\n{text}{comparison.difference}")
        _keep(options.keep, name, text, comparison.kernel)
    _say(out, f"{played} scripts, {different} of them different")
    return ExitCode.SIMULATOR_FAILED if different else ExitCode.DONE


def _least(recorder: Recorder, text: str, most_tries: int) -> str:
    def differs(part: str) -> bool:
        try:
            return Comparison.of(part, recorder.record(part).trace).difference is not None
        except RecorderError:
            return False

    return shrink(text, differs, most_tries)


def _keep(folder: Path | None, name: str, text: str, trace: tuple[str, ...]) -> None:
    if folder is not None:
        (folder / f"{name}.scn").write_text(text, encoding="utf-8")
        (folder / f"{name}.trace").write_text("\n".join(trace) + "\n", encoding="utf-8")


def _say(out: Console, line: str) -> None:
    out.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A SIGTERM ends the emulator too, instead of leaving it alone."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
