"""`lufleet conform`: scripts of live-update operations on modelled hosts, and their traces.

A trace is printed as it is, several under a heading each, or compared with the recordings that
lie beside the scripts. Each boot can have a process of its own, whose handovers can be kept and
played on from.

Exit codes: 0 played (a kernel that panics is an answer too: standard error says why the trace
ends), and as recorded; 2 a script, a recording or a handover is not what it should be; 4 a trace
differs from its recording, or the model failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import dropwhile
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from fleet.bad_input import BadInput, InputFault
from fleet.console import mistakes
from fleet.corruptions_command import corrupted, expectation
from fleet.exit_code import ExitCode
from fleet.fresh import KernelEnded, play_fresh
from fleet.recorder.compare import Comparison
from kernelmodel.conform import Host, Script, ScriptError, how_it_ended
from kernelmodel.errors import KernelError, KernelPanic, ModelBug
from kernelmodel.handover import Handover, HandoverError

__all__ = ["PlayOptions", "conform", "read_script"]


@dataclass(frozen=True, slots=True)
class PlayOptions:
    """What `lufleet conform` does with scripts when no kernel takes part."""

    scripts: tuple[Path, ...]
    #: Each boot in a process of its own.
    fresh: bool = False
    #: Where what each boot is given is kept; None: nowhere. Fresh.
    keep_handover: Path | None = None
    #: The record of a handover to play on from. Fresh, and for one script.
    handover: Path | None = None
    #: Compare with the recordings beside the scripts.
    check: bool = False
    #: LABEL or LABEL@BOOT of a corruption of the handover that boot is given.
    corrupt: str = ""


@dataclass(frozen=True, slots=True)
class _Given:
    """A script, and what lies beside it or was named with it."""

    path: Path
    text: str
    #: The lines of the recording from the boot on where playing begins; None: not asked for.
    recording: tuple[str, ...] | None
    handover: tuple[Path, Handover] | None


def read_script(path: Path) -> Script:
    """The script in a file.

    Raises:
        BadInput: it cannot be read, or is no script.
    """
    try:
        return Script.parse(path.read_text(encoding="utf-8"))
    except ScriptError as error:
        raise BadInput(InputFault(str(path), line, what) for line, what in error.faults) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput([InputFault(str(path), 0, _unreadable(error))]) from None


def _unreadable(error: OSError | UnicodeDecodeError) -> str:
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def conform(options: PlayOptions, out: Console, err: Console) -> ExitCode:
    """Play scripts and print their traces, or what they are compared with recordings."""
    try:
        everything = _read_all(options)
        if options.corrupt:
            everything = _corrupted(everything, options.corrupt, err)
        with ExitStack() as stack:
            folder = options.keep_handover
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            elif options.fresh or options.handover:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="lufleet-")))
            codes = [_one(given, folder, len(everything) > 1, out, err) for given in everything]
    except BadInput as bad:
        err.print(mistakes(bad))
        return ExitCode.BAD_INPUT
    except OSError as error:
        err.print(str(error), markup=False, highlight=False)
        return ExitCode.BAD_INPUT
    if options.check and len(codes) > 1:
        failed = sum(map(bool, codes))
        _say(out, f"{len(codes)} scripts, {failed} of them not as recorded")
    return max(codes)


def _one(given: _Given, folder: Path | None, heading: bool, out: Console, err: Console) -> ExitCode:
    """Play one script; the exit code."""
    if given.recording is None and heading:
        _say(out, f"# {given.path}")
    trace: list[str] = []
    try:
        for line in _lines(given, folder):
            trace.append(line)
            if given.recording is None:
                _say(out, line)
    except KernelEnded as ending:
        _say(err, f"{given.path}: the trace ends here: {ending}")
    except ScriptError as wrong:
        for _, what in wrong.faults:
            _say(err, f"{given.path}: {what}")
        return ExitCode.BAD_INPUT
    except ModelBug as bug:
        again = f"lufleet conform {'--fresh ' if folder else ''}{given.path}"
        _say(err, f"The simulator failed: {bug}. To see it again: {again}")
        return ExitCode.SIMULATOR_FAILED
    if given.recording is None:
        return ExitCode.DONE
    difference = Comparison.between(given.text, given.recording, trace).difference
    what = f"as recorded, {len(trace)} lines" if difference is None else str(difference)
    _say(out, f"{given.path}: {what}")
    return ExitCode.DONE if difference is None else ExitCode.SIMULATOR_FAILED


def _lines(given: _Given, folder: Path | None) -> Iterator[str]:
    """The trace. Raises: KernelEnded, ScriptError, ModelBug."""
    if folder is not None:
        yield from play_fresh(given.text, given.path.stem, folder, given.handover)
        return
    try:
        yield from Host(Script.parse(given.text)).play()
    except (KernelPanic, KernelError) as ending:
        raise KernelEnded(how_it_ended(ending)) from ending


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


# What is read before anything is played, and every fault of it.


def _read_all(options: PlayOptions) -> list[_Given]:
    """Raises: BadInput."""
    everything: list[_Given] = []
    faults: list[InputFault] = []
    for path in options.scripts:
        try:
            script = read_script(path)
            handover = _handover(options.handover, path, script)
            first = handover[1].boot if handover else 1
            recording = _recording(path, first) if options.check else None
            text = path.read_text(encoding="utf-8")
            everything.append(_Given(path, text, recording, handover))
        except BadInput as bad:
            faults += bad.faults
    if options.keep_handover is not None:
        faults += _clashes(options.scripts)
    if faults:
        raise BadInput(faults)
    return everything


def _corrupted(everything: list[_Given], asked: str, err: Console) -> list[_Given]:
    """The scripts with a corruption in each. Raises: BadInput."""
    changed = [(given, *corrupted(given.text, given.path, asked)) for given in everything]
    _say(err, expectation(changed[0][2]))
    return [replace(given, text=text) for given, text, _ in changed]


def _handover(record: Path | None, path: Path, script: Script) -> tuple[Path, Handover] | None:
    if record is None:
        return None
    try:
        handover = Handover.load(record)
    except HandoverError as error:
        raise BadInput(InputFault(str(record), 0, what) for what in error.faults) from None
    if handover.boot > len(script.boots):
        what = f"is for boot {handover.boot}, but {path} has {len(script.boots)}"
        raise BadInput([InputFault(str(record), 0, what, "a handover of this script is right")])
    return record, handover


def _recording(path: Path, first: int) -> tuple[str, ...]:
    """What was recorded of a script from boot `first` on."""
    trace = path.with_suffix(".trace")
    try:
        lines = trace.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        right = "--check needs a recording beside each script"
        raise BadInput([InputFault(str(trace), 0, _unreadable(error), right)]) from None
    if first == 1:
        return tuple(lines)
    return tuple(dropwhile(lambda line: line != f"T end {first - 1}", lines))[1:]


def _clashes(scripts: tuple[Path, ...]) -> Iterator[InputFault]:
    """Scripts of one name would overwrite each other's handovers."""
    by_name: dict[str, Path] = {}
    for path in scripts:
        other = by_name.setdefault(path.stem, path)
        if other is not path:
            yield InputFault(str(path), 0, f"is called like {other}: their handovers would clash")
