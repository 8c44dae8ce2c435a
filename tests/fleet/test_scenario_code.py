"""Scenarios that are built in code."""

from __future__ import annotations

from enum import Enum, IntEnum
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import pytest

from fleet.scenario import BadInput, load_scenario, scenario_of

SMALL = Path(__file__).parents[2] / "examples" / "small.toml"


class Cpus(IntEnum):
    FEW = 4
    SEVEN = 7


class Runs(Enum):
    OLD = "7.3.2"


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
    classes = np.array([{**CLASS, "cpus": Cpus.FEW, "release": Runs.OLD}])
    fleet = {"host_class": classes}
    plain = scenario_of({"fleet": fleet, "update": {"target": "7.3.4"}, "rollout": {}})
    assert type(plain.hosts[0].cpus) is int
    assert type(plain.hosts[0].release) is str


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), np.array(7), Cpus.SEVEN])
def test_a_seed_is_a_number_whatever_holds_it(seed: SupportsIndex) -> None:
    """Else its streams, and the digest, would be those of no seed that `--seed` can say."""
    assert load_scenario(SMALL, seed=seed) == load_scenario(SMALL, seed=7)


@pytest.mark.parametrize("seed", [1.5, 7.0, True, "7", np.float64(2), -1, 1 << 63])
def test_what_is_no_seed_is_told(seed: int) -> None:
    with pytest.raises(BadInput, match=r"--seed: .* is no seed, 0 to 9223372036854775807"):
        load_scenario(SMALL, seed=seed)


def test_overrides_that_can_be_read_once_are_kept() -> None:
    for path in (SMALL, str(SMALL)):
        scenario = load_scenario(path, (f"rollout.wave_size={size}" for size in (2, 3)))
        assert scenario.overrides == ("rollout.wave_size=2", "rollout.wave_size=3")
        assert scenario.rollout.wave_size == 3


def test_a_file_is_no_values() -> None:
    with pytest.raises(TypeError, match=r"^str is no mapping; load_scenario\(\) reads a file"):
        scenario_of(str(SMALL))  # type: ignore[arg-type] # what a notebook may hold


def test_a_scenario_shows_itself_on_one_line() -> None:
    shown = repr(load_scenario(SMALL))
    assert shown == "<Scenario small: 3 hosts, 9 VMs, to 7.3.4+hugetlb, seed 1>"


TOO_LONG = "its kernel cannot load the next one: EINVAL: command line is too long"
SAID_ONCE = [
    # what the scenario holds, what is said of it
    ({"fleet": 3}, "scenario: fleet: 3 is no table, [fleet]"),
    ({"costs": {"profile": 3}}, "scenario: costs.profile: 3 is not text, write it in quotes"),
    (
        {"release": [{"name": "own", "based_on": "7.3.4"}] * 2},
        'scenario: release.1.name: "own" is there twice, first at scenario',
    ),
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
