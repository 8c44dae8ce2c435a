"""The file of an experiment: its mistakes, each with its place, and what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.bad_input import BadInput
from fleet.scenario import load_scenario
from fleet.sweep.cells import cells_of
from fleet.sweep.experiment_file import read_plan
from tests.fleet.sweep_plans import EXPERIMENT, SCENARIO, written


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("s.toml", "t.toml", "e.toml:2: scenario: cannot read"),
        ("seeds = 3", "seeds = 0", "e.toml:3: seeds: 0 is no number of seeds"),
        ("seeds = 3", "seeds = [1, 1]", "e.toml:3: seeds: a seed is there twice"),
        (
            "wave_size",
            "wave_sise",
            'e.toml:6: parameters.0.values: rollout.wave_sise: unknown key, did you mean "wav',
        ),
        ("[1, 2, 4]", "[1, 0]", "e.toml:6: parameters.0.values: rollout.wave_size: 0 is too small"),
        ("[1, 2, 4]", "[\n1,\n0]", "e.toml:8: parameters.0.values: rollout.wave_size: 0 is too"),
        ("[1, 2, 4]", "[]", "e.toml:6: parameters.0.values: is empty"),
        (
            '{ "faults.0.rate" = 0.5 }',
            '{ "faults.3.rate" = 0.5 }',
            "e.toml:11: parameters.1.choices.some: faults.3.rate: faults has no item 3",
        ),
        ("values = [1, 2, 4]", "to = 4\nsteps = 2", "e.toml:4: parameters.0.from: missing"),
        ("values = [1, 2, 4]", 'from = "1"\nto = 4\nsteps = 2', 'from: "1" is not a number'),
        (
            "values = [1, 2, 4]",
            'from = 0\nto = 4\nsteps = 2\nscale = "log"',
            "e.toml:6: parameters.0.from: 0 has no logarithm",
        ),
        ("values = [1, 2, 4]", "from = 1\nto = 9999\nsteps = 1001", "1001 is too large"),
        (
            "values = [1, 2, 4]",
            "from = 1.1\nto = 2.9\nsteps = 2\nwhole = true",
            "e.toml:7: parameters.0.to: 1.1 to 2.9 has not two whole numbers",
        ),
        ("values = [1, 2, 4]", "choices = [4]", "[parameters.choices]"),
        ("rollout.wave_size", "seed", "parameters.0.key: every cell is run with the same seeds"),
        (
            '"faults.0.rate" = 0.5',
            '"rollout.wave_size" = 3',
            "e.toml:9: parameters.1.choices: sets rollout.wave_size, and so does the parameter at ",
        ),
        (
            "[goal]",
            'none_again = { "faults.0.rate" = 0.0 }\n[goal]',
            'e.toml:12: parameters.1.choices.none_again: sets what "none" sets, one of them',
        ),
        ('name = "trouble"', 'name = "Wave_Size"', '"Wave_Size" is there twice'),
        ('name = "trouble"', 'name = "Digest"', '"Digest" is a column of every sweep'),
        ("vms_lost = 0", "hosts_updated = 97", "97 is out of range, a share, 0.97 for 97 %"),
        ("vms_lost = 0", 'downtime_p50_seconds = "9s"', '"9s" is not a number, seconds, as in'),
        ("values", "value", "nothing to choose from"),
        ("minimise", "minimize", 'unknown key, did you mean "minimise"?'),
        ('"rollout_seconds"', '"duration"', '"duration" is not known'),
        ("vms_lost = 0", "vms_los = 0", 'is no metric of a run, did you mean "vms_lost"?'),
        ('name = "trouble"', 'name = "wave_size"', '"wave_size" is there twice'),
        ("[goal]", '[sampling]\nmethod = "halton"\n[goal]', "sampling.samples: missing"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in EXPERIMENT
    with pytest.raises(BadInput) as caught:
        read_plan(written(tmp_path, EXPERIMENT.replace(old, new, 1)))
    assert said in str(caught.value)
    assert "e+15" not in str(caught.value), "what stands in for a mistake is none"


def test_a_grid_that_nobody_can_run_is_refused_before_it_is_laid_out(tmp_path: Path) -> None:
    ranges = "".join(
        f'[[parameters]]\nkey = "{key}"\nfrom = 1\nto = 4000\nsteps = 150\n'
        for key in ("rollout.wave_size", "rollout.canary", "faults.0.factor")
    )
    experiment = written(tmp_path, f'scenario = "t.toml"\nseeds = 1\n{ranges}')
    with pytest.raises(BadInput, match="3,375,000 combinations are too many, 1,000,000 at most"):
        read_plan(experiment)
    with pytest.raises(BadInput, match="parameters: missing"):
        read_plan(written(tmp_path, 'scenario = "s.toml"\nseeds = 1\nparameters = []\n'))


def test_whole_numbers_stay_between_ends_that_are_none(tmp_path: Path) -> None:
    values = 'key = "rollout.wave_size"\nfrom = 1.5\nto = 7.9\nwhole = true'
    sampling = '[sampling]\nmethod = "halton"\nsamples = 40'
    text = f'scenario = "s.toml"\nseeds = 1\n{sampling}\n[[parameters]]\n{values}\n'
    cells = cells_of(read_plan(written(tmp_path, text)))
    assert sorted(cell.choices[0].label for cell in cells) == list("234567")


def test_lists_of_tables_may_be_values(tmp_path: Path) -> None:
    values = 'key = "faults"\nvalues = [[], [{ kind = "boot-hangs", rate = 0.5 }]]'
    plan = read_plan(
        written(tmp_path, f'scenario = "s.toml"\nseeds = 1\n[[parameters]]\n{values}\n')
    )
    found = [
        load_scenario(plan.scenario, choice.overrides).faults
        for choice in plan.parameters[0].choices
    ]
    assert [{fault.kind for fault in faults} for faults in found] == [set(), {"boot-hangs"}]


@pytest.mark.parametrize(
    "ways",
    [
        'key = "rollout.max_unavailable"\nvalues = [{}, { rack = 2 }]',
        """[parameters.choices]
        none = { "rollout.max_unavailable" = {} }
        two = { "rollout.max_unavailable" = { rack = 2 } }""",
    ],
)
def test_an_empty_table_is_a_value_too(tmp_path: Path, ways: str) -> None:
    """It leaves nothing of the table; one that holds something sets just that."""
    scenario = SCENARIO.replace("cpus = 8", "cpus = 8\nracks = 2\ndomains = { zone = 2 }")
    scenario = scenario.replace("canary", "max_unavailable = { rack = 1, zone = 1 }\ncanary")
    text = f'scenario = "s.toml"\nseeds = 1\n[[parameters]]\nname = "limits"\n{ways}\n'
    plan = read_plan(written(tmp_path, text, scenario))
    found = [load_scenario(plan.scenario, cell.overrides) for cell in cells_of(plan)]
    assert [one.rollout.max_unavailable for one in found] == [{}, {"rack": 2, "zone": 1}]
    assert all(choice.label for choice in plan.parameters[0].choices)
