"""Mistakes as values: how they are said, kept and carried."""

from __future__ import annotations

import pickle

import pytest

from fleet.bad_input import ALIKE_SHOWN, BadInput, Faults, InputFault, did_you_mean


def test_a_mistake_is_said_in_one_line() -> None:
    assert str(InputFault("a.toml", 3, "seed: -1 is too small", "0 or more")) == (
        "a.toml:3: seed: -1 is too small, 0 or more"
    )
    assert str(InputFault("--set a.b", 0, "unknown key")) == "--set a.b: unknown key"


def test_all_mistakes_are_raised_by_file_and_line() -> None:
    faults = Faults()
    faults.raise_if_any()
    for file, line in (("b", 9), ("a", 4), ("b", 2), ("a", 4)):
        faults.add((file, line), "wrong")
    with pytest.raises(BadInput, match="b:2: wrong") as caught:
        faults.raise_if_any()
    assert [(f.file, f.line) for f in caught.value.faults] == [("b", 2), ("b", 9), ("a", 4)]


def test_mistakes_that_are_alike_are_counted_after_the_first_few() -> None:
    faults = Faults()
    for line in range(1, ALIKE_SHOWN + 11):
        faults.add(("t.csv", line), f"cpus: {line} is wrong", alike="cpus in t.csv")
    found = faults.all()
    assert len(found) == ALIKE_SHOWN + 1
    assert found[-1].line == ALIKE_SHOWN + 1
    assert "cpus in t.csv: 10 more" in found[-1].what


def test_bad_input_survives_pickling() -> None:
    bad = BadInput([InputFault("a", 1, "x")])
    assert pickle.loads(pickle.dumps(bad)).faults == bad.faults


def test_a_hint_is_the_closest_name_or_what_there_is() -> None:
    assert did_you_mean("rak", ["rack", "zone"]) == 'did you mean "rack"?'
    assert did_you_mean("xyz", ["rack", "zone"], noun="domains") == "known domains: rack, zone"
    assert did_you_mean("xyz", [], noun="domains") == "known domains: none"
    assert did_you_mean("?", map(str, range(20))).endswith("11, …")
