"""Random scripts, and what is made of a difference."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from fleet.recorder.compare import Comparison, modelled, shrink
from fleet.recorder.huge_scripts import random_huge_script
from fleet.recorder.scripts import THEMES, random_script
from kernelmodel.conform import Script
from kernelmodel.errors import ModelBug
from kernelmodel.script import _ONLY_HUGE

SEED = 5
NUMBER = 80


def test_a_seed_and_a_number_are_a_script() -> None:
    assert random_script(1, 2) == random_script(1, 2)
    scripts = [random_script(seed, index) for seed in (1, 2) for index in range(20)]
    assert len(set(scripts)) == len(scripts)


def test_random_scripts_are_scripts_with_more_than_one_boot() -> None:
    boots = [len(Script.parse(random_script(SEED, index)).boots) for index in range(NUMBER)]
    assert min(boots) == 2
    assert max(boots) >= 4


def test_random_scripts_reach_successes_and_corners() -> None:
    answers: dict[tuple[str, str], int] = {}
    for index in range(NUMBER):
        for line in modelled(random_script(SEED, index)):
            _, _, op, *answer = line.split()
            if answer:
                answers[op, answer[0]] = answers.get((op, answer[0]), 0) + 1
    succeeded = sum(count for (_, answer), count in answers.items() if answer == "ok")
    assert succeeded > sum(answers.values()) / 2
    assert set(THEMES["plain"]) <= {op for op, answer in answers if answer == "ok"}
    wanted = {"EBADF", "EBUSY", "EEXIST", "EFAULT", "EINVAL", "ENOENT", "ENOTTY", "EPERM", "E2BIG"}
    assert wanted <= {answer for _, answer in answers}


def test_the_same_answers_are_no_difference() -> None:
    text = "open d\nopen e\n"
    comparison = Comparison.of(text, ["T 1 open ok", "T 2 open EBUSY", "T end 1"])
    assert comparison.difference is None


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (["T 1 open ok", "T 2 open ok", "T end 1"], "'T 2 open ok', the model 'T 2 open EBUSY'"),
        (["T 1 open ok"], "'(nothing)', the model 'T 2 open EBUSY'"),
        (["T 1 open ok", "T 2 open EBUSY"], "the kernel says '(nothing)', the model 'T end 1'"),
    ],
)
def test_the_first_different_line_is_named(kernel: list[str], says: str) -> None:
    difference = Comparison.of("open d\nopen e\n", kernel).difference
    assert difference is not None
    assert says in str(difference)


def test_a_bug_of_the_model_is_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ModelBug("lost a page")

    monkeypatch.setattr("kernelmodel.syscalls.Task.open", broken)
    assert modelled("open d\n") == ("ModelBug: lost a page",)
    assert CliRunner().invoke(app, ["conform", "--random", "1"]).exit_code == 4


def test_shrinking_keeps_what_makes_the_difference() -> None:
    lines = [f"null n{number}" for number in range(50)]
    lines[17], lines[33] = "open d", "open e"

    def differs(part: str) -> bool:
        return {"open d", "open e"} <= set(part.splitlines())

    assert shrink("\n".join(lines), differs, 200) == "open d\nopen e\n"
    assert "open e" in shrink("\n".join(lines), differs, 3)


def test_random_scripts_can_be_kept_without_a_kernel(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["conform", "--random", "2", "--seed", "7", "--keep", str(tmp_path / "kept")]
    )
    assert done.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "7-0.scn",
        "7-0.trace",
        "7-1.scn",
        "7-1.trace",
    ]
    assert (tmp_path / "kept" / "7-1.scn").read_text() == random_script(7, 1)


def test_random_scripts_about_huge_pages_run_out_of_them_at_times() -> None:
    answers = {
        tuple(line.split()[2:4])
        for index in range(NUMBER)
        for line in modelled(random_huge_script(SEED, index))
    }
    assert {(op, "ok") for op in _ONLY_HUGE} <= answers
    assert {("map", "ENOMEM"), ("pmap", "ENOMEM"), ("fallocate", "ENOSPC")} <= answers
    assert random_huge_script(1, 2) == random_huge_script(1, 2) != random_huge_script(1, 3)
    assert CliRunner().invoke(app, ["conform", "--random", "2", "--huge"]).exit_code == 0
