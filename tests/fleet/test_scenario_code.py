"""Scenarios that are built in code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fleet.scenario import BadInput, load_scenario, scenario_of

SMALL = Path(__file__).parents[2] / "examples" / "small.toml"
CLASS = {"name": "n", "count": 2, "memory": "64GiB", "cpus": 4, "release": "7.3.2"}


def test_values_in_code_are_read_as_a_file_would_be() -> None:
    values: dict[str, object] = {
        "seed": 3,
        "fleet": {"host_class": (CLASS,)},
        "update": {"target": "7.3.4"},
        "rollout": {"wave_size": 1},
    }
    scenario = scenario_of(values, ["rollout.wave_size=2"], seed=9)
    assert (scenario.name, scenario.seed, scenario.rollout.wave_size) == ("scenario", 9, 2)
    assert [host.name for host in scenario.hosts] == ["n-1", "n-2"]
    assert values["rollout"] == {"wave_size": 1}, "what was given stays as it was"
    with pytest.raises(BadInput) as caught:
        scenario_of({**values, "rollout": {"wave_sise": 1}}, ["update.target=8"])
    said = {str(fault) for fault in caught.value.faults}
    assert 'scenario: rollout.wave_sise: unknown key, did you mean "wave_size"?' in said
    assert any(text.startswith("--set update.target: ") for text in said)


def test_what_notebooks_hold_is_taken() -> None:
    """Numbers of numpy, paths, and one override that stands in no list."""
    text = str(SMALL)
    assert load_scenario(text, "seed=4") == load_scenario(SMALL, ["seed=4"])
    with pytest.raises(BadInput, match=r"^scenario: cannot read hosts\.csv: "):
        scenario_of({"fleet": {"hosts": Path("hosts.csv")}})
    values = {"host_class": [{**CLASS, "count": np.int64(3)}]}
    scenario = scenario_of({"fleet": values, "update": {"target": "7.3.4"}, "rollout": {}})
    assert len(scenario.hosts) == 3


def test_a_scenario_shows_itself_on_one_line() -> None:
    shown = repr(load_scenario(SMALL))
    assert shown == "<Scenario small: 3 hosts, 9 VMs, to 7.3.4+hugetlb, seed 1>"


TOO_LONG = "its kernel cannot load the next one: EINVAL: command line is too long"
SAID_ONCE = [
    # what the scenario holds, what is said of it
    ({"fleet": 3}, "scenario: fleet: 3 is no table, [fleet]"),
    ({"update": []}, "scenario: update: a list is no table, [update]"),
    ({"rollout": "all"}, 'scenario: rollout: "all" is no table, [rollout]'),
    ({"fleet": {"hosts": 3}}, "scenario: fleet.hosts: 3 is not text, write it in quotes"),
    (
        {"fleet": {"host_class": [CLASS], "vms": 3}},
        "scenario: fleet.vms: 3 is not text, write it in quotes",
    ),
    (
        {"fleet": {"host_class": [{**CLASS, "count": 1, "cmdline": "x" * 2048}]}},
        f"scenario: host n-1: {TOO_LONG} (length=2069), a shorter cmdline",
    ),
]


@pytest.mark.parametrize(("holds", "said"), SAID_ONCE)
def test_a_mistake_is_said_once(holds: dict[str, object], said: str) -> None:
    values = {"fleet": {"host_class": [CLASS]}, "update": {"target": "7.3.4"}, "rollout": {}}
    with pytest.raises(BadInput) as caught:
        scenario_of(values | holds)
    assert [str(fault) for fault in caught.value.faults] == [said]
