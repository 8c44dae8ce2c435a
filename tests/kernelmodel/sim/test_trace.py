"""Promise: a run's digest is a function of its events alone, and the trace file shows them all."""

from __future__ import annotations

import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernelmodel.errors import ModelBug
from kernelmodel.sim.trace import (
    MAGIC,
    Event,
    Trace,
    TraceFile,
    TraceFormatError,
    Value,
    decode,
    run_digest,
)

EXAMPLE = Path(__file__).parents[3] / "examples" / "trace_digest.py"

VALUES = st.one_of(st.integers(), st.text(), st.binary(), st.booleans())
FIELDS = st.dictionaries(st.text(max_size=20), VALUES, max_size=6)
EVENTS = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=20), FIELDS), max_size=8)


def trace_of(events: list[tuple[int, str, dict[str, Value]]], stream: str = "host/a") -> Trace:
    trace = Trace(stream, record=True)
    for now_ns, name, fields in events:
        trace.emit(now_ns, name, **fields)
    return trace


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0", "4 bytes expected, 2 left"),
        (b"\0\0\0\x09abc", "9 bytes expected, 3 left"),
        (b"\0\0\0\0", "broken record"),
        (b"\0\0\0\x09" + b"\2" + bytes(8), "record of version 2, not 1"),
        (b"\0\0\0\x0f" + b"\1" + bytes(8) + b"\0\2\xff\xff\0\0", "broken record"),
        (b"\0\0\0\x0e" + b"\1" + bytes(8) + b"\0\0\0\0\0", "1 bytes behind a record's last field"),
        (b"\0\0\0\x12" + b"\1" + bytes(8) + b"\0\0\0\1\0\1fx\0", "broken record"),
        (b"\0\0\0\x15" + b"\1" + bytes(8) + b"\0\0\0\1\0\1fx\0\0\0\0", "unknown tag b'x'"),
    ],
)
def test_broken_records_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(TraceFormatError, match=message):
        list(decode(data))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no b'LUFTRC1"),
        (b"LUFTRC2\n", "no b'LUFTRC1"),
        (MAGIC + b"\0", "2 bytes expected, 1 left"),
        (MAGIC + b"\0\1f\0\0\0\x05abc", "5 bytes expected, 3 left"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.trace"
    path.write_bytes(content)
    with pytest.raises(TraceFormatError, match=message):
        list(TraceFile.read(path))


def test_a_field_of_another_type_is_a_model_bug() -> None:
    with pytest.raises(ModelBug, match=r"field 'ratio' is 0\.5"):
        Trace("host/a").emit(0, "x", ratio=0.5)  # type: ignore[arg-type]
    with pytest.raises(ModelBug, match=r"field 'all' is \[1\]"):
        Trace("host/a").emit(0, "x", all=[1])  # type: ignore[arg-type]
    with pytest.raises(ModelBug, match="event 'x' at -1 ns"):
        Trace("host/a").emit(-1, "x")


@settings(deadline=None)
@given(EVENTS)
@example([(1, "50%", {"%b": b"%b", "%": 1})])
@example([(1, "x", {"a": 1}), (2, "x", {"b": 1}), (3, "x", {"a": "1"}), (4, "x", {"a": True})])
def test_what_was_emitted_is_what_is_decoded(
    events: list[tuple[int, str, dict[str, Value]]],
) -> None:
    trace = trace_of(events)
    decoded = list(decode(trace.take_events()))
    assert decoded == [Event(*event) for event in events]
    for event, (_, _, fields) in zip(decoded, events, strict=True):
        assert {k: type(v) for k, v in event.fields.items()} == {
            k: type(v) for k, v in fields.items()
        }
    assert trace.take_events() == b""


@settings(deadline=None)
@given(EVENTS, EVENTS)
def test_different_events_have_different_digests(
    one: list[tuple[int, str, dict[str, Value]]], other: list[tuple[int, str, dict[str, Value]]]
) -> None:
    same = repr(trace_of(one).take_events()) == repr(trace_of(other).take_events())
    assert (trace_of(one).hexdigest() == trace_of(other).hexdigest()) == same


def test_values_of_different_types_differ() -> None:
    values: list[Value] = [1, True, "1", b"1", b"\1", "", b"", 0, False]
    assert len({trace_of([(0, "x", {"f": value})]).hexdigest() for value in values}) == len(values)


def test_the_order_of_fields_does_not_matter_and_that_of_events_does() -> None:
    one, two = Trace("a"), Trace("a")
    one.emit(1, "x", b=2, a=1)
    two.emit(1, "x", a=1, b=2)
    assert one.hexdigest() == two.hexdigest()
    one.emit(2, "y")
    one.emit(2, "z")
    two.emit(2, "z")
    two.emit(2, "y")
    assert one.hexdigest() != two.hexdigest()


def test_recording_changes_no_digest_and_takes_may_come_at_any_time() -> None:
    quiet, kept = Trace("a"), Trace("a", record=True)
    taken = b""
    for now_ns in range(5):
        quiet.emit(now_ns, "x", n=now_ns)
        kept.emit(now_ns, "x", n=now_ns)
        if now_ns % 2:
            taken += kept.take_events()
    assert quiet.hexdigest() == kept.hexdigest()
    assert quiet.take_events() == b""
    assert [event.now_ns for event in decode(taken + kept.take_events())] == [0, 1, 2, 3, 4]


def test_the_bytes_of_version_1_stay() -> None:
    trace = trace_of([(258, "kexec", {"ok": True, "n": -2, "to": "é", "raw": b"\xff"})])
    events = trace.take_events()
    assert events.hex() == (
        "0000003b"
        "01" "0000000000000102" "0005" + b"kexec".hex() + "0004"
        "0001" + b"n".hex() + b"i".hex() + "00000001" "fe"
        "0002" + b"ok".hex() + b"t".hex() + "00000001" "01"
        "0003" + b"raw".hex() + b"b".hex() + "00000001" "ff"
        "0002" + b"to".hex() + b"s".hex() + "00000002" "c3a9"
    )  # fmt: skip
    assert trace.hexdigest() == blake2b(bytes(32) + events[4:], digest_size=32).hexdigest()


def test_a_run_is_its_streams_by_name() -> None:
    a, b, idle = trace_of([(1, "x", {})]), trace_of([(2, "x", {})]), Trace("host/idle")
    digest = run_digest({"host/a": a.hexdigest(), "host/b": b.hexdigest()})
    assert digest == run_digest({"host/b": b.hexdigest(), "host/a": a.hexdigest()})
    assert digest != run_digest({"host/a": b.hexdigest(), "host/b": a.hexdigest()})
    assert digest == run_digest(
        {"host/a": a.hexdigest(), "host/b": b.hexdigest(), "host/idle": idle.hexdigest()}
    )


def test_a_short_script_recomputes_the_digest_from_the_file(tmp_path: Path) -> None:
    traces = {
        name: Trace(name, record=True)
        for name in ("host/b", "fleet", "host/aé", "host/", "host/b1")
    }
    path = tmp_path / "run.trace"
    with TraceFile(path) as file:
        for now_ns in range(20):
            for name, trace in traces.items():
                trace.emit(now_ns, "step", host=name, content=bytes(300))
                if now_ns % 3 == 0:
                    file.write(name, trace.take_events())
        for name, trace in traces.items():
            file.write(name, trace.take_events())
    seen = [(stream, event.now_ns) for stream, event in TraceFile.read(path)]
    assert len(seen) == 100
    assert [at for stream, at in seen if stream == "host/aé"] == list(range(20))
    printed = subprocess.run(
        [sys.executable, "-I", str(EXAMPLE), str(path)], capture_output=True, check=True, text=True
    ).stdout
    digests = {name: trace.hexdigest() for name, trace in traces.items()}
    assert printed.strip() == run_digest(digests)
