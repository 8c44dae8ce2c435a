"""Scenarios that are built in code."""

from __future__ import annotations

import pytest

from fleet.scenario import BadInput, scenario_of


def test_values_in_code_are_read_as_a_file_would_be() -> None:
    values: dict[str, object] = {
        "seed": 3,
        "fleet": {
            "host_class": (
                {"name": "n", "count": 2, "memory": "64GiB", "cpus": 4, "release": "7.3.2"},
            )
        },
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
