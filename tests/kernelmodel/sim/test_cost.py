"""Promise: costs are exact, every row says whence, and a profile's faults come all at once."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmodel.errors import ModelBug
from kernelmodel.sim.cost import KINDS, CostModel, CostProfileError, Spread, format_profile

FAULTY = """
smp_bringups = { per_unit_ps = 1 }
initcalls = 3
[vmm_start]
per_unit_ps = -1
base_ns = 1.5
factor = 2
[vm_boot]
kind = "guess"
source = " "
unit = 4
[kho_reserve_preserved]
per_unit_ps = 3_000_000_000
unit = "GiB"
[kho_init]
kind = "measured"
[memmap_init_page]
spread = "long"
base_ns = true
[spread]
boot-tail = 3
[spread.empty]
kind = "hearsay"
[spread.odd]
points = [[0, 1000], [400, 900], [1000, 2000]]
quantiles = 3
"""

POINTS_RULE = (
    "pairs [quantile, multiplier] in whole permille are expected, the quantiles rising from 0 to "
    "1000, the multipliers above 0 and never falling"
)

FAULTS = {
    "spread.boot-tail: a table of fields is expected, not 3",
    "spread.empty.kind: one of published, measured, estimate is expected, not 'hearsay'",
    f"spread.empty.points: {POINTS_RULE}",
    f"spread.odd.points: {POINTS_RULE}",
    "spread.odd.quantiles: unknown; a spread has points, kind, source",
    "smp_bringups: no such row; did you mean smp_bringup?",
    "initcalls: a table of fields is expected, not 3",
    "vmm_start.per_unit_ps: a whole number >= 0 is expected, not -1",
    "vmm_start.base_ns: a whole number >= 0 is expected, not 1.5",
    "vmm_start.factor: unknown; a row has base_ns, per_unit_ps, unit, kind, source, spread, stream",
    "vm_boot.kind: one of published, measured, estimate is expected, not 'guess'",
    "vm_boot.source: empty; say where the figures are from",
    "vm_boot.unit: a string is expected, not 4",
    "kho_reserve_preserved.unit: it is charged for each radix key; convert what is per GiB",
    "kho_init: kind and source are given together or not at all",
    "memmap_init_page.spread: 'long' is not defined; there are boot-tail, firmware-tail, vmm-tail",
    "memmap_init_page.base_ns: a whole number >= 0 is expected, not True",
}


def test_all_faults_of_a_profile_are_listed() -> None:
    with pytest.raises(CostProfileError) as caught:
        CostModel.load(FAULTY)
    assert set(caught.value.faults) == FAULTS
    assert len(caught.value.faults) == len(FAULTS)
    assert pickle.loads(pickle.dumps(caught.value)).faults == caught.value.faults


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[initcalls", "the cost profile is not TOML: "),
        ("spread = 3", "spread: tables .spread.NAME. are expected"),
        ("[spread.x]\npoints = 4", "spread.x.points: pairs"),
        ("[spread.x]\npoints = [[0, 1000], 5]", "spread.x.points: pairs"),
        ("[spread.x]\npoints = [[0, 1000]]", "spread.x.points: pairs"),
        ("[spread.x]\npoints = [[0, 0], [1000, 1000]]", "spread.x.points: pairs"),
        ("[spread.x]\npoints = [[1, 1000], [1000, 1000]]", "spread.x.points: pairs"),
    ],
)
def test_one_fault(text: str, fault: str) -> None:
    with pytest.raises(CostProfileError, match=fault):
        CostModel.load(text)


def test_an_op_without_a_row_is_a_model_bug() -> None:
    with pytest.raises(ModelBug, match="no cost row for 'kho_radix_add_keys'; close: kho_radix_ad"):
        CostModel.load().cost_ns("kho_radix_add_keys")
    with pytest.raises(ModelBug, match="neither an op nor a stream"):
        CostModel.load().ops_slowed_by("boots")


def test_every_row_says_what_a_unit_is_and_whence_its_figures_are() -> None:
    model = CostModel.load()
    for row in model.rows.values():
        assert row.kind in KINDS
        assert row.unit
        assert row.source.strip()
        assert row.base_ns or row.per_unit_ps, f"{row.op} is free"
        assert not row.spread or row.stream, f"{row.op} has luck that no fault can slow"
    for spread in model.spreads.values():
        assert spread.source.strip()


def test_figures_without_a_source_inherit_no_claim() -> None:
    row = CostModel.load("[kho_extend_scratch]\nper_unit_ps = 1000\n").row("kho_extend_scratch")
    assert (row.base_ns, row.per_unit_ps, row.kind) == (65_000, 1000, "estimate")
    assert row.source == "overridden by the profile, which names no source"


def test_a_measured_row_keeps_its_source_and_a_new_spread() -> None:
    model = CostModel.load(
        '[initcalls]\nbase_ns = 9\nkind = "measured"\nsource = "our lab"\nspread = "lab"\n'
        '[spread.lab]\npoints = [[0, 1000], [1000, 1000]]\nkind = "measured"\nsource = "our lab"\n'
    )
    row = model.row("initcalls")
    assert (row.base_ns, row.kind, row.source, row.spread) == (9, "measured", "our lab", "lab")
    assert row.unit == "boot"
    assert set(model.rows) == set(CostModel.load().rows)


def test_a_spread_can_be_taken_away() -> None:
    assert CostModel.load('[initcalls]\nspread = ""\n').row("initcalls").spread == ""


@pytest.mark.parametrize(
    ("profile", "same"),
    [
        ("", True),
        ("\n# nothing\n", True),
        ('[initcalls]\nkind = "measured"\nsource = "confirmed"\n', True),
        ("[initcalls]\nbase_ns = 4_500_000_000\n", True),
        ("[initcalls]\nbase_ns = 4_500_000_001\n", False),
        ("[kho_reserve_preserved]\nper_unit_ps = 147_001\n", False),
        ('[initcalls]\nstream = "slow"\n', False),
        ('[initcalls]\nspread = "vmm-tail"\n', False),
        ("[spread.boot-tail]\npoints = [[0, 920], [1000, 2500]]\n", False),
    ],
)
def test_the_digest_follows_what_can_change_a_time(profile: str, same: bool) -> None:
    assert (CostModel.load(profile).digest() == CostModel.load().digest()) is same


@given(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**9))
def test_costs_are_linear_to_half_a_nanosecond(base: int, per_unit: int, units: int) -> None:
    profile = f"[initcalls]\nbase_ns = {base}\nper_unit_ps = {per_unit}\n"
    cost = CostModel.load(profile).cost_ns("initcalls", units)
    assert abs(1000 * (cost - base) - units * per_unit) <= 500


def test_spreads_are_linear_between_their_points() -> None:
    spread = Spread("s", ((0, 500), (500, 1000), (990, 1500), (1000, 4000)), "estimate", "test")
    wanted = {0: 500, 250_000: 750, 500_000: 1000, 745_000: 1250, 990_000: 1500, 1_000_000: 4000}
    assert {drawn: spread.multiplier_permille(drawn) for drawn in wanted} == wanted
    with pytest.raises(ModelBug, match="beyond the spread 's'"):
        spread.multiplier_permille(1_000_001)


def test_streams_name_what_a_fault_slows() -> None:
    model = CostModel.load()
    boot = model.ops_slowed_by("boot")
    assert {"initcalls", "userspace_init", "kho_init_preserved_page", "machine_kexec"} <= set(boot)
    assert not {"vmm_start", "luo_retrieve_file", "firmware_post"} & set(boot)
    assert model.ops_slowed_by("vmm_start") == ("vmm_start",)


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
SCALARS = st.one_of(st.integers(-(2**63), 2**63 - 1), KEYS, st.lists(st.lists(st.integers(0, 9))))
TABLES = st.dictionaries(KEYS, st.one_of(st.dictionaries(KEYS, SCALARS), st.just({"x": {"y": 1}})))


@given(TABLES)
def test_a_profile_survives_being_written(tables: dict[str, object]) -> None:
    assert tomllib.loads(format_profile(tables)) == tables


def test_a_written_profile_gives_the_same_model() -> None:
    tables = {"initcalls": {"base_ns": 5}, "spread": {"x": {"points": [[0, 1], [1000, 2]]}}}
    text = format_profile(tables)
    assert text == (
        '["initcalls"]\n"base_ns" = 5\n["spread"."x"]\n"points" = [[0, 1], [1000, 2]]\n'
    )
    assert CostModel.load(text).row("initcalls").base_ns == 5
    assert format_profile({}) == ""


def test_the_rows_in_force_can_be_printed(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kernelmodel.sim", *arguments]
        return subprocess.run(command, capture_output=True, check=False, text=True)

    profile = tmp_path / "ours.toml"
    profile.write_text('[initcalls]\nbase_ns = 9\nkind = "measured"\nsource = "our lab"\n')
    assert run().stdout == CostModel.load().markdown()
    assert (
        "| `initcalls` | 9 ns |  | boot | measured | boot-tail | our lab |"
        in run(str(profile)).stdout
    )
    profile.write_text(FAULTY)
    refused = run(str(profile))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert {line.removeprefix(f"{profile}: ") for line in refused.stderr.splitlines()} == FAULTS
    assert run(str(tmp_path / "absent.toml")).returncode == 2
    assert run("a", "b").returncode == 2
