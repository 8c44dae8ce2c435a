"""Where the keys of a TOML text stand, and what happens to a text that is none."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.bad_input import Faults
from fleet.toml_source import Key, TomlSource, dotted, key_positions

TEXT = """\
# a comment
name = "x" # another
a.b."c d" = 1
[t]
u = { v = 1, "w".z = 2 }

[[arr]]
k = [1,
  # in between
  2, { z = 1 }]
[[arr]]
k = '''
[not.a.table]
'''
[arr.sub]
x = 1
[[arr.in]]
p = 1
[[arr.in]]
p = 2
"""


def test_every_key_has_the_line_on_which_it_stands() -> None:
    by_line: dict[int, list[str]] = {}
    for key, line in key_positions(TEXT).items():
        by_line.setdefault(line, []).append(dotted(key))
    assert {line: sorted(keys) for line, keys in by_line.items()} == {
        2: ["name"],
        3: ["a", "a.b", "a.b.c d"],
        4: ["t"],
        5: ["t.u", "t.u.v", "t.u.w", "t.u.w.z"],
        7: ["arr", "arr.0"],
        8: ["arr.0.k", "arr.0.k.0"],
        10: ["arr.0.k.1", "arr.0.k.2", "arr.0.k.2.z"],
        11: ["arr.1"],
        12: ["arr.1.k"],
        15: ["arr.1.sub"],
        16: ["arr.1.sub.x"],
        17: ["arr.1.in", "arr.1.in.0"],
        18: ["arr.1.in.0.p"],
        19: ["arr.1.in.1"],
        20: ["arr.1.in.1.p"],
    }


def paths(value: object, key: Key = ()) -> list[Key]:
    """Every path in parsed TOML."""
    found: list[Key] = [key] if key else []
    if isinstance(value, dict):
        for name, inner in value.items():
            found += paths(inner, (*key, name))
    elif isinstance(value, list):
        for nr, inner in enumerate(value):
            found += paths(inner, (*key, nr))
    return found


KEYS = st.sampled_from(["a", "b", '"q k"', "'l'", "a.b", 'x."y"', "1"])
VALUES = st.recursive(
    st.sampled_from(["1", "'s'", '"""\nm\n"""', "true", "1979-05-27", "inf"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n" + ",\n".join(items) + "]"),
        st.dictionaries(st.sampled_from(["a", '"q k"', "b.c"]), inner, max_size=2).map(
            lambda d: "{ " + ", ".join(f"{k} = {v}" for k, v in d.items()) + " }"
        ),
    ),
    max_leaves=6,
)
LINES = st.one_of(
    st.tuples(KEYS, VALUES).map(" = ".join),
    KEYS.map("[{}]".format),
    KEYS.map("[[{}]]".format),
    st.sampled_from(["", "# comment"]),
)


@given(st.lists(LINES, max_size=8).map("\n".join))
def test_the_finder_and_the_parser_agree_on_what_there_is(text: str) -> None:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found = key_positions(text)
    assert set(found) == set(paths(values))
    last = text.count("\n") + 1
    assert all(1 <= line <= last for line in found.values())


def source(text: str, *overrides: str) -> tuple[TomlSource, list[str]]:
    faults = Faults()
    return TomlSource("f", text, overrides, faults), [str(fault) for fault in faults.all()]


SYNTAX = [
    ("a = \nb = 1\nc = 1 2\n", ["f:1", "f:3"]),
    ("a = 1\r\nb = \r\n", ["f:2"]),
    ("a = 1\na = 2\n", ["f:2"]),
    ("[x\na = \n", ["f:1"]),  # a header is gone: nothing after it can be trusted
    ("a = [1\nb = \n", ["f:2"]),  # and so is the end of the list
    ('a = """\nb = 1\n', ["f:3"]),
    ("a" * 3, ["f:1"]),
    ("a = " + "[" * 5000, ["f"]),
    ("a = " + "9" * 5000, ["f:1"]),
    ("", []),
]


@pytest.mark.parametrize(("text", "places"), SYNTAX)
def test_syntax_errors_are_found_as_far_as_they_can_be_told_apart(
    text: str, places: list[str]
) -> None:
    found = source(text)[1]
    assert [fault[: len(place)] for fault, place in zip(found, places, strict=True)] == places


def test_a_value_is_blamed_on_itself_or_on_what_is_around_it() -> None:
    made, _ = source(TEXT, "t.u.v=7")
    assert made.place(("t", "u", "v")) == ("--set t.u.v", 0)
    assert made.place(("t", "u", "w")) == ("f", 5)
    assert made.place(("t", "u", "nowhere")) == ("f", 5)
    assert made.place(("nowhere",)) == ("f", 1)
    assert made.typed(("t", "u", "v")) == "7"
    assert made.typed(("name",)) is None


def test_overrides_reach_into_tables_and_lists() -> None:
    made, faults = source(TEXT, "arr.1.in.0.p=5", "new.table=[1, 2]", "name=plain text", "t=1")
    assert not faults
    assert made.values["arr"][1]["in"][0]["p"] == 5  # type: ignore[index]
    assert made.values["new"] == {"table": [1, 2]}
    assert made.values["name"] == "plain text"
    assert made.values["t"] == 1


@pytest.mark.parametrize("override", ["", "=1", "a", "arr.7.k=1", "arr.x=1", "name.x=1", "a..b=1"])
def test_an_override_that_fits_nowhere_is_refused(override: str) -> None:
    _, faults = source(TEXT, override)
    assert len(faults) == 1
    assert faults[0].startswith("--set")
